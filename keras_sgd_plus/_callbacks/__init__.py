"""Companions of the optimizer in `fit`: callbacks, and data whose order is known."""

from keras_sgd_plus._callbacks.average_weights import AverageWeights
from keras_sgd_plus._callbacks.exact_resume import ExactResume
from keras_sgd_plus._callbacks.example_log import ExampleLog
from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays

__all__ = ["AverageWeights", "ExactResume", "ExampleLog", "SeededArrays"]
