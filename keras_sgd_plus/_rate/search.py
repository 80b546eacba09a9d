"""find_learning_rate: which learning rate suits a model and its data.

The search trains with one candidate after the other, through the train function of
`fit`, and puts everything back afterwards. What is measured, and which candidate is
best, is told in `choice`; how the data are read, in `batches`.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._advice import notices
from keras_sgd_plus._batch import checks, step, walk_batch
from keras_sgd_plus._loop import examples
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Parts, Variable
from keras_sgd_plus._rate.batches import Batches
from keras_sgd_plus._rate.choice import Trial, alike, best_of, comparable
from keras_sgd_plus._report import bad_examples, running_sums
from keras_sgd_plus._rule.ours import per_example, unwrap

MIN_UPDATES = 64
LIMITS = (1e-9, 1e3)
MOST_VISITS = 60_000
_WINDOWS = 8  # of a candidate's losses
_WHOLE_CALLS, _MOST_FOR_CALLS = 4, 5_000  # of whole batches, and examples in them
_PER_DECADE = 2  # candidates
_MARGIN = 3  # candidates that have to be worse, on each side of the best one
_APART = 2  # steps of the grid, beyond which candidates that are alike are no answer
_HARM = 0.01  # part of the loss by which a rate may be worse, where nothing is learned
_CONSTANT = 1 / 3  # part of the rate for a falling one that suits a constant one


@dataclass(frozen=True)
class FoundLearningRate:
    """The result of `find_learning_rate`.

    Attributes:
        learning_rate: Float, for a rate that falls to zero, as with `LinearDecay`.
        constant_learning_rate: Float, for a `fit` with one rate.
        rates: Array of shape `(candidates,)`, in ascending order.
        losses: Array of shape `(candidates,)`: the mean loss of each over its
            examples, each before its own update; NaN where one was not finite.
        standard_errors: Array of shape `(candidates,)`, those of `losses`.
        num_examples: Array of ints of shape `(candidates,)`: visited by each.
        is_sure: Bool. False where candidates more than a factor of 10 apart could not
            be told from the best one (the rate is then the largest with which the loss
            is at most 1 % above the lowest), where that is a limit of the search, or
            where losses came in one sum, so that their error is not known.
        seconds: Float, that the search took.
    """

    __module__ = "keras_sgd_plus"

    learning_rate: float
    constant_learning_rate: float
    rates: np.ndarray
    losses: np.ndarray
    standard_errors: np.ndarray
    num_examples: np.ndarray
    is_sure: bool
    seconds: float

    def __str__(self) -> str:
        doubt = "" if self.is_sure else " Not sure: other rates did about as well."
        return (
            f"Found learning_rate={self.learning_rate:.3g} for a rate that falls to "
            f"zero (LinearDecay), {self.constant_learning_rate:.3g} for a constant "
            f"one; {len(self.rates)} rates, {self.seconds:.1f} s.{doubt}"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws losses over rates, with two standard errors, and the rate that is set.

        Args:
            ax: `matplotlib.axes.Axes`, or None for new ones. Defaults to `None`.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                "plot() needs matplotlib. Received: a Python without it. Install it: "
                "pip install matplotlib."
            ) from error
        if ax is None:
            _, ax = pyplot.subplots()
        ax.errorbar(self.rates, self.losses, 2 * self.standard_errors, marker="o")
        ax.axvline(self.learning_rate, linestyle="--", color="gray")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss before each update")
        return ax


class _Kept:
    """Everything that training changes, as it was, to be put back.

    Args:
        model: in training.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._put_back_ledgers = bad_examples.kept(unwrap(model.optimizer))
        self._values: dict[int, tuple[Any, tf.Tensor]] = {}
        self._stops = model.stop_training
        self.note_generators()

    def add_all(self) -> None:
        """Keeps the values of all variables of a model that is built."""
        model = self._model
        outer: Any = model.optimizer
        inner = unwrap(outer)
        self.add([*model.variables, *model.metrics_variables])
        self.add([*outer.variables, *inner.variables])
        self.add([*running_sums.carried(inner), bad_examples.place_of(inner)])
        shared = keras_optimizer.global_seed_state()
        self.add([] if shared is None else [shared])
        self.note_generators()

    def note_generators(self) -> None:
        """Notes the states of the generators of Python and NumPy."""
        self._random = random.getstate()
        self._numpy = np.random.get_state()

    def add(self, variables: Sequence[Variable | tf.Variable]) -> None:
        """Keeps the values of more variables, as they are now."""
        for variable in variables:
            native = keras_optimizer.native(variable)
            if id(native) not in self._values:
                self._values[id(native)] = native, tf.identity(native)

    def put_back(self) -> None:
        """Gives all their values of before."""
        for variable, value in self._values.values():
            variable.assign(value)
        self._put_back_ledgers()
        self._model.stop_training = self._stops
        self.put_back_generators()

    def put_back_generators(self) -> None:
        """Gives these generators the states that were noted last."""
        random.setstate(self._random)
        np.random.set_state(self._numpy)


