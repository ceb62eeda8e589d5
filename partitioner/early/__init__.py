"""Which early exits there are: the model's own, or new ones, attached and trained."""
