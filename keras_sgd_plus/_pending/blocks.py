"""Kernels of Dense layers whose updates wait until the end of a block of examples.

k updates of a kernel, one example each, are together a matrix of rank k. So a block of
k examples is walked without writing the kernel. One matrix product gives the products
of all inputs with the kernel as it was at the block's beginning. Each example then
corrects its own product for the updates before it, by the inputs' products with each
other (the block's Gram matrix). One matrix product makes the k updates at the end.

It is the same SGD, each example seeing the weights that all earlier ones left, up to
rounding. `coefficients` has the algebra.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._pending import coefficients
from keras_sgd_plus._pending.block_plan import BlockPlace, BlockPlan
from keras_sgd_plus._pending.block_products import Buffers, Product, begun, finished
from keras_sgd_plus._pending.coefficients import Coefficients
from keras_sgd_plus._pending.protocol import Misread, Reader
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._rule import Numbers, OuterGradient, exact_decay

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class BlockState(NamedTuple):
    """Tensors that the loop carries from example to example of a block."""

    row: Tensor  # () int32, of the next example
    changes: list[Tensor]  # per kernel, (k, m): the rate times the error
    coefficients: list[Coefficients]  # per kernel


@dataclass(frozen=True)
class EnteredBlock:
    """The kernels of a plan during one block (`protocol.Entered`)."""

    plan: BlockPlan
    products: tuple[Product, ...]
    numbers: Numbers
    buffers: Buffers

    @classmethod
    def of(
        cls,
        plan: BlockPlan,
        values: Sequence[Tensor],
        buffers: Buffers,
        numbers: Numbers,
        skips_bad: bool,
    ) -> EnteredBlock:
        """Begins a block.

        Args:
            plan: the kernels.
            values: the carry's.
            buffers: with the inputs of the block's examples, and zeros in rows that
                are no examples.
            numbers: of the rule.
            skips_bad: whether examples that are not finite are left out.
        """
        products = tuple(
            begun(place, values, x, skips_bad)
            for place, x in zip(plan.places, buffers.inputs, strict=True)
        )
        return cls(plan, products, numbers, buffers)

    @property
    def num_rows(self) -> Tensor:
        """How many examples, (), can be walked in this block."""
        return functools.reduce(tf.minimum, [p.num_rows for p in self.products])

    @property
    def start(self) -> BlockState:
        """The state before the first example."""
        plan, zeros = self.plan, self.buffers.zeros
        return BlockState(
            tf.constant(0),
            list(self.buffers.changes),
            [
                coefficients.start(zeros, plan.has_momentum, place.decays)
                for place in plan.places
            ],
        )

    def without(self, values: Sequence[Tensor]) -> list[Any]:
        """The carry's values without the kernels, which stay as they are in a block."""
        waiting = self.plan.positions
        return [() if i in waiting else value for i, value in enumerate(values)]

    def show(self, values: Sequence[Tensor], state: BlockState) -> ShownBlock:
        """The kernels for one example."""
        del values
        held = tuple(tf.identity(product.weight) for product in self.products)
        return ShownBlock(self, state, held)

    def finish(self, values: Sequence[Tensor], state: BlockState) -> list[Any]:
        """The carry's values once the updates of the block are made."""
        found = list(values)
        for k, place in enumerate(self.plan.places):
            weight, velocity = finished(
                self.products[k], state.changes[k], state.coefficients[k], state.row
            )
            found[place.weight_position] = weight
            if place.velocity_position is not None:
                found[place.velocity_position] = velocity
        return found


