"""True per-example SGD for Keras 3, compiled into one XLA loop."""

from keras_sgd_plus import _callbacks, _nonfinite
from keras_sgd_plus._callbacks import (
    AverageWeights,
    ExactResume,
    ExampleLog,
    SeededArrays,
)
from keras_sgd_plus._nonfinite import Skipped as Skipped
from keras_sgd_plus._optimizer import SGDPlus
from keras_sgd_plus._private import former_modules

__version__ = "0.2.1"

__all__ = [
    "AverageWeights",
    "ExactResume",
    "ExampleLog",
    "SGDPlus",
    "SeededArrays",
    "__version__",
]

former_modules.answer_to(
    {"_arrays": _callbacks, "_resume": _callbacks, "_ledger": _nonfinite}
)
