"""Private names of Keras's TensorFlow trainer and of its `fit`.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import array_data_adapter

from keras_sgd_plus._private.types import Model, Parts

# The bounds of `pyproject.toml`.
INSTALL = 'pip install "keras>=3.13.2,<3.16" "tensorflow>=2.17,<2.22"'


def unusable(needed: str, received: str) -> RuntimeError:
    """The error for a private name that is not as it was.

    Args:
        needed: the name, and where it is looked for.
        received: what is there instead, after "which".
    """
    return RuntimeError(
        f"SGDPlus needs {needed}. Received: Keras {keras.__version__} and TensorFlow "
        f"{tf.__version__}, which {received}. Install versions that have it: {INSTALL}."
    )


# Methods that we wrap, with their parameters.
_METHODS: dict[str, list[str] | None] = {
    "fit": None,  # the wrapper hands on whatever it is given
    "train_step": ["self", "data"],
    "make_train_function": ["self", "force"],
    "reset_metrics": ["self"],
    "_make_function": ["self", "step_function"],
    "_maybe_symbolic_build": ["self", "iterator", "data_batch"],
}
# Those that every training needs; `need` is asked for the others.
_ALWAYS = ("train_step", "make_train_function")


def trainer_methods() -> dict[str, type]:
    """Name -> the class that defines it, of the methods that we wrap.

    Those of other parameters than we know are left out. Not `keras.Model` itself:
    classes made with `class X(Trainer, Layer)` share only the trainer. Goes when Keras
    exports its TensorFlow trainer.

    Raises:
        RuntimeError: one is left out that every training needs.
    """
    for name in _ALWAYS:
        need(name)
    return {name: owner_of(name) for name in _METHODS if not _objection(name)}


def owner_of(method: str) -> type:
    """The class that defines a method of every model, such as `fit`."""
    found = [c for c in keras.Model.__mro__ if method in vars(c)]
    if not found:
        raise unusable(f"{method} of Keras's trainer", "do not have it")
    return found[0]


def need(name: str) -> None:
    """Raises RuntimeError where Keras has no such method, or with other parameters."""
    objection = _objection(name)
    if objection:
        needed = f"{name}({', '.join(_METHODS[name] or [])}) of Keras's trainer"
        raise unusable(needed, objection)


def _objection(name: str) -> str | None:
    definers = [c for c in keras.Model.__mro__ if name in vars(c)]
    if not definers:
        return "do not have it"
    # `signature` looks through our own wrapper.
    signature = inspect.signature(vars(definers[0])[name])
    known = _METHODS[name]
    as_known = known is None or list(signature.parameters) == known
    return None if as_known else f"have {name}{signature}"


@dataclass(frozen=True)
class Data:
    """The data of a `fit`, as far as they can be seen.

    Attributes:
        dataset: the source of the batches: a `PyDataset`, `tf.data.Dataset`, or None.
        shuffles: whether Keras shuffles it.
        num_batches: of one pass through it, or None where it never ends.
        steps_per_epoch: as for `fit`.
        array_batch_size: examples per batch of arrays, or None for other data.
        num_examples: of arrays, or None.
    """

    dataset: Any
    shuffles: bool
    num_batches: int | None
    steps_per_epoch: int | None
    array_batch_size: int | None
    num_examples: int | None = None


# Class of `fit`'s data -> the attributes with the data, and whether Keras shuffles it.
_ADAPTERS = {
    "ArrayDataAdapter": (None, "_shuffle"),
    "GeneratorDataAdapter": (None, None),
    "GrainDatasetAdapter": ("_dataset", None),
    "PyDatasetAdapter": ("py_dataset", "shuffle"),
    "TFDatasetAdapter": ("_dataset", None),
    "TorchDataLoaderAdapter": (None, None),
}


@dataclass(frozen=True)
class Fit:
    """What a running `fit` of Keras has, and tells no callback.

    Attributes:
        callbacks: the list of them.
        data: that it trains on.
        initial_epoch: as for `fit`.
    """

    callbacks: Any
    data: Data
    initial_epoch: int


def fit_in_progress(model: Model) -> Fit | None:
    """The innermost `fit` of a model that the caller is called from, or None.

    This looks at the local variables of `fit`. Goes when Keras hands callbacks their
    data.
    """
    source = owner_of("train_step").__module__
    frame: Any = sys._getframe()
    while frame is not None:
        is_fit = frame.f_code.co_name == "fit" and frame.f_globals["__name__"] == source
        if is_fit and frame.f_locals.get("self") is model:
            return _fit(frame.f_locals)
        frame = frame.f_back
    return None


def _fit(found: dict[str, Any]) -> Fit:
    iterator = found["epoch_iterator"]
    adapter = iterator.data_adapter
    kind = type(adapter).__name__
    if kind not in _ADAPTERS:
        raise unusable(f"one of {', '.join(_ADAPTERS)}", f"have {kind}")
    dataset, shuffle = _ADAPTERS[kind]
    is_array = kind == "ArrayDataAdapter"
    data = Data(
        getattr(adapter, dataset) if dataset else None,
        bool(getattr(adapter, shuffle)) if shuffle else False,
        adapter.num_batches,
        iterator.steps_per_epoch,
        getattr(adapter, "_batch_size", None) if is_array else None,
        getattr(adapter, "_num_samples", None) if is_array else None,
    )
    return Fit(found["callbacks"], data, found["initial_epoch"])


BATCH_SIZE = 32  # of `fit`, without an argument


def are_arrays(data: Parts) -> bool:
    """Whether x, y and sample_weight are arrays, of which `fit` makes batches."""
    return array_data_adapter.can_convert_arrays(data)


def pipeline(
    model: Model,
    data: Parts,
    batch_size: int,
    class_weight: dict[int, float] | None,
) -> tf.data.Dataset[Any]:
    """The batches that `fit(shuffle=False)` would read. Goes when Keras exports that.

    Args:
        model: in training, compiled.
        data: x, y and sample_weight, as for `fit`.
        batch_size: of arrays.
        class_weight: as for `fit`.
    """
    model._assert_compile_called("fit")
    x, y, sample_weight = data
    is_array = are_arrays(data)
    module: Any = sys.modules[owner_of("train_step").__module__]
    iterator = module.TFEpochIterator(
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size if is_array else None,
        shuffle=False,
        class_weight=class_weight,
        distribute_strategy=model.distribute_strategy,
    )
    return iterator._distributed_dataset


def set_initial_epoch(model: Model, epoch: int | None) -> None:
    """Sets the epoch at which a beginning `fit` begins, as `BackupAndRestore` does."""
    model._initial_epoch = epoch


def shuffles_differently(dataset: object) -> bool:
    """Whether a `tf.data.Dataset` has another order in each pass, or each process.

    Goes when a dataset can be asked.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return False
    if getattr(dataset, _RESHUFFLES, False):
        return True
    seeds = [getattr(dataset, n) for n in _SEEDS if hasattr(dataset, n)]
    if seeds and not any(int(seed) for seed in seeds):
        return True
    return any(shuffles_differently(each) for each in dataset._inputs())


