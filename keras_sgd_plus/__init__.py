"""True per-example SGD for Keras 3, compiled into one XLA loop."""

from keras_sgd_plus._callbacks.average_weights import AverageWeights
from keras_sgd_plus._callbacks.exact_resume import ExactResume
from keras_sgd_plus._callbacks.example_log import ExampleLog
from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays
from keras_sgd_plus._compilations import keep_compilations
from keras_sgd_plus._optimizer.sgd_plus import SGDPlus
from keras_sgd_plus._rate.find import find_learning_rate
from keras_sgd_plus._rate.linear_decay import LinearDecay
from keras_sgd_plus._rate.search import FoundLearningRate
from keras_sgd_plus._report.bad_examples import Skipped as Skipped

__version__ = "0.2.1"

__all__ = [
    "AverageWeights",
    "ExactResume",
    "ExampleLog",
    "FoundLearningRate",
    "LinearDecay",
    "SGDPlus",
    "SeededArrays",
    "__version__",
    "find_learning_rate",
    "keep_compilations",
]
