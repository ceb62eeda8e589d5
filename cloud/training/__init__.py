"""A program: trains a multi-exit Keras model on a data stream, as a job that the control plane starts."""
