"""What goes into `fit` beside the optimizer: callbacks, and data with a known order."""

from keras_sgd_plus._callbacks.exact_resume import ExactResume
from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays

__all__ = ["ExactResume", "SeededArrays"]
