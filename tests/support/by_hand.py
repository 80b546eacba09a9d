"""Every update by hand, in the order of an `ExampleLog`: what it should have kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tests.support.versions import KERAS

Kept = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model and its data.

    Attributes:
        make: gives the model, not compiled.
        x: structure of arrays.
        y: structure of arrays.
        loss: as for `compile`.
        unweighted: (y, y_pred) -> the loss of a group without weights and additions.
        settings: of `compile`.
    """

    make: Callable[[], Any]
    x: Any
    y: Any
    loss: Any
    unweighted: Callable[[Any, Any], Any]
    settings: dict[str, Any] = {}

    def compiled(self, optimizer: Any, **settings: Any) -> Any:
        """The model, with the same weights each time."""
        keras.utils.set_random_seed(3)
        model = self.make()
        model.compile(optimizer, self.loss, **{**self.settings, **settings})
        return model


class PerEpoch(keras.utils.PyDataset):
    """Hands over one batch per epoch, another in each."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self._batches, self._epoch = batches, 0
        notes = lambda epoch, logs: setattr(self, "_epoch", epoch)  # noqa: E731
        self.follows = keras.callbacks.LambdaCallback(on_epoch_begin=notes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self._batches[self._epoch]


def kept(
    case: Case,
    visited: np.ndarray,
    sgd: dict[str, Any],
    sample_weight: np.ndarray | None = None,
) -> Kept:
    """Trains with `keras.optimizers.SGD`, group by group, by hand.

    Args:
        case: as above.
        visited: (epochs, num_examples), of the log: the order of updates alone.
        sgd: arguments of SGD.
        sample_weight: (num_examples,).

    Returns:
        By name as in the log, (epochs, num_examples, ...).
    """
    model = case.compiled(keras.optimizers.SGD(**sgd), run_eagerly=True)
    found: dict[str, Any] = {}
    for update in range(visited.max() + 1):
        epoch, rows = np.nonzero(visited == update)
        values = _updated(case, model, rows, sample_weight)
        _put(found, values, visited.shape, (epoch, rows))
    return found


def kept_on_replicas(
    case: Case,
    parts: list[list[list[np.ndarray]]],
    visited: np.ndarray,
    sgd: dict[str, Any],
    group: int = 1,
) -> Kept:
    """Trains as `kept` does, replica after replica; NumPy averages after each batch.

    Args:
        case: as above.
        parts: by epoch, batch and replica, the rows of the examples.
        visited: (epochs, num_examples), of the log: the order in each part alone.
        sgd: arguments of SGD.
        group: examples of an update.
    """
    model = case.compiled(keras.optimizers.SGD(**sgd), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    state = [*model.trainable_variables, *model.optimizer.momentums]
    found: dict[str, Any] = {}
    for epoch, batches in enumerate(parts):
        for batch in batches:
            before, after = [v.numpy() for v in state], []
            for rows in batch:
                for variable, value in zip(state, before, strict=True):
                    variable.assign(value)
                order = rows[np.argsort(visited[epoch, rows], kind="stable")]
                for first in range(0, len(order), group):
                    some = np.sort(order[first : first + group])
                    values = _updated(case, model, some)
                    _put(found, values, visited.shape, (epoch, some))
                after.append([v.numpy() for v in state])
            sizes = [len(rows) for rows in batch]
            for variable, *values in zip(state, *after, strict=True):
                variable.assign(np.average(values, 0, sizes))
    return found


def _updated(case: Case, model: Any, rows: Any, sample_weight: Any = None) -> Any:
    # Makes one update; gives what was there before it, by name.
    def part(tree: Any) -> Any:
        at = keras.tree.map_structure(lambda a: a[rows], tree)
        return keras.tree.map_structure(tf.convert_to_tensor, at)

    x, y = part(case.x), part(case.y)
    weight = None if sample_weight is None else part(sample_weight)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, weight)
    gradients = tape.gradient(loss, model.trainable_variables)
    dense = [tf.convert_to_tensor(g) for g in gradients]
    model.optimizer.apply(gradients, model.trainable_variables)
    return {
        "loss": loss,
        "unweighted_loss": case.unweighted(y, y_pred),
        "gradient_norm": np.sqrt(sum(np.sum(np.square(g)) for g in dense)),
        **{f"prediction_{i}": p for i, p in enumerate(tf.nest.flatten(y_pred))},
    }


def _put(found: dict[str, Any], values: Any, shape: Any, place: Any) -> None:
    for name, value in values.items():
        value = np.asarray(value)
        row = value.shape[1:] if name.startswith("prediction") else ()
        table = found.setdefault(name, np.full((*shape, *row), np.nan))
        table[place] = value


def without_ids(inputs: Any) -> Any:
    """The input "x"; Keras 3.13 wants each input of a graph to be used."""
    if KERAS > (3, 13):
        return inputs["x"]
    first = keras.layers.Lambda(lambda both: both[0])
    return first([inputs["x"], inputs["row"]])


def with_ids(case: Case) -> tuple[Case, Any]:
    """The case with an input "row", which the model ignores; and its `(x, y)`."""

    def make() -> Any:
        model = case.make()
        row = keras.Input((), dtype="int64", name="row")
        inputs = {"x": keras.Input(case.x.shape[1:], name="x"), "row": row}
        return keras.Model(inputs, model(without_ids(inputs)))

    x = {"x": case.x, "row": np.arange(len(case.x))}
    return case._replace(make=make, x=x), (x, case.y)


def assert_kept(log: Any, expected: Kept, rtol: float = 2e-4) -> None:
    """Compares a log, which kept everything, with what was done by hand."""
    for name in ("loss", "unweighted_loss", "gradient_norm"):
        np.testing.assert_allclose(
            getattr(log, name), expected[name], rtol, 1e-5, err_msg=name
        )
    for i, output in enumerate(tf.nest.flatten(log.prediction)):
        np.testing.assert_allclose(output, expected[f"prediction_{i}"], rtol, 1e-5)


def _dense() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(3, "softmax")]
    )


def _wide() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((160,)), layers.Dense(128, "tanh"), layers.Dense(3, "softmax")]
    )


def _tokens() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(50, 3),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ]
    )


def _two_outputs() -> Any:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(5, "tanh", kernel_regularizer="l2")(inputs)
    kind = keras.layers.Dense(3, "softmax", name="kind")(hidden)
    size = keras.layers.Dense(1, name="size", activity_regularizer="l1")(hidden)
    return keras.Model(inputs, {"kind": kind, "size": size})


def _masked() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4, 2)),
            layers.Masking(),
            layers.SimpleRNN(3, return_sequences=True, unroll=True),
            layers.Dense(1),
        ]
    )


class _AddsLoss(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * keras.ops.sum(keras.ops.square(inputs)))
        return inputs


def _added_loss() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), _AddsLoss(), layers.Dense(3, "softmax")]
    )


def _cross_entropy(y: Any, y_pred: Any) -> Any:
    chosen = tf.gather(y_pred, tf.cast(y, tf.int32), batch_dims=1)
    return -tf.reduce_mean(tf.math.log(chosen))


def _of_two(y: Any, y_pred: Any) -> Any:
    squares = tf.square(y["size"] - y_pred["size"])
    return _cross_entropy(y["kind"], y_pred["kind"]) + 0.5 * tf.reduce_mean(squares)


def _squares_of_steps(y: Any, y_pred: Any) -> Any:
    steps = tf.cast(tf.reduce_any(y != 9, -1), y_pred.dtype)  # 9 stands in masked steps
    squares = tf.reduce_mean(tf.square(y - y_pred), -1)
    return tf.reduce_sum(squares * steps) / tf.reduce_sum(steps)


def cases(num_examples: int = 22) -> dict[str, Case]:
    """The models and their data, which are random: no row is like another."""
    rng = np.random.default_rng(5)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=(num_examples, *shape)).astype("float32")

    kinds = rng.integers(0, 3, num_examples)
    sparse, cross = "sparse_categorical_crossentropy", _cross_entropy
    steps, targets = numbers(4, 2), numbers(4, 1)
    missing = rng.random((num_examples, 4)) < 0.4
    missing[:, 0] = False
    steps[missing], targets[missing] = 0, 9
    tokens = rng.integers(0, 50, (num_examples, 4)).astype("int32")
    tokens[:, 2] = tokens[:, 0]  # comes twice
    two: dict[str, Any] = {"kind": kinds, "size": numbers(1)}
    settings = {"loss_weights": {"kind": 1.0, "size": 0.5}}
    losses = {"kind": sparse, "size": "mse"}
    return {
        "dense": Case(_dense, numbers(6), kinds, sparse, cross),
        "blocks": Case(_wide, 0.2 * numbers(160), kinds, sparse, cross),
        "table": Case(_tokens, tokens, kinds, sparse, cross),
        "added_loss": Case(_added_loss, numbers(6), kinds, sparse, cross),
        "two_outputs": Case(_two_outputs, numbers(6), two, losses, _of_two, settings),
        "masked": Case(_masked, steps, targets, "mse", _squares_of_steps),
    }
