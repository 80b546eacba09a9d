"""The arm on JAX: a jitted `jax.lax.scan` over the examples, with optax's SGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.arms import names
from benchmarks.arms.arm import Arm, Unsupported
from benchmarks.arms.jax_networks import (
    NETWORKS,
    STATISTICS,
    Forward,
    Params,
    Stochastic,
)
from benchmarks.arms.workloads import Workload


def _mse(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The squared error, mean over outputs."""
    return jnp.square(outputs - y).mean()


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The sparse cross entropy, mean over positions where there are any."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


LOSSES = {"mse": _mse, "cross_entropy": _cross_entropy}


class _Training(NamedTuple):
    """Everything that one update changes."""

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
    # The weights are donated: XLA updates them in place, as in the loop of SGDPlus.
    @partial(jax.jit, donate_argnums=0)
    def run(
        training: _Training, x: jax.Array, y: jax.Array
    ) -> tuple[_Training, jax.Array]:
        return lax.scan(update, (training, jnp.zeros(())), (x, y))[0]

    return run


class _Scan:
    """A network, its examples on the device, and the state of its training."""

    def __init__(
        self, workload: Workload, weights: list[np.ndarray], x: Any, y: Any
    ) -> None:
        # With a momentum of 0.0, not None, optax would keep a velocity.
        momentum = workload.momentum or None
        optimizer = optax.sgd(workload.learning_rate, momentum=momentum)
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
        state = Stochastic(*statistics, key) if statistics else None
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


ARMS: dict[str, Callable[..., Arm]] = {names.JAX: make}
