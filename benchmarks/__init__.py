"""Reproducible measurements of clipserve: the encoder alone, decoding, both in one process, and HTTP."""
