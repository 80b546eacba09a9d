"""Embedding tables moved in parts, against Keras's SGD, which moves all of a table."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus, _lowering, _plan
from tests import hlo
from tests.replicas import mirrored
from tests.support.compare import difference, snapshot
from tests.twins import assert_engaged, train_pair

ROWS, WIDTH, LENGTH, UPDATES = 1_100, 8, 7, 500
DECAY = keras.optimizers.schedules.ExponentialDecay


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each trace moved in parts."""
    counts: list[int] = []
    start = _plan.Plan.start

    def counted(self: Any, clocks: Any) -> Any:
        counts.append(len(self.places))
        return start(self, clocks)

    monkeypatch.setattr(_plan.Plan, "start", counted)
    return counts


def _ids(count: int = UPDATES, seed: int = 0) -> np.ndarray:
    """(count, LENGTH) ids: a few that come often, many that come once, also twice."""
    rng = np.random.default_rng(seed)
    return (rng.zipf(1.3, size=(count, LENGTH)) % ROWS).astype("int32")


def _labels(count: int = UPDATES) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 4, count).astype("int32")


def _embedding(**settings: Any) -> Any:
    return layers.Embedding(ROWS, WIDTH, **settings)


def _bag(**settings: Any) -> keras.Model:
    stack = [_embedding(**settings), layers.GlobalAveragePooling1D(), layers.Dense(4)]
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])


def _two() -> keras.Model:
    inputs = [keras.Input((LENGTH,), dtype="int32") for _ in range(2)]
    rows = [_embedding()(each) for each in inputs]
    pooled = [layers.GlobalAveragePooling1D()(each) for each in rows]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(pooled)))


def _shared() -> keras.Model:
    inputs = [keras.Input((LENGTH,), dtype="int32") for _ in range(2)]
    embedding = _embedding()
    pooled = [layers.GlobalAveragePooling1D()(embedding(each)) for each in inputs]
    return keras.Model(inputs, layers.Dense(4)(layers.Subtract()(pooled)))


def _masked() -> keras.Model:
    stack = [_embedding(mask_zero=True), layers.LSTM(3), layers.Dense(4)]
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])


def _headed(layer: Any) -> keras.Model:
    """A layer on ids, and a Dense one."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, layers.Dense(4)(layer(inputs)))


def _nested() -> keras.Model:
    return _headed(_bag())


class _Lookup(layers.Layer):
    """A table that is no Embedding."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(ROWS, WIDTH))

    def call(self, ids: Any) -> Any:
        return keras.ops.mean(keras.ops.take(self.rows, ids, axis=0), axis=1)


def _own_layer() -> keras.Model:
    return _headed(_Lookup())


