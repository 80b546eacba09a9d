"""Kernels of Dense layers whose updates wait until the end of a block of examples.

k updates of a kernel, one example each, are together a matrix of rank k. So a block of
k examples is walked without writing the kernel. One matrix product gives the products
of all inputs with the kernel as it was at the block's beginning. Each example then
corrects its own product for the updates before it, by the inputs' products with each
other (the block's Gram matrix). One matrix product makes the k updates at the end. It
is the same SGD, each example seeing the weights that all earlier ones left, up to
rounding.

With momentum m, learning rate s and a change d per example (the rate times the error of
the layer), the update of a kernel W with velocity V on an input x is

    W <- f W;   V <- m V - x d;   W <- W + V         f = 1 - s * weight decay
    (Nesterov:                    W <- W + m V - x d)

All of that is linear, so after j updates of a block the kernel and its velocity are

    W_j = p W + c V - X^T (a * D);   V_j = q V - X^T (u * D)

where X has the inputs of the block, (k, n), and D the changes, (k, m). `Coefficients`
has the numbers p, c, q and the vectors a, u, (k,), in float64: they stand for many
roundings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._lazy.block_plan import BlockPlace, BlockPlan
from keras_sgd_plus._private.types import Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient, OuterGradient
from keras_sgd_plus._rule.part import Condition, Numbers
from keras_sgd_plus._rule.parts import exact_decay


class Coefficients(NamedTuple):
    """The coefficients after some updates; () for one that stays as it began."""

    weight: Tensor | tuple[()]  # p, () float64: of W in W_j; () without decay
    carried: Any  # c, () float64: of V in W_j; () without momentum
    velocity: Any  # q, () float64: of V in V_j; () without momentum
    changes: (
        Tensor | tuple[()]
    )  # a, (k,) float64: of the changes in W_j; () without both: all ones
    kicks: (
        Tensor | tuple[()]
    )  # u, (k,) float64: of the changes in V_j; () without momentum


def first_coefficients(
    zeros: Tensor, has_momentum: bool, has_decay: bool
) -> Coefficients:
    """The coefficients before the first update of a block; zeros are (k,) float64."""
    one = tf.ones((), tf.float64)
    return Coefficients(
        one if has_decay else (),
        tf.zeros((), tf.float64) if has_momentum else (),
        one if has_momentum else (),
        zeros if has_momentum or has_decay else (),
        zeros if has_momentum else (),
    )


def advance_coefficients(
    before: Coefficients,
    row: Tensor,
    momentum: Tensor | None,
    nesterov: bool,
    factor: Tensor | None,
    applies: Condition,
) -> Coefficients:
    """The coefficients after the update of one more example.

    Args:
        before: those before it.
        row: () int32, the example's row in the block.
        momentum: m, () float64, or None.
        nesterov: whether the step is Nesterov's.
        factor: f, () float64, or None without decay.
        applies: () bool, or None if it surely does. Else nothing changes.
    """
    if isinstance(before.changes, tuple):
        return before
    size = before.changes.shape[0]
    own = tf.cast(tf.equal(tf.range(size), row), tf.float64)
    decayed = before if factor is None else _decayed(before, factor)
    if momentum is None:
        after = decayed._replace(changes=decayed.changes + own)
    else:
        kicks, velocity = momentum * before.kicks + own, momentum * before.velocity
        after = Coefficients(
            decayed.weight,
            decayed.carried + (momentum * velocity if nesterov else velocity),
            velocity,
            decayed.changes + (momentum * kicks + own if nesterov else kicks),
            kicks,
        )
    if applies is None:
        return after
    return tf.nest.map_structure(lambda a, b: tf.where(applies, a, b), after, before)


def _decayed(before: Coefficients, factor: Tensor) -> Coefficients:
    carried = before.carried
    return before._replace(
        weight=factor * before.weight,
        carried=carried if isinstance(carried, tuple) else factor * carried,
        changes=factor * before.changes,
    )


class Product(NamedTuple):
    """The tensors of one kernel that stay the same throughout a block of k examples."""

    weight: Tensor  # (n, m), at its beginning
    velocity: Tensor | None  # (n, m), or None without momentum
    inputs: Tensor  # (k, n)
    clean: Tensor  # the same, with zeros for a row that is not finite
    gram: Tensor  # (k, k): products of the inputs with each other
    outputs: Tensor  # (k, m): of the inputs with the weight
    drifts: Tensor | None  # (k, m): of the inputs with the velocity, or None

    @property
    def num_rows(self) -> Tensor:
        """How many examples, (), can be walked before the next block: at least one.

        SGD never multiplies two inputs. Such a product may overflow, and infinity times
        a change that is zero is NaN. So a block ends before the first example whose
        product with an earlier one is not finite, or would not be after it is
        multiplied by a coefficient.
        """
        size = self.gram.shape[0]
        numbers = tf.range(size)
        rows = numbers[:, None]
        is_small = tf.abs(self.gram) < self.gram.dtype.max * _SMALL  # not if it is NaN
        is_lost = (numbers < rows) & ~is_small
        return tf.reduce_min(tf.where(is_lost, rows, size))


_SMALL = 1e-6  # part of the largest number


class Buffers(NamedTuple):
    """Memory that is used again in each block; nothing of the block before is read.

    Changes of examples that are not walked, those of an earlier block, count nothing.
    """

    inputs: list[
        Tensor | tuple[()]
    ]  # per kernel, (k, n), or () where they are computed at once
    changes: list[Tensor]  # per kernel, (k, m)
    zeros: Tensor  # (k,) float64, which stay


def new_buffers(plan: BlockPlan) -> Buffers:
    """The memory before the first block."""
    found = Buffers([], [], tf.zeros((plan.size,), tf.float64))
    for place in plan.places:
        num_inputs, num_outputs = place.shape
        dtype = place.variable.dtype
        rows = (plan.size, num_inputs)
        found.inputs.append(() if place.of_data else tf.zeros(rows, dtype))
        found.changes.append(tf.zeros((plan.size, num_outputs), dtype))
    return found


def begun(
    place: BlockPlace,
    values: Sequence[Tensor],
    inputs: Any,
    skips_bad: bool,
) -> Product:
    """The tensors of a kernel for a block with these inputs, (k, n).

    Args:
        place: of the kernel.
        values: the carry's, at the block's beginning.
        inputs: of the layer, zeros in rows that are no examples.
        skips_bad: whether rows that are not finite are left out of all but `outputs`.
    """
    clean = inputs
    if skips_bad:
        finite = tf.reduce_all(tf.math.is_finite(inputs), 1, keepdims=True)
        clean = tf.where(finite, inputs, tf.zeros_like(inputs))
    weight = values[place.weight_position]
    velocity = None
    if place.velocity_position is not None:
        velocity = values[place.velocity_position]
    gram = tf.matmul(clean, clean, transpose_b=True)
    # With the raw inputs, so that a bad example shows in the loss or a gradient.
    outputs = tf.matmul(inputs, weight)
    drifts = None if velocity is None else tf.matmul(clean, velocity)
    return Product(weight, velocity, inputs, clean, gram, outputs, drifts)


def finished(
    product: Product, changes: Tensor, now: Coefficients, num_walked: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The kernel and its velocity, (n, m) or None, at the end of the block.

    Args:
        product: of the block.
        changes: (k, m), the rate times the error of each example.
        now: the coefficients after the last example.
        num_walked: () int32, the examples that were walked, the first ones.
    """
    dtype = changes.dtype
    changes = walked(changes, num_walked)
    clean = walked(product.clean, num_walked)  # infinity times zero is NaN

    def weighted(shares: Tensor | tuple[()]) -> Tensor:
        if isinstance(shares, tuple):
            return changes
        return tf.cast(shares, dtype)[:, None] * changes

    parts = [weighted(now.changes)]
    if product.velocity is not None:
        parts.append(weighted(now.kicks))
    # One matrix for both: XLA compiles one kernel that makes it.
    totals = tf.matmul(clean, tf.concat(parts, 1), transpose_a=True)
    total, *of_velocity = tf.split(totals, len(parts), 1)

    weight, velocity = product.weight, product.velocity
    if not isinstance(now.weight, tuple):
        weight = tf.cast(now.weight, dtype) * weight
    if velocity is not None:
        weight += tf.cast(now.carried, dtype) * velocity
        velocity = tf.cast(now.velocity, dtype) * velocity - of_velocity[0]
    return weight - total, velocity


