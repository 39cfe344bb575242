"""Several fronts and one engine process: HTTP and decoding here, sessions and batches there."""
