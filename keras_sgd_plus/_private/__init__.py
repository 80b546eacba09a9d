"""Every name of Keras, TensorFlow and XLA that is not public.

No other folder uses a private name of theirs.
"""
