"""The cost of `AverageWeights`: epochs of `fit` in batches of 1,024.

`python -m benchmarks averages [workload ...]`. The models take turns, on one thread.
CPU time is measured: an epoch of `fit` waits for its data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.arms.workloads import Workload
from benchmarks.cost import fits, loops
from benchmarks.cost.options import Options

REPEATS, EPOCHS = 9, 5  # fits of each model, epochs of each; the first does not count
_EXAMPLES = {  # in an epoch
    "softmax-784-10": 32_768,
    "mlp-784-128-10": 16_384,
    "mlp-784-128-10-m0.9": 16_384,
}
_TARGET = 1.05


def measure(arguments: list[str]) -> Iterator[Options]:
    """Yields each workload."""
    for workload, count in loops.chosen("averages", arguments, _EXAMPLES):
        yield _measured(workload, count)


def _measured(workload: Workload, count: int) -> Options:
    from keras_sgd_plus import AverageWeights

    data = fits.batches(workload, count)
    callbacks = {"plain": [], "averaged": [AverageWeights()]}
    models = fits.models(workload, callbacks)
    times: dict[str, list[float]] = {arm: [] for arm in models}
    losses: dict[str, float] = {}
    for i in range(REPEATS):
        for arm, model in models.items():
            timer = fits.clock()
            every = [*callbacks[arm], timer]
            fit = model.fit(data, epochs=EPOCHS, verbose=0, callbacks=every)
            losses.setdefault(arm, fit.history["loss"][-1])
            if i:  # the first fit compiles
                times[arm] += timer.times[1:]
    medians = {
        arm: statistics.median(found) / count * 1e6 for arm, found in times.items()
    }
    return Options(workload.id, medians, _TARGET, losses["plain"] == losses["averaged"])
