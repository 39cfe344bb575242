"""One file an endpoint; ``app.py`` lists them."""
