"""What is built on Keras: searches, wrappers, exports, layers that change, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from keras_sgd_plus import SGDPlus
from tests.twins import (
    BATCH_SIZE,
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)

N = 28
X, Y = dense_data(N)
SGD = keras.optimizers.SGD
# Without XLA where many models are made and the loop is compared elsewhere.
PLUS: dict[str, Any] = {"order": "given", "jit_compile": False}


def optimizer_of(cls: type, *args: Any) -> Any:
    return cls(*args, **(PLUS if cls is SGDPlus else {}))


def batch_size_of(cls: type) -> int:
    return BATCH_SIZE if cls is SGDPlus else 1


def linear_model(inputs: int = 5, outputs: int = 2, activation: Any = None) -> Any:
    """An equal one at each call."""
    keras.utils.set_random_seed(1)
    dense = layers.Dense(outputs, activation)
    return keras.Sequential([keras.Input((inputs,)), dense])


# --- scikit-learn. ---


def make_classifier(X: Any, y: Any, cls: type, learning_rate: float) -> Any:
    """What the wrapper calls for every fit, with labels as one-hot rows."""
    model = linear_model(X.shape[1], y.shape[1], "softmax")
    model.compile(optimizer_of(cls, learning_rate, 0.9), "categorical_crossentropy")
    return model


def sklearn_fit(cls: type) -> dict[str, Any]:
    """Arguments of `Pipeline.fit`; a clone of Keras's wrapper forgets `fit_kwargs`."""
    return {
        "net__batch_size": batch_size_of(cls),
        "net__shuffle": False,
        "net__verbose": 0,
    }


def outputs(pipeline: Any) -> np.ndarray:
    """What the network in a fitted pipeline computes, before any rounding to labels."""
    return pipeline[-1].model_.predict(pipeline[:-1].transform(X), verbose=0)


def test_search_of_a_pipeline(engagements: list[str]) -> None:
    """`GridSearchCV` finds what it finds with Keras one by one."""
    labels = (Y[:, 0] > 0).astype("int32")
    searches = []
    for cls in (SGDPlus, SGD):
        net = keras.wrappers.SKLearnClassifier(make_classifier, model_kwargs={})
        pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
        choices = [{"cls": cls, "learning_rate": rate} for rate in (0.0, 0.1)]
        search = GridSearchCV(
            pipeline, {"net__model_kwargs": choices}, cv=2, error_score="raise"
        )
        searches.append(search.fit(X, labels, **sklearn_fit(cls)))
    ours, theirs = searches
    for search in searches:
        assert search.best_params_["net__model_kwargs"]["learning_rate"] == 0.1
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(*scores)
    best, twin = ours.best_estimator_, theirs.best_estimator_
    np.testing.assert_allclose(outputs(best), outputs(twin), rtol=1e-5, atol=1e-6)
    assert int(best[-1].model_.optimizer.iterations) == N
    assert len(engagements) == 5  # two choices in two folds, and the best again


def test_cross_validation_of_a_compiled_model(engagements: list[str]) -> None:
    """Keras clones the model for each fold, and with it compiles an SGDPlus of its own.

    As do all that call `keras.models.clone_model` on a compiled model.
    """
    target = Y[:, 0]
    scores, fitted = [], []
    for cls in (SGDPlus, SGD):
        model = linear_model(outputs=1)
        model.compile(optimizer_of(cls, 0.05, 0.9), "mse")
        net = keras.wrappers.SKLearnRegressor(model)
        keras.utils.set_random_seed(2)  # for the weights of the clones
        found = cross_validate(
            Pipeline([("scale", StandardScaler()), ("net", net)]),
            X,
            target,
            cv=2,
            params=sklearn_fit(cls),
            return_estimator=True,
            error_score="raise",
        )
        scores.append(found["test_score"])
        fitted.append([(pipe, pipe[-1].model_) for pipe in found["estimator"]])
        assert int(model.optimizer.iterations) == 0
        for _, clone in fitted[-1]:
            assert type(clone.optimizer) is cls
            assert clone.optimizer is not model.optimizer
            assert clone.optimizer.get_config() == model.optimizer.get_config()
            assert int(clone.optimizer.iterations) == N // 2
    np.testing.assert_allclose(*scores, rtol=1e-4)
    for (pipe, _), (twin, _) in zip(*fitted, strict=True):
        np.testing.assert_allclose(outputs(pipe), outputs(twin), rtol=1e-5, atol=1e-6)
    assert len(engagements) == 2


# --- KerasTuner. ---


