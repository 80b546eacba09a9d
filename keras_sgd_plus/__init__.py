"""True per-example SGD for Keras 3, compiled into one XLA loop."""

from keras_sgd_plus._optimizer import SGDPlus

__version__ = "0.1.0"

__all__ = ["SGDPlus", "__version__"]
