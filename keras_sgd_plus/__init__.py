"""True per-example SGD for Keras 3, compiled into one XLA loop."""

from keras_sgd_plus._arrays import SeededArrays
from keras_sgd_plus._optimizer import SGDPlus
from keras_sgd_plus._resume import ExactResume

__version__ = "0.1.0"

__all__ = ["ExactResume", "SGDPlus", "SeededArrays", "__version__"]
