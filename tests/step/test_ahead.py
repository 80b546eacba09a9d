"""What XLA refuses at the front of a model runs ahead; the rest is compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import AverageWeights, ExampleLog, LinearDecay, SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import assert_same, train_pair

N = 30
_RNG = np.random.default_rng(5)
IMAGES = _RNG.normal(size=(N, 6, 6, 1)).astype("float32")
NUMBERS = _RNG.normal(size=(N, 4)).astype("float32")
IDS = _RNG.integers(0, 9, (N, 3)).astype("int32")
WORDS = np.array(["a", "b", "c", "d"])[_RNG.integers(0, 4, (N, 3))]
LINES = np.array([" ".join(row[: 1 + i % 3]) for i, row in enumerate(WORDS)])
Y = _RNG.normal(size=(N, 2)).astype("float32")
SGD = {"learning_rate": 0.002, "momentum": 0.9}


def _zoom(**kw: Any) -> Any:
    return layers.RandomZoom(0.3, seed=1, **kw)


def _on_images(*front: Callable[[], Any]) -> keras.Model:
    made = [make() for make in front]
    return keras.Sequential(
        [keras.Input((6, 6, 1)), *made, layers.Flatten(), layers.Dense(2)]
    )


def _images(*front: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    return lambda: _on_images(*front), IMAGES


def _lookup() -> Any:
    return layers.StringLookup(vocabulary=["a", "b", "c"])


def _vectorization(**kw: Any) -> Any:
    return layers.TextVectorization(vocabulary=["a", "b", "c"], **kw)


def _embedded(front: Callable[[], Any], **spec: Any) -> keras.Model:
    first = keras.Input(**spec)
    rows = layers.Embedding(12, 3)(front()(first))
    return keras.Model(first, layers.Dense(2)(layers.Flatten()(rows)))


def _encoded(front: Callable[[], Any], **spec: Any) -> keras.Model:
    first = keras.Input(**spec)
    return keras.Model(first, layers.Dense(2)(front()(first)))


def _of_ragged() -> keras.Model:
    first = keras.Input((None,), dtype="string", ragged=True)
    ids = _lookup()(first)  # ragged, too: only the next layer uses it
    return keras.Model(first, layers.Dense(2)(_Counts()(ids)))


class _Counts(layers.Layer):
    """How often each of four ids is in a row, which may be ragged or sparse."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((x.shape[0], 4), "float32")

    def call(self, x: Any) -> Any:
        x = tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else x
        x = x.to_tensor(-1) if isinstance(x, tf.RaggedTensor) else x
        found = tf.reduce_sum(tf.one_hot(tf.cast(x, tf.int32), 4), 1)
        return tf.ensure_shape(found, (None, 4))


def _of_sparse() -> keras.Model:
    first = keras.Input((3,), dtype="int32", sparse=True)
    return keras.Model(first, layers.Dense(2)(_Counts()(first)))


class _InPython(layers.Layer):
    """A layer that says `supports_jit=True` and calls Python."""

    def call(self, x: Any) -> Any:
        doubled = tf.numpy_function(lambda v: v * v, [x], x.dtype)
        return tf.ensure_shape(doubled, x.shape)


