"""What `ExampleLog` cannot record is an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExampleLog, SeededArrays, SGDPlus
from tests.support.by_hand import PerEpoch, cases, without_ids
from tests.support.tiers import tiered_rows

DENSE = cases()["dense"]
X, Y = DENSE.x, DENSE.y
Act = Callable[[], Any]
Row = tuple[Act, type[Exception], str]


def _fit(
    log: ExampleLog,
    x: Any = X,
    y: Any = Y,
    optimizer: Any = None,
    compiled: dict[str, Any] | None = None,
    **fit: Any,
) -> Any:
    optimizer = optimizer or SGDPlus(0.01, jit_compile=False)
    model = DENSE.compiled(optimizer, **(compiled or {}))
    arguments = {"x": x, **({} if y is None else {"y": y})}
    arguments |= {"shuffle": False, "verbose": 0, **fit}
    return model.fit(**arguments, callbacks=[log])


class _Shuffled(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 1

    def on_epoch_end(self) -> None:
        """Draws another order, as many do."""

    def __getitem__(self, index: int) -> Any:
        return X, Y


class _Halves(SeededArrays):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x[:2], y[:2]


def _twice() -> None:
    model = DENSE.compiled(SGDPlus(0.01))
    first = ExampleLog()
    first.start(model)
    ExampleLog().start(model)


def _by_id(rows: Any, key: str = "row") -> Any:
    inputs = {
        "x": keras.Input((6,), name="x"),
        "row": keras.Input((), dtype=rows.dtype.name, name="row"),
    }
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(without_ids(inputs)))
    model.compile(SGDPlus(0.01, jit_compile=False), "sparse_categorical_crossentropy")
    data, log = {"x": X, "row": rows}, ExampleLog(id=key)
    return model.fit(data, Y, batch_size=11, verbose=0, callbacks=[log])


def _by_column(column: int, rows: Any) -> Any:
    drop = keras.layers.Lambda(lambda x: x[:, 1:])
    model = keras.Sequential([keras.Input((3,)), drop, keras.layers.Dense(3)])
    model.compile(SGDPlus(0.01, jit_compile=False), "mse")
    x, log = np.c_[rows, X[:, :2]].astype("float32"), ExampleLog(id=column)
    return model.fit(x, X[:, :3], batch_size=11, verbose=0, callbacks=[log])


def _lengths() -> Any:
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(1)])
    model.compile(SGDPlus(0.01, jit_compile=False), "mse")
    parts = [np.ones((3, n, 2), "float32") for n in (2, 5)]

    class Parts(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return parts[index], parts[index][..., :1]

    log = ExampleLog(prediction=True)
    return model.fit(Parts(), shuffle=False, verbose=0, callbacks=[log])


def _longer_second_epoch(path: Path) -> Any:
    data = PerEpoch([(X[:4], Y[:4]), (X[:6], Y[:6])])
    model = DENSE.compiled(SGDPlus(0.01, jit_compile=False))
    fit = {"epochs": 2, "shuffle": False, "verbose": 0}
    return model.fit(data, callbacks=[data.follows, ExampleLog(path=path)], **fit)


STEP_BY_STEP = SGDPlus(0.01, examples_per_update=None)
ANY: Any = 7
ROWS = np.arange(len(X))
REFUSED: dict[str, Row] = {
    "bool": (lambda: ExampleLog(gradient_norm=ANY), TypeError, "gradient_norm=True"),
    "id": (lambda: ExampleLog(id=cast(Any, 1.5)), TypeError, 'Use id="row"'),
    "id_bool": (lambda: ExampleLog(id=True), TypeError, "or id=0 if the first"),
    "no_such_column": (lambda: _by_column(6, ROWS), ValueError, "column 6 of the in"),
    "column_of_fractions": (
        lambda: _by_column(0, ROWS + 0.5),
        ValueError,
        r"\.5, which is no row",
    ),
    "column_beyond_float32": (
        lambda: _by_column(0, ROWS + 2**24),
        ValueError,
        "too large to be exact in a column of float32",
    ),
    "path": (lambda: ExampleLog(path=ANY), TypeError, "Name a directory"),
    "shuffled": (
        lambda: _fit(ExampleLog(), shuffle=True),
        ValueError,
        r"shuffle=False\) with arrays.*or hand rows along",
    ),
    "steps_per_epoch": (
        lambda: _fit(ExampleLog(), steps_per_epoch=1),
        ValueError,
        "steps_per_epoch=1",
    ),
    "shuffled_dataset": (
        lambda: _fit(
            ExampleLog(),
            tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(9).batch(4),
            None,
        ),
        ValueError,
        "other order",
    ),
    "shuffled_py_dataset": (
        lambda: _fit(ExampleLog(), _Shuffled(), None),
        ValueError,
        "_Shuffled that may come in another order",
    ),
    "generator": (
        lambda: _fit(ExampleLog(), (part for part in [(X, Y)]), None),
        ValueError,
        "hand rows along",
    ),
    "other_batches": (
        lambda: _fit(ExampleLog(), _Halves(X, Y, batch_size=11), None),
        ValueError,
        "Override rows_of",
    ),
    "adam": (
        lambda: _fit(ExampleLog(), optimizer=keras.optimizers.Adam()),
        TypeError,
        r"Received: Adam\. Compile",
    ),
    "per_batch": (
        lambda: _fit(ExampleLog(), optimizer=STEP_BY_STEP),
        TypeError,
        "examples_per_update=None",
    ),
    "second_log": (_twice, RuntimeError, r"Call stop\(\) on the first"),
    "not_kept": (
        lambda: ExampleLog().gradient_norm,
        RuntimeError,
        r"Use ExampleLog\(gradient_norm=True\)",
    ),
    "no_batch": (lambda: ExampleLog().last_batch(), RuntimeError, r"Call start\(model"),
    "no_such_id": (lambda: _by_id(ROWS, "number"), ValueError, r"x, a dict with"),
    "float_id": (
        lambda: _by_id(ROWS.astype("float32")),
        TypeError,
        r"integers of shape \(num_examples,\)",
    ),
    "id_twice": (lambda: _by_id(ROWS // 2), ValueError, r"twice in epoch 0"),
    "negative_id": (lambda: _by_id(ROWS - 1), ValueError, "-1, which is no row"),
    "compiled_by_keras": (
        lambda: _fit(
            ExampleLog(),
            optimizer=SGDPlus(0.01),
            compiled={"jit_compile": True, "steps_per_execution": 2},
        ),
        NotImplementedError,
        r"steps_per_execution=2\. Use compile",
    ),
    "lengths": (_lengths, NotImplementedError, "Pad the examples to one length"),
}
DEFAULT = (
    "adam",
    "bool",
    "id",
    "id_twice",
    "no_batch",
    "no_such_id",
    "not_kept",
    "path",
    "second_log",
    "shuffled",
    "shuffled_dataset",
)


@pytest.mark.parametrize(
    ("act", "error", "match"), tiered_rows(REFUSED, *DEFAULT, unpack=True)
)
def test_refused(act: Act, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        act()


@pytest.mark.matrix
def test_a_later_epoch_with_more_rows_than_the_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 5 in epoch 1, and 4 rows before"):
        _longer_second_epoch(tmp_path)
