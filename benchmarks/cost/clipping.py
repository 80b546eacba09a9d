"""The cost of measuring gradients: the loop with clipping by norm, and without.

`python -m benchmarks clipping [workload ...]`. The limit is far above every norm, so
the weights are those without it. The models take turns, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cost import options

_LIMIT = 1e6
_SETTINGS = {
    "none": {},
    "clipnorm": {"clipnorm": _LIMIT},
    "global_clipnorm": {"global_clipnorm": _LIMIT},
}
_TARGETS = {"": 1.30}
_EXAMPLES = {  # in a pass
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
}


def measure(arguments: list[str]) -> Iterator[options.Options]:
    """Yields each workload."""
    return options.measure("clipping", arguments, _SETTINGS, _EXAMPLES, _TARGETS)
