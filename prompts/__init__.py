"""From labels to class embeddings: pure numpy, takes an ``encode_texts`` callable."""