class Own(keras.Model):
    """A `call` of its own, with the layer used twice and other inputs beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.zoom, self.last = _zoom(), layers.Dense(2)
        self.drawn = layers.GaussianNoise(0.0)

    def call(self, x: Any, training: bool = False) -> Any:
        a, b = self.zoom(x, training=training), self.zoom(x * 2, training=training)
        flat = [tf.reshape(t, (-1, 36)) for t in (a, b, self.drawn(x))]
        return self.last(tf.concat(flat, 1))


def _several_inputs() -> keras.Model:
    words = keras.Input((3,), dtype="string", name="words")
    image = keras.Input((6, 6, 1), name="image")
    numbers = keras.Input((4,), name="numbers")
    found = layers.Flatten()(layers.Embedding(5, 2)(_lookup()(words)))
    seen = layers.Flatten()(_zoom()(image))
    every = layers.Concatenate()([found, seen, layers.Dense(3)(numbers)])
    return keras.Model([words, image, numbers], layers.Dense(2)(every))


def _crossed() -> keras.Model:
    a, b = (keras.Input((1,), dtype="string", name=name) for name in "ab")
    crossed = layers.HashedCrossing(8, output_mode="one_hot")((a, b))
    return keras.Model({"a": a, "b": b}, layers.Dense(2)(crossed))


def _nested() -> keras.Model:
    augment = keras.Sequential(
        [layers.RandomFlip(seed=3), layers.RandomRotation(0.2, seed=4), _zoom()]
    )
    return _on_images(lambda: augment)


# A model without variables of its own in front, and its x.
ROWS: dict[str, tuple[Callable[[], Any], Any]] = {
    "zoom": _images(_zoom),
    # At evaluation Keras 3.15 crops nothing, so what follows must take both sizes.
    "crop": _images(
        lambda: layers.RandomCrop(4, 4, seed=1), lambda: layers.AveragePooling2D(4)
    ),
    "rotation": _images(lambda: layers.RandomRotation(0.3, seed=1)),
    "translation": _images(lambda: layers.RandomTranslation(0.3, 0.3, seed=1)),
    "shear": _images(lambda: layers.RandomShear(0.3, 0.3, seed=1)),
    "perspective": _images(lambda: layers.RandomPerspective(seed=1)),
    "nested": (_nested, IMAGES),
    "own_call": (Own, IMAGES),
    "in_python": _images(_InPython),
    "string_lookup": (lambda: _embedded(_lookup, shape=(3,), dtype="string"), WORDS),
    "integer_lookup": (
        lambda: _embedded(
            lambda: layers.IntegerLookup(vocabulary=[2, 5, 7]),
            shape=(3,),
            dtype="int32",
        ),
        IDS,
    ),
    "hashing": (
        lambda: _embedded(lambda: layers.Hashing(9), shape=(3,), dtype="int32"),
        IDS,
    ),
    "crossing": (_crossed, {"a": WORDS[:, :1], "b": WORDS[:, 1:2]}),
    "text": (
        lambda: _embedded(
            lambda: _vectorization(output_sequence_length=4), shape=(), dtype="string"
        ),
        LINES,
    ),
    "text_column": (
        lambda: _encoded(
            lambda: _vectorization(output_mode="multi_hot"), shape=(1,), dtype="string"
        ),
        LINES,
    ),
    "ragged": (
        _of_ragged,
        lambda: tf.ragged.constant([line.split() for line in LINES]),
    ),
    "sparse": (_of_sparse, lambda: tf.sparse.from_dense(IDS % 4)),
    "several_inputs": (
        _several_inputs,
        {"words": WORDS, "image": IMAGES, "numbers": NUMBERS},
    ),
}


def _dataset(x: Any, batch_size: int) -> tf.data.Dataset:
    x = x() if callable(x) else x
    return tf.data.Dataset.from_tensor_slices((x, Y)).batch(batch_size)


def _fit_both(make: Callable[[], Any], x: Any, **kw: Any) -> Any:
    options: dict[str, Any] = {
        "sgd": SGD,
        "fit": {"epochs": 2},
        "our_fit": {"batch_size": None, "x": _dataset(x, 7)},
        "their_fit": {"batch_size": None, "x": _dataset(x, 1)},
        **kw,
    }
    return train_pair(make, None, **options)


@pytest.mark.parametrize(
    ("make", "x"),
    tiered_rows(ROWS, "nested", "several_inputs", "ragged", unpack=True),
)
def test_equals_keras_at_batch_size_one(
    make: Any, x: Any, engagements: list[str], compiled_runs: list[bool]
) -> None:
    """Weights, seeds, logs; `evaluate` and `predict` of both afterwards."""
    pair = _fit_both(make, x)
    assert_same(pair)
    assert engagements and all(compiled_runs)
    data = _dataset(x, 5)
    found = [m.evaluate(data, verbose=0) for m in (pair.ours, pair.theirs)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    found = [m.predict(data, verbose=0) for m in (pair.ours, pair.theirs)]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [*matrix(True), "auto"])
def test_the_draws_are_those_of_keras(
    jit_compile: Any, compiled_runs: list[bool]
) -> None:
    """Without the draws of each example, the weights would be far apart."""
    pair = _fit_both(*ROWS["zoom"], plus={"order": "given", "jit_compile": jit_compile})
    assert_same(pair)
    assert compiled_runs == [True]
    seeds = [m.layers[0].generator.state.numpy() for m in (pair.ours, pair.theirs)]
    np.testing.assert_array_equal(*seeds)
    assert seeds[0][1] > 0


def test_reshuffled_examples_are_drawn_in_their_order() -> None:
    """As the loop without XLA, which draws when it visits an example."""
    weights = []
    for jit_compile in ("auto", False):
        keras.utils.set_random_seed(1)
        model = _on_images(_zoom)
        model.compile(SGDPlus(0.01, seed=3, jit_compile=jit_compile), "mse")
        model.fit(IMAGES, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["given", *matrix("reshuffle")])
def test_groups_and_what_is_left_over(order: str, compiled_runs: list[bool]) -> None:
    weights = []
    for jit_compile in ("auto", False):
        keras.utils.set_random_seed(1)
        model = _on_images(_zoom)
        options: dict[str, Any] = {"examples_per_update": 4, "order": order, "seed": 3}
        model.compile(SGDPlus(0.01, jit_compile=jit_compile, **options), "mse")
        model.fit(IMAGES, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
        weights.append([v.numpy() for v in model.variables])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert compiled_runs[:2] == [True, True] and not any(compiled_runs[2:])


def _with_bad_examples() -> np.ndarray:
    images = IMAGES.copy()
    images[[4, 5, 17]] = np.nan
    return images


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_bad_examples_leave_weights_and_seeds_as_one_by_one(nonfinite: str) -> None:
    found, draws = [], []
    for jit_compile in ("auto", False):
        keras.utils.set_random_seed(1)
        model = _on_images(_zoom)
        options: dict[str, Any] = {"nonfinite": nonfinite, "order": "given"}
        model.compile(SGDPlus(0.01, jit_compile=jit_compile, **options), "mse")
        try:
            caught_by(
                lambda model=model: model.fit(
                    _with_bad_examples(), Y, batch_size=8, shuffle=False, verbose=0
                ),
                "kipped",
            )
        except FloatingPointError:
            assert nonfinite == "raise"
        found.append([v.numpy() for v in model.variables])
        draws.append(int(model.layers[0].generator.state[1]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # One per example: of all, or of those before the first bad one.
    assert draws == [{"skip": N, "raise": 4}[nonfinite]] * 2


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("compile", "fit", "plus"),
    [
        ({"steps_per_execution": 3}, {}, {}),
        ({}, {"callbacks": [AverageWeights()]}, {}),
        ({}, {"callbacks": [LinearDecay()]}, {"momentum": 0.9}),
        ({"metrics": ["mae"]}, {"validation_data": (IMAGES, Y)}, {}),
        ({}, {"sample_weight": np.linspace(0, 2, N)}, {}),
        ({}, {"callbacks": [ExampleLog()]}, {}),
    ],
    ids=["steps", "averages", "decay", "metrics", "sample_weight", "log"],
)
def test_other_features_see_the_same(compile: Any, fit: Any, plus: Any) -> None:
    found, logs = [], []
    for jit_compile in ("auto", False):
        keras.utils.set_random_seed(1)
        model = _on_images(_zoom)
        options = {"order": "given", **plus}
        model.compile(
            SGDPlus(0.01, jit_compile=jit_compile, **options), "mse", **compile
        )
        history = model.fit(
            IMAGES, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, **fit
        )
        found.append([v.numpy() for v in model.variables])
        logs.append(history.history)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4)


def _shared_generator() -> keras.Model:
    draws = keras.random.SeedGenerator(4)
    return _on_images(lambda: _Noise(draws, False), lambda: _Noise(draws, True))


class _Noise(layers.Layer):
    """Adds a number that it draws from a generator that others use, too."""

    def __init__(self, draws: Any, supports_jit: bool) -> None:
        super().__init__()
        self.draws, self.supports_jit = draws, supports_jit

    def call(self, x: Any) -> Any:
        # Keras leaves the choice of the algorithm to TensorFlow, where XLA has its own.
        return x + 0.0 * keras.random.normal((1, 1, 1, 1), seed=self.draws)


def _behind_a_trained_layer() -> keras.Model:
    return _on_images(lambda: layers.Conv2D(1, 3, padding="same"), _zoom)


class _Counting(layers.Layer):
    """A layer that counts its calls, and that XLA does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_jit = False
        self.calls = self.add_weight(shape=(), trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1)
        return x * 1.0