# It calls threading.currentThread().getName(), deprecated in Python 3.10.
@pytest.mark.filterwarnings("ignore:(currentThread|getName)\\(\\):DeprecationWarning")
@pytest.mark.usefixtures("few_objects")
def test_tuner(tmp_path: Path, engagements: list[str]) -> None:
    """The score of every trial is that of Keras one by one, and the best one loads."""

    def build(hp: Any, cls: type = SGDPlus) -> Any:
        rate, momentum = hp.Choice("rate", [0.001, 0.05]), hp.Choice("m", [0.0, 0.9])
        model = linear_model()
        model.compile(optimizer_of(cls, rate, momentum), "mse")
        return model

    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("loss", "min"),
        directory=tmp_path,
        project_name="tuner",
    )
    fit: dict[str, Any] = {"x": X, "y": Y, "shuffle": False, "verbose": 0}
    tuner.search(**fit, batch_size=BATCH_SIZE)
    trials = tuner.oracle.get_best_trials(9)
    assert len(trials) == len(engagements) == 4
    twins = []
    for trial in trials:
        twins.append(build(trial.hyperparameters, SGD))
        (loss,) = twins[-1].fit(**fit, batch_size=1).history["loss"]
        assert trial.score == pytest.approx(loss, rel=1e-5)
    (best,) = tuner.get_best_models(1)
    for a, b in zip(best.get_weights(), twins[0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(best.optimizer.iterations) == N


# --- Export. ---


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model in training; with XLA, whose loop the export must not meet."""
    model = dense_model()
    model.compile(SGDPlus(0.01, 0.9), "mse")
    model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)
    return model


@pytest.mark.parametrize(
    "read", [tf.saved_model.load, layers.TFSMLayer], ids=["saved_model", "layer"]
)
def test_export(
    read: Callable[[str], Any], trained: Any, tmp_path: Path, engagements: list[str]
) -> None:
    """The SavedModel predicts as the model did; training goes on in the model alone."""
    model = trained
    before = int(model.optimizer.iterations)
    model.export(tmp_path / "exported", verbose=False)
    predicted = model.predict(X, verbose=0)
    exported = read(str(tmp_path / "exported"))
    loaded = getattr(exported, "serve", exported)
    np.testing.assert_allclose(loaded(X), predicted, rtol=1e-6, atol=1e-7)
    model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)
    assert int(model.optimizer.iterations) == before + N
    assert engagements == []  # and needs no new trace
    np.testing.assert_allclose(loaded(X), predicted, rtol=1e-6, atol=1e-7)
    assert np.abs(model.predict(X, verbose=0) - predicted).max() > 1e-3


# --- Layers whose weights are not what they were. ---


def _einsum() -> Any:
    dense = layers.EinsumDense("ab,bc->ac", 6, bias_axes="c", activation="tanh")
    return keras.Sequential([keras.Input((5,)), dense, layers.Dense(2)])


def _convolution() -> Any:
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2)])


def _embedding() -> Any:
    stack = [layers.Embedding(9, 3), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential([keras.Input((4,), dtype="int32"), *stack])


IDS = np.random.default_rng(0).integers(0, 9, (N, 4)).astype("int32")
# Model, position of the layer, mode of quantization, whether LoRA, trainable variables.
# The first layer is quantized: it rounds data, which are equal, and not activations.
CHANGED: dict[str, tuple[Any, int, str | None, bool, int]] = {
    "dense_int4": (dense_model, 0, "int4", False, 3),
    "dense_int8_lora": (dense_model, 0, "int8", True, 5),
    "einsum_int8_lora": (_einsum, 0, "int8", True, 5),
    "embedding_int8_lora": (_embedding, 0, "int8", True, 4),
    "convolution_lora": (_convolution, 1, None, True, 5),
}


@pytest.mark.parametrize("case", CHANGED.values(), ids=list(CHANGED))
def test_quantized_and_lora(case: Any, engagements: list[str]) -> None:
    """Frozen integers stay, their adapters and the layers around them learn."""
    make, position, mode, lora, num_trainable = case
    frozen = []

    def changed() -> Any:
        model = make()
        layer = model.layers[position]
        if mode:
            layer.quantize(mode)
        if lora:
            layer.enable_lora(2)
        frozen.append([v.numpy().copy() for v in layer.non_trainable_variables])
        return model

    pair = train_pair(changed, IDS if make is _embedding else X, Y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    layer = pair.ours.layers[position]
    assert len(pair.ours.trainable_variables) == num_trainable
    assert ("int8" in [v.dtype for v in layer.non_trainable_variables]) is bool(mode)
    for variable, value in zip(layer.non_trainable_variables, frozen[0], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    adapters = [v for v in layer.trainable_variables if "lora" in v.name]
    assert len(adapters) == (2 if lora else 0)
    assert all(np.any(v.numpy()) for v in adapters)  # one of the two started at zero


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_quantized_between_fits(engagements: list[str]) -> None:
    """A trained layer is quantized, and its bias trained on, its kernel no more."""
    models = []
    for cls in (SGDPlus, SGD):
        model = linear_model()
        model.compile(optimizer_of(cls, 0.02, 0.9), "mse")
        fit: dict[str, Any] = {"batch_size": batch_size_of(cls), "shuffle": False}
        model.fit(X, Y, **fit, verbose=0)
        model.quantize("int8")
        integers = model.layers[0].kernel.numpy().copy()
        bias = model.layers[0].bias.numpy().copy()
        model.fit(X, Y, **fit, verbose=0)
        np.testing.assert_array_equal(model.layers[0].kernel, integers)
        assert np.abs(model.layers[0].bias.numpy() - bias).min() > 1e-2
        models.append(model)
    ours, theirs = models
    assert int(ours.optimizer.iterations) == 2 * N
    assert set(engagements) == {ours.name}
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- One device. ---


@contextmanager
def _distribution(distribution: Any) -> Any:
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def _data_parallel() -> AbstractContextManager[Any]:
    devices = keras.distribution.list_devices("cpu")[:1]
    return _distribution(keras.distribution.DataParallel(devices=devices))


def _model_parallel() -> AbstractContextManager[Any]:
    devices = keras.distribution.list_devices("cpu")[:1]
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    return _distribution(keras.distribution.ModelParallel(layout_map=layout))


def _one_device() -> AbstractContextManager[Any]:
    return tf.distribute.OneDeviceStrategy("/cpu:0").scope()


on_tensorflow = pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="keras.distribution works with TensorFlow since Keras 3.15",
)
DEVICES = [
    pytest.param(_one_device, id="one_device"),
    pytest.param(_data_parallel, id="data_parallel", marks=on_tensorflow),
    pytest.param(_model_parallel, id="model_parallel", marks=on_tensorflow),
]


@pytest.mark.parametrize("scope", DEVICES)
def test_on_one_device(scope: Any, engagements: list[str]) -> None:
    with scope():
        pair = train_pair(dense_model, X, Y, fit={"epochs": 2})
        assert_same(pair)
        assert_engaged(pair, engagements, 2 * N)


# --- Threads. ---


def _with_random_layers() -> Any:
    norm, drop = layers.BatchNormalization(), layers.Dropout(0.3)
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), norm, drop, layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2)])


def _by_fit(model: Any) -> None:
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=15, shuffle=False, verbose=0)


def _by_batches(model: Any) -> None:
    for i in range(60):
        model.train_on_batch(X[i % 4 :], Y[i % 4 :])


def _by_hand(model: Any) -> None:
    for i in range(60):
        model.optimizer.train_step(model, (X[i % 4 :], Y[i % 4 :]))


def test_models_in_threads(engagements: list[str]) -> None:
    """Models trained at once end where each ends alone, to the last bit."""
    jobs = [
        (linear_model, _by_fit),
        (dense_model, _by_batches),
        (_with_random_layers, _by_hand),
    ]
    models = []
    for i, (make, _) in enumerate(jobs):
        model = make()
        model.compile(SGDPlus(0.001 * (i + 1), 0.9, seed=i), "mse")
        model.optimizer.build(model.trainable_variables)
        models.append(model)
    variables = [[*m.variables, *m.optimizer.variables] for m in models]
    start = [[v.numpy().copy() for v in vs] for vs in variables]

    def run(i: int) -> list[np.ndarray]:
        jobs[i][1](models[i])
        return [v.numpy().copy() for v in variables[i]]

    alone = [run(i) for i in range(len(jobs))]
    traces = len(engagements)
    assert set(engagements) == {model.name for model in models}
    for vs, values in zip(variables, start, strict=True):
        for variable, value in zip(vs, values, strict=True):
            variable.assign(value)
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(run, range(len(jobs))))
    assert len(engagements) == traces
    for a, b, first in zip(alone, together, start, strict=True):
        for v, w in zip(a, b, strict=True):
            np.testing.assert_array_equal(v, w)
        assert not np.array_equal(a[0], first[0])


class Meanwhile(layers.Layer):
    """Lets another thread do a job whenever it is called, so while it is traced."""

    def __init__(self, job: Callable[[], None]) -> None:
        super().__init__()
        self.job, self.num_calls = job, 0

    def call(self, x: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self.job).result()
        self.num_calls += 1
        return x


class Counted(layers.Dense):
    """Counts how often Python calls it: once per trace if not run eagerly."""

    num_calls = 0

    def call(self, x: Any) -> Any:
        self.num_calls += 1
        return super().call(x)


OTHERS = {
    "sgd_plus": lambda: SGDPlus(0.01, seed=1),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=list(OTHERS))
def test_a_thread_trains_while_another_traces(
    make: Callable[[], Any], engagements: list[str]
) -> None:
    """That a loop is traced in one thread changes nothing in the others."""

    def fit(model: Any) -> None:
        model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)

    other = keras.Sequential([keras.Input((5,)), Counted(2)])
    other.compile(make(), "mse")
    fit(other)
    counted = other.layers[0]
    num_calls, traces = counted.num_calls, engagements.count(other.name)
    meanwhile = Meanwhile(lambda: fit(other))
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2), meanwhile])
    model.compile(SGDPlus(0.01), "mse")
    fit(model)
    assert meanwhile.num_calls >= 2  # when built, and when the loop was traced
    assert counted.num_calls == num_calls  # and so not traced again, nor run eagerly
    assert engagements.count(other.name) == traces
    assert engagements.count(model.name) == 1
    assert not tf.config.functions_run_eagerly()
