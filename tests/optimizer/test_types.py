"""A type checker sees the arguments of SGDPlus: the lint step reads this file.

Each comment names an error. Where the checker finds none, the comment is one.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true, reportCallIssue=true
# pyright: reportArgumentType=true, reportAttributeAccessIssue=true

from __future__ import annotations

import keras
import pytest

from keras_sgd_plus import SGDPlus


def test_right_arguments() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    rates = (0.1, 1, schedule, lambda: 0.1)
    assert all(isinstance(SGDPlus(rate), SGDPlus) for rate in rates)
    assert SGDPlus(order="given", nonfinite="skip", jit_compile=False)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError):
        SGDPlus(momemtum=0.9)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        SGDPlus("0.1", lr=0.1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError):
        SGDPlus(order="shuffled")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError):
        SGDPlus(nonfinite="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError):
        SGDPlus(jit_compile="yes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(AttributeError):
        SGDPlus().minimize()