class _WithTable(layers.Layer):
    """A layer with an Embedding in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = _embedding()

    def build(self, shape: Any) -> None:
        self.table.build()


class _Chosen(_WithTable):
    """Looks up ids that depend on rows of the same table."""

    def call(self, ids: Any) -> Any:
        rows = self.table(ids)
        best = keras.ops.argmax(keras.ops.sum(rows, axis=-1), axis=-1)
        return keras.ops.mean(rows, axis=1) + self.table(best * 3 + 1)


def _chosen() -> keras.Model:
    return _headed(_Chosen())


MOMENTUM = {"momentum": 0.9}
ALL = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0625}
# Optimizer arguments, and what differs from a bag of one table.
CASES: dict[str, tuple[Any, Callable[[], Any], Any, int]] = {
    "momentum": (MOMENTUM, _bag, {}, 1),
    "nesterov": ({**MOMENTUM, "nesterov": True}, _bag, {}, 1),
    "momentum one": ({"momentum": 1.0, "learning_rate": 0.001}, _bag, {}, 1),
    "weight decay": ({**MOMENTUM, "weight_decay": 0.05}, _bag, {}, 1),
    "weight decay alone": ({"weight_decay": 0.05}, _bag, {}, 1),
    "momentum is a": (
        {"learning_rate": 0.25, "momentum": 0.75, "weight_decay": 1.0},
        _bag,
        {},
        1,
    ),
    "clipnorm": ({**MOMENTUM, "clipnorm": 0.01}, _bag, {}, 1),
    "global_clipnorm": ({**MOMENTUM, "global_clipnorm": 0.02}, _bag, {}, 1),
    "clipvalue": ({**MOMENTUM, "clipvalue": 0.001}, _bag, {}, 1),
    "schedule": (
        lambda: {"learning_rate": DECAY(0.05, 90, 0.5), **MOMENTUM},
        _bag,
        {},
        1,
    ),
    "schedule and decay": (
        lambda: {"learning_rate": DECAY(0.05, 90, 0.5), **ALL},
        _bag,
        {},
        1,
    ),
    "all": (ALL, _bag, {}, 1),
    "one large batch": (ALL, _bag, {"our_fit": {"batch_size": UPDATES}}, 1),
    "two tables": (ALL, _two, {"x": [_ids(), _ids(seed=1)]}, 2),
    "shared table": (ALL, _shared, {"x": [_ids(), _ids(seed=1)]}, 1),
    "mask": (ALL, _masked, {}, 1),
    "nested": (ALL, _nested, {}, 1),
    "own layer": (ALL, _own_layer, {}, 1),
    "ids from rows": (ALL, _chosen, {}, 1),
    "negative ids": (ALL, _bag, {"x": -1 - _ids() % 1_000}, 1),
    "skip": (ALL, _bag, {"plus": {"order": "given", "nonfinite": "skip"}}, 1),
}


def _pair(name: str, **changes: Any) -> Any:
    sgd, model, settings, _ = CASES[name]
    loss = keras.losses.SparseCategoricalCrossentropy
    arguments: dict[str, Any] = {
        "x": _ids(),
        "y": _labels(),
        "sgd": sgd if callable(sgd) else {"learning_rate": 0.05, **sgd},
        "compile": lambda: {"loss": loss(from_logits=True)},
        "our_fit": {"batch_size": 128},
        **settings,
        **changes,
    }
    return train_pair(model, **arguments)


@pytest.mark.parametrize("name", CASES)
def test_equals_keras(name: str, tables: list[int], engagements: list[str]) -> None:
    pair = _pair(name)
    assert_engaged(pair, engagements, UPDATES)
    assert set(tables) == {CASES[name][3]}
    assert pair.difference().relative <= 1e-5


@pytest.mark.parametrize(
    "name", ["nesterov", "all", "schedule and decay", "two tables", "momentum is a"]
)
def test_equals_keras_in_float64(name: str, tables: list[int]) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    pair = _pair(name)
    assert set(tables) == {CASES[name][3]}
    assert pair.difference().relative <= 1e-12


def test_epochs_follow_each_other(tables: list[int]) -> None:
    """A batch begins with every row up to date, whatever the one before has left."""
    pair = _pair("all", our_fit={"batch_size": 99}, fit={"epochs": 2})
    assert set(tables) == {1}
    assert pair.difference().relative <= 1e-5


def test_mixed_precision(tables: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As close to Keras as moving whole tables is: float16 rounds what both compute."""
    keras.config.set_dtype_policy("mixed_float16")
    in_parts = _pair("all").difference().relative
    assert set(tables) == {1}
    monkeypatch.setenv(_lowering.SWITCH, "0")
    whole = _pair("all").difference().relative
    assert in_parts <= max(3 * whole, 1e-5)


def _train(
    model: Any,
    x: Any,
    y: Any,
    settings: dict[str, Any],
    scaled: bool = False,
    replicas: int = 1,
) -> Any:
    """Trains a copy with the same start; gives what it was and what it became."""
    keras.utils.set_random_seed(1)
    with contextlib.ExitStack() as stack:
        if replicas > 1:
            stack.enter_context(mirrored(replicas).scope())
        model = model()
        rate = {"learning_rate": 0.05, "order": "given"}
        optimizer: Any = SGDPlus(**{**rate, **settings})
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=8.0, dynamic_growth_steps=40
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
    before = snapshot(model)
    model.fit(x, y, batch_size=120, shuffle=False, verbose=0)
    return before, snapshot(model)


