"""The room of the loop: its updates and logs equal those of NumPy and Keras's SGD."""
