"""The arm on JAX: a jitted `jax.lax.scan` over the examples, with optax's SGD in it.

Each network is a function of one example, without a batch axis, on a flat list of
parameters in Keras's order and layout. Only convolutions need a batch: one of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.arms import Arm, Unsupported
from benchmarks.workloads import Workload

Params = list[jax.Array]
# Takes parameters, state and one example; gives outputs and the next state.
Forward = Callable[[Params, Any, jax.Array], tuple[jax.Array, Any]]

DROPOUT = 0.25
BATCH_NORM_MOMENTUM = 0.99
EPSILON = 1e-3  # of both normalizations
STATISTICS = {"conv_bn_dropout": 2}  # arrays at the end of `weights`, not trained


class _Stochastic(NamedTuple):
    """What batch normalization and dropout carry from example to example."""

    mean: jax.Array
    variance: jax.Array
    key: jax.Array


def _affine(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    """A Dense layer on the last axis."""
    return x @ kernel + bias


def _convolve(kernel: jax.Array, padding: str, x: jax.Array) -> jax.Array:
    """A convolution of one image with stride 1."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None], kernel, (1, 1), padding, dimension_numbers=dimensions
    )[0]


def _max_pool(x: jax.Array) -> jax.Array:
    """The maxima of 2x2 squares of one image."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")


def _layer_norm(gamma: jax.Array, beta: jax.Array, x: jax.Array) -> jax.Array:
    """LayerNormalization over the last axis."""
    mean = x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + EPSILON) * gamma + beta


def _dense(params: Params, x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    *hidden, last = zip(params[::2], params[1::2], strict=True)
    for kernel, bias in hidden:
        x = jax.nn.relu(_affine(kernel, bias, x))
    return _affine(*last, x)


def _cnn(params: Params, x: jax.Array) -> jax.Array:
    """Two convolutions with ReLU and pooling, then Dense."""
    kernel_1, bias_1, kernel_2, bias_2, *dense = params
    for kernel, bias in ((kernel_1, bias_1), (kernel_2, bias_2)):
        x = _max_pool(jax.nn.relu(_convolve(kernel, "VALID", x) + bias))
    return _affine(*dense, x.reshape(-1))


def _conv_bn_dropout(
    params: Params, state: _Stochastic, x: jax.Array
) -> tuple[jax.Array, _Stochastic]:
    """Convolution, batch normalization, ReLU, pooling, dropout, Dense."""
    kernel, gamma, beta, *dense = params
    key, mask_key = jax.random.split(state.key)
    x, mean, variance = _batch_norm(gamma, beta, _convolve(kernel, "SAME", x))
    x = _max_pool(jax.nn.relu(x)).reshape(-1)
    outputs = _affine(*dense, _dropout(mask_key, x))
    moved = _moved(state.mean, mean), _moved(state.variance, variance)
    return outputs, _Stochastic(*moved, key)


def _batch_norm(
    gamma: jax.Array, beta: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An image normalized by its own statistics, and these."""
    mean, variance = x.mean((0, 1)), x.var((0, 1))
    normalized = (x - mean) * (gamma * lax.rsqrt(variance + EPSILON)) + beta
    return normalized, mean, variance


def _moved(average: jax.Array, value: jax.Array) -> jax.Array:
    """A moving average after one more value."""
    return average * BATCH_NORM_MOMENTUM + value * (1 - BATCH_NORM_MOMENTUM)


def _dropout(key: jax.Array, x: jax.Array) -> jax.Array:
    """Zeroes a random part and scales the rest up."""
    kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
    return jnp.where(kept, x / (1 - DROPOUT), 0)