class _Trainer:
    """Trains a model on the same batches from the same start, for each candidate.

    Args:
        model: in training.
        kept: of it.
        batches: of the data.
    """

    def __init__(self, model: Model, kept: _Kept, batches: Batches) -> None:
        self._model: Any = model
        self._kept, self._batches = kept, batches
        self._optimizer = unwrap(model.optimizer)
        self.visits = 0
        self.error: FloatingPointError | None = None  # the last one
        first = batches.first(1)
        if not first:
            raise ValueError(
                "find_learning_rate needs examples. Received: data without a batch. "
                "Look at how the data set is made."
            )
        kept.put_back_generators()  # which reading the data may have used
        checks.check_batched(model, first[0])
        checks.check_kinds(model, first[0])
        self._build(examples.unpack(first[0]))
        kept.add_all()
        self._check_weights()
        model.make_train_function()

    def _check_weights(self) -> None:
        for variable in self._model.trainable_variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
                raise ValueError(
                    "find_learning_rate needs a model with finite weights. Received: "
                    f"{variable.path} with NaN or infinities, which an earlier "
                    "training may have left. Make the model anew."
                )

    def _build(self, batch: Any) -> None:
        # As the first step of `fit` does it: the weights are those that it would make.
        size = self._optimizer.examples_per_update
        specs = examples.specs(batch, size)
        try:
            keras_model.build(self._model, self._model.optimizer, specs)
        except (ValueError, RuntimeError) as error:
            if not keras_model.refused_variable(error):
                raise
            keras_model.trace_once(self._model, specs)
            keras_model.build(self._model, self._model.optimizer, specs)

    def enough(self, num_examples: int) -> int:
        """The examples that a candidate visits: more where groups of them are large.

        Raises:
            ValueError: the data are too few to tell rates apart.
        """
        size = self._optimizer.examples_per_update
        num_examples = max(num_examples, MIN_UPDATES * size)
        # A call with whole batches is one window, and one says nothing of chance.
        first = self.available(1)
        if not self._batches.can_be_cut(first, size):
            calls = _WHOLE_CALLS * self._model.steps_per_execution * first
            num_examples = max(num_examples, min(calls, _MOST_FOR_CALLS))
        # The last batch may go beyond: whole ones are taken.
        while self.available(num_examples) < MIN_UPDATES * size:
            if self.available(2 * num_examples) == self.available(num_examples):
                found = self.available(num_examples)
                raise ValueError(
                    f"find_learning_rate needs examples for {MIN_UPDATES} updates or "
                    f"more. Received: {found} examples, for {found // size} updates "
                    f"with examples_per_update={size}. Give more examples, or choose "
                    "the rate by yourself: SGDPlus(0.01)."
                )
            num_examples *= 2
        return num_examples

    def available(self, num_examples: int) -> int:
        """The examples in the batches of a run."""
        return sum(self._batches.sizes(self._batches.first(num_examples)))

    def run(self, rate: float, num_examples: int) -> Trial:
        """Trains with one candidate."""
        model, optimizer = self._model, self._optimizer
        batches = self._batches.first(num_examples)
        group_size = optimizer.examples_per_update
        parts = self._batches.parts(batches, group_size, _WINDOWS)
        self._kept.put_back()
        model.reset_metrics()
        optimizer.learning_rate.assign(rate)
        running_sums.reset_losses(optimizer)
        iterator = self._batches.again([part.batch for part in parts])
        is_finite, windows, before = True, [running_sums.NONE] * _WINDOWS, 0
        with notices.without_watching(model), step.observed(self._kept.add):
            for part in parts[:: model.steps_per_execution]:
                if not part.first:  # a batch begins
                    before = int(keras_optimizer.raw_iterations(optimizer).numpy())
                try:
                    with walk_batch.part_of_batches(model, *part[1:3], before):
                        model.train_function(iterator)
                except FloatingPointError as error:  # under nonfinite="raise"
                    is_finite, self.error = False, error
                losses, _ = running_sums.take_losses(optimizer)
                windows[part.window] = windows[part.window].plus(losses)
                is_finite &= math.isfinite(losses.squares)
                if not is_finite:
                    break
        visited = sum(self._batches.sizes(batches))
        self.visits += visited
        if is_finite and not notices.is_engaged(optimizer):
            raise ValueError(
                "find_learning_rate needs a model whose train_step updates per "
                "example. Received: one that calls apply_gradients, or makes no "
                "update. Return self.optimizer.train_step(self, data), or "
                "super().train_step(data), from train_step."
            )
        longest = max(w.count for w in windows)
        means = tuple(w.mean if 2 * w.count > longest else math.nan for w in windows)
        count = sum(w.count for w in windows)
        return Trial(rate, means if is_finite else None, count, visited)


