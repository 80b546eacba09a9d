"""Fixtures of the room: the installed hook, and states that Keras's SGD reaches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.internals import hooks
from tests.support.steps import (
    MOMENTUM,
    SGD,
    state_of,
    trained,
)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    hooks.install()
    yield
    hooks.install()


@pytest.fixture(scope="module")
def per_example() -> list[np.ndarray]:
    """The state that Keras's SGD reaches at batch_size=1."""
    optimizer = SGD(**MOMENTUM)
    return state_of(trained(optimizer, batch_size=1), optimizer)


@pytest.fixture(scope="module")
def per_batch() -> list[np.ndarray]:
    """The state that Keras's SGD reaches at batch_size=4."""
    optimizer = SGD(**MOMENTUM)
    return state_of(trained(optimizer), optimizer)
