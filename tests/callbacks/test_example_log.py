"""`ExampleLog`: each example's record is that of its own update, in its own row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExampleLog, SeededArrays, SGDPlus
from tests.support.by_hand import Case, PerEpoch, assert_kept, cases, kept, with_ids
from tests.support.tiers import tiered_keys

CASES = cases()
DENSE = CASES["dense"]
N = 22
SGD = {"learning_rate": 0.05, "momentum": 0.9}


def everything(**arguments: Any) -> ExampleLog:
    return ExampleLog(gradient_norm=True, prediction=True, **arguments)


def recorded(
    case: Case,
    log: ExampleLog,
    data: Any = None,
    sgd: dict[str, Any] | None = None,
    compiled: dict[str, Any] | None = None,
    **fit: Any,
) -> Any:
    """Fits two epochs with a log, without XLA; gives the model."""
    settings = {**SGD, "seed": 4, "jit_compile": False, **(sgd or {})}
    model = case.compiled(SGDPlus(**settings), **(compiled or {}))
    arguments: Any = {"x": case.x, "y": case.y, "batch_size": 8}
    if data is not None:
        arguments = {"x": data}
    fit = {"epochs": 2, "shuffle": False, "verbose": 0, **fit}
    model.fit(**arguments, callbacks=[log], **fit)
    return model


def assert_each_once(visited: np.ndarray, group: int = 1) -> None:
    """Every update of every epoch has one group of examples."""
    for epoch in visited:
        assert np.unique(epoch, return_counts=True)[1].max() <= group
        assert len(np.unique(epoch)) >= len(epoch) / group
    assert visited.min() == 0
    assert len(np.unique(visited)) == visited.max() + 1


def test_the_loss_is_that_of_keras_at_batch_size_1() -> None:
    log = ExampleLog()
    data = SeededArrays(DENSE.x, DENSE.y, batch_size=8, seed=2)
    recorded(DENSE, log, data, sgd={"jit_compile": "auto"})
    order = np.argsort(log.visited.ravel()) % N  # rows, over both epochs
    losses: list[float] = []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            losses.append(logs["loss"])
            self.model.reset_metrics()

    keras_model = DENSE.compiled(keras.optimizers.SGD(**SGD))
    x, y = DENSE.x[order], DENSE.y[order]
    keras_model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=[Reads()])
    assert log.loss.shape == (2, N)
    by_visit = log.loss.ravel()[np.argsort(log.visited.ravel())]
    np.testing.assert_allclose(by_visit, losses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", tiered_keys(CASES, "table"))
def test_models(name: str) -> None:
    case, log = CASES[name], everything()
    recorded(case, log, sgd={"jit_compile": "auto"})
    assert_each_once(log.visited)
    assert log.unweighted_loss.shape == log.gradient_norm.shape == (2, N)
    assert_kept(log, kept(case, log.visited, SGD))
    if name == "two_outputs":
        assert {k: v.shape for k, v in log.prediction.items()} == {
            "kind": (2, N, 3),
            "size": (2, N, 1),
        }
        assert (log.loss > log.unweighted_loss).all()


@pytest.mark.parametrize("name", tiered_keys(CASES))
@pytest.mark.matrix
def test_without_lowered_forms_and_without_xla(name: str) -> None:
    """One record each way; they are those of the same updates."""
    logs = [everything(), everything()]
    for log, jit_compile in zip(logs, ("auto", False), strict=True):
        recorded(CASES[name], log, sgd={"jit_compile": jit_compile})
    one, other = logs
    np.testing.assert_array_equal(one.visited, other.visited)
    for quantity in ("loss", "unweighted_loss", "gradient_norm"):
        np.testing.assert_allclose(
            getattr(one, quantity), getattr(other, quantity), rtol=2e-4, atol=1e-5
        )


@pytest.mark.matrix
def test_norms_are_those_of_torch_at_the_same_weights() -> None:
    """With a rate of zero all examples are seen by the same weights."""
    torch = pytest.importorskip("torch", reason="torch is in the extra [bench]")

    log = everything()
    model = recorded(DENSE, log, sgd={"learning_rate": 0.0, "momentum": 0.0})
    weights = [torch.tensor(w, dtype=torch.float64) for w in model.get_weights()]

    def loss(weights: Any, x: Any, y: Any) -> Any:
        hidden = torch.tanh(x @ weights[0] + weights[1])
        logits = hidden @ weights[2] + weights[3]
        return torch.logsumexp(logits, 0) - (logits * y).sum()

    x = torch.tensor(DENSE.x, dtype=torch.float64)
    y = torch.eye(3, dtype=torch.float64)[torch.tensor(DENSE.y)]
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, y)
    squares = sum((g**2).flatten(1).sum(1) for g in gradients)
    losses = torch.func.vmap(loss, (None, 0, 0))(weights, x, y)
    for epoch in range(2):
        norms = log.gradient_norm[epoch]
        np.testing.assert_allclose(norms, np.sqrt(squares.numpy()), rtol=1e-5)
        np.testing.assert_allclose(log.loss[epoch], losses.numpy(), rtol=1e-5)


SETTINGS: dict[str, Any] = {
    "groups": {"sgd": {"examples_per_update": 3}},  # the last of a batch has 2
    "groups_with_xla": {"sgd": {"examples_per_update": 3, "jit_compile": "auto"}},
    "guarded_with_xla": {"sgd": {"nonfinite": "skip", "jit_compile": "auto"}},
    "given_order": {"sgd": {"order": "given"}},
    "several_steps_per_execution": {
        "sgd": {"jit_compile": "auto"},
        "compiled": {"steps_per_execution": 2},
    },
    "eagerly": {"compiled": {"run_eagerly": True}},
    "compiled_by_keras": {
        "sgd": {"jit_compile": "auto"},
        "compiled": {"jit_compile": True},
    },
    "clipped": {"sgd": {"global_clipnorm": 0.1}},
    "scaled_loss": {"sgd": {"loss_scale_factor": 64.0}},
    "guarded": {"sgd": {"nonfinite": "skip"}},
}


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:Every batch of an epoch but the last")
@pytest.mark.parametrize("name", tiered_keys(SETTINGS))
def test_settings(name: str) -> None:
    log, row = everything(), SETTINGS[name]
    recorded(DENSE, log, **row)
    group = row.get("sgd", {}).get("examples_per_update", 1)
    assert_each_once(log.visited, group)
    of_keras = ("global_clipnorm", "loss_scale_factor")
    settings = {k: v for k, v in row.get("sgd", {}).items() if k in of_keras}
    if "loss_scale_factor" in settings:  # by hand nothing is scaled
        settings = {}
    assert_kept(log, kept(DENSE, log.visited, {**SGD, **settings}))


@pytest.mark.matrix
def test_loss_scale_optimizer() -> None:
    log = everything()
    inner = SGDPlus(**SGD, seed=4, jit_compile=False)
    model = DENSE.compiled(keras.optimizers.LossScaleOptimizer(inner, 8.0))
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [log]}
    model.fit(DENSE.x, DENSE.y, **fit)
    assert_kept(log, kept(DENSE, log.visited, SGD))


def _weights() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.2, 3, N).astype("float32")


@pytest.mark.matrix
def test_weights_of_examples() -> None:
    log, weights = everything(), _weights()
    recorded(DENSE, log, sample_weight=weights)
    assert_kept(log, kept(DENSE, log.visited, SGD, weights))
    np.testing.assert_allclose(log.loss, weights * log.unweighted_loss, rtol=1e-5)


@pytest.mark.matrix
def test_weights_of_classes() -> None:
    log, weights = everything(), {0: 0.5, 1: 1.0, 2: 4.0}
    recorded(DENSE, log, class_weight=weights)
    each = np.array([weights[int(label)] for label in DENSE.y])
    assert_kept(log, kept(DENSE, log.visited, SGD, each.astype("float32")))


def _batches(case: Case) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices((case.x, case.y))
    return dataset.map(lambda x, y: (x, y)).batch(8)


class _Parts(keras.utils.PyDataset):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        part = slice(8 * index, 8 * index + 8)
        return self._case.x[part], self._case.y[part]


IN_ORDER: dict[str, Callable[[], Any]] = {
    "seeded_arrays": lambda: SeededArrays(DENSE.x, DENSE.y, batch_size=8, seed=2),
    "dataset": lambda: _batches(DENSE),
    "py_dataset": lambda: _Parts(DENSE),
}


@pytest.mark.parametrize("kind", tiered_keys(IN_ORDER))
def test_rows_of_data_that_know_them(kind: str) -> None:
    log = everything()
    recorded(DENSE, log, IN_ORDER[kind]())
    assert_each_once(log.visited)
    assert_kept(log, kept(DENSE, log.visited, SGD))


def _stream(data: Any) -> Any:
    slices = tf.data.Dataset.from_tensor_slices(data).shuffle(N, seed=3)
    return slices.batch(5).prefetch(1)


def _generated(data: Any) -> Any:
    (x, y), rng = data, np.random.default_rng(8)
    while True:
        order = rng.permutation(N)
        for first in range(0, N, 11):
            rows = order[first : first + 11]
            yield {"x": x["x"][rows], "row": rows}, y[rows]


BY_ID: dict[str, Any] = {
    "shuffled_arrays": ((lambda data: None), {"shuffle": True}),
    "shuffled_dataset": (_stream, {}),
    "generator": (_generated, {"steps_per_epoch": 2}),
}


@pytest.mark.parametrize("kind", tiered_keys(BY_ID, "shuffled_dataset"))
def test_rows_by_an_id(kind: str) -> None:
    """Everything is shuffled, and each record is in the row of its example."""
    make, arguments = BY_ID[kind]
    case, data = with_ids(DENSE)
    log = everything(id="row")
    recorded(case, log, make(data), **arguments)
    assert_each_once(log.visited)
    assert (np.argsort(log.visited[0]) != np.argsort(log.visited[1])).any()
    assert_kept(log, kept(case, log.visited, SGD))


@pytest.mark.matrix
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_rows_by_a_column(dtype: str) -> None:
    """The last column has the rows, which the model drops; everything is shuffled."""
    case, (data, y) = with_ids(DENSE)
    x = np.c_[np.round(8 * data["x"]), data["row"]].astype(dtype)
    drop = keras.layers.Lambda(lambda x: keras.ops.cast(x[:, :-1], "float32"))

    def make() -> Any:
        inputs = keras.Input((x.shape[1],), dtype=dtype)
        outputs = keras.layers.Dense(3, "softmax")(drop(inputs))
        return keras.Model(inputs, outputs)

    model = make()
    model.compile(SGDPlus(0.01), "sparse_categorical_crossentropy")
    weights = model.get_weights()
    log = ExampleLog(id=-1)
    model.fit(x, y, batch_size=11, epochs=2, verbose=0, callbacks=[log])
    assert_each_once(log.visited)
    # By hand, one example after the other.
    plain = make()
    plain.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    plain.set_weights(weights)
    for epoch, i in sorted(np.ndindex(log.loss.shape), key=lambda at: log.visited[at]):
        chances = plain.predict_on_batch(x[i : i + 1])[0]
        assert log.loss[epoch, i] == pytest.approx(-np.log(chances[y[i]]), 1e-4, 1e-6)
        plain.train_on_batch(x[i : i + 1], y[i : i + 1])


def test_skipped_examples_are_nan_in_their_place() -> None:
    x = DENSE.x.copy()
    x[[3, 17]] = np.nan
    case, log = DENSE._replace(x=x), everything()
    with pytest.warns(UserWarning, match="left out"):
        recorded(case, log, sgd={"nonfinite": "skip"})
    assert_each_once(log.visited)
    for quantity in (log.loss, log.unweighted_loss, log.gradient_norm):
        bad = np.isnan(quantity)
        assert bad[:, [3, 17]].all() and bad.sum() == 4
    assert np.isnan(log.prediction).all(-1).sum() == 4
    # The others are those of a run without the two.
    rest = np.delete(np.arange(N), [3, 17])
    good = DENSE._replace(x=DENSE.x[rest], y=DENSE.y[rest])
    ranks = np.argsort(np.argsort(log.visited[:, rest], None)).reshape(2, -1)
    expected = kept(good, ranks, SGD)
    np.testing.assert_allclose(log.loss[:, rest], expected["loss"], 2e-4, 1e-5)


@pytest.mark.matrix
def test_an_error_leaves_the_finished_epochs() -> None:
    log = everything()

    class Spoils(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                kernel = self.model.trainable_variables[0]
                kernel.assign(kernel * np.nan)

    model = DENSE.compiled(SGDPlus(**SGD, seed=4, nonfinite="raise", jit_compile=False))
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    with pytest.raises(FloatingPointError):
        model.fit(DENSE.x, DENSE.y, callbacks=[log, Spoils()], **fit)
    assert log.loss.shape == (1, N) and np.isfinite(log.loss).all()
    again = everything()  # nothing of the first log is left running
    model.set_weights([np.nan_to_num(w) for w in model.get_weights()])
    model.fit(DENSE.x, DENSE.y, callbacks=[again], **fit)
    assert again.loss.shape == (2, N)


@pytest.mark.matrix
def test_train_on_batch() -> None:
    log = everything()
    model = DENSE.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
    log.start(model)
    model.train_on_batch(DENSE.x[:12], DENSE.y[:12])
    first = log.last_batch()
    model.train_on_batch(DENSE.x[12:], DENSE.y[12:])
    last = log.last_batch()
    log.stop()
    model.train_on_batch(DENSE.x, DENSE.y)
    assert log.last_batch()["visited"].tolist() == last["visited"].tolist()
    visited = np.concatenate([first["visited"], last["visited"]])[None]
    assert_each_once(visited)
    expected = kept(DENSE, visited, SGD)
    for name in ("loss", "unweighted_loss", "gradient_norm"):
        found = np.concatenate([first[name], last[name]])
        np.testing.assert_allclose(found, expected[name][0], 2e-4, 1e-5)
    predicted = np.concatenate([first["prediction"], last["prediction"]])
    np.testing.assert_allclose(predicted, expected["prediction_0"][0], 2e-4, 1e-5)


@pytest.mark.matrix
def test_a_model_with_a_loss_of_its_own() -> None:
    class Own(keras.Sequential):
        def compute_loss(self, x: Any, y: Any, y_pred: Any, *args: Any) -> Any:
            return tf.reduce_sum(tf.abs(y_pred))

    def make() -> Any:
        return Own([keras.Input((6,)), keras.layers.Dense(2)])

    log = everything()
    recorded(DENSE._replace(make=make), log, sample_weight=_weights())
    np.testing.assert_allclose(log.loss, np.abs(log.prediction).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(log.loss, log.unweighted_loss)


@pytest.mark.matrix
def test_the_logs_of_fit_stay_the_same() -> None:
    """Keras counts the loss of each output once."""
    case = CASES["two_outputs"]
    histories = []
    for callbacks in ([everything()], []):
        model = case.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
        fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
        found = model.fit(case.x, case.y, callbacks=callbacks, **fit)
        histories.append(found.history)
    ours, theirs = histories
    assert set(ours) == set(theirs) == {"loss", "kind_loss", "size_loss"}
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5)


@pytest.mark.matrix
def test_one_device_of_a_strategy() -> None:
    plain, log = everything(), everything()
    recorded(DENSE, plain)
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = DENSE.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(DENSE.x, DENSE.y, callbacks=[log], **fit)
    np.testing.assert_array_equal(log.visited, plain.visited)
    np.testing.assert_allclose(log.loss, plain.loss, rtol=1e-4, atol=1e-6)


@pytest.mark.matrix
def test_evaluation_between_batches_is_not_recorded() -> None:
    log = ExampleLog()
    recorded(DENSE, log, validation_data=(DENSE.x[:5], DENSE.y[:5]))
    plain = ExampleLog()
    recorded(DENSE, plain)
    np.testing.assert_array_equal(log.loss, plain.loss)


def test_nothing_is_compiled_for_others_and_training_stays_the_same() -> None:
    traces: list[int] = []

    def loss(y: Any, y_pred: Any) -> Any:
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(y, y_pred)

    case = DENSE._replace(loss=loss)
    fit = {"batch_size": 11, "shuffle": False, "verbose": 0}
    with_log = case.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
    with_log.fit(case.x, case.y, **fit)
    before = len(traces)
    log = ExampleLog()
    with_log.fit(case.x, case.y, callbacks=[log], **fit)
    assert len(traces) > before  # another program, once
    before = len(traces)
    with_log.fit(case.x, case.y, callbacks=[ExampleLog()], **fit)
    with_log.fit(case.x, case.y, **fit)
    assert len(traces) == before
    plain = case.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
    for _ in range(4):
        plain.fit(case.x, case.y, **fit)
    for ours, theirs in zip(with_log.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.matrix
def test_files(tmp_path: Path) -> None:
    kept_in_memory, log = everything(), everything(path=tmp_path / "log")
    recorded(DENSE, kept_in_memory)
    recorded(DENSE, log)
    names = {p.name for p in (tmp_path / "log").iterdir()}
    assert names == {
        "gradient_norm.npy",
        "loss.npy",
        "prediction_0.npy",
        "unweighted_loss.npy",
        "visited.npy",
    }
    assert isinstance(log.loss, np.memmap)
    for name in ("loss", "unweighted_loss", "gradient_norm", "visited", "prediction"):
        expected = getattr(kept_in_memory, name)
        np.testing.assert_array_equal(getattr(log, name), expected)
    loaded = np.load(tmp_path / "log" / "loss.npy", mmap_mode="r")
    np.testing.assert_array_equal(loaded, kept_in_memory.loss)


@pytest.mark.matrix
def test_epochs_of_other_lengths() -> None:
    """A stream whose second epoch lacks some rows: those were not visited."""
    case, (x, y) = with_ids(DENSE)

    def part(rows: Any) -> Any:
        return {k: v[rows] for k, v in x.items()}, y[rows]

    log = everything(id="row")
    rows = [np.arange(11), np.arange(11, 22), np.arange(5, 11)]
    data = PerEpoch([part(each) for each in rows])
    model = case.compiled(SGDPlus(**SGD, seed=4, jit_compile=False))
    model.fit(data, epochs=3, verbose=0, callbacks=[data.follows, log])
    assert log.loss.shape == (3, 22)
    assert (log.visited[0] >= 0).nonzero()[0].tolist() == list(range(11))
    assert (log.visited[1] >= 0).nonzero()[0].tolist() == list(range(11, 22))
    assert (log.visited[2] >= 0).nonzero()[0].tolist() == list(range(5, 11))
    assert np.isnan(log.loss[log.visited < 0]).all()
    frame = log.to_dataframe()
    assert len(frame) == 28 and frame["visited"].is_unique
    one = frame[(frame["epoch"] == 2) & (frame["row"] == 7)]
    np.testing.assert_array_equal(one["loss"], log.loss[2, 7])
