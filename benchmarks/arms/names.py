"""The ids of the arms that several studies name."""

from __future__ import annotations

LOOP, FIT = "SGDPlus loop", "SGDPlus fit"
ONE_BATCH = "SGDPlus fit, reshuffled, one batch"
KERAS_1, KERAS_32 = "keras SGD, batch 1", "keras SGD, batch 32"
JAX, TORCH = "jax scan", "torch eager"
SKLEARN = "scikit-learn SGD, shuffled"
C, C_UNFUSED = "C loop", "C loop, example by example"
C_BLOCKS = "C loop, in blocks"
IDLE = "fit that trains nothing"
REFERENCE = KERAS_1  # every arm of its algorithm must reach its loss
