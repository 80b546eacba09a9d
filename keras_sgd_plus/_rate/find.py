"""find_learning_rate, and the `fit` of SGDPlus("auto"), which calls it by itself.

That is the search before Keras's own `fit`, on the data of that `fit`, and a
`LinearDecay` among its callbacks; nothing else. A run that `ExactResume` takes up again
has its rate in the save, and does not search. A `fit` without decay after a search by
hand gives a warning: the rate that was set suits a fall, and the warning names another.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import keras

from keras_sgd_plus._advice import notices
from keras_sgd_plus._callbacks.exact_resume import ExactResume
from keras_sgd_plus._callbacks.saves import Saves
from keras_sgd_plus._callbacks.seeded_arrays import check_positive
from keras_sgd_plus._fit import hooks
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model
from keras_sgd_plus._rate import search
from keras_sgd_plus._rate.linear_decay import SETTERS, LinearDecay
from keras_sgd_plus._rule.ours import per_example


def find_learning_rate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 1000,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    lowest: float = 0.0001,
    highest: float = 1.0,
    num_examples: int = 2000,
    order: Literal["random", "given"] = "random",
    seed: int | None = None,
    set_rate: bool = True,
    verbose: Literal["auto"] | int = "auto",
) -> search.FoundLearningRate:
    """Finds the learning rate for a model and its data, and sets it.

    Each candidate trains from the weights that the model has, on the same examples in
    the same order, and each example's loss counts before its own update: an honest test
    loss (progressive validation). Afterwards everything is as it was, bit for bit, but
    the learning rate. What is compiled for the search serves a `fit` with the same
    `batch_size`, too.

    ```python
    model.compile(optimizer=SGDPlus(), loss=..., metrics=[...])
    found = find_learning_rate(model, x, y)
    model.fit(x, y, batch_size=1000, epochs=10, callbacks=[LinearDecay()])
    ```

    `SGDPlus("auto")` does both within each `fit`.

    Args:
        model: A `keras.Model`, compiled with an `SGDPlus` (maybe inside a
            `LossScaleOptimizer`). Its other settings hold during the search. A trained
            model is searched from where it is.
        x: What `fit` takes: arrays, dicts or lists of arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`, of which the first batches are read.
        y: What `fit` takes. Defaults to `None`.
        batch_size: Int, in examples; that of the `fit` that follows. Defaults to
            `1000`.
        sample_weight: What `fit` takes. Defaults to `None`.
        class_weight: What `fit` takes. Defaults to `None`.
        lowest: Float, of the candidates, which are half a decade apart. The search goes
            on below it until three lower ones are worse than the best, down to 1e-9.
            Defaults to `0.0001`.
        highest: Float, of the candidates. The search goes on upwards in the same way,
            up to 1e3. Defaults to `1.0`.
        num_examples: Int. Each candidate visits so many, in whole batches, one at
            least, and no example twice. Where candidates cannot be told apart, the
            search goes on with these alone on more examples, up to 60,000 visits in
            all. Defaults to `2000`.
        order: `"random"`: examples are drawn from arrays at random; `"given"`: the
            first ones. Defaults to `"random"`.
        seed: Int, of that draw, or None, the optimizer's. Defaults to `None`.
        set_rate: Bool. Whether `model.optimizer.learning_rate` is set. Defaults to
            `True`.
        verbose: `"auto"` or 1: a progress bar and a line with the result; 2: the line;
            0: nothing. Defaults to `"auto"`.

    Returns:
        A `FoundLearningRate`.

    Raises:
        TypeError: `model` that is no model, or whose optimizer is no `SGDPlus` that
            updates per example; `class_weight` that is no dict; `lowest` or `highest`
            that is no number; `set_rate` that is no bool; `batch_size`, `num_examples`
            or `seed` that is no int.
        ValueError: a schedule as the learning rate; `x` that can be read only once, or
            has too few examples for 64 updates; `x`, `y` and `sample_weight` of unequal
            lengths; losses that are finite with no rate; `batch_size`, `lowest`,
            `highest`, `num_examples`, `order`, `seed` or `verbose` out of range.
        NotImplementedError: a model under a `tf.distribute` strategy.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import LinearDecay, SGDPlus, find_learning_rate

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(SGDPlus(seed=0), "mse")
    x = np.random.default_rng(0).normal(size=(2000, 4))
    y = x.sum(axis=1)
    found = find_learning_rate(model, x, y, verbose=0)
    print(f"{found.learning_rate:.2g}")
    model.fit(x, y, batch_size=1000, epochs=2, verbose=0, callbacks=[LinearDecay()])
    ```

    Notes:
        - The search puts back weights, optimizer state, metrics, seeds of layers and of
          `keras.random`, and the generators of Python and NumPy. It does not put back a
          `tf.Variable` that the model does not track, the state of `tf.random`'s own
          kernels, and the shuffles of a `tf.data.Dataset`.
        - A model that is not built gets the weights that `fit` would have given it.
        - A rate for a falling rate is too high for a constant one: for that take
          `found.constant_learning_rate`.

    References:
        - [Blum, Kalai and Langford, 1999](https://doi.org/10.1145/307400.307439):
          progressive validation
        - [Bottou, 2012](https://doi.org/10.1007/978-3-642-35289-8_25): rates are
          compared on a part of the data
    """
    _check_arguments(locals())
    found = search.run_search(
        model,
        (x, y, sample_weight),
        batch_size=batch_size,
        class_weight=class_weight,
        lowest=lowest,
        highest=highest,
        num_examples=num_examples,
        order=order,
        seed=seed,
        verbose=verbose,
    )
    if set_rate:
        search.set_rate(per_example(model.optimizer), found)
    return found


def _check_arguments(given: Mapping[str, Any]) -> None:
    check_positive("batch_size", given["batch_size"])
    check_positive("num_examples", given["num_examples"])
    low, high = given["lowest"], given["highest"]
    least, most = search.LIMITS
    for name in ("lowest", "highest"):
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"`{name}` must be a number. Received: {name}="
                f"{settings.shown(value)}. Use 1e-4 for the lowest, 1.0 for the "
                "highest, say."
            )
    if not least <= low <= high / 10 or high > most:
        raise ValueError(
            f"`lowest` and `highest` must be from {least:g} to {most:g}, a factor of "
            f"10 apart or more. Received: lowest={low:g} and highest={high:g}. Use "
            "lowest=1e-4, highest=1.0, say."
        )
    if given["order"] not in ("random", "given"):
        raise ValueError(
            '`order` must be "random" or "given". Received: order='
            f'{settings.shown(given["order"])}. Use "given" for the first examples.'
        )
    if not isinstance(given["set_rate"], bool):
        raise TypeError(
            "`set_rate` must be True or False. Received: set_rate="
            f"{settings.shown(given['set_rate'])}. Use False to look at the rates only."
        )
    if given["verbose"] not in ("auto", 0, 1, 2):
        raise ValueError(
            '`verbose` must be "auto", 0, 1 or 2. Received: verbose='
            f"{settings.shown(given['verbose'])}. Use 0 for silence."
        )
    if given["class_weight"] is not None and not isinstance(
        given["class_weight"], Mapping
    ):
        raise TypeError(
            "`class_weight` must be a dict from classes to weights, or None. Received: "
            f"class_weight={settings.shown(given['class_weight'])}. Use "
            "{0: 1.0, 1: 2.0}, say."
        )
    if given["seed"] is not None:
        settings.checked("seed", given["seed"])


@contextlib.contextmanager
def around_fit(
    model: Model, arguments: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Finds the rate of an SGDPlus("auto") before a `fit`; yields its arguments.

    Args:
        model: whatever its optimizer.
        arguments: of `fit`, by name.
    """
    optimizer = per_example(getattr(model, "optimizer", None))
    if optimizer is None or not optimizer.waits_for_rate:
        if optimizer is not None:
            _advise(optimizer, arguments)
        yield arguments
        return
    callbacks = _listed(arguments.get("callbacks"))
    _refuse_others(callbacks)
    if any(isinstance(c, ExactResume) for c in callbacks):
        _refuse_reshuffled(arguments.get("x"))
    decays = any(isinstance(c, LinearDecay) for c in callbacks)
    added = [] if decays else [LinearDecay()]
    optimizer.waits_for_rate = False
    try:
        if not any(map(_resumes, callbacks)):
            verbose = arguments.get("verbose", "auto")
            found = search.run_search(model, **_of_fit(arguments), verbose=verbose)
            optimizer.learning_rate.assign(found.learning_rate)
        yield {**arguments, "callbacks": [*callbacks, *added]}
    finally:
        optimizer.waits_for_rate = optimizer.is_auto


def _refuse_others(callbacks: Iterable[object]) -> None:
    others = [type(c).__name__ for c in callbacks if isinstance(c, SETTERS)]
    if others:
        raise ValueError(
            'SGDPlus("auto") must be alone in setting the learning rate, which it '
            f"lets fall to zero. Received: {' and '.join(others)} among the callbacks. "
            "Leave it out, or give SGDPlus a number."
        )


def _refuse_reshuffled(data: object) -> None:
    # The search would move its order on, and a run that is resumed does not search.
    if keras_trainer.shuffles_differently(data):
        raise ValueError(
            'With SGDPlus("auto") and ExactResume the data must come in the same order '
            "in each pass. Received: a tf.data.Dataset that is shuffled anew in each. "
            "Use shuffle(..., seed=1, reshuffle_each_iteration=False), or SeededArrays."
        )


def _of_fit(arguments: Mapping[str, Any]) -> dict[str, Any]:
    # The data of a `fit`, as `search.run_search` takes them.
    x, y = arguments.get("x"), arguments.get("y")
    weights = arguments.get("sample_weight")
    num_rows, split = None, arguments.get("validation_split")
    if split and arguments.get("validation_data") is None:
        if keras_trainer.are_arrays((x, y, weights)):
            length = keras.tree.flatten(x)[0].shape[0]
            num_rows = math.floor(length * (1 - split))  # as Keras splits them
    return {
        "data": (x, y, weights),
        "batch_size": arguments.get("batch_size"),
        "class_weight": arguments.get("class_weight"),
        "num_rows": num_rows,
    }


def _listed(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise TypeError(
            'With SGDPlus("auto") `callbacks` must be a list of callbacks. Received: a '
            "CallbackList, whose epochs and steps are set before the rate is known. "
            "Give fit the list itself, or call find_learning_rate before fit."
        )
    return keras.tree.flatten(callbacks or [])


def _resumes(callback: object) -> bool:
    if not isinstance(callback, ExactResume):
        return False
    return Saves.of(callback.directory).newest is not None


def _advise(optimizer: Any, arguments: Mapping[str, Any]) -> None:
    # A rate that was found for a fall is too high without one.
    found = search.found_for(optimizer)
    if found is None or isinstance(
        arguments.get("callbacks"), keras.callbacks.CallbackList
    ):
        return
    callbacks = _listed(arguments.get("callbacks"))
    if any(isinstance(c, (LinearDecay, *SETTERS)) for c in callbacks):
        return
    notices.once(
        optimizer,
        "rate without decay",
        f"find_learning_rate has set learning_rate={found.learning_rate:.3g}, which "
        "suits a rate that falls to zero. Received: a fit without LinearDecay. Write "
        "fit(..., callbacks=[LinearDecay()]), or optimizer.learning_rate = "
        f"{found.constant_learning_rate:.3g} for a constant rate.",
    )


hooks.around_fit(around_fit)
