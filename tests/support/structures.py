"""Structures of inputs, outputs, targets, losses, metrics and weights.

A `Row` names one of each. `calls` makes the same calls on a model with SGDPlus and on
one with Keras's SGD, and gives what a user sees of them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.internals import keras_graph

CONTAINERS = ("tensor", "list", "tuple", "dict")
NAMES = ("kind", "size")  # of the outputs, in the order in which they are listed
N = 4  # examples; of validation one more


@dataclass(frozen=True)
class Row:
    """A model, and the structure of everything that it is given.

    Attributes:
        model: how the model is made (`MODELS`).
        inputs: container and number of the inputs, "list1".
        outputs: of the outputs.
        y: the container of the targets; "same" as that of the outputs.
        loss: "one" for all outputs, or a container with one for each.
        metrics: none, "flat" for all outputs, or a container with a list for each.
        weights: of examples: none, "one" for all outputs, or one for "each".
        loss_weights: whether each loss has a weight.
        mode: "eager", "graph", "xla", or "one_device" for a strategy.
        data: "arrays", or a "dataset".
    """

    model: str = "functional"
    inputs: str = "tensor1"
    outputs: str = "tensor1"
    y: str = "same"
    loss: str = "one"
    metrics: str = "none"
    weights: str = "none"
    loss_weights: bool = False
    mode: str = "eager"
    data: str = "dataset"

    @property
    def id(self) -> str:
        """The values of all fields."""
        return "-".join(str(getattr(self, field.name)) for field in fields(self))


# Keras warns of these programs, and trains them. Where warnings are errors both
# optimizers would raise, and nothing would be compared.
keras_warns = pytest.mark.filterwarnings("ignore:(?s).*structure of `inputs` doesn't")
MODELS = ("functional", "subclass", "sequential", "nested", "caller")
_NUMBERED = (*(f"{c}1" for c in CONTAINERS), *(f"{c}2" for c in CONTAINERS[1:]))
VALUES: dict[str, tuple[Any, ...]] = {
    "model": MODELS,
    "inputs": _NUMBERED,
    "outputs": _NUMBERED,
    "y": ("same", *CONTAINERS),
    "loss": ("one", "list", "tuple", "dict"),
    "metrics": ("none", "flat", "list", "dict"),
    "weights": ("none", "one", "each"),
    "loss_weights": (False, True),
}


def is_possible(row: Row) -> bool:
    """Whether somebody could mean such a program.

    A row that gives a model two of something for one output, or names where it has
    none, says nothing about SGDPlus: Keras refuses it. Some that it refuses are left.
    """
    container, number = row.outputs[:-1], row.outputs[-1]
    is_named = container == "dict" or row.model == "functional"
    if row.model == "sequential" and (row.inputs[-1] == "2" or "dict" in row.inputs):
        return False
    if number == "2" and row.y == "tensor":
        return False
    if "dict" in (row.loss, row.metrics) and not is_named:
        return False
    return row.y != "dict" or container == "dict" or (is_named and number == "2")


# Models


def contained(container: str, parts: Sequence[Any], names: Sequence[str]) -> Any:
    """Parts in a container; "tensor" holds the only one."""
    if container == "tensor":
        return parts[0]
    if container == "dict":
        return dict(zip(names, parts, strict=False))
    return list(parts) if container == "list" else tuple(parts)


def _split(kind: str) -> tuple[str, int]:
    return kind[:-1], int(kind[-1])


_INPUT_NAMES = ("left", "right")


def _heads() -> list[Any]:
    return [layers.Dense(3, "softmax", name="kind"), layers.Dense(2, name="size")]


def _functional(row: Row) -> keras.Model:
    container, number = _split(row.inputs)
    inputs = [keras.Input((4,), name=name) for name in _INPUT_NAMES[:number]]
    hidden = layers.Concatenate()(inputs) if number > 1 else inputs[0]
    hidden = layers.Dense(5, "tanh")(hidden)
    container_out, number_out = _split(row.outputs)
    outputs = [head(hidden) for head in _heads()[:number_out]]
    return keras.Model(
        contained(container, inputs, _INPUT_NAMES),
        contained(container_out, outputs, NAMES),
        name="network",  # logs of models inside models name it
    )


@keras.saving.register_keras_serializable("tests")
class Subclass(keras.Model):
    """Takes and returns the structures of a row, by layers of its own."""

    def __init__(self, outputs: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = outputs
        self.hidden, self.heads = layers.Dense(5, "tanh"), _heads()[: int(outputs[-1])]

    def call(self, inputs: Any, training: bool = False) -> Any:
        del training
        hidden = self.hidden(keras.ops.concatenate(keras.tree.flatten(inputs), -1))
        outputs = [head(hidden) for head in self.heads]
        return contained(self.kind[:-1], outputs, NAMES)

    def get_config(self) -> dict[str, Any]:
        return {"outputs": self.kind}


@keras.saving.register_keras_serializable("tests")
class Caller(keras.Model):
    """Calls another model, and returns what that returns."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)

    def get_config(self) -> dict[str, Any]:
        return {"inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(keras.saving.deserialize_keras_object(config["inner"]))


def make_model(row: Row) -> keras.Model:
    """The model of a row, not compiled."""
    if row.model == "subclass":
        return Subclass(row.outputs)
    inner = _functional(row)
    if row.model == "functional":
        return inner
    if row.model == "caller":
        return Caller(inner)
    if row.model == "sequential":
        if row.outputs == "tensor1":
            return keras.Sequential([keras.Input((4,)), *inner.layers[1:]])
        return keras.Sequential([keras.Input((4,)), inner])
    container, number = _split(row.inputs)
    names = _INPUT_NAMES[:number]
    inputs = contained(container, [keras.Input((4,), name=n) for n in names], names)
    return keras.Model(inputs, inner(inputs))


# Data


def data(row: Row, num_examples: int, seed: int) -> tuple[Any, Any, Any]:
    """x, y and sample_weight, None without."""
    rng = np.random.default_rng(seed)
    container, number = _split(row.inputs)
    x = [rng.normal(size=(num_examples, 4)).astype("float32") for _ in range(number)]
    container_out, number_out = _split(row.outputs)
    kinds = rng.integers(0, 3, num_examples)
    # Several outputs have targets of as many axes, so that one loss can do for all.
    kind: Any = kinds if number_out == 1 else np.eye(3, dtype="float32")[kinds]
    y = [kind, rng.normal(size=(num_examples, 2)).astype("float32")][:number_out]
    weights = [rng.uniform(0.5, 2, num_examples).astype("float32") for _ in y]
    of_y = container_out if row.y == "same" else row.y
    weight = {
        "none": None,
        "one": weights[0],
        "each": contained(of_y, weights, NAMES),
    }[row.weights]
    return contained(container, x, _INPUT_NAMES), contained(of_y, y, NAMES), weight


@functools.lru_cache(maxsize=8)
def batches(row: Row, num_examples: int, seed: int, size: int) -> tf.data.Dataset:
    """The same as a dataset, which takes tuples in place of lists."""
    parts = [part for part in data(row, num_examples, seed) if part is not None]
    slices = tf.data.Dataset.from_tensor_slices(
        keras.tree.lists_to_tuples(tuple(parts))
    )
    return slices.batch(size)


def compiling(row: Row) -> dict[str, Any]:
    """Arguments of `compile`."""
    number = int(row.outputs[-1])
    own = ["sparse_categorical_crossentropy" if number == 1 else "mse", "mae"]
    container = "tensor" if row.loss == "one" else row.loss
    loss = contained(container, own[:number], NAMES)
    factors: Any = None
    if row.loss_weights:
        factors = contained(container, [0.5, 2.0][:number], NAMES)
    metrics: Any = None
    if row.metrics == "flat":
        metrics = ["accuracy"]
    elif row.metrics != "none":
        metrics = contained(row.metrics, [["accuracy"], ["mse"]][:number], NAMES)
    named = {"metrics": metrics}
    if row.weights != "none":
        named["weighted_metrics"] = metrics
    losses = {"loss": loss, "loss_weights": factors}
    return {**losses, **named, "run_eagerly": row.mode == "eager"}


# Calls


def compiled(row: Row, is_ours: bool) -> Any:
    """A compiled model with one of the two optimizers, at a rate of 0."""
    keras.utils.set_random_seed(1)
    own = {"order": "given", "jit_compile": row.mode == "xla"}
    strategy: Any = contextlib.nullcontext()
    if row.mode == "one_device":
        strategy = tf.distribute.OneDeviceStrategy("/cpu:0").scope()
    with strategy:
        model = make_model(row)
        optimizer = SGDPlus(0.0, **own) if is_ours else keras.optimizers.SGD(0.0)
        model.compile(optimizer, **compiling(row))
    return model


def fit(model: Any, row: Row, batch_size: int, validates: bool = False) -> Any:
    """The logs of one epoch."""
    val: Any = None
    more: dict[str, Any] = {"shuffle": False, "verbose": 0}
    if row.data == "dataset":
        if validates:
            val = batches(row, N + 1, 1, 4)
        given = {"x": batches(row, N, 0, batch_size)}
    else:
        if validates:
            val = tuple(part for part in data(row, N + 1, 1) if part is not None)
            more["validation_batch_size"] = 3
        x, y, weight = data(row, N, 0)
        given = {"x": x, "y": y, "sample_weight": weight, "batch_size": batch_size}
    return model.fit(**given, validation_data=val, **more).history


def evaluations(model: Any, row: Row) -> dict[str, Any]:
    """Results of `evaluate` and `predict` in all their forms."""
    x, y, weight = data(row, N + 1, 1)
    seen = {}
    if row.data == "arrays":
        seen["evaluate"] = model.evaluate(x, y, 3, 0, weight)
        seen["predict"] = model.predict(x, 4, 0)
    else:
        dataset = batches(row, N + 1, 1, 5)
        seen["evaluate"] = model.evaluate(dataset, verbose=0, return_dict=True)
        seen["predict"] = model.predict_on_batch(x)
    seen["test_on_batch"] = model.test_on_batch(x, y, weight, return_dict=True)
    seen["metrics_names"] = model.metrics_names
    return seen


def seen_by_user(
    row: Row, is_ours: bool, sizes: Sequence[int], saves: bool
) -> dict[str, Any]:
    """What a user sees of one model, step by step.

    At first the rate is 0: weights stay equal, so that all that is seen must be, too.

    Args:
        row: the structures.
        is_ours: whether the optimizer is SGDPlus.
        sizes: of groups to train with at a rate above 0: `examples_per_update` of
            SGDPlus, batches of Keras.
        saves: whether the model is saved and loaded before that.
    """
    model = compiled(row, is_ours)
    seen = {"fit": fit(model, row, 4 if is_ours else 1, True)}
    seen |= evaluations(model, row)
    if saves:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            model.save(path)
            model = keras.models.load_model(path)
        seen["loaded"] = evaluations(model, row)
    model.optimizer.learning_rate = 0.1
    for size in sizes:
        if is_ours:
            model.optimizer.examples_per_update = size
        seen[f"trained by {size}"] = fit(model, row, 4 if is_ours else size)
    seen["weights"] = model.get_weights()
    seen["at the end"] = evaluations(model, row)
    return seen


def outcome(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a function returns, or raises."""
    try:
        return function(), None
    except Exception as error:  # of any class: it is compared
        return None, error


def assert_alike(
    ours: Any, theirs: Any, place: str = "", tolerance: float = 1e-5
) -> None:
    """Equal structures, names and, up to a relative tolerance, numbers.

    Raises:
        AssertionError: which names the first place where they differ.
    """
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), f"{place}: {list(ours)}, {list(theirs)}"
        for key in theirs:
            assert_alike(ours[key], theirs[key], f"{place} {key}", tolerance)
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs), place
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(a, b, f"{place} {i}", tolerance)
    elif isinstance(theirs, str):
        assert ours == theirs, place
    else:
        size = max(1.0, float(np.max(np.abs(theirs), initial=0)))
        np.testing.assert_allclose(ours, theirs, 0, tolerance * size, err_msg=place)


def check(
    row: Row, engagements: list[str], sizes: Sequence[int] = (1,), saves: bool = False
) -> bool:
    """Whether Keras trains the row; then SGDPlus gives the same, else both raise."""
    theirs, their_error = outcome(lambda: seen_by_user(row, False, sizes, saves))
    ours, our_error = outcome(lambda: seen_by_user(row, True, sizes, saves))
    if their_error is not None:
        assert our_error is not None, f"only Keras raises: {their_error}"
        return False
    if our_error is not None:
        raise our_error
    assert engagements, "the loop was bypassed"
    assert_alike(ours, theirs)
    return True


def put_back_the_old_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are built for the outputs as they are stored, not as a call gives them."""
    specs = keras_graph.output_specs

    def stored(model: Any, group_size: int) -> Any:
        found = specs(model, group_size)
        graph = keras_graph.graph_of(model)
        is_list = graph is not None and isinstance(graph._outputs_struct, (list, tuple))
        return [found] if is_list and isinstance(found, keras.KerasTensor) else found

    monkeypatch.setattr(keras_graph, "output_specs", stored)


# Pairwise selection


def pairwise(values: dict[str, Sequence[Any]], first: Iterable[Row] = ()) -> list[Row]:
    """Rows in which each two values of two fields meet at least once.

    Greedy, as in Cohen et al., 1997 (https://doi.org/10.1109/32.605761): each row is
    begun with a pair that is missing, and gets the values that cover most others.
    """
    names = list(values)
    rows = list(first)
    missing = {
        pair
        for a, b in itertools.combinations(names, 2)
        for pair in (((a, u), (b, v)) for u in values[a] for v in values[b])
    }
    for row in rows:
        missing -= _pairs(row, names)
    while missing:
        found = []
        for pair in sorted(missing, key=str)[:40]:
            row = _grown(dict(pair), values, missing)
            if row is None:  # no such program
                missing.discard(pair)
            else:
                found.append(row)
        if found:
            rows.append(max(found, key=lambda r: len(_pairs(r, names) & missing)))
            missing -= _pairs(rows[-1], names)
    return rows


def _pairs(row: Row, names: Sequence[str]) -> set[Any]:
    held = [(name, getattr(row, name)) for name in names]
    return set(itertools.combinations(held, 2))


def _grown(
    begun: dict[str, Any], values: dict[str, Sequence[Any]], missing: set[Any]
) -> Row | None:
    chosen = dict(begun)
    for name in sorted(values, key=lambda n: -len(values[n])):
        if name in chosen:
            continue
        tried = [{**chosen, name: value} for value in values[name]]
        known = [c for c in tried if is_possible(Row(**c))]
        if not known:
            return None
        chosen = max(known, key=lambda c: _gain(c, missing))
    row = Row(**chosen)
    return row if is_possible(row) else None


def _gain(chosen: dict[str, Any], missing: set[Any]) -> int:
    pairs = itertools.combinations(chosen.items(), 2)
    return sum((a, b) in missing or (b, a) in missing for a, b in pairs)