class _WithLoss(_Counting):
    """A layer that adds a loss."""

    def call(self, x: Any) -> Any:
        self.add_loss(tf.reduce_mean(x))
        return x * 1.0


def _trained_on_ragged() -> keras.Model:
    first = keras.Input((None,), dtype="int32", ragged=True)
    total = keras.layers.Lambda(lambda t: tf.reduce_mean(t, 1), output_shape=(2,))
    return keras.Model(first, layers.Dense(2)(total(layers.Embedding(12, 2)(first))))


class _Same(layers.Layer):
    """Its inputs; says that XLA does not take it."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_jit = False

    def call(self, x: Any) -> Any:
        return x * 1.0


def _beside(draw: Callable[[], Any]) -> tuple[Any, Any]:
    # What a layer draws, once behind a refused layer and once not: the sum is zero.
    first = keras.Input((6, 6, 1))
    drawn = draw()(first)
    nothing = layers.Subtract()([_Same()(drawn), drawn])
    last = layers.Dense(2, kernel_initializer="zeros")
    return keras.Model(first, last(layers.Flatten()(nothing))), last


class _Drawing(layers.Layer):
    """Adds numbers that TensorFlow draws by itself."""

    def call(self, x: Any) -> Any:
        return x + tf.random.normal(tf.shape(x))


DRAWS: dict[str, Callable[[], Any]] = {
    "flip": lambda: layers.RandomFlip(seed=2),
    "noise": lambda: layers.GaussianNoise(1.0),
    "dropout": lambda: layers.Dropout(0.5),
    "tensorflow": _Drawing,
}


@pytest.mark.parametrize("draw", tiered_rows(DRAWS, "flip"))
def test_a_draw_that_runs_ahead_is_not_made_again(
    draw: Any, compiled_runs: list[bool]
) -> None:
    """XLA would draw other numbers. The kernel stays zero while both agree."""
    model, last = _beside(draw)
    model.compile(SGDPlus(0.01, order="given"), "mse")
    model.fit(IMAGES, Y, batch_size=8, verbose=0)
    assert compiled_runs == [True]
    np.testing.assert_array_equal(last.kernel, 0.0)
    assert float(np.abs(last.bias).max()) > 0


def _ops_on_ragged() -> keras.Model:
    first = keras.Input((None,), dtype="int32", ragged=True)
    mean = layers.Lambda(
        lambda t: tf.reduce_mean(t, 1, keepdims=True), output_shape=(1,)
    )
    return keras.Model(first, layers.Dense(2)(mean(keras.ops.cast(first, "float32"))))


def _ops_on_sparse() -> keras.Model:
    first = keras.Input((3,), sparse=True)
    product = keras.ops.matmul(keras.ops.abs(first), np.ones((3, 2), "float32"))
    return keras.Model(first, layers.Dense(2)(product))


class _InNumbers(layers.Layer):
    """A layer that calls Python; there may be many of its class."""

    def call(self, x: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(np.sin, [x], x.dtype), x.shape)


class AndNone(_Same):
    """Returns something that is no tensor, too."""

    def call(self, x: Any) -> Any:
        return x * 2.0, None


class WithNone(keras.Model):
    """It uses the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.last = AndNone(), layers.Dense(2)

    def call(self, x: Any) -> Any:
        found, _ = self.front(x)
        return self.last(found)


