"""How well a model and its prompts do on pictures of which it is known what they show."""
