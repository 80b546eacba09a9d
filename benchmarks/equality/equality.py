"""SGDPlus against `keras.optimizers.SGD` at `batch_size=1`, model by model.

`python -m benchmarks equality [model ...]`. Each model of the zoo makes 300 updates in
given order. Keras is compiled with `jit_compile=True`. The first run has our XLA
setting and our forms of layers off, so that XLA gets the same operations and emits the
same kernels for many models; the second has the defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.processes import Call
from keras_sgd_plus import SGDPlus
from tests.support.compare import NUM_UPDATES, bound_of, difference, snapshot
from tests.support.zoo import ZOO, Case

OFF = {
    "XLA_FLAGS": "--xla_backend_extra_options="
    "xla_cpu_small_while_loop_byte_threshold=1024",
    "KERAS_SGD_PLUS_LOWERING": "0",
}
DEFAULTS = dict.fromkeys(OFF)  # unset, whatever the user has set


@dataclass(frozen=True)
class Model(Finding):
    """How far a model is from Keras's: all off, and with the defaults."""

    keys = ("id",)
    id: str
    off: float
    bit_equal: bool  # all off
    defaults: float
    bound: float

    @property
    def missed(self) -> bool:
        """Whether the model is out of its bound with the defaults."""
        return self.defaults > self.bound


def measure(arguments: list[str]) -> Iterator[Model]:
    """Yields each model as soon as the second run has it."""
    ids = command.options("equality", __doc__, arguments, ZOO).names
    off = []
    for answer in _differences(ids, OFF):
        off.append(answer)
        print(f"\r{len(off)} of {len(ids)}, all off", end="", file=sys.stderr)
    print(file=sys.stderr)
    for (case_id, apart, equal), (_, defaults, _) in zip(
        off, _differences(ids, DEFAULTS), strict=True
    ):
        yield Model(case_id, apart, equal, defaults, bound_of(ZOO[case_id].dtype))


def _differences(
    ids: list[str], environment: Mapping[str, str | None]
) -> Iterator[tuple[str, float, bool]]:
    yield from Call(differences, ids, environment=environment).answers()


def differences(ids: list[str]) -> Iterator[tuple[str, float, bool]]:
    """By model, the difference after 300 updates, and whether no bit differs."""
    for case_id in ids:
        case = ZOO[case_id]
        _, ours = _trained(case, ours=True)
        before, theirs = _trained(case, ours=False)
        found = difference(before, ours, theirs)
        yield case_id, found.relative, found.bit_equal


def _trained(case: Case, ours: bool) -> tuple[Any, Any]:
    # Snapshots before and after the updates.
    x, y = case.data(NUM_UPDATES)
    model = case.model()
    settings = {"learning_rate": case.learning_rate, "momentum": 0.9}
    with case.policy():
        if ours:
            optimizer = SGDPlus(**settings, order="given")
        else:
            optimizer = keras.optimizers.SGD(**settings)
        metrics = case.metrics()
        model.compile(optimizer, case.loss, metrics=metrics, jit_compile=not ours)
        model(x[:1])  # builds subclassed models
        before = snapshot(model)
        # With 128, SGDPlus has whole batches and a last short one.
        size = 128 if ours else 1
        model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
    return before, snapshot(model)
