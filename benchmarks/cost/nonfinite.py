"""The cost of checking each loss and gradient: the loop with and without the check.

`python -m benchmarks nonfinite [workload ...]`. The models take turns, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cost import options

_SETTINGS = {mode: {"nonfinite": mode} for mode in ("propagate", "skip", "raise")}
_TARGETS = {
    "": 1.10,
    # One layer alone: the check of its 784 inputs is a larger part of an update.
    "softmax-784-10": 1.30,
}
_EXAMPLES = {  # in a pass
    "linear-20": 65_536,
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
    "cnn": 512,
    "lstm-20x8": 1_024,
    "embedding-100k": 4_096,
}


def measure(arguments: list[str]) -> Iterator[options.Options]:
    """Yields each workload."""
    return options.measure("nonfinite", arguments, _SETTINGS, _EXAMPLES, _TARGETS)