def _assert_whole_is_same(
    tables: list[int], monkeypatch: pytest.MonkeyPatch, *arguments: Any, **more: Any
) -> None:
    before, in_parts = _train(*arguments, **more)
    assert tables and set(tables) == {1}
    monkeypatch.setenv(_lowering.SWITCH, "0")
    tables.clear()
    _, whole = _train(*arguments, **more)
    assert not tables
    assert difference(before, in_parts, whole).relative <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_scale_factor": 8.0},  # Keras cannot divide these gradients
        {"examples_per_update": 4},
        {"examples_per_update": 3, "nonfinite": "skip"},
    ],
    ids=lambda s: " ".join(s),
)
def test_equals_whole_tables(
    settings: Any, tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (_bag, _ids(), _labels(), {**ALL, **settings})
    _assert_whole_is_same(tables, monkeypatch, *arguments)


def test_replicas(tables: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replica's rows are up to date when all are averaged."""
    arguments = (_bag, _ids(), _labels(), ALL)
    _assert_whole_is_same(tables, monkeypatch, *arguments, replicas=2)


def _weighted_inputs(bad: tuple[int, ...]) -> Any:
    factors = np.ones((UPDATES, 1), "float32")
    factors[list(bad)] = np.nan
    return [_ids(), factors]


def _weighted() -> keras.Model:
    ids, factor = keras.Input((LENGTH,), dtype="int32"), keras.Input((1,))
    pooled = layers.GlobalAveragePooling1D()(_embedding()(ids))
    return keras.Model([ids, factor], layers.Dense(4)(pooled * factor))


def test_loss_scale_that_skips(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped update is no update to the rows that wait, either."""
    arguments = (_weighted, _weighted_inputs((3, 130, 131, 255)), _labels(), ALL)
    _assert_whole_is_same(tables, monkeypatch, *arguments, scaled=True)


@pytest.mark.parametrize("schedule", [False, True])
def test_skipped_examples(
    schedule: bool, tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**ALL, "nonfinite": "skip"}
    if schedule:
        settings["learning_rate"] = DECAY(0.05, 90, 0.5)
    arguments = (_weighted, _weighted_inputs((3, 130, 131, 255)), _labels(), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _assert_whole_is_same(tables, monkeypatch, *arguments)


def test_rows_are_up_to_date_after_an_error(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nonfinite="raise"` stops in the middle of a batch."""
    found = []
    for switch in "10":
        monkeypatch.setenv(_lowering.SWITCH, switch)
        keras.utils.set_random_seed(1)
        model = _weighted()
        model.compile(
            SGDPlus(0.05, order="given", nonfinite="raise", **ALL),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        before = snapshot(model)
        with pytest.raises(FloatingPointError):
            inputs = _weighted_inputs((200,))
            model.fit(inputs, _labels(), batch_size=128, shuffle=False, verbose=0)
        found.append(snapshot(model))
    assert tables == [1]
    assert difference(before, *found).relative <= 1e-5


def test_decay_may_leave_a_table_out(tables: list[int]) -> None:
    """Two tables, of which one decays: each has its own clock."""
    found, before = [], None
    for cls in (SGDPlus, keras.optimizers.SGD):
        keras.utils.set_random_seed(1)
        model = _two()
        optimizer = cls(0.05, **ALL)
        optimizer.exclude_from_weight_decay(var_list=[model.trainable_variables[0]])
        if cls is SGDPlus:
            optimizer.order = "given"
        model.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        before = snapshot(model)
        size = 128 if cls is SGDPlus else 1
        x = [_ids(), _ids(seed=1)]
        model.fit(x, _labels(), batch_size=size, shuffle=False, verbose=0)
        found.append(snapshot(model))
    assert tables == [2]
    assert before is not None
    assert difference(before, *found).relative <= 1e-5


def test_ids_out_of_range_change_no_row(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = _ids()
    ids[::50, 0] = ROWS + 5
    _assert_whole_is_same(tables, monkeypatch, _bag, ids, _labels(), ALL)


def _half() -> keras.Model:
    return _bag(dtype="bfloat16")


def _regularized() -> keras.Model:
    return _bag(embeddings_regularizer="l2")


def _constrained() -> keras.Model:
    return _bag(embeddings_constraint="max_norm")


class _Tied(_WithTable):
    """Rows on the way in, the whole table on the way out."""

    def call(self, ids: Any) -> Any:
        mean = keras.ops.mean(self.table(ids), axis=1)
        return keras.ops.matmul(mean, keras.ops.transpose(self.table.embeddings))


def _tied() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, _Tied()(inputs))


class _Projection(_WithTable):
    """The rows are looked at as a whole, and never looked up."""

    def call(self, ids: Any) -> Any:
        rows = keras.ops.one_hot(ids, ROWS)
        return keras.ops.mean(keras.ops.matmul(rows, self.table.embeddings), axis=1)


def _projection() -> keras.Model:
    return _headed(_Projection())


class _Branch(_WithTable):
    """Looks up in a branch."""

    def call(self, ids: Any) -> Any:
        def rows() -> Any:
            return keras.ops.mean(self.table(ids), axis=1)

        return keras.ops.cond(ids[0, 0] % 2 == 0, rows, lambda: 2 * rows())


def _branch() -> keras.Model:
    return _headed(_Branch())


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        (_bag, {"use_ema": True}, "use_ema"),
        (_bag, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        (_constrained, {}, "constraint"),
        (_regularized, {}, "regularizer"),
        (_tied, {}, "another way"),
        (_projection, {}, "another way"),
        (_branch, {}, "another way"),
    ],
)
@pytest.mark.filterwarnings("default:With momentum or weight decay")
def test_falls_back_and_says_so(
    model: Any, settings: Any, named: str, tables: list[int], engagements: list[str]
) -> None:
    count = 60
    loss = keras.losses.SparseCategoricalCrossentropy
    with pytest.warns(UserWarning, match="every update moves all") as caught:
        pair = train_pair(
            model,
            _ids(count),
            _labels(count),
            sgd={"learning_rate": 0.05, **MOMENTUM, **settings},
            compile=lambda: {"loss": loss(from_logits=True)},
            fit={"epochs": 2},
        )
    (text,) = [str(w.message) for w in caught if "moves all" in str(w.message)]
    assert named in text and f"({ROWS}, {WIDTH})" in text
    assert engagements
    # A first trace may find it out; the one that is run has no table in parts.
    assert pair.difference().relative <= 1e-5


class _Stopped(_WithTable):
    """Looks up rows that get no gradient."""

    def call(self, ids: Any) -> Any:
        return keras.ops.stop_gradient(keras.ops.mean(self.table(ids), axis=1))


def _stopped() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    both = [layer(inputs) for layer in (_Stopped(), _Lookup())]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(both)))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_table_without_gradient_stays(tables: list[int]) -> None:
    """As in Keras, where not even weight decay moves it; the other one is moved."""
    loss = keras.losses.SparseCategoricalCrossentropy
    pair = train_pair(
        _stopped,
        _ids(60).astype("int64"),
        _labels(60),
        sgd={"learning_rate": 0.05, **MOMENTUM},
        compile=lambda: {"loss": loss(from_logits=True)},
    )
    assert tables[-1] == 1
    assert pair.difference().relative <= 1e-5


@pytest.mark.filterwarnings("default:With momentum or weight decay")
def test_half_precision_is_whole(tables: list[int]) -> None:
    with pytest.warns(UserWarning, match="bfloat16"):
        _train(_half, _ids(60), _labels(60), ALL)
    assert not tables


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.0}, {"momentum": 0.9, "examples_per_update": 120}]
)
def test_not_where_it_does_not_help(settings: Any, tables: list[int]) -> None:
    """Without momentum rows are not moved by others; large groups touch most rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(_bag, _ids(), _labels(), settings)
    assert len(tables) == (0 if settings["momentum"] == 0 else 1)


@pytest.mark.parametrize("rows", [2_000, 100_000])
def test_no_table_is_copied(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the loop nor before or after it."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(rows, 32),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(0.05, momentum=0.9), loss)
    text = hlo.optimized(monkeypatch, model, _ids(64), _labels(64))
    assert f"f32[{rows},32]" in text
    assert not hlo.copies([text], rows)


def test_time_does_not_grow_with_the_table() -> None:
    """A batch of 512: moving whole tables takes over 50 times as long on the larger."""
    seconds = {}
    for rows in (2_000, 200_000):
        keras.utils.set_random_seed(1)
        stack = [layers.Embedding(rows, 8), layers.Flatten(), layers.Dense(1)]
        model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])
        model.compile(SGDPlus(0.01, momentum=0.9), "mse")
        batch = tf.constant(_ids(512)), tf.ones((512, 1))
        model.optimizer.train_step(model, batch)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            np.asarray(model.optimizer.train_step(model, batch)["loss"])
            times.append(time.perf_counter() - start)
        seconds[rows] = min(times)
    assert seconds[200_000] < 12 * seconds[2_000]