def walked(rows: Tensor, num_walked: Tensor) -> Tensor:
    """Rows, (k, m), with zeros in those of examples that were not walked."""
    is_walked = tf.range(rows.shape[0]) < num_walked
    return tf.where(is_walked[:, None], rows, 0)


put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class BlockState(NamedTuple):
    """Tensors that the loop carries from example to example of a block."""

    row: Tensor  # () int32, of the next example
    changes: list[Tensor]  # per kernel, (k, m): the rate times the error
    coefficients: list[Coefficients]  # per kernel


@dataclass(frozen=True)
class EnteredBlock:
    """The kernels of a plan during one block."""

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
                first_coefficients(zeros, plan.has_momentum, place.decays)
                for place in plan.places
            ],
        )

    def without(self, values: Sequence[Tensor]) -> list[Any]:
        """The carry's values without the kernels, which stay as they are in a block."""
        waiting = self.plan.positions
        return [() if i in waiting else value for i, value in enumerate(values)]

    def show(self, values: Sequence[Tensor], state: BlockState) -> ShownBlock:
        """The kernels for one example."""
        held = tuple(tf.identity(product.weight) for product in self.products)
        return ShownBlock(self, state, held)

    def finish(self, values: Sequence[Any], state: BlockState) -> list[Tensor]:
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
    """The kernels of a plan while one update is traced.

    Attributes:
        entered: the block.
        state: before the update.
        placeholders: the model sees these in place of the kernels. If it reads one
            other than by `matmul`, the loop is traced again without blocks.
    """

    entered: EnteredBlock
    state: BlockState
    placeholders: tuple[Tensor, ...]

    @property
    def weights(self) -> frozenset[int]:
        """Indices, among the weights of the rule, of the kernels."""
        return frozenset(place.index for place in self._places)

    @property
    def positions(self) -> frozenset[int]:
        """Positions in the carry of the kernels and their velocities."""
        return self.entered.plan.positions

    def placed(self, values: Sequence[Any]) -> list[Tensor]:
        """The carry's values, with placeholders for the kernels."""
        found = list(values)
        for k, place in enumerate(self._places):
            found[place.weight_position] = self.placeholders[k]
            if place.velocity_position is not None:
                found[place.velocity_position] = self.entered.products[k].velocity
        return found

    def misread(self, scope: Any, gradients: Mapping[int, Gradient]) -> dict[str, Any]:
        """Kernels that were used other than in one product, or have another gradient.

        Asked before the step, and at the end of the update, when all reads are known.
        """
        found = {}
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            variable, gradient = place.variable, gradients.get(place.index)
            is_assigned = scope.get_current_value(variable) is not placeholder
            is_product = isinstance(gradient, OuterGradient)
            used = is_product and scope.has_plain_product(variable)
            if is_assigned or placeholder.consumers() or not used:
                found[id(variable)] = None
        return {"kernels": found} if found else {}

    def carried(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The carry's values without the kernels."""
        return self.entered.without(values)

    def multiplied(self, variable: Variable) -> tuple[Tensor, Tensor] | None:
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
        self,
        gradients: Mapping[int, Any],
        rates: Sequence[Tensor],
        applies: Condition,
    ) -> ShownBlock:
        """The kernels after one update; the gradients are `OuterGradient`s."""
        plan, numbers = self.entered.plan, self.entered.numbers
        momentum = numbers["momentum"] if plan.has_momentum else None
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
            factor = 1 - exact_decay(numbers, rate) if place.decays else None
            now = self.state.coefficients[k]
            advanced.append(
                advance_coefficients(now, row, momentum, plan.nesterov, factor, applies)
            )
        state = BlockState(self.state.row + 1, changes, advanced)
        return replace(self, state=state)

    @property
    def _places(self) -> Sequence[BlockPlace]:
        return self.entered.plan.places


def share(factor: Tensor, outputs: Tensor) -> Tensor:
    """The product; zero where the factor is, though outputs may have overflowed."""
    return tf.where(tf.equal(factor, 0), tf.zeros_like(outputs), factor * outputs)


def _is_earlier(size: int | None, row: Tensor) -> Tensor:
    # (size,) bool: the rows before one. Its own entry of G has no part in its outputs.
    return tf.range(size) < row
