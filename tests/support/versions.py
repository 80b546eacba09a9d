"""Major and minor versions of the packages that are installed, for what differs."""

from __future__ import annotations

import keras
import tensorflow as tf


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


KERAS = _version(keras.__version__)
TENSORFLOW = _version(tf.__version__)
