"""Pieces of a model as TFLite files, checked; what crosses between them."""
