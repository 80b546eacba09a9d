"""The objects that an update works with, found once per trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._forms import layout, tracing
from keras_sgd_plus._lazy.block_plan import BlockPlan, plan_blocks
from keras_sgd_plus._lazy.tables import Tables, plan_tables
from keras_sgd_plus._loop.ahead import Ahead, Answers
from keras_sgd_plus._loop.calls_ahead import find_calls
from keras_sgd_plus._loop.scope import Carry, Facts, Scope, refuse_direct
from keras_sgd_plus._private import keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import (
    Model,
    Optimizer,
    Parts,
    Tensor,
    Variable,
)
from keras_sgd_plus._replicas import Replicas
from keras_sgd_plus._report import records, running_sums
from keras_sgd_plus._report.records import Record, Recorder, no_records
from keras_sgd_plus._rule.part import Numbers, Slot, State
from keras_sgd_plus._rule.rule import Rule, all_slots, by_name, numbers_of


@dataclass(frozen=True)
class RuleVariables:
    """The variables of an update rule, found once per trace, outside any scope.

    Attributes:
        weights: that the optimizer was built with.
        slots: by name, a variable or None per weight.
        iterations: the raw counter of updates.
    """

    weights: list[Variable]
    slots: Mapping[str, Sequence[Variable | None]]
    iterations: Variable

    @classmethod
    def of(cls, optimizer: Optimizer, weights: list[Variable]) -> RuleVariables:
        """The variables of an SGDPlus that is built with `weights`.

        Raises:
            ValueError: a setting that needs variables was made after that.
        """
        slots = {
            s.name: _variables(optimizer, s, len(weights)) for s in all_slots(optimizer)
        }
        return cls(weights, slots, keras_optimizer.raw_iterations(optimizer))

    @property
    def rows(self) -> list[tuple[Variable | None, ...]]:
        """Per weight, that weight and its slots; None where there is no slot."""
        return list(zip(self.weights, *self.slots.values(), strict=True))

    def read(self, scope: Scope) -> State:
        """The values that the rule works on."""
        slots = {name: scope.values(column) for name, column in self.slots.items()}
        iterations = scope.in_loop_layout(self.iterations)
        return State(scope.values(self.weights), slots, iterations)

    def write(self, scope: Scope, state: State) -> None:
        """Puts new values in the scope, if they are new."""
        pairs = [(self.iterations, state.iterations)]
        columns = [(self.weights, state.weights)]
        columns += [(self.slots[name], state.slots[name]) for name in self.slots]
        for variables, values in columns:
            pairs += zip(variables, values, strict=True)
        for variable, value in pairs:
            if variable is not None and value is not scope.in_loop_layout(variable):
                scope.put(variable, value)


def _variables(
    optimizer: Optimizer, slot: Slot, num_weights: int
) -> Sequence[Variable | None]:
    # They are made in `build`, and never after.
    found = list(getattr(optimizer, slot.attribute, ()))
    if len(found) != num_weights:
        value = getattr(optimizer, slot.setting, None)
        raise ValueError(
            f"`{slot.setting}` must be set before the optimizer is built, for it needs "
            f"variables. Received: {slot.setting}={value!r}, set later. Make a new "
            f"SGDPlus(..., {slot.setting}={value!r}) and compile the model with it."
        )
    return found


Values = list[Tensor]  # the carry's tensors, in the order of `Carry.variables`


@dataclass(frozen=True)
class Context:
    """What an update works with: objects that stay the same within a trace.

    Attributes:
        model: the model in training.
        optimizer: the SGDPlus.
        outer: the `LossScaleOptimizer` around it, or the same object again.
        carry: the variables that the values stand for.
        batch: `(x, y, sample_weight)`; only its structure is used.
        rule: of the optimizer.
        variables: of the rule: weights and state.
        indices: per trainable variable, its index among the weights of the rule.
        transposed: positions in the carry of matrices that a lowered loop carries
            transposed.
        direct: positions in the carry of variables that the model reads past the scope.
        tables: embedding tables, of which rows wait.
        blocks: kernels whose updates wait in blocks of examples.
        keeps_logs: whether each update gives logs of its own.
        numbers: of the rule, tensors of the function that is being traced.
        recorder: of the log that asks for records, or None.
        counts: of `running_sums.capped_of`, in the carry, or None.
        progress: of `running_sums.losses_of`, in the carry, or None.
        replicas: that train together.
        facts: that earlier traces have found.
        ahead: calls of the model that run ahead of the loop, or None.
    """

    model: Model
    optimizer: Optimizer
    outer: Any
    carry: Carry
    batch: Parts
    rule: Rule
    variables: RuleVariables
    indices: tuple[int, ...]
    transposed: frozenset[int]
    direct: frozenset[int]
    tables: Tables
    blocks: BlockPlan
    keeps_logs: bool
    numbers: Numbers
    recorder: Recorder | None
    counts: Variable | None
    progress: Variable | None
    replicas: Replicas
    facts: Facts
    ahead: Ahead | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        optimizer: Optimizer,
        outer: Optimizer,
        carry: Carry,
        batch: Parts,
        facts: Facts,
    ) -> Context:
        """The update for a model and its optimizer, as they are now.

        Args:
            model: as for the class, built.
            optimizer: as for the class, built.
            outer: as for the class.
            carry: as for the class.
            batch: as for the class.
            facts: that earlier traces have found.
        """
        direct = facts.direct.values()
        if replicas.is_open():
            refuse_direct(model, direct)
        weights = keras_optimizer.built_variables(optimizer)
        rule = Rule.of(optimizer, weights)
        variables = RuleVariables.of(optimizer, weights)
        find = keras_optimizer.variable_index
        indices = tuple(find(optimizer, v) for v in carry.trainable)
        trained = [v if i in indices else None for i, v in enumerate(weights)]
        slots, index = variables.slots, carry.index
        tables = plan_tables(
            optimizer, rule, slots, model, trained, index, facts.tables
        )
        blocks = plan_blocks(
            optimizer,
            outer,
            rule,
            slots,
            model,
            trained,
            index,
            _changing(model, carry),
            facts.kernels,
            # Neither beside tables nor where the model reads weights past the scope.
            tracing.is_on() and not (tables.places or direct),
        )
        transposed = layout.transposed(model, carry.variables, variables.rows)
        transposed -= blocks.positions
        keeps_logs = not keras_trainer.has_default_metrics(model)
        return cls(
            model=model,
            optimizer=optimizer,
            outer=outer,
            carry=carry,
            batch=batch,
            rule=rule,
            variables=variables,
            indices=indices,
            transposed=transposed,
            direct=frozenset(map(index, direct)),
            tables=tables,
            blocks=blocks,
            keeps_logs=keeps_logs,
            numbers={},
            recorder=records.recorder_of(optimizer),
            counts=running_sums.capped_of(optimizer),
            progress=running_sums.losses_of(optimizer),
            replicas=replicas.current(),
            facts=facts,
        )

    def given(self, numbers: Tensor) -> Context:
        """The update with the numbers of its rule, a vector as of `numbers_of`.

        Where forms are switched off they are constants, as Keras has them: the
        processor rounds products with a constant in another order.
        """
        if tracing.is_switched_off():
            numbers = numbers_of(self.optimizer, are_constants=True)
        return replace(self, numbers=by_name(numbers))

    @property
    def group_size(self) -> int:
        """Examples per update."""
        return self.optimizer.examples_per_update

    def calls_ahead(self, leaves: Sequence[Any]) -> Ahead:
        """The calls of the model that can run ahead of its loop, as of `find_calls`."""
        return find_calls(
            self.model,
            self.carry,
            self.batch,
            leaves,
            self.group_size,
            self.blocks.changing,
            self.facts.refused.keys(),
        )

    def answers(self, scope: Scope, group: Sequence[Tensor]) -> Answers:
        """In place of calls of the model that run ahead, for the tensors of a group."""
        return Answers(self.ahead, self.batch, scope, group)

    @property
    def raises(self) -> bool:
        """Whether training ends at the first group that is not finite."""
        return self.optimizer.nonfinite == "raise"

    def no_records(
        self, num_groups: int | Tensor, outputs: Sequence[tf.TensorSpec]
    ) -> Record | tuple[()]:
        """Records before the first group; () where no log asks for them.

        Args:
            num_groups: () int32, the groups that can be recorded.
            outputs: specs of the model's outputs on one group, where they are recorded.
        """
        if self.recorder is None:
            return ()
        return no_records(self.recorder.wanted, num_groups, self.group_size, outputs)

    def other_layout(self, values: Values) -> Values:
        """Values with those matrices transposed that a lowered loop carries so."""
        return [
            tf.transpose(value) if i in self.transposed else value
            for i, value in enumerate(values)
        ]


def _changing(model: Model, carry: Carry) -> set[int]:
    # Positions of all values but those of variables that the model does not train. Of
    # these a trace finds whether the model writes them.
    known = {
        id(v) for v in model.non_trainable_variables if not keras_optimizer.is_seed(v)
    }
    return {i for i, v in enumerate(carry.variables) if id(v) not in known}
