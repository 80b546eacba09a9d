"""The room of Keras's trainer: the hook, `fit` with every kind of data, tools."""