@dataclass(frozen=True)
class ShownBlock:
    """The kernels of a plan while one update is traced (`protocol.Shown`).

    Attributes:
        entered: the block.
        state: before the update.
        placeholders: the model sees these in place of the kernels. If it reads one
            other than by `matmul`, the loop is traced again without blocks.
    """

    entered: EnteredBlock
    state: BlockState
    placeholders: tuple[Any, ...]

    @property
    def weights(self) -> frozenset[int]:
        """As `protocol.Shown.weights`."""
        return frozenset(place.index for place in self._places)

    @property
    def positions(self) -> frozenset[int]:
        """As `protocol.Shown.positions`."""
        return self.entered.plan.positions

    def placed(self, values: Sequence[Tensor]) -> list[Any]:
        """As `protocol.Shown.placed`."""
        found = list(values)
        for k, place in enumerate(self._places):
            found[place.weight_position] = self.placeholders[k]
            if place.velocity_position is not None:
                found[place.velocity_position] = self.entered.products[k].velocity
        return found

    def look_up(self, reader: Reader, variable: Any, indices: Tensor) -> None:
        """As `protocol.Shown.look_up`: no kernel is a table."""
        del reader, variable, indices

    def misread(self, reader: Reader, gradients: Mapping[int, Any]) -> Misread:
        """Kernels that were used other than in one product, or have another gradient.

        Asked before the step, and at the end of the update, when all reads are known.
        """
        found = {}
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            variable, gradient = place.variable, gradients.get(place.index)
            is_assigned = reader.get_current_value(variable) is not placeholder
            is_product = isinstance(gradient, OuterGradient)
            used = is_product and reader.has_plain_product(variable)
            if is_assigned or placeholder.consumers() or not used:
                found[id(variable)] = None
        return Misread({}, found)

    def carried(self, values: Sequence[Tensor]) -> list[Any]:
        """As `protocol.Shown.carried`."""
        return self.entered.without(values)

    def multiplied(self, variable: Any) -> tuple[Tensor, Tensor] | None:
        """The inputs of this example and their product with the kernel as it is now.

        (1, n) and (1, m); None for another variable.
        """
        found = [k for k, p in enumerate(self._places) if p.variable is variable]
        if not found:
            return None
        (k,) = found
        product, now = self.entered.products[k], self.state.coefficients[k]
        dtype = product.outputs.dtype
        # By `gather`: a slice with a moving start makes the loop slow.
        row = tf.reshape(self.state.row, (1,))
        outputs = tf.gather(product.outputs, row)
        if not isinstance(now.weight, tuple):
            outputs = share(tf.cast(now.weight, dtype), outputs)
        if not isinstance(now.carried, tuple):
            carried = tf.cast(now.carried, dtype)
            outputs += share(carried, tf.gather(product.drifts, row))
        gram = tf.gather(product.gram, row)
        # Inputs of later rows may be NaN, and zero times NaN is NaN.
        is_earlier = _is_earlier(product.gram.shape[0], self.state.row)
        shares = tf.where(is_earlier, gram, 0)
        if not isinstance(now.changes, tuple):
            shares *= tf.cast(now.changes, dtype)
        outputs -= tf.matmul(shares, self.state.changes[k])
        return tf.gather(product.inputs, row), outputs

    def step(
        self, gradients: Mapping[int, Any], rates: Sequence[Tensor], applies: Tensor
    ) -> ShownBlock:
        """As `protocol.Shown.step`; the gradients are `OuterGradient`s."""
        changes, advanced = [], []
        for k, place in enumerate(self._places):
            gradient: OuterGradient = gradients[place.index]
            error = tf.reshape(gradient.right, (1, -1))
            rate = tf.cast(rates[place.index], error.dtype)
            change = rate * error
            if applies is not None:
                change = tf.where(applies, change, tf.zeros_like(change))
            before, row = self.state.changes[k], self.state.row
            changes.append(put(before, tf.stack([row, 0]), change))
            step = self._step(place, rate)
            now = self.state.coefficients[k]
            advanced.append(coefficients.advance(now, row, step, applies))
        state = BlockState(self.state.row + 1, changes, advanced)
        return replace(self, state=state)

    @property
    def _places(self) -> Sequence[BlockPlace]:
        return self.entered.plan.places

    def _step(self, place: BlockPlace, rate: Tensor) -> coefficients.Step:
        plan, numbers = self.entered.plan, self.entered.numbers
        momentum = factor = None
        if plan.has_momentum:
            momentum = numbers["momentum"]
        if place.decays:
            factor = 1 - exact_decay(numbers, rate)
        return coefficients.Step(momentum, plan.nesterov, factor)


def share(factor: Tensor, outputs: Tensor) -> Any:
    """The product; zero where the factor is, though outputs may have overflowed."""
    return tf.where(tf.equal(factor, 0), tf.zeros_like(outputs), factor * outputs)


def _is_earlier(size: int, row: Any) -> Any:
    # (size,) bool: the rows before one. Its own entry of G has no part in its outputs.
    return tf.range(size) < row
