"""The workloads: seeded data and networks, by permanent ids.

Nothing here imports a framework: every peer builds the network that `network` and
`sizes` describe and starts from the weights that it is handed, in Keras's order and
layout (a Dense kernel is `(inputs, outputs)`, a Conv2D kernel `(height, width, inputs,
outputs)`, an LSTM has kernel, recurrent kernel and bias with gates i, f, c, o).

Networks, with their `sizes`:

- `dense`, (inputs, hidden..., outputs): Dense layers, ReLU on the hidden ones.
- `cnn`, (16, 32, 10): 28x28x1 images; Conv 3x3 ("valid", ReLU), 2x2 max-pool, twice;
  Flatten; Dense.
- `conv_bn_dropout`, (16, 10): 28x28x1 images; Conv 3x3 ("same", no bias),
  BatchNormalization (Keras's defaults: momentum 0.99, epsilon 1e-3; its moving mean
  and variance start at 0 and 1), ReLU, 2x2 max-pool, Flatten, Dropout 0.25, Dense.
- `depthwise`, (16, 32, 10): 28x28x1 images; Conv 3x3, stride 2; DepthwiseConv 3x3;
  Conv 1x1 (each "same", ReLU); mean over positions; Dense.
- `lstm`, (32, 10): 20 steps of 8 features; LSTM (Keras's defaults), its last output;
  Dense.
- `transformer`, (1000, 32, 64, 4, 2): 32 tokens of a vocabulary of 1000; embedding of
  tokens plus positions, 64 wide; two causal pre-norm blocks with 4 heads (key_dim 16)
  and a ReLU MLP 64-256-64; LayerNormalization (epsilon 1e-3); Dense 1000. The target is
  the next token at each position, the loss the mean over positions.
- `embedding_bag`, (vocabulary, 16, 10): 20 ids; mean of their embeddings; Dense.

Losses: `mse` (squared error, mean over outputs) and `cross_entropy` (sparse, from
logits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """One network with its data and settings; `id` never changes its meaning."""

    id: str
    network: str
    sizes: tuple[int, ...]
    loss: str
    learning_rate: float
    momentum: float = 0.0
    num_examples: int = 65_536  # in one pass of the arms that have a fixed cost
    tolerance: float = 1e-4  # of the loss, between arms of the same algorithm

    def data(self, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
        """Seeded x and y; a shorter call gives the first rows of a longer one."""
        return _DATA[self.network](self.sizes, num_examples)


def _dense(sizes: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, outputs = sizes[0], sizes[-1]
    # A generator per array: a shorter call gives the first rows of a longer one. Labels
    # come from a linear teacher, so that they can be learnt.
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(inputs, outputs)).astype("float32")
    rng = np.random.default_rng(1)
    if outputs == 1:
        x = rng.standard_normal((count, inputs), dtype="float32")
        noise = np.random.default_rng(2).standard_normal((count, 1), dtype="float32")
        return x, x @ teacher / np.float32(np.sqrt(inputs)) + np.float32(0.1) * noise
    x = rng.random((count, inputs), dtype="float32")
    return x, ((x - 0.5) @ teacher).argmax(1).astype("int32")


def _images(sizes: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    del sizes
    x, y = _dense((784, 10), count)
    return x.reshape(-1, 28, 28, 1), y


def _sequences(sizes: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _dense((160, sizes[-1]), count)
    return 2 * x.reshape(-1, 20, 8) - 1, y


def _tokens(sizes: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    # A noisy arithmetic progression: the next token can be learnt.
    vocabulary, length = sizes[:2]
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 3, size=(count, length + 1))
    tokens = ((3 + noise).cumsum(axis=1) % vocabulary).astype("int32")
    return tokens[:, :-1], tokens[:, 1:]


def _bags(sizes: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    ids = rng.integers(0, sizes[0], size=(count, 20), dtype="int32")
    return ids, (ids.sum(axis=1) % sizes[-1]).astype("int32")


_DATA: dict[str, Any] = {
    "dense": _dense,
    "cnn": _images,
    "conv_bn_dropout": _images,
    "depthwise": _images,
    "lstm": _sequences,
    "transformer": _tokens,
    "embedding_bag": _bags,
}

_CE = "cross_entropy"
WORKLOADS = {
    w.id: w
    for w in (
        Workload("linear-20", "dense", (20, 1), "mse", 0.001, num_examples=200_000),
        Workload("softmax-784-10", "dense", (784, 10), _CE, 0.002),
        Workload("mlp-784-128-10", "dense", (784, 128, 10), _CE, 0.002),
        Workload("mlp-784-128-10-m0.9", "dense", (784, 128, 10), _CE, 0.0005, 0.9),
        Workload("mlp-784-32-32-10-m0.9", "dense", (784, 32, 32, 10), _CE, 0.0005, 0.9),
        Workload(
            "mlp-784-2048-2048-10",
            "dense",
            (784, 2048, 2048, 10),
            _CE,
            0.0002,
            num_examples=128,  # each takes a millisecond and more
        ),
        Workload("cnn", "cnn", (16, 32, 10), _CE, 0.002, num_examples=2_048),
        Workload(
            "conv-bn-dropout",
            "conv_bn_dropout",
            (16, 10),
            _CE,
            0.002,
            num_examples=4_096,
            tolerance=0.1,  # each framework draws other dropout masks
        ),
        Workload("lstm-20x8", "lstm", (32, 10), _CE, 0.01, num_examples=16_384),
        Workload(
            "transformer-32x64",
            "transformer",
            (1000, 32, 64, 4, 2),
            _CE,
            0.005,
            num_examples=1_024,
            tolerance=1e-3,
        ),
        *(
            Workload(
                f"embedding-{name}",
                "embedding_bag",
                (vocabulary, 16, 10),
                _CE,
                0.05,
                num_examples=32_768,
            )
            for name, vocabulary in (
                ("1k", 1_000),
                ("100k", 100_000),
                ("1m", 1_000_000),
            )
        ),
    )
}