# Attributes of what `tf.data.Dataset.shuffle` returns.
_RESHUFFLES = "_reshuffle_each_iteration"
_SEEDS = ("_seed", "_seed2")


def is_stock_train_function(function: object) -> bool:
    """Whether Keras's own `make_train_function` has made it."""
    python = getattr(function, "python_function", function)
    return getattr(python, "__module__", None) == owner_of("train_step").__module__


def hands_over_batches(steps_per_execution: int) -> bool:
    """Whether Keras takes batches out of a `tf.data` iterator outside of any graph.

    Keras 3.16 does so where a call of the train function is one step. Then the step is
    traced with the shapes of its first batch. Goes with the support of Keras 3.15.
    """
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    return version >= (3, 16) and steps_per_execution == 1


def has_default_metrics(model: Model) -> bool:
    """Whether `compute_metrics` is Keras's own, whose logs need only the metrics."""
    stock = owner_of("compute_metrics").compute_metrics
    return getattr(model.compute_metrics, "__func__", None) is stock


def has_stock_train_step(model: Model) -> bool:
    """Whether `train_step` is Keras's own, or our wrapper of it."""
    stock = owner_of("train_step").train_step
    return getattr(model.train_step, "__func__", None) is stock


def inside_strategy_run() -> bool:
    """Whether the caller runs in `strategy.run`, where `fit` calls a train step.

    Elsewhere TensorFlow hands out a private subclass of the context, even under no
    strategy; goes when Keras tells an optimizer that it is being fitted.
    """
    return type(tf.distribute.get_replica_context()) is tf.distribute.ReplicaContext
