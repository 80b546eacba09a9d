"""Which kernels are updated in blocks of examples, and which are not.

Such a kernel is multiplied with inputs that depend on nothing that training changes:
the kernel of a plain Dense layer, the first one of a model. Options that look at all of
the kernel at each update refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_sgd_plus._lowering import layout
from keras_sgd_plus._pending import inputs
from keras_sgd_plus._pending.block_size import block_size
from keras_sgd_plus._private.types import Model, Optimizer, Tensor
from keras_sgd_plus._rule import VELOCITIES, Rule


@dataclass(frozen=True)
class BlockPlace:
    """Where a kernel is: among the rule's weights and in the carry."""

    variable: Any
    index: int
    weight_position: int
    velocity_position: int | None
    decays: bool
    reads: frozenset[int]  # positions of values that the inputs depend on
    of_data: bool  # whether the inputs of many examples are computed as of one

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)."""
        return tuple(self.variable.shape)


@dataclass(frozen=True)
class BlockPlan:
    """The kernels of a model that are updated in blocks.

    Attributes:
        places: of the kernels.
        candidates: ids of kernels that may turn out to be such, by their layer and the
            options of the rule.
        changing: positions in the carry of values that training changes for sure.
        has_momentum: of the rule.
        nesterov: of the rule.
        size: examples in a block.
    """

    places: tuple[BlockPlace, ...]
    candidates: frozenset[int]
    changing: frozenset[int]
    has_momentum: bool
    nesterov: bool
    size: int

    @property
    def positions(self) -> frozenset[int]:
        """Positions in the carry of the kernels and their velocities."""
        found = [(p.weight_position, p.velocity_position) for p in self.places]
        return frozenset(i for pair in found for i in pair if i is not None)

    def new_reads(
        self, variable: Any, x: Tensor, values: Sequence[Tensor]
    ) -> dict[int, frozenset[int] | None]:
        """Positions of the values that the inputs of a layer depend on, by its kernel.

        None for a kernel that cannot be updated in blocks. Empty if the plan has it so,
        and for a variable that is no such kernel.

        Args:
            variable: that `x` is multiplied with.
            x: the inputs of the layer.
            values: the carry's, in the graph that is being traced.
        """
        known: dict[int, frozenset[int] | None] = dict.fromkeys(self.candidates)
        known.update({id(place.variable): place.reads for place in self.places})
        if id(variable) not in known:
            return {}
        reads = self._reads_of(variable, x, values)
        return {} if reads == known[id(variable)] else {id(variable): reads}

    def _reads_of(
        self, variable: Any, x: Tensor, values: Sequence[Tensor]
    ) -> frozenset[int] | None:
        if not takes(variable, x) or getattr(x, "graph", None) is None:
            return None  # without a graph it is a constant of the model
        found = inputs.sources(x)
        if found is None:
            return None
        reads = frozenset(i for i, value in enumerate(values) if id(value) in found)
        return None if reads & self.changing else reads

    def spoiled(self, changed: Collection[int]) -> dict[int, Any]:
        """Kernels whose inputs depend on values that turn out to change, by id."""
        return {id(p.variable): None for p in self.places if p.reads & set(changed)}


def takes(kernel: Any, x: Tensor, num_examples: int = 1) -> bool:
    """Whether inputs are (num_examples, n), in the type of the kernel."""
    return x.dtype == kernel.dtype and tuple(x.shape) == (num_examples, kernel.shape[0])


def plan_blocks(
    optimizer: Optimizer,
    outer: Optimizer,
    rule: Rule,
    slots: Mapping[str, Sequence[Any]],
    model: Model,
    weights: Sequence[Any],
    index_of: Callable[[Any], int],
    changing: Collection[int],
    known: Mapping[int, Any],
    may_wait: bool,
) -> BlockPlan:
    """Finds the kernels of a model.

    Args:
        optimizer: the SGDPlus.
        outer: the `LossScaleOptimizer` around it, or the same object again.
        rule: its rule.
        slots: the variables of the rule's state, by slot, then by weight.
        model: whose Dense layers are looked at.
        weights: the variables of the rule; None for one that is not trained.
        index_of: the position of a variable in the carry.
        changing: positions in the carry of values that training changes for sure.
        known: facts that earlier traces have found, by id of the kernel: the variables
            that its inputs depend on, or None for one that cannot wait. They go before
            what is expected of the model.
        may_wait: whether any kernel can.
    """
    candidates, places = set(), []
    of_data = inputs.expected(model)
    known = {**of_data, **known}
    if may_wait and optimizer.examples_per_update == 1 and outer is optimizer:
        plain = layout.kernels(model)
        velocities = slots.get(VELOCITIES.name)
        for index, variable in enumerate(weights):
            if variable is None or id(variable) not in plain:
                continue
            if not rule.keeps_factors or rule.needs_all_of(index) is not None:
                continue
            if _size(variable.shape, rule) is None:
                continue
            if id(variable) not in known:
                candidates.add(id(variable))
                continue
            reads = known[id(variable)]
            if reads is not None:
                velocity = None if velocities is None else velocities[index]
                places.append(
                    BlockPlace(
                        variable,
                        index,
                        index_of(variable),
                        None if velocity is None else index_of(velocity),
                        rule.decays(index),
                        frozenset(map(index_of, reads)),
                        id(variable) in of_data,
                    )
                )
    sizes = [_size(place.shape, rule) or 0 for place in places]
    return BlockPlan(
        tuple(places),
        frozenset(candidates),
        frozenset(changing),
        rule.has_momentum,
        rule.nesterov,
        min(sizes, default=0),
    )


def _size(shape: Sequence[int], rule: Rule) -> int | None:
    num_inputs, num_outputs = shape
    return block_size(num_inputs, num_outputs, rule.has_momentum)
