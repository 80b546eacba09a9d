"""Where the repository lies, and where the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.find_spec("keras_sgd_plus")  # imports nothing
assert _SPEC is not None
assert _SPEC.origin is not None
PACKAGE = Path(_SPEC.origin).resolve().parent  # installed, or in ROOT
