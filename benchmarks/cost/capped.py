"""The cost of a bounded step: the loop with `max_loss_fraction`, and without.

`python -m benchmarks capped [workload ...]`. The learning rate is so low that no step
is bounded, so the weights are those without it. The models take turns, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cost import options

_LOW = 1e-7
_SETTINGS = {
    "none": {"learning_rate": _LOW},
    "max_loss_fraction": {"learning_rate": _LOW, "max_loss_fraction": 1.0},
}
_EXAMPLES = {  # in a pass
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
    "cnn": 512,
    "lstm-20x8": 1_024,
    "transformer-32x64": 128,
}
_LAYERED = ("cnn", "lstm-20x8", "transformer-32x64")
_TARGETS = {"": 1.30, **dict.fromkeys(_LAYERED, 1.15)}


def measure(arguments: list[str]) -> Iterator[options.Options]:
    """Yields each workload."""
    return options.measure("capped", arguments, _SETTINGS, _EXAMPLES, _TARGETS)