class _Grid:
    """The candidates, by their places on a grid, and what each has lost.

    Args:
        trainer: of the model.
        show: called after each trial.
    """

    def __init__(self, trainer: _Trainer, show: Callable[[], None]) -> None:
        self._trainer, self._show = trainer, show
        self.trials: dict[int, Trial] = {}  # that are still candidates
        self.all: dict[int, Trial] = {}  # the last one at each place
        self.is_sure = True

    @property
    def error(self) -> FloatingPointError | None:
        """The last error of nonfinite="raise"."""
        return self._trainer.error

    def run(self, places: Iterable[int], num_examples: int) -> None:
        """Tries the candidates at these places."""
        for place in places:
            rate = 10 ** (place / _PER_DECADE)
            trial = self._trainer.run(rate, num_examples)
            self.trials[place] = self.all[place] = trial
            self._show()

    def best(self) -> int | None:
        """The place of the best one, or None where no loss was finite."""
        found = best_of(self.trials.values())
        return next((p for p, t in self.trials.items() if t is found), None)

    def search(self, lowest: float, highest: float, num_examples: int) -> None:
        """Tries all from the lowest to the highest, and then what that asks for."""
        low, high = (_PER_DECADE * math.log10(rate) for rate in (lowest, highest))
        places = range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1)
        self.run(places, num_examples)
        self.widen(num_examples)
        self.narrow(num_examples)

    def chosen(self) -> Trial | None:
        """The best one; None where no loss was finite.

        Where candidates far apart are alike, nothing was learned yet, as on a plateau,
        and the lowest rates lose least, for they make no noise. Then it is the largest
        one that does no harm.
        """
        best = best_of(self.trials.values())
        if best is None or self.is_sure:
            return best
        harmless = (1 + _HARM) * best.score
        found = [t for t in self.all.values() if t.score <= harmless]
        return max(found, key=lambda t: t.rate, default=best)

    def widen(self, num_examples: int) -> None:
        """Goes on until the best one has `_MARGIN` worse ones on both sides.

        One would not do: where rates are so high that a network dies at once, one of
        them is best by chance. Above a rate with a loss that is not finite there is
        none that is better.
        """
        lowest, highest = (round(_PER_DECADE * math.log10(r)) for r in LIMITS)
        while True:
            place, low, high = self.best(), min(self.trials), max(self.trials)
            if low > lowest and (place is None or place < low + _MARGIN):
                self.run([low - 1], num_examples)
            elif place is None:
                return
            elif (
                high < highest
                and place > high - _MARGIN
                and self.trials[high].score < math.inf
            ):
                self.run([high + 1], num_examples)
            else:
                self.is_sure = lowest < place < highest
                return

    def narrow(self, num_examples: int) -> None:
        """Tries those that are alike on more examples, while they are far apart."""
        best = best_of(self.trials.values())
        if best is not None and math.isnan(best.error):  # there is but one window
            self.is_sure = False
            return
        while True:
            found = alike(list(self.trials.values()))
            places = sorted(p for p, t in self.trials.items() if t in found)
            if not places or places[-1] - places[0] <= _APART:
                return
            before = self._trainer.available(num_examples)
            while self._trainer.available(num_examples) < 2 * before:
                num_examples *= 2
                if num_examples > MOST_VISITS:
                    break
            new = self._trainer.available(num_examples)
            cost = len(places) * new
            if new == before or self._trainer.visits + cost > MOST_VISITS:
                self.is_sure = False
                return
            self.trials = {}
            self.run(places, num_examples)


