"""The networks on JAX: functions of one example, without a batch axis.

They take a flat list of parameters in Keras's order and layout. Only convolutions need
a batch: one of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = list[jax.Array]
# Takes parameters, state and one example; gives outputs and the next state.
Forward = Callable[[Params, Any, jax.Array], tuple[jax.Array, Any]]

DROPOUT = 0.25
BATCH_NORM_MOMENTUM = 0.99
EPSILON = 1e-3  # of both normalizations
STATISTICS = {"conv_bn_dropout": 2}  # arrays at the end of `weights`, not trained


class Stochastic(NamedTuple):
    """The state that batch normalization and dropout carry between examples."""

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
    params: Params, state: Stochastic, x: jax.Array
) -> tuple[jax.Array, Stochastic]:
    """Convolution, batch normalization, ReLU, pooling, dropout, Dense."""
    kernel, gamma, beta, *dense = params
    key, mask_key = jax.random.split(state.key)
    x, mean, variance = _batch_norm(gamma, beta, _convolve(kernel, "SAME", x))
    x = _max_pool(jax.nn.relu(x)).reshape(-1)
    outputs = _affine(*dense, _dropout(mask_key, x))
    moved = _moved(state.mean, mean), _moved(state.variance, variance)
    return outputs, Stochastic(*moved, key)


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
    # Scaled in training, as in Keras, so that predictions need no scale.
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
    # In the sums: w is the width, h a head, d its entries; t, q and k are tokens.
    *projections, kernel, bias = params
    query, key, value = (
        jnp.einsum("tw,whd->htd", x, projections[i]) + projections[i + 1][:, None]
        for i in (0, 2, 4)
    )
    # Keras scales the query as well, not the scores: the same rounding.
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
