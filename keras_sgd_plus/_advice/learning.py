"""Advice on training that goes wrong: what was seen, and its likely causes.

Two things are looked for: a loss that is NaN or infinite at the end of `fit`
(`report_divergence`), and one that did not fall at the end of an epoch (`Watch`).

Each loss is that of an example before its own update. So the first hundred of them are
what the model lost before it learned, and the last ones what it has learned. A few
updates with a rate that is too high may also leave a model whose outputs pass no
gradient back: then the first hundred losses are as high as the last, and no weight
changes any more.

The causes are those for which most was seen first (`likely_causes`). They are read
once, after training, from what `fit` was given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import keras_model, keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Variable
from keras_sgd_plus._report import running_sums
from keras_sgd_plus._report.running_sums import Losses

USUAL_BATCH = 32  # of `fit`: the batch size for which most rates were chosen
LARGE = 10.0  # inputs and targets above this are called large
USUAL_RATE = 0.01  # of one example, without momentum
_SCALING = (  # layers that may scale inputs
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.BatchNormalization,
)
_ONE_SIDED = ("exponential", "relu", "softplus")  # have a slope of 0 on one side


class Cause(NamedTuple):
    """A likely cause.

    Attributes:
        size: how many times what was seen is what is usual; 0 where nothing was seen.
        text: a part of a sentence.
    """

    size: float
    text: str


def likely_causes(
    model: Model,
    optimizer: Optimizer,
    data: Mapping[str, Any],
    may_be_stuck: bool = False,
) -> list[Cause]:
    """The likely causes, those with the most evidence first.

    Args:
        model: after `fit`.
        optimizer: its SGDPlus.
        data: the arguments of `fit`.
        may_be_stuck: whether an output that passes no gradient back is one of them.
    """
    of_data = [_of_inputs(model, data.get("x")), *_of_targets(model, data.get("y"))]
    largest = max(cause.size for cause in of_data)
    found = [*of_data, _of_rate(optimizer, largest)]
    if may_be_stuck:
        found += _of_activation(model)
    return sorted(found, key=lambda cause: -cause.size)


def in_words(causes: Sequence[Cause]) -> str:
    """The causes with their numbers, in a sentence."""
    return "; ".join(f"({i}) {cause.text}" for i, cause in enumerate(causes, 1))


def rate_in_words(optimizer: Optimizer) -> str:
    """The rate and the momentum as they are, as messages show them."""
    momentum = f" and momentum={optimizer.momentum:g}" if optimizer.momentum else ""
    if keras_optimizer.schedule(optimizer) is not None:
        return f"a learning_rate that changes{momentum}"
    return f"learning_rate={current_rate(optimizer):g}{momentum}"


def current_rate(optimizer: Optimizer) -> float:
    """The learning rate as it is now; a schedule or a callable may give it."""
    found = optimizer.learning_rate
    return float(found.numpy() if hasattr(found, "numpy") else found)


def _of_rate(optimizer: Optimizer, of_data: float) -> Cause:
    # With one example per update, a rate for the usual batch is too large by the size
    # of that batch, if momentum stays. A number is no help to data of any size.
    size = optimizer.examples_per_update
    factor, reason = 10, f"the rate is per update of {size} examples"
    if size == 1:
        factor = USUAL_BATCH
        reason = (
            f"the rate is per example, and one for batches of {factor} is {factor} "
            "times too large"
        )
    if keras_optimizer.schedule(optimizer) is not None:
        return Cause(1, f"{reason}: {_FIND}, or try rates divided by {factor}")
    usual = USUAL_RATE * size * max(1 - optimizer.momentum, 0.01)
    times = abs(current_rate(optimizer)) / usual
    if of_data > max(times, 1):
        return Cause(times, f"{reason}: {_FIND}")
    better = min(current_rate(optimizer) / factor, usual)
    text = f"{reason}: {_FIND}, or try learning_rate={better:.1g}"
    return Cause(max(times, 1), text)


_FIND = "call find_learning_rate(model, x, y)"


def _of_inputs(model: Model, x: Structure) -> Cause:
    layers = keras_model.layers(model)
    has_ids = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    largest = 0.0
    for array in _arrays(x):
        if not np.isfinite(array).all():
            text = f"inputs that are not finite: row {_bad_row(array)} of x"
            return Cause(math.inf, text)
        if array.dtype.kind == "f" or not has_ids:
            largest = max(largest, _size(array))
    if largest > LARGE and not any(isinstance(x, _SCALING) for x in layers):
        text = (
            f"inputs that are not scaled: x has numbers up to {largest:.4g} in size; "
            "bring each feature to about -1 to 1 (keras.layers.Normalization, say)"
        )
        return Cause((largest / LARGE) ** 2, text)
    return Cause(0, "inputs that are not scaled to about -1 to 1")


def _of_targets(model: Model, y: Structure) -> list[Cause]:
    losses, arrays = keras_model.compiled_losses(model), list(_arrays(y))
    general = Cause(0, "labels out of the range that the loss takes")
    if len(losses) != 1 or len(arrays) != 1:
        return [general]
    if all(keras_model.takes_class_numbers(loss) for loss in losses):
        ignored = [keras_model.ignored_class(loss) for loss in losses]
        labels = arrays[0][~np.isin(arrays[0], [i for i in ignored if i is not None])]
        return [_of_labels(model, labels)] if labels.size else [general]
    if not np.isfinite(arrays[0]).all():
        text = f"targets that are not finite: row {_bad_row(arrays[0])} of y"
        return [Cause(math.inf, text)]
    largest = _size(arrays[0])
    if largest <= LARGE:
        return [general]
    text = (
        f"targets that are not scaled: y has numbers up to {largest:.4g} in size; "
        "divide them by their standard deviation, and multiply predictions by it"
    )
    return [Cause(largest / LARGE, text)]


def _of_labels(model: Model, labels: np.ndarray) -> Cause:
    smallest, largest = labels.min(), labels.max()
    known = f"labels out of range: y has labels from {smallest:g} to {largest:g}"
    outputs = getattr(model, "outputs", None) or []
    size = outputs[0].shape[-1] if len(outputs) == 1 else None
    if size is None:
        text = f"{known}, and they must be below the number of outputs"
        return Cause(math.inf if smallest < 0 else 0, text)
    text = f"{known}, and the model has {size} outputs, for 0 to {size - 1}"
    return Cause(0 if 0 <= smallest <= largest < size else math.inf, text)


def _of_activation(model: Model) -> list[Cause]:
    last = model
    while isinstance(last, keras.Sequential) and last.layers:
        last = last.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", "")
    if name not in _ONE_SIDED:
        return []
    text = (
        f"an output that is stuck: {name} passes hardly any gradient back where it is "
        "near 0"
    )
    return [Cause(0.5, text)]


def _bad_row(array: np.ndarray) -> int:
    # The first that is not finite.
    return int(np.isfinite(array).reshape(len(array), -1).all(axis=1).argmin())


def _size(array: np.ndarray) -> float:
    return max(-float(array.min()), float(array.max()))


def _arrays(part: Structure) -> Iterator[np.ndarray]:
    # The arrays of numbers in x or y; data of other kinds cannot be looked at.
    for leaf in keras.tree.flatten(part):
        if not hasattr(leaf, "__array__") or not getattr(leaf, "shape", ()):
            continue
        try:
            array = leaf.numpy() if hasattr(leaf, "numpy") else np.asarray(leaf)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue
        if array.dtype.kind in "fiub" and array.size:
            yield array


_BAD_EXAMPLE = (
    'a single bad example: SGDPlus(..., nonfinite="raise") stops before the first and '
    "names it"
)


def report_divergence(
    model: Model, optimizer: Optimizer, data: Mapping[str, Any]
) -> str | None:
    """The warning for a last epoch whose loss is not finite, or None.

    Args:
        model: after `fit`.
        optimizer: its SGDPlus.
        data: the arguments of `fit`.
    """
    # Another `nonfinite` has said it already; a callback may have set the latter.
    if optimizer.nonfinite != "propagate" or optimizer.examples_per_update is None:
        return None
    history = getattr(getattr(model, "history", None), "history", None) or {}
    loss = (history.get("loss") or [None])[-1]
    if loss is None or np.ndim(loss) or math.isfinite(loss):
        return None
    found = likely_causes(model, optimizer, data)
    listed = in_words([*found, Cause(0, _BAD_EXAMPLE)])
    return (
        "The loss should be finite at the end of fit. Received: "
        f"loss={float(loss)}, with {rate_in_words(optimizer)}. Weights that are NaN "
        f"stay so: make the model anew. Likely causes, in this order: {listed}."
    )


MIN_UPDATES = 1_000
_LAST = 0.1  # part of the updates that is compared with the first ones
_MOST = 0.25  # part that it may be where a batch is that large
_STUCK = 1e-3  # part of the loss that a change of all weights would change
_GROWTH = 1.1  # from one batch that is noted to the next


class Watch:
    """Notes the losses of a `fit` as it goes on, and looks at them once.

    Args:
        model: that is fitted.
        optimizer: its SGDPlus, which has made no update.
    """

    def __init__(self, model: Model, optimizer: Any) -> None:
        self._model, self._optimizer = model, optimizer
        # A model with a train step of its own may mean its loss to rise, as a GAN does.
        self._is_done = not keras_trainer.has_stock_train_step(model)
        self._notes = [_Note(0, running_sums.NONE, (), 0.0)]
        self._first = running_sums.NONE
        self._num_batches, self._next = 0, 1.0
        running_sums.reset_losses(optimizer)

    def begin_batch(self) -> None:
        """Notes the losses before a batch; fewer and fewer batches are noted."""
        self._num_batches += 1
        if not self._is_done and self._num_batches >= self._next:
            self._next = self._num_batches * _GROWTH
            self._note()

    def _note(self) -> None:
        latest, self._first = running_sums.take_losses(self._optimizer)
        if latest.count and not self._first.count:
            self._is_done = True  # a callback has taken up an earlier run
        elif latest.count:
            has_fallen = self._first.is_above(latest)
            weights = () if has_fallen else self._weights()
            count = self._notes[-1].count + latest.count
            rate = current_rate(self._optimizer)
            self._notes.append(_Note(count, latest, weights, rate))

    def report(self, data: Mapping[str, Any]) -> str | None:
        """The warning at the end of an epoch, once, or None.

        Args:
            data: the arguments of `fit`.
        """
        if self._is_done or self._optimizer.examples_per_update is None:
            return None
        self._note()
        count, first = self._notes[-1].count, self._first
        if self._is_done or count < MIN_UPDATES:
            return None
        earlier = [n for n in self._notes if n.count <= (1 - _LAST) * count]
        latest = [note.latest for note in self._notes[len(earlier) :]]
        last = Losses(*map(sum, zip(*latest, strict=True)))
        if last.count > _MOST * count:
            return None  # of too few batches; the next epoch has more
        self._is_done = True
        if last.is_above(first):
            state = "above"
        elif not first.is_above(last) and self._is_stuck(earlier[-1], last):
            state = "with weights that hardly change any more, not below"
        else:
            return None
        seen = likely_causes(self._model, self._optimizer, data, may_be_stuck=True)
        return (
            "The loss should fall while a new optimizer trains. Received: a mean loss "
            f"of {last.mean:.4g} over the last {last.count:.0f} updates, {state} the "
            f"{first.mean:.4g} of the first {first.count:.0f}, with "
            f"{rate_in_words(self._optimizer)}. Begin again with the weights of "
            f"before. Likely causes, in this order: {in_words(seen)}. With data "
            "in the order of time or of classes it may be as it should."
        )

    def _is_stuck(self, note: _Note, last: Losses) -> bool:
        # Whether weights that change by their own size would hardly change the loss, to
        # first order. At an optimum the gradients of single examples are not small.
        optimizer, now = self._optimizer, self._weights()
        rate = min(note.rate, current_rate(optimizer))
        if not rate or len(now) != len(note.weights) or not now:
            return False
        pairs = zip(now, note.weights, strict=True)
        moved = math.sqrt(sum((a.projection - b.projection) ** 2 for a, b in pairs))
        if any(getattr(optimizer, name) is not None for name in _OTHER_STEPS):
            return not moved  # steps say nothing of the sizes of gradients
        gradient = moved / (rate * math.sqrt(last.count))
        size = math.sqrt(sum(weight.squares for weight in now))
        # Weights that begin at zero may go to one.
        return gradient * max(size, 1) < _STUCK * abs(last.mean)

    def _weights(self) -> list[_Weight]:
        return [_Weight.of(v) for v in self._model.trainable_variables]


# Settings with which a step is not the rate times the gradient of an example.
_OTHER_STEPS = (
    *("max_loss_fraction", "clipnorm", "clipvalue", "global_clipnorm"),
    "gradient_accumulation_steps",
)
_MOST_ENTRIES = 1 << 16  # of a variable that are looked at


class _Weight(NamedTuple):
    # Of a variable: its projection on a fixed direction, and its squares. Two of the
    # first tell how far it has moved, without a copy. The direction is not that of
    # ones, for the gradients of a softmax add up to zero.
    projection: float
    squares: float

    @classmethod
    def of(cls, variable: Variable) -> _Weight:
        flat = tf.reshape(variable.value, (-1,))
        step = max(1, -(-math.prod(variable.shape) // _MOST_ENTRIES))
        sample = np.asarray(flat[::step]).astype("float64")
        # No product of matrices: the threads of BLAS go on to spin after it.
        with np.errstate(all="ignore"):  # of weights that are NaN
            projection = np.sum(sample * _direction()[: sample.size])
            squares = np.sum(sample * sample)
        return cls(math.sqrt(2 * step) * float(projection), step * float(squares))


@functools.cache
def _direction() -> np.ndarray:
    return np.cos(1 + np.arange(_MOST_ENTRIES))


class _Note(NamedTuple):
    count: float  # of the updates so far
    latest: Losses  # since the note before
    # The weights and the rate. Without weights if the latest losses are below the
    # first.
    weights: Sequence[_Weight]
    rate: float