def run_search(
    model: Model,
    data: Parts,
    *,
    batch_size: int | None,
    class_weight: dict[int, float] | None = None,
    num_rows: int | None = None,
    lowest: float = 1e-4,
    highest: float = 1.0,
    num_examples: int = 2000,
    order: str = "random",
    seed: int | None = None,
    verbose: str | int = "auto",
) -> FoundLearningRate:
    """Searches, and puts everything back; arguments as of `find_learning_rate`.

    Args:
        model: compiled.
        data: x, y and sample_weight.
        batch_size: of arrays; None: that of `fit`.
        class_weight: as for `fit`.
        num_rows: of arrays that may be drawn, the first ones; None: all.
        lowest: candidate.
        highest: candidate.
        num_examples: that each candidate visits first.
        order: of examples from arrays.
        seed: of their draw; None: that of the optimizer.
        verbose: as for `fit`.
    """
    optimizer = _checked_optimizer(model)
    if seed is None:
        seed = optimizer.seed
    started = time.perf_counter()
    kept = _Kept(model)
    rate = optimizer.learning_rate.numpy()
    waits, optimizer.waits_for_rate = optimizer.waits_for_rate, False
    bar = _Progress(verbose)
    try:
        draws = seed if order == "random" else None
        batches = Batches(model, data, batch_size, class_weight, draws, num_rows)
        with contextlib.closing(batches):
            trainer = _Trainer(model, kept, batches)
            grid = _Grid(trainer, bar.show)
            grid.search(lowest, highest, trainer.enough(num_examples))
    finally:
        kept.put_back()
        optimizer.learning_rate.assign(rate)
        optimizer.waits_for_rate = waits
        bar.finish()
    found = _result(grid, time.perf_counter() - started)
    if verbose:
        print(found)
    return found


def _checked_optimizer(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a keras.Model. Received: a "
            f"{type(model).__name__}. Write find_learning_rate(model, x, y)."
        )
    owner = unwrap(getattr(model, "optimizer", None))
    optimizer = per_example(owner)
    if optimizer is None:
        received = settings.shown(owner)
        if owner is None:
            received = f"model {model.name!r}, which is not compiled"
        raise TypeError(
            "find_learning_rate needs a model whose optimizer updates per example. "
            f"Received: {received}. Write model.compile(optimizer=SGDPlus(), ...) "
            "first, without examples_per_update=None."
        )
    if keras_optimizer.schedule(optimizer) is not None:
        raise ValueError(
            "find_learning_rate needs an optimizer whose learning_rate is a number. "
            "Received: a schedule. Compile with SGDPlus(), and let the rate that is "
            "found fall: fit(callbacks=[LinearDecay()])."
        )
    with model.distribute_strategy.scope():
        if tf.distribute.has_strategy():
            raise NotImplementedError(
                "find_learning_rate needs a model outside any tf.distribute strategy. "
                f"Received: {type(model.distribute_strategy).__name__}. Search with a "
                "model that is made outside strategy.scope(), and give SGDPlus the "
                "rate that is found."
            )
    return optimizer


class _Progress:
    # A bar as Keras shows it; nothing unless asked for.
    def __init__(self, verbose: str | int) -> None:
        shows = verbose in ("auto", 1)
        self._bar = keras.utils.Progbar(None, unit_name="rate") if shows else None
        self._count = 0

    def show(self) -> None:
        self._count += 1
        if self._bar is not None:
            self._bar.update(self._count)

    def finish(self) -> None:
        if self._bar is not None and self._count:
            self._bar.update(self._count, finalize=True)


def _result(grid: _Grid, seconds: float) -> FoundLearningRate:
    trials = [grid.all[place] for place in sorted(grid.all)]
    best = grid.chosen()
    if best is None:
        raise ValueError(
            "Some learning rate must give losses that are finite. Received: NaN or "
            f"infinite losses with every rate from {trials[0].rate:.1g} to "
            f"{trials[-1].rate:.1g}. Look for NaN in x and y, for labels out of range, "
            'and for inputs that are not scaled; SGDPlus(nonfinite="skip") leaves bad '
            "examples out."
        ) from grid.error
    # Those that visited as many examples can be compared.
    sizes = {t.num_examples for t in trials}
    groups = [[t for t in trials if t.num_examples == n] for n in sizes]
    usable = [t for group in groups for t in comparable(group)]
    known = [t if t in usable else None for t in trials]
    return FoundLearningRate(
        learning_rate=best.rate,
        constant_learning_rate=best.rate * _CONSTANT,
        rates=np.array([t.rate for t in trials]),
        losses=np.array([math.nan if t is None else t.score for t in known]),
        standard_errors=np.array([math.nan if t is None else t.error for t in known]),
        num_examples=np.array([t.num_examples for t in trials]),
        is_sure=grid.is_sure,
        seconds=seconds,
    )


# Optimizer -> what was found for it, and set.
_set: weakref.WeakKeyDictionary[Any, FoundLearningRate] = weakref.WeakKeyDictionary()


def set_rate(optimizer: Any, found: FoundLearningRate) -> None:
    """Sets the rate that was found."""
    optimizer.learning_rate = found.learning_rate
    _set[optimizer] = found


def found_for(optimizer: Any) -> FoundLearningRate | None:
    """What the rate was found with that the optimizer has now, or None."""
    found = _set.get(optimizer)
    if found is None or keras_optimizer.schedule(optimizer) is not None:
        return None
    now = float(optimizer.learning_rate.numpy())
    return found if now == np.float32(found.learning_rate) else None
