"""`python -m tests.support.on_other_keras TABLE NAME`: one row of `private_names`.

Prints as JSON how far the training is from that of Keras's SGD at `batch_size=1`, the
warnings, the error, and where the name stood.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from tests.support import other_keras
from tests.support.private_names import TABLES


def main(table: str, name: str) -> None:
    """Changes the library, imports it, trains, and prints a line."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    row = TABLES[table][name]
    changed: Any = row.change
    if isinstance(row.change, other_keras.Change):
        changed = other_keras.use(row.change)
        importlib.import_module("keras")
    else:
        importlib.import_module("keras")
        other_keras.move(*row.change)
    told = importlib.import_module("tests.support.train_on_other").run(row.program)
    print("RESULT", json.dumps({**told, "changed": list(changed)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
