"""Every name of Keras, TensorFlow and XLA that is not public.

`keras_trainer`, `keras_model`, `keras_graph`, `keras_optimizer` and `keras_backend`
look private names of Keras up, `tensorflow` and `xla` those of TensorFlow. Each
function says what would let it go. No other folder uses a private name of theirs.
`types` names objects in annotations, `former_modules` lets old pickles load.
"""