class Lying(_Same):
    """Promises twice the columns that it returns."""

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], 2 * shape[1])

    def call(self, x: Any) -> Any:
        found = tf.numpy_function(lambda v: v, [x], x.dtype)
        return tf.reshape(found, tf.shape(x))


class LyingModel(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.last = Lying(), layers.Dense(2)
        self.last.build((None, 4))

    def call(self, x: Any) -> Any:
        return self.last(tf.ensure_shape(self.front(x), (None, 4)))


class Words(layers.Layer):
    """Strings of unknown rank."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, "string")

    def call(self, x: Any) -> Any:
        return tf.numpy_function(lambda v: v.astype("S8"), [x], tf.string)


class Lengths(layers.Layer):
    """The lengths of strings."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((None, 4), "float32")

    def call(self, x: Any) -> Any:
        return tf.ensure_shape(tf.cast(tf.strings.length(x), "float32"), (None, 4))


def _of_words() -> keras.Model:
    first = keras.Input((4,))
    return keras.Model(first, layers.Dense(2)(Lengths()(Words()(first))))


def _twice() -> keras.Model:
    augment = keras.Sequential([_zoom(), layers.RandomFlip(seed=4)])
    first = keras.Input((6, 6, 1))
    views = [layers.Flatten()(augment(first)) for _ in range(2)]
    return keras.Model(first, layers.Dense(2)(layers.Concatenate()(views)))


def _of_features() -> keras.Model:
    """Two layers of one class, whose nodes XLA's message does not tell apart."""
    first = keras.Input((3,), dtype="int32")
    made = [
        layers.CategoryEncoding(9, output_mode="multi_hot")(first) for _ in range(10)
    ]
    return keras.Model(first, layers.Dense(2)(layers.Concatenate()(made)))


def _by_name() -> keras.Model:
    b, a = (keras.Input((1,), dtype="string", name=name) for name in "ba")
    c = keras.Input((4,), name="c")
    ids = [_lookup()(t) for t in (a, b)]
    rows = layers.Flatten()(layers.Embedding(5, 2)(layers.Concatenate()(ids)))
    return keras.Model([b, c, a], layers.Dense(2)(layers.Concatenate()([rows, c])))


# Found by readers: none of these may fail, nor train on anything else.
FOUND: dict[str, tuple[Callable[[], Any], Any, bool]] = {
    "ops_on_ragged": (
        _ops_on_ragged,
        lambda: tf.RaggedTensor.from_tensor(IDS),
        True,
    ),
    "ops_on_sparse": (
        _ops_on_sparse,
        lambda: tf.sparse.from_dense(NUMBERS[:, :3]),
        True,
    ),
    "many_in_python": (
        lambda: keras.Sequential(
            [keras.Input((4,)), *(_InNumbers() for _ in range(10)), layers.Dense(2)]
        ),
        NUMBERS,
        True,
    ),
    "many_encodings": (_of_features, IDS, True),
    "none_in_a_tuple": (WithNone, NUMBERS, True),
    "wrong_promise": (LyingModel, NUMBERS, True),
    "unknown_rank": (_of_words, NUMBERS, False),
    "by_name": (
        _by_name,
        {"a": WORDS[:, 0], "b": WORDS[:, 1], "c": NUMBERS},
        True,
    ),
}


@pytest.mark.parametrize(
    ("make", "x", "is_compiled"),
    tiered_rows(FOUND, "ops_on_sparse", "many_encodings", unpack=True),
)
def test_odd_layers_give_the_result_of_keras(
    make: Any, x: Any, is_compiled: bool, compiled_runs: list[bool]
) -> None:
    pairs = []
    said = caught_by(lambda: pairs.append(_fit_both(make, x)), "XLA")
    assert_same(pairs[0])
    assert compiled_runs[-1] == is_compiled and bool(said) != is_compiled


@pytest.mark.matrix
def test_a_shared_augmentation_called_twice_compiles(
    compiled_runs: list[bool],
) -> None:
    """The flip behind the zoom is XLA's; without a warning, which would be an error."""
    model = _twice()
    model.compile(SGDPlus(0.01), "mse")
    model.fit(IMAGES, Y, batch_size=8, verbose=0)
    assert compiled_runs == [True]
    draws = [int(x.generator.state[1]) for x in model.layers[1].layers]
    assert draws[0] % (2 * N) == 0 < draws[0] and draws[1] % (2 * N) == 0 < draws[1]


class DrawsItself(keras.Model):
    """It draws in its own `call`, in front of a layer that XLA refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = keras.random.SeedGenerator(3)
        self.zoom, self.last = _zoom(), layers.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        noise = keras.random.normal((1, 6, 6, 1), seed=self.draws)
        seen = self.zoom(x + noise, training=training)
        return self.last(keras.ops.reshape(seen, (-1, 36)))


def _sparse_encoding() -> keras.Model:
    lookup = layers.StringLookup(
        vocabulary=["a", "b", "c"], output_mode="multi_hot", sparse=True
    )
    return _encoded(lambda: lookup, shape=(3,), dtype="string")


def _sparse_beside_a_zoom() -> keras.Model:
    numbers, image = keras.Input((3,), sparse=True), keras.Input((6, 6, 1))
    seen = layers.Dense(2)(layers.Flatten()(_zoom()(image)))
    return keras.Model([numbers, image], layers.Dense(2)(numbers) + seen)


# What cannot run ahead: a model, its x, and what the warning says.
REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "trained": (_behind_a_trained_layer, IMAGES, "which training changes"),
    "generator": (_shared_generator, IMAGES, "shares a seed generator"),
    "state": (lambda: _on_images(_Counting), IMAGES, "changes variable"),
    "loss": (lambda: _on_images(_WithLoss), IMAGES, "adds a loss"),
    "drawn_by_the_model": (
        DrawsItself,
        IMAGES,
        "and XLA may draw other random numbers there",
    ),
    "sparse_encoding": (
        _sparse_encoding,
        WORDS,
        "needs what it returns, which XLA does not take (some layers have sparse=False",
    ),
    "sparse_beside": (
        _sparse_beside_a_zoom,
        lambda: (tf.sparse.from_dense(NUMBERS[:, :3]), tf.constant(IMAGES)),
        "a layer that does not run ahead is given tensors that XLA does not take",
    ),
    "length": (
        lambda: _embedded_mean(_vectorization()),
        LINES,
        "TextVectorization has output_sequence_length",
    ),
    "trained_on_ragged": (
        _trained_on_ragged,
        lambda: tf.RaggedTensor.from_tensor(IDS),
        "which training changes",
    ),
}


def _embedded_mean(front: Any) -> keras.Model:
    first = keras.Input((), dtype="string")
    rows = layers.Embedding(12, 3)(front(first))
    return keras.Model(first, layers.Dense(2)(layers.GlobalMaxPooling1D()(rows)))


@pytest.mark.parametrize(
    ("make", "x", "text"), tiered_rows(REFUSED, "trained", "generator", unpack=True)
)
def test_what_cannot_run_ahead_says_why(
    make: Any, x: Any, text: str, compiled_runs: list[bool]
) -> None:
    pairs = []
    (said,) = caught_by(lambda: pairs.append(_fit_both(make, x)), "XLA")
    assert text in said and "cannot run ahead of the loop" in said
    assert_same(pairs[0])
    assert compiled_runs and not any(compiled_runs)


def test_a_second_thread_calls_the_layer_itself() -> None:
    """While the loop is traced, other threads get the layer's own result."""
    zoom, seen = _zoom(), []

    class Meddling(layers.Layer):
        def call(self, x: Any) -> Any:
            def other() -> None:
                with tf.init_scope():
                    seen.append(zoom(IMAGES[:1], training=False))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return x + 0.0

    model = _on_images(lambda: zoom, Meddling)
    model.compile(SGDPlus(0.01), "mse")
    model.fit(IMAGES, Y, batch_size=8, verbose=0)
    for found in seen:
        np.testing.assert_array_equal(found, IMAGES[:1])
    assert len(seen) > 1 and "call" not in vars(zoom)
