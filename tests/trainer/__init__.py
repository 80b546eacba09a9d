"""Keras's trainer: the hook, `fit` with every kind of data, and tools built on it."""
