"""What each form of the loop wins: its time with all of them, and with all but one.

`python -m benchmarks ablation [form ...]`. A form is switched off while a model is
traced; then both models take turns. One thread, so that the times are steady.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

REPEATS = 9
_CNN, _MIXED, _MLP = "cnn", "conv-bn-dropout", "mlp-784-128-10"
_TRANSFORMER = "transformer-32x64"
_LAYERS = {  # functions of Keras's backend
    "convolution by patches": ("conv", _CNN),
    "max-pooling by slices": ("max_pool", _CNN),
    "dropout's bits in a loop": ("dropout", _MIXED),
    "batch normalization by channels": ("batch_normalization", _MIXED),
    "moments by channels": ("moments", _MIXED),
    "bias added once": ("add", _TRANSFORMER),
    "cross-entropy by rows": ("sparse_categorical_crossentropy", _TRANSFORMER),
}
_PARTS = {  # (module, attribute, what takes its place), workload
    "kernels carried transposed": (
        ("_layout", "transposed", lambda *args: frozenset()),
        _MLP,
    ),
    "update after the last reader": (
        ("_kernel.Readers", "rate_after", lambda self, weight, rate: rate),
        "mlp-784-2048-2048-10",
    ),
    "products out of one kernel": (("_kernel", "products", lambda graph: 0), _CNN),
    "costly parts computed once": (("_lowering", "computed_once", lambda x: x), _MIXED),
    "short dot products in four sums": (("_lowering", "_SHORT", ()), "linear-20"),
}
_EXAMPLES = {
    _CNN: 512,
    _MIXED: 512,
    _TRANSFORMER: 128,
    "linear-20": 65_536,
    "mlp-784-2048-2048-10": 64,
}


@contextlib.contextmanager
def _without(form: str) -> Iterator[None]:
    import keras_sgd_plus
    from keras_sgd_plus import SGDPlus, _backend, _hook

    if form in _LAYERS:
        owner: Any = _backend.LOWERINGS
        name = _LAYERS[form][0]
        before = owner[name]
        owner[name] = lambda *args, **kwargs: None
        _hook.uninstall()
        SGDPlus()
        try:
            yield
        finally:
            owner[name] = before
            _hook.uninstall()
            SGDPlus()
        return
    (path, name, substitute), _ = _PARTS[form]
    owner = keras_sgd_plus
    for part in path.split("."):
        owner = getattr(owner, part)
    before = getattr(owner, name)
    setattr(owner, name, substitute)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _loop(workload_id: str) -> tuple[Callable[[], float], float]:
    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS

    count = _EXAMPLES.get(workload_id, 4_096)
    return keras_arms.timed_loop(WORKLOADS[workload_id], count)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 if a form changes the loss."""
    import tensorflow as tf

    from benchmarks import measuring, record

    tf.config.threading.set_intra_op_parallelism_threads(1)
    workloads = {
        form: workload for form, (_, workload) in {**_LAYERS, **_PARTS}.items()
    }
    failed = False
    print("| form | workload | without it | with all | times faster |")
    print("| --- | --- | --- | --- | --- |")
    for form in arguments or list(workloads):
        workload = workloads[form]
        with _without(form):
            slow = _loop(workload)
        loops = [slow, _loop(workload)]
        (without, all_forms), agree = measuring.in_turn(form, loops, REPEATS)
        failed = failed or not agree
        print(
            f"| {form} | {workload} | {without:.3g} | {all_forms:.3g} | "
            f"{without / all_forms:.2f} |",
            flush=True,
        )
    line = record.line(record.environment())
    print(f"\nMicroseconds per example, the loop alone, medians of {REPEATS}. {line}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
