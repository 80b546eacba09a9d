"""The objects that an update works with, found once per trace."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _lowering, _rule
from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop.carry import Carry
from keras_sgd_plus._loop.direct import refuse as refuse_direct
from keras_sgd_plus._loop.rule_variables import RuleVariables
from keras_sgd_plus._lowering import layout
from keras_sgd_plus._nonfinite import Skips, no_skips
from keras_sgd_plus._pending import (
    BlockPlan,
    Pending,
    Tables,
    plan_blocks,
    plan_tables,
)
from keras_sgd_plus._private import keras_backend, keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor, Variable
from keras_sgd_plus._records import Recorder, no_records, progress, recorders
from keras_sgd_plus._rule import AVERAGES, Numbers, Rule

Values = list[Any]  # the carry's tensors, in the order of `Carry.variables`


@dataclass(frozen=True)
class ExampleUpdate:
    """The objects that an update works with; `update_once` makes one.

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
        pending: embedding tables, of which rows wait.
        blocks: kernels whose updates wait in blocks of examples.
        keeps_logs: whether each update gives logs of its own.
        numbers: of the rule, tensors of the function that is being traced.
        recorder: of the log that asks for records, or None.
        counts: the variable of `capped_share`, in the carry, or None.
        progress: the variable of `progress`, in the carry; None with several replicas.
    """

    model: Model
    optimizer: Optimizer
    outer: Optimizer
    carry: Carry
    batch: Structure
    rule: Rule
    variables: RuleVariables
    indices: tuple[int, ...]
    transposed: frozenset[int]
    direct: frozenset[int]
    pending: Pending
    blocks: BlockPlan
    keeps_logs: bool
    numbers: Numbers
    recorder: Recorder | None
    counts: Variable | None
    progress: Variable | None

    @classmethod
    def of(
        cls,
        model: Model,
        optimizer: Optimizer,
        outer: Optimizer,
        carry: Carry,
        batch: Structure,
        reasons: Mapping[int, str | None],
        kernels: Mapping[int, Any],
        direct: Collection[Variable] = (),
    ) -> ExampleUpdate:
        """The update for a model and its optimizer, as they are now.

        Args:
            model: as for the class, built.
            optimizer: as for the class, built.
            outer: as for the class.
            carry: as for the class.
            batch: as for the class.
            reasons: facts that earlier traces have found about tables.
            kernels: facts that they have found about kernels of Dense layers.
            direct: variables that the model read past the scope in earlier traces.
        """
        if strategy.is_open():
            refuse_direct(model, direct)
        weights = keras_optimizer.built_variables(optimizer)
        rule = Rule.of(optimizer, weights)
        variables = RuleVariables.of(optimizer, weights)
        find = keras_optimizer.variable_index
        indices = tuple(find(optimizer, v) for v in carry.trainable)
        trained = [v if i in indices else None for i, v in enumerate(weights)]
        plan = plan_tables(
            optimizer, rule, variables.slots, model, trained, carry.index, reasons
        )
        blocks = plan_blocks(
            optimizer,
            outer,
            rule,
            variables.slots,
            model,
            trained,
            carry.index,
            _changing(model, carry),
            kernels,
            # Neither beside tables nor where the model reads weights past the scope.
            _lowering.is_on() and not (plan.places or direct),
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
            direct=frozenset(carry.index(v) for v in direct),
            pending=Tables(plan),
            blocks=blocks,
            keeps_logs=keeps_logs,
            numbers={},
            recorder=recorders.of(optimizer),
            counts=_rule.capped_share.of(optimizer),
            progress=_progress(optimizer),
        )

    def given(self, numbers: Tensor) -> ExampleUpdate:
        """The update with the numbers of its rule, a vector as of `_rule.as_vector`.

        Where forms are switched off they are constants, as Keras has them: the
        processor rounds products with a constant in another order.
        """
        named = _rule.all_numbers()
        if _lowering.is_switched_off():
            plain = tf.constant(_rule.on_host(self.optimizer, named), tf.float64)
            numbers = _rule.as_vector(self.optimizer, named, plain)
        return replace(self, numbers=_rule.by_name(named, numbers))

    @property
    def group_size(self) -> int:
        """Examples per update."""
        return self.optimizer.examples_per_update

    @property
    def raises(self) -> bool:
        """Whether training ends at the first group that is not finite."""
        return self.optimizer.nonfinite == "raise"

    def no_skips(self, values: Values, num_rows: Tensor, skip_all: Tensor) -> Skips:
        """The list of bad groups before the first one.

        The averages of `use_ema` are zeros until the first update is applied, which the
        counter does not tell.
        """
        averages = [
            tf.reduce_any(values[self.carry.index(v)] != 0)
            for v in self.variables.slots.get(AVERAGES.name, ())
            if v is not None
        ]
        started = tf.reduce_any(tf.stack(averages)) if averages else tf.constant(True)
        return no_skips(num_rows, self.group_size, skip_all, started)

    def no_records(self, num_groups: Tensor, outputs: Any) -> Any:
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
        id(v) for v in model.non_trainable_variables if not keras_backend.is_seed(v)
    }
    return {i for i, v in enumerate(carry.variables) if id(v) not in known}


def _progress(optimizer: Optimizer) -> Any:
    # Averages over replicas are no sums.
    return None if strategy.num_replicas() > 1 else progress.of(optimizer)
