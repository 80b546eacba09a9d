"""Which kernels are updated in blocks of examples, and how long the blocks are.

Such a kernel is multiplied with inputs that depend on nothing that training changes:
the kernel of a plain Dense layer, the first one of a model. Options that look at all of
the kernel at each update refuse it.

The length was measured by `python -m benchmarks blocks`. A block needs the products of
its inputs with each other, so a kernel with few outputs spares less than these cost;
and one with few inputs is soon multiplied anyway. With momentum there is a velocity to
spare, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_sgd_plus._forms import layout, one_kernel
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Model, Optimizer, Tensor, Variable
from keras_sgd_plus._rule.parts import VELOCITIES
from keras_sgd_plus._rule.rule import SMALL_BATCH, Rule, makes_small_batches

MIN_INPUTS = 128
MIN_OUTPUTS = 64
MIN_OUTPUTS_WITH_MOMENTUM = 32
MIN_ENTRIES = 16_500  # 132 x 128 gains a little, 256 x 64 loses
LARGE = 1_000_000  # entries, from which on reading the kernel costs most


def block_size(num_inputs: int, num_outputs: int, has_momentum: bool) -> int | None:
    """Examples in a block; None for a kernel that is updated at once."""
    entries = num_inputs * num_outputs
    min_outputs = MIN_OUTPUTS_WITH_MOMENTUM if has_momentum else MIN_OUTPUTS
    is_wide = num_inputs >= MIN_INPUTS and num_outputs >= min_outputs
    if not is_wide or entries < MIN_ENTRIES:
        return None
    return 64 if entries < LARGE else 128


_CONTROL_FLOW = ("While", "If", "Call")  # in an operation's type
_MAX_OPERATIONS = 200
_layers = keras.layers
_FIXED = (_layers.Flatten, _layers.Permute, _layers.Rescaling, _layers.Reshape)


def given_the_data(model: Model) -> dict[int, list[Variable]]:
    """Kernels of Dense layers that are given the data, by id; with no variables.

    Read off the graph of a functional model, which spares the trace that would find it.
    The next trace looks whether it is so.
    """
    graph = keras_model.graph_of(model)
    if graph is None:
        return {}
    made_by = {id(x.output): x for x in graph.layers if type(x) in _FIXED}
    data = {id(tensor) for tensor in graph.inputs}
    found = {}
    for layer in graph.layers:
        if type(layer) is keras.layers.Dense:
            tensor: Any = layer.input
            while id(tensor) in made_by:
                tensor = made_by[id(tensor)].input
            if id(tensor) in data:
                found[id(layer.kernel)] = []
    return found


def sources_of(tensor: Tensor) -> set[int] | None:
    """Ids of the placeholders of the graph that a tensor is computed from.

    None where it also depends on an operation with a state of its own: a random draw,
    or a variable that is read directly. None, too, where it takes more than some cheap
    operations, which would be traced and compiled once more, in a loop of their own.
    """
    found: set[int] = set()
    seen: set[int] = set()
    frontier: list[Any] = [tensor]
    while frontier:
        current = frontier.pop()
        op = current.op
        if id(op) in seen:
            continue
        seen.add(id(op))
        if op.type == "Placeholder":
            found.add(id(current))
        elif op.op_def is None or op.op_def.is_stateful or len(seen) > _MAX_OPERATIONS:
            return None
        elif one_kernel.products_of(op) or any(k in op.type for k in _CONTROL_FLOW):
            return None
        frontier += list(op.inputs)
    return found


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
        self, variable: Variable, x: Tensor, values: Sequence[Tensor]
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
        self, variable: Variable, x: Tensor, values: Sequence[Tensor]
    ) -> frozenset[int] | None:
        if not takes(variable, x) or getattr(x, "graph", None) is None:
            return None  # without a graph it is a constant of the model
        found = sources_of(x)
        if found is None:
            return None
        reads = frozenset(i for i, value in enumerate(values) if id(value) in found)
        return None if reads & self.changing else reads

    def spoiled(self, changed: Collection[int]) -> dict[int, Any]:
        """Kernels whose inputs depend on values that turn out to change, by id."""
        return {id(p.variable): None for p in self.places if p.reads & set(changed)}


def takes(kernel: Variable, x: Tensor, num_examples: int | Tensor = 1) -> bool:
    """Whether inputs are (num_examples, n), in the type of the kernel."""
    return x.dtype == kernel.dtype and tuple(x.shape) == (num_examples, kernel.shape[0])


def plan_blocks(
    optimizer: Optimizer,
    outer: Optimizer,
    rule: Rule,
    slots: Mapping[str, Sequence[Variable | None]],
    model: Model,
    weights: Sequence[Variable | None],
    index_of: Callable[[Variable], int],
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
    of_data = given_the_data(model)
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
    if makes_small_batches(optimizer):  # the rest of a block is computed for nothing
        sizes = [min(size, SMALL_BATCH) for size in sizes]
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
