"""HTTP and concurrency around ``models`` and ``prompts``."""
