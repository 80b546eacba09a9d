"""How Keras's `fit` reaches an optimizer that steps per example.

`patches` wraps methods of Keras's trainer, `optimizers` tells which optimizers are
meant, `train_function` is what `fit` calls for each batch. `fits` knows the calls of
`fit` that run, and `bypass` the optimizers whose loop they went around.
"""

from keras_sgd_plus._trainer import bypass, fits
from keras_sgd_plus._trainer.optimizers import (
    PerExampleOptimizer,
    is_ours,
    per_example,
    unwrap,
)
from keras_sgd_plus._trainer.patches import (
    install,
    install_fit,
    install_loading,
    stock_train_step,
    uninstall,
)
from keras_sgd_plus._trainer.train_function import FastForward, TrainFunction

__all__ = [
    "FastForward",
    "PerExampleOptimizer",
    "TrainFunction",
    "bypass",
    "fits",
    "install",
    "install_fit",
    "install_loading",
    "is_ours",
    "per_example",
    "stock_train_step",
    "uninstall",
    "unwrap",
]
