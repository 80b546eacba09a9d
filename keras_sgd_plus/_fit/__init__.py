"""How Keras's `fit` reaches an optimizer that steps per example.

`hooks` wraps methods of Keras's trainer, `fits` knows the calls of `fit` that run now,
`train_function` is what `fit` calls for each batch.
"""
