"""A process that keeps its compilations: trains, and prints what it ended with.

`python -m tests.support.kept_run FOLDER [HOW]`; FOLDER is "-" for none. HOW: "killed"
ends it by a signal after training; "unwritable" takes the folder away; "full" limits
the size of files; "late" computes something first.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import keras

from keras_sgd_plus import SGDPlus, keep_compilations


def main(folder: str, how: str = "") -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if how == "late":
            keras.ops.ones(1)
        if folder != "-":
            keep_compilations(folder)
        if how == "unwritable":
            (files,) = Path(folder).glob("*/process-*/files")
            files.rmdir()
            files.symlink_to("/proc/self/fdinfo")
        if how == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        found = trained()
    found["said"] = [str(w.message) for w in caught]
    print(json.dumps(found), flush=True)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def trained() -> dict[str, object]:
    """What a user sees of a training, and a digest of the weights."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(SGDPlus(0.1, momentum=0.5, seed=2), "mse", metrics=["mae"])
    x = keras.random.normal((20, 4), seed=3)
    try:
        history = model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0).history
    except RuntimeError as error:
        return {"error": str(error)}
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    return {
        "logs": history,
        "weights": hashlib.sha256(weights).hexdigest(),
        "loss": model.evaluate(x, x[:, :1], verbose=0)[0],
        "updates": int(model.optimizer.iterations),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
