"""What a model is made of, and where it can be cut."""
