"""The loop over a batch: its updates and logs against NumPy and Keras's SGD."""
