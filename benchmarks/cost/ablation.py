"""The gain of each form of the loop: its time with all forms, and with all but one.

`python -m benchmarks ablation [form ...]`. A form is switched off while a model is
traced; then both models take turns, on one thread.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from benchmarks.arms.workloads import WORKLOADS, Workload
from benchmarks.cost import loops
from benchmarks.shared import command
from benchmarks.shared.finding import Finding

REPEATS = 9
_CNN, _MIXED, _MLP = "cnn", "conv-bn-dropout", "mlp-784-128-10"
_TRANSFORMER = "transformer-32x64"
_DEPTHWISE = Workload(  # no arm of the other studies trains it
    "depthwise", "depthwise", (16, 32, 10), "cross_entropy", 0.002
)
_LAYERS = {  # functions of Keras's backend
    "convolution by patches": ("conv", _CNN),
    "depthwise convolution by shifts": ("depthwise_conv", _DEPTHWISE.id),
    "max-pooling by slices": ("max_pool", _CNN),
    "dropout's bits in a loop": ("dropout", _MIXED),
    "batch normalization by channels": ("batch_normalization", _MIXED),
    "moments by channels": ("moments", _MIXED),
    "bias added once": ("add", _CNN),
    "cross-entropy by rows": ("sparse_categorical_crossentropy", _TRANSFORMER),
}
_PARTS = {  # (module, attribute, its substitute), workload
    "kernels carried transposed": (
        ("_forms.layout", "transposed", lambda *args: frozenset()),
        _MLP,
    ),
    "update after the last reader": (
        (
            "_forms.one_kernel.BackwardReaders",
            "rate_after",
            lambda self, weight, rate: rate,
        ),
        "mlp-784-2048-2048-10",
    ),
    "kernels updated in blocks": (
        ("_lazy.block_plan", "block_size", lambda *_: None),
        _MLP,
    ),
    "products out of one kernel": (
        ("_forms.one_kernel", "products", lambda graph: 0),
        _CNN,
    ),
    "errors behind max-pooling visited": (
        ("_forms.pooled", "errors_of", lambda tensor: None),
        _CNN,
    ),
    "costly parts computed once": (
        ("_forms.tracing", "computed_once", lambda x: x),
        _MIXED,
    ),
    "wide sums by products": (
        ("_forms.reductions", "MIN_WIDTH", 1 << 31),
        _TRANSFORMER,
    ),
    "short dot products in four sums": (("_forms.layout", "_SHORT", ()), "linear-20"),
}
_WORKLOADS = {**WORKLOADS, _DEPTHWISE.id: _DEPTHWISE}
_EXAMPLES = {  # in a pass, where they are not 4,096
    _CNN: 512,
    _DEPTHWISE.id: 512,
    _MIXED: 512,
    _TRANSFORMER: 128,
    "linear-20": 65_536,
    "mlp-784-2048-2048-10": 64,
}


@dataclass(frozen=True)
class Form(Finding):
    """Microseconds per example of a loop without a form, and with all forms."""

    keys = ("name",)
    name: str
    workload: str
    without: float
    with_all: float
    agree: bool  # the losses

    @property
    def missed(self) -> bool:
        """Whether the form changes the loss."""
        return not self.agree


def measure(arguments: list[str]) -> Iterator[Form]:
    """Yields each form."""
    chosen = {**_LAYERS, **_PARTS}
    options = command.options("ablation", __doc__, arguments, chosen)
    loops.use_one_thread()
    for form in options.names:
        _, workload = chosen[form]
        count = _EXAMPLES.get(workload, 4_096)
        # The form is off while this loop is traced; its passes run after the block.
        with _without(form):
            slow = loops.loop_of(_WORKLOADS[workload], count)
        pair = [slow, loops.loop_of(_WORKLOADS[workload], count)]
        (without, with_all), agree = loops.in_turn(form, pair, REPEATS)
        yield Form(form, workload, without, with_all, agree)


@contextlib.contextmanager
def _without(form: str) -> Iterator[None]:
    if form in _PARTS:
        (path, name, substitute), _ = _PARTS[form]
        with mock.patch.object(_part(path), name, substitute):
            yield
        return
    from keras_sgd_plus._forms import installation

    try:
        lowerings, name = installation.LOWERINGS, _LAYERS[form][0]
        with mock.patch.dict(lowerings, {name: _declining(lowerings[name])}):
            _patch_keras_again()
            yield
    finally:
        _patch_keras_again()


def _part(path: str) -> Any:
    import keras_sgd_plus

    part: Any = keras_sgd_plus
    for name in path.split("."):
        part = getattr(part, name)
    return part


def _declining(lowering: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(lowering)  # its signature, without which it is not installed
    def declining(*args: Any, **kwargs: Any) -> None:
        del args, kwargs  # None: the backend takes Keras's own form

    return declining


def _patch_keras_again() -> None:
    from keras_sgd_plus import SGDPlus
    from keras_sgd_plus._fit import hooks

    # Keras's functions keep the forms that were there when they were patched, and the
    # first optimizer patches them.
    hooks.uninstall()
    SGDPlus()
