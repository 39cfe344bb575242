"""Embeddings of very many pictures, in a file that grows safely: what ``clipserve embed`` does."""