def _lstm(params: Params, x: jax.Array) -> jax.Array:
    """The last output of an LSTM, then Dense."""
    kernel, recurrent, bias, *dense = params
    units = recurrent.shape[0]

    def step(
        carry: tuple[jax.Array, jax.Array], projected: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        hidden, cell = carry
        gates = projected + hidden @ recurrent
        i, f, candidate, o = jnp.split(gates, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    zeros = jnp.zeros(units, x.dtype)
    # The inputs of all steps are projected at once: one product less in each step.
    (hidden, _), _ = lax.scan(step, (zeros, zeros), _affine(kernel, bias, x))
    return _affine(*dense, hidden)


BLOCK = 16  # arrays per transformer block: 2 norms, attention's 8, the MLP's 4


def _transformer(params: Params, x: jax.Array) -> jax.Array:
    """A causal pre-norm transformer on the tokens of one sequence."""
    tokens, positions, *blocks = params[:-4]
    gamma, beta, *dense = params[-4:]
    x = tokens[x] + positions
    for start in range(0, len(blocks), BLOCK):
        x = _block(blocks[start : start + BLOCK], x)
    return _affine(*dense, _layer_norm(gamma, beta, x))


def _block(params: Params, x: jax.Array) -> jax.Array:
    """Attention and MLP, each normalized before and added to its input."""
    x = x + _attention(params[2:10], _layer_norm(*params[:2], x))
    return x + _dense(params[12:], _layer_norm(*params[10:12], x))


def _attention(params: Params, x: jax.Array) -> jax.Array:
    """Causal self-attention of one sequence, with an axis for the heads."""
    *projections, kernel, bias = params
    query, key, value = (
        jnp.einsum("tw,whd->htd", x, projections[i]) + projections[i + 1][:, None]
        for i in (0, 2, 4)
    )
    scores = jnp.einsum("hqd,hkd->hqk", query / np.sqrt(query.shape[-1]), key)
    causal = np.tri(x.shape[0], dtype=bool)
    shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.einsum("hqk,hkd,hdw->qw", shares, value, kernel) + bias


def _embedding_bag(params: Params, x: jax.Array) -> jax.Array:
    """The mean of the ids' embeddings, then Dense."""
    table, *dense = params
    return _affine(*dense, table[x].mean(0))


def _stateless(forward: Callable[[Params, jax.Array], jax.Array]) -> Forward:
    """A network that hands its state on as it is."""

    def call(params: Params, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return forward(params, x), state

    return call


NETWORKS: dict[str, Forward] = {
    "dense": _stateless(_dense),
    "cnn": _stateless(_cnn),
    "conv_bn_dropout": _conv_bn_dropout,
    "lstm": _stateless(_lstm),
    "transformer": _stateless(_transformer),
    "embedding_bag": _stateless(_embedding_bag),
}


def _mse(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The squared error, mean over outputs."""
    return jnp.square(outputs - y).mean()


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The sparse cross entropy, mean over positions where there are any."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


LOSSES = {"mse": _mse, "cross_entropy": _cross_entropy}


class _Training(NamedTuple):
    """All that one update changes."""

    params: Params
    optimizer: Any
    state: Any


def _compiled_pass(
    forward: Forward, loss: Callable[..., jax.Array], optimizer: Any
) -> Callable[..., tuple[_Training, jax.Array]]:
    """One update per example, in order; gives the sum of the losses too."""

    def objective(
        params: Params, state: Any, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, Any]:
        outputs, state = forward(params, state, x)
        return loss(outputs, y), state

    def update(
        carry: tuple[_Training, jax.Array], example: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[_Training, jax.Array], None]:
        training, total = carry
        differentiate = jax.value_and_grad(objective, has_aux=True)
        (value, state), gradients = differentiate(
            training.params, training.state, *example
        )
        updates, moments = optimizer.update(
            gradients, training.optimizer, training.params
        )
        params = optax.apply_updates(training.params, updates)
        return (_Training(params, moments, state), total + value), None

    # The examples are arguments: closed over, they would be constants of the program.
    @partial(jax.jit, donate_argnums=0)
    def run(
        training: _Training, x: jax.Array, y: jax.Array
    ) -> tuple[_Training, jax.Array]:
        return lax.scan(update, (training, jnp.zeros(())), (x, y))[0]

    return run


class _Scan:
    """A network, its examples on the device, and what it has learnt so far."""

    def __init__(
        self, workload: Workload, weights: list[np.ndarray], x: Any, y: Any
    ) -> None:
        optimizer = optax.sgd(
            workload.learning_rate, momentum=workload.momentum or None
        )
        self._run = _compiled_pass(
            NETWORKS[workload.network], LOSSES[workload.loss], optimizer
        )
        self._examples = jnp.array(x), jnp.array(y)
        # Copies, which can be donated: `asarray` may share the caller's memory.
        arrays = [jnp.array(value) for value in weights]
        count = len(arrays) - STATISTICS.get(workload.network, 0)
        params, statistics = arrays[:count], arrays[count:]
        # JAX's default generator would be a quarter of the time of conv-bn-dropout.
        key = jax.random.key(1, impl="rbg")
        state = _Stochastic(*statistics, key) if statistics else None
        self._training = _Training(params, optimizer.init(params), state)
        self.loss_sum: jax.Array | None = None  # of the last pass

    def train(self) -> None:
        """One pass over the examples; returns when the work is done."""
        self._training, self.loss_sum = jax.block_until_ready(
            self._run(self._training, *self._examples)
        )

    def weights(self) -> list[np.ndarray]:
        """Trainable weights in Keras's order and layout, then moving statistics."""
        state = self._training.state
        statistics = [state.mean, state.variance] if state else []
        return [np.array(value) for value in (*self._training.params, *statistics)]


def make(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    """The arm, with x and y put on the device."""
    if workload.network not in NETWORKS:
        raise Unsupported(f"no network {workload.network!r} in JAX")
    return _Scan(workload, weights, x, y)


ARMS: dict[str, Callable[..., Arm]] = {"jax scan": make}
