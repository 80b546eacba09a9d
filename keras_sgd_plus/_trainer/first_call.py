"""Says what is going on while the first batch of a model compiles for long.

Keras's progress bar stands still until the first batch is done. Nothing is watched
after that, so later batches cost nothing.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Model, Optimizer

SECONDS = 10.0  # a first batch may take before it is explained

_told: weakref.WeakSet[Any] = weakref.WeakSet()


@contextlib.contextmanager
def watched(model: Model, optimizer: Optimizer) -> Iterator[None]:
    """While it is open, a wait of more than `SECONDS` is explained, once per model."""
    is_compiled = optimizer.jit_compile is not False and not model.run_eagerly
    if not is_compiled or model in _told:
        yield
        return
    # The caller waits inside TensorFlow, so another thread has to speak.
    timer = threading.Timer(SECONDS, _explain, [model])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explain(model: Model) -> None:
    _told.add(model)
    work = "TensorFlow traces the loop over examples, and XLA compiles it"
    advice = (
        "SGDPlus(..., jit_compile=False) does not compile, and trains many times "
        "slower."
    )
    if xla.goes_without(model):  # which was said
        work, advice = "TensorFlow traces the loop over examples, without XLA", ""
    # Where warnings are errors, nobody could catch this one.
    with contextlib.suppress(UserWarning):
        warnings.warn(
            f"The first batch of model {model.name!r} has taken {SECONDS:g} seconds "
            f"so far: {work}. The progress bar stands still meanwhile. That is done "
            "once per shape of an example, and later batches are fast. To shorten it, "
            "leave out unroll=True of RNN layers, pad sequences to one length, or use "
            f"fewer layers. {advice}".rstrip()
        )
