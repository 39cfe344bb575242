"""What a GPU makes of it: encoders side by side, and the service that feeds them."""
