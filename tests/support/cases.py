"""Tables of options and of tolerances, each with its reason."""

from __future__ import annotations

from typing import Any

import keras

# Same algebra as the oracle in float64, up to 50 updates.
FLOAT64 = 1e-12

# The error of float32 in blocks, as a multiple of that of single updates: sums of
# another order have other rounding errors, of the same size.
BLOCK_ERROR = 2.0

# Arguments of SGD, with ids. Momentum and decay are exact in float32, to which Keras
# rounds them also for float64 models. Each must change the result, which
# test_updates.py proves.
SGD_ARGS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.875},
    "nesterov": {"momentum": 0.875, "nesterov": True},
    "weight_decay": {"weight_decay": 0.125},
    "decay_momentum": {"weight_decay": 0.125, "momentum": 0.75},
    "clipnorm": {"clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.02},
    "global_clipnorm": {"global_clipnorm": 0.15},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema_overwrite": {
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 4,
    },
    "accumulation": {"gradient_accumulation_steps": 3},
    "everything": {
        "momentum": 0.75,
        "nesterov": True,
        "weight_decay": 0.0625,
        "global_clipnorm": 0.3,
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 3,
        "gradient_accumulation_steps": 2,
    },
}

# Options of an optimizer that is used by hand, beside a momentum of 0.9. Each must
# change the result, which test_by_hand.py proves.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0},
    "momentum": {},
    "nesterov": {"nesterov": True},
    "weight_decay": {"weight_decay": 0.1},
    "clipnorm": {"clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.05},
    "ema": {"use_ema": True, "ema_momentum": 0.7},
    "ema_overwrite": {
        "use_ema": True,
        "ema_momentum": 0.7,
        "ema_overwrite_frequency": 2,
    },
    "accumulation": {"gradient_accumulation_steps": 3},
    "loss_scale": {"loss_scale_factor": 3.0},
    "everything": {
        "nesterov": True,
        "weight_decay": 0.1,
        "clipnorm": 0.05,
        "use_ema": True,
        "ema_momentum": 0.7,
        "ema_overwrite_frequency": 2,
        "gradient_accumulation_steps": 3,
        "loss_scale_factor": 8.0,
    },
}


def inverse_time(step: Any) -> Any:
    """The same learning rate for the oracle."""
    return 0.05 / (1 + 0.3 * step)


def inverse_time_schedule() -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that falls with every update."""
    return keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.3)
