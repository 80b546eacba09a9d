"""Why SGD shuffles: the same examples sorted by class, shuffled once, and reshuffled.

`python -m benchmarks order`: the MLP on MNIST, one update per image,
learning rate 0.01, no momentum. The data are the same in all arms; only
`fit(shuffle=...)`, `order` and how the rows lie differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from benchmarks.quality.tasks import TASKS
from benchmarks.shared import command, storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import SGDPlus

EPOCHS, SEEDS = 12, 5
ORDERS = {  # how the rows lie, and whether fit shuffles
    "reshuffled in every epoch": ("as they come", True),
    "shuffled once": ("as they come", False),
    "sorted by class": ("sorted", False),
}


def _trained(order: str, seed: int) -> list[float]:
    """Test accuracy after each epoch."""
    task = TASKS["mlp"]
    (x, y), (x_test, y_test) = task.data().train, task.data().test
    rows_are, shuffle = ORDERS[order]
    keras.utils.set_random_seed(seed)
    # The arms of a seed start from the same rows and weights.
    rows = np.random.default_rng(seed).permutation(len(x))
    if rows_are == "sorted":
        # Stable: within a class the order stays that of the seed.
        rows = rows[np.argsort(y[rows], kind="stable")]
    model = task.model(seed)
    optimizer = SGDPlus(0.01, order="reshuffle" if shuffle else "given", seed=seed)
    model.compile(optimizer, task.loss, metrics=[task.metric])
    history = model.fit(
        x[rows],
        y[rows],
        batch_size=len(x),
        epochs=EPOCHS,
        shuffle=shuffle,
        validation_data=(x_test, y_test),
        verbose=0,
    )
    return [round(v, 5) for v in history.history["val_accuracy"]]


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Trains with every seed in every order; writes JSON."""
    command.options("order", __doc__, arguments)
    results: dict[str, list[list[float]]] = {order: [] for order in ORDERS}
    for seed in range(SEEDS):
        for order in ORDERS:
            results[order].append(_trained(order, seed))
            print(f"  seed {seed}, {order}: {results[order][-1][-1]:.3f}", flush=True)
    storage.write("order", results)
    yield Stored("order")
