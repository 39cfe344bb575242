"""What a model is and how it runs. Knows nothing of HTTP, requests or prompts."""
