"""Tests of data and structures share these columns, and a target that fits them."""

from __future__ import annotations

import numpy as np

N = 20  # examples; batches of 7 leave a shorter last one
RNG = np.random.default_rng
CROSSENTROPY = "sparse_categorical_crossentropy"


def columns(num_columns: int) -> list[np.ndarray]:
    """Float32 arrays of shape (N, 3)."""
    rng = RNG(4)
    return [rng.normal(size=(N, 3)).astype("float32") for _ in range(num_columns)]


def target(columns: list[np.ndarray], outputs: int = 1) -> np.ndarray:
    """Float32 of shape (N, outputs)."""
    flat = np.concatenate(columns, 1)
    mixed = flat @ RNG(5).normal(size=(flat.shape[1], outputs))
    return np.sin(mixed).astype("float32")
