"""With every form switched off, clipped runs are those of Keras, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# XLA's own threshold, and Keras compiled with XLA: then both have the same kernels.
CODE = """
import sys
import keras
import numpy as np
from keras_sgd_plus import SGDPlus

option = {sys.argv[1]: 0.05}
rng = np.random.default_rng(0)
x = rng.normal(size=(40, 12)).astype("float32")
y = rng.integers(0, 3, 40)
weights = []
for make, size in ((SGDPlus, 40), (keras.optimizers.SGD, 1)):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((12,)), *layers])
    own = {"order": "given"} if make is SGDPlus else {}
    optimizer = make(0.05, momentum=0.9, **option, **own)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=True)
    model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
    weights.append([*model.get_weights(), *(v.numpy() for v in optimizer.variables)])
print(all(np.array_equal(a, b) for a, b in zip(*weights)))
"""


@pytest.mark.matrix
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_clipped_runs_are_equal_to_the_last_bit(option: str) -> None:
    threshold = "xla_cpu_small_while_loop_byte_threshold=1024"
    environment = {
        **os.environ,
        "KERAS_SGD_PLUS_LOWERING": "0",
        "XLA_FLAGS": f"--xla_backend_extra_options={threshold}",
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE, option],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split()[-1:] == ["True"], run.stderr
