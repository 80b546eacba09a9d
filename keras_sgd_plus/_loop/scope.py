"""What the model reads and writes in the loop: the tensors of a carry, in a scope.

A `Carry` lists the variables that one batch may change. A `Scope` lets the model see
tensors in their place, and takes what it assigns.

A function that was restored from a SavedModel, or traced before training, holds the
`tf.Variable`s. It would read the weights from before the batch, and no gradient would
reach the weights in the carry. Such variables are *direct*: the loop writes each value
that they get into them, so that the function reads it, and their gradient is the sum of
that by the value and that by the `tf.Variable`. A variable that Keras does not train
and that the loop never writes is none of them: it is the same in the carry and in
itself, even if a function of the model writes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._forms import layout
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import (
    Graph,
    Layer,
    Model,
    Optimizer,
    Tensor,
    Variable,
)
from keras_sgd_plus._rule.gradient import OuterGradient, outer


@dataclass
class Facts:
    """Facts about a model that traces have found, and that the next one has to know.

    Attributes:
        variables: by id; the model wrote them, and the carry did not hold them.
        tables: by id of a variable, why it is updated as a whole (`tables.Reasons`).
        kernels: by id of a kernel, the variables that its layer's inputs depend on, or
            None if it cannot be updated in blocks.
        direct: by id; the model reads them past the scope (`DirectVariables`).
        refused: by id; layers that XLA was found to refuse.
        not_ahead: by id of a model, why no part of it can run ahead of the loop.
        was_called: whether the model was called once, to create its variables.
    """

    variables: dict[int, Variable] = field(default_factory=dict)
    tables: dict[int, str | None] = field(default_factory=dict)
    kernels: dict[int, list[Variable] | None] = field(default_factory=dict)
    direct: dict[int, Variable] = field(default_factory=dict)
    refused: dict[int, Layer] = field(default_factory=dict)
    not_ahead: dict[int, str] = field(default_factory=dict)
    was_called: bool = False

    def add(self, found: Mapping[str, Mapping[int, object]]) -> None:
        """Takes up what a trace has found, by the name of the attribute."""
        for name, facts in found.items():
            getattr(self, name).update(facts)


class TraceAgain(BaseException):
    """A trace cannot be used, but the next one can with these facts.

    Args:
        found: for `Facts.add`.
    """

    def __init__(self, **found: Mapping[int, object]) -> None:
        super().__init__()
        self.found = found


class Carry:
    """The variables that one batch may change, each once, in a fixed order.

    Args:
        model: the model in training, built.
        optimizer: its optimizer or the `LossScaleOptimizer` around that, built.
        extras: variables of neither model nor optimizer that an earlier trace wrote.
    """

    def __init__(
        self, model: Model, optimizer: Optimizer, extras: Iterable[Variable] = ()
    ) -> None:
        self.trainable = list(model.trainable_variables)
        seed_state = keras_optimizer.global_seed_state()
        candidates = [
            *self.trainable,
            *model.non_trainable_variables,
            *model.metrics_variables,
            *optimizer.variables,
            *([] if seed_state is None else [seed_state]),
            *extras,
        ]
        self.variables = list({id(v): v for v in candidates}.values())
        self._positions = {id(v): i for i, v in enumerate(self.variables)}
        # id of the handle of a `tf.Variable` -> the position of the variable
        self.handles = {
            id(handle): i
            for i, v in enumerate(self.variables)
            for handle in private_tensorflow.handles(keras_optimizer.native(v))
        }

    def index(self, variable: Variable) -> int:
        """The position of a variable."""
        return self._positions[id(variable)]

    def read(self) -> list[tf.Tensor]:
        """The current values."""
        return [tf.convert_to_tensor(v.value) for v in self.variables]

    def specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of the values."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]

    def commit(self, values: dict[int, Tensor]) -> None:
        """Writes values by their variables' positions."""
        for position, value in values.items():
            self.variables[position].assign(value)


class DirectVariables:
    """The direct variables during one update.

    Args:
        carry: the variables of the loop.
        positions: of direct ones in the carry.
    """

    def __init__(self, carry: Carry, positions: Collection[int]) -> None:
        variables = [carry.variables[i] for i in positions]
        self._carry = carry
        self._natives = {id(v): keras_optimizer.native(v) for v in variables}
        # By position, names of operations that are the loop's own.
        self._known = private_tensorflow.uses(carry.handles)
        self._own: set[str] = set()

    def native(self, variable: Variable) -> tf.Variable | None:
        """The `tf.Variable` of a direct variable; None for any other."""
        return self._natives.get(id(variable))

    def write(self, variable: Variable, value: Tensor) -> None:
        """Gives a direct variable its value; does nothing for any other."""
        native = self.native(variable)
        if native is not None:
            operation = native.assign(value, read_value=False)
            if operation is not None:  # None where nothing is traced
                self._own.add(operation.name)

    def check(
        self, model: Model, positions: Iterable[int], seen: Iterable[tf.Variable]
    ) -> None:
        """Looks at what the model has used by itself.

        Args:
            model: for the names of its layers.
            positions: in the carry, of variables that the loop writes.
            seen: `tf.Variable`s that a tape saw it read, where nothing is traced.

        Raises:
            TraceAgain: variables have to be direct, and are not.
            NotImplementedError: the model writes one of them by itself.
        """
        found = private_tensorflow.uses(self._carry.handles)
        for native in seen:
            position = self._carry.handles.get(id(native.handle))
            if position is not None:
                found.setdefault(position, {})["read"] = False
        new: list[Variable] = []
        for position in sorted(found.keys() & set(positions)):
            known = {*self._known.get(position, ()), *self._own}
            writes = [w for name, w in found[position].items() if name not in known]
            variable = self._carry.variables[position]
            if any(writes):
                raise NotImplementedError(_written_twice(model, variable))
            if writes and self.native(variable) is None:
                new.append(variable)
        if new:
            raise TraceAgain(direct={id(v): v for v in new})


def refuse_direct(model: Model, variables: Iterable[Variable]) -> None:
    """Raises NotImplementedError if there are direct variables: under a strategy."""
    for variable in variables:
        raise NotImplementedError(
            "Under a tf.distribute strategy the layers of a model must read their "
            f"weights through Keras. Received: {_owner(model, variable)}, which reads "
            f"{variable.path!r} from the tf.Variable itself, as a function restored "
            f"from a SavedModel does. {_FIX}"
        )


_FIX = (
    "Make the layer anew in Keras, from its config or with keras.models.load_model, "
    "and give it the weights with set_weights. Or freeze it with "
    "layer.trainable = False, and compile the model anew."
)


def _written_twice(model: Model, variable: Variable) -> str:
    return (
        "A variable must be written either by Keras or by the model itself. Received: "
        f"{variable.path!r} of {_owner(model, variable)}, which Keras trains or "
        "updates, and which a function of the model assigns on the tf.Variable (one "
        f"restored from a SavedModel, say). {_FIX}"
    )


def _owner(model: Model, variable: Variable) -> str:
    # The innermost layer that has the variable.
    layers = keras_model.layers(model)
    owners = [x for x in layers if any(v is variable for v in x.variables)]
    if not owners:
        return f"model {model.name!r}"
    return shown(min(owners, key=lambda x: len(x.variables)))


def shown(layer: Layer) -> str:
    """A layer in a message."""
    return f"layer {layer.name!r} ({type(layer).__name__})"


class Scope(keras.StatelessScope):
    """A stateless scope over a carry that remembers which variables were written.

    Losses are collected: without that, `add_loss` and activity regularizers vanish.

    Args:
        carry: the variables.
        values: their values, as the loop carries them.
        transposed: positions in the carry of matrices that it carries transposed; the
            model sees them as they are in the variable.
        direct: positions in the carry of direct variables, which get the values, too.
    """

    def __init__(
        self,
        carry: Carry,
        values: Sequence[tf.Tensor],
        transposed: Collection[int] = (),
        direct: Collection[int] = (),
    ) -> None:
        seen = [
            layout.to_model_layout(value) if i in transposed else value
            for i, value in enumerate(values)
        ]
        pairs = list(zip(carry.variables, seen, strict=True))
        super().__init__(state_mapping=pairs, collect_losses=True)
        self._transposed = {id(carry.variables[i]) for i in transposed}
        self._graph = _graph()
        self._carried = {id(v) for v in carry.variables}
        self._trainable = carry.trainable
        self._tape: tf.GradientTape | None = None
        # Per trainable variable, each value it has had while the tape ran; of one that
        # is carried transposed, the tensor of the loop comes first.
        self._versions: dict[int, list[Any]] = {
            id(v): [self.get_current_value(v)] for v in carry.trainable
        }
        for variable in carry.trainable:
            if id(variable) in self._transposed:
                self._versions[id(variable)].insert(0, self.in_loop_layout(variable))
        self.direct = DirectVariables(carry, direct)
        self.read_directly: Sequence[
            tf.Variable
        ] = ()  # `tf.Variable`s, where run eagerly
        for variable, value in pairs:
            self.direct.write(variable, value)
        self.undeclared: dict[int, Variable] = {}
        # Per table, the rows that were looked up in it, with their indices.
        self._leaves: dict[int, list[tuple[Tensor, Tensor]]] = {}
        # Per kernel whose updates wait, inputs and outputs of its product.
        self._products: dict[int, tuple[Tensor, Tensor]] = {}
        self._differentiated: set[int] = set()  # kernels, by the inputs of their layer

    def add_update(self, update: tuple[Variable, Tensor]) -> None:
        """Keeps a new value (called by Keras for each assignment in the scope).

        To a tape, reading a variable is a leaf. No gradient flows into a value that was
        assigned to it, and a read after an assignment counts for the variable
        (SpectralNormalization assigns its kernel before it uses it).
        """
        variable, value = update
        if _graph() is not self._graph:
            raise NotImplementedError(_assigned_inside(variable.path))
        if id(variable) not in self._carried:
            self.undeclared[id(variable)] = variable
        if self._tape is not None:
            value = tf.stop_gradient(value)
            if id(variable) in self._versions:
                self._tape.watch(value)
                self._versions[id(variable)].append(value)
        self._set(variable, value)

    def _set(self, variable: Variable, value: Any) -> None:
        # Whatever goes round the loop has the static shape of its variable.
        if isinstance(value, tf.Tensor) and not value.shape.is_fully_defined():
            value = tf.ensure_shape(value, variable.shape)
        self.direct.write(variable, value)
        super().add_update((variable, value))

    def is_here(self) -> bool:
        """Whether the caller traces in the scope, and not in a branch or loop."""
        return _graph() is self._graph

    def leaf(self, variable: Variable, indices: Tensor, rows: Tensor) -> Tensor:
        """Takes the gradient of a table by these rows; returns them.

        Args:
            variable: the table.
            indices: (k,) int32, which rows.
            rows: (k, width).
        """
        if self._tape is not None:
            self._tape.watch(rows)
            self._leaves.setdefault(id(variable), []).append((indices, rows))
        return rows

    def product_leaf(self, variable: Variable, inputs: Tensor, outputs: Tensor) -> None:
        """Takes the gradient of a kernel by this product.

        Args:
            variable: the kernel, (n, m).
            inputs: (1, n).
            outputs: (1, m), the product as it is now.
        """
        if self._tape is not None:
            self._tape.watch(outputs)
            self._products[id(variable)] = inputs, outputs

    def watched_inputs(self, variable: Variable, inputs: Tensor) -> Tensor:
        """Zeros, (1, m). Notes if somebody asks for their gradient by the inputs.

        A kernel's product that is put in place of the layer's has no such gradient.
        """

        @tf.custom_gradient
        def zeros(x: Tensor) -> Any:
            def gradient(upstream: Tensor) -> Tensor:
                self._differentiated.add(id(variable))
                return tf.zeros_like(x)

            return tf.zeros((1, variable.shape[1]), x.dtype), gradient

        return zeros(inputs)

    def has_plain_product(self, variable: Variable) -> bool:
        """Whether a kernel was multiplied, and nobody differentiates by its inputs."""
        known = id(variable)
        return known in self._products and known not in self._differentiated

    def has_product(self, variable: Variable) -> bool:
        """Whether the kernel has been used in this update."""
        return id(variable) in self._products

    @contextlib.contextmanager
    def record(self) -> Iterator[tf.GradientTape]:
        """A tape that watches the trainable variables.

        What a graph reads past the scope can be seen in the graph; where nothing is
        traced, another tape sees it.
        """
        eager = tf.executing_eagerly()
        watcher = tf.GradientTape() if eager else contextlib.nullcontext()
        with watcher, tf.GradientTape(watch_accessed_variables=False) as self._tape:
            self._tape.watch([v for vs in self._versions.values() for v in vs])
            self._tape.watch([v for v in self._natives() if v is not None])
            yield self._tape
        self._tape = None
        if isinstance(watcher, tf.GradientTape):
            self.read_directly = watcher.watched_variables()

    def _natives(self) -> list[tf.Variable | None]:
        return [self.direct.native(v) for v in self._trainable]

    def gradients(
        self, tape: tf.GradientTape, loss: Tensor
    ) -> list[Tensor | tf.IndexedSlices | OuterGradient | None]:
        """The gradient of each trainable variable, over all its values; or None."""
        versions: Any = [self._sources(v) for v in self._trainable]
        found = tape.gradient(loss, versions)
        for variable, parts in zip(self._trainable, found, strict=True):
            # The gradient of a kernel forgets its shape behind an axis of unknown
            # length, and behind a function inside the model.
            if id(variable) in self._transposed:
                parts[1:] = [
                    None if g is None else tf.transpose(_shaped(g, variable.shape))
                    for g in parts[1:]
                ]
            elif id(variable) not in {*self._products, *self._leaves}:
                parts[:] = [_shaped(g, variable.shape) for g in parts]
        pairs = zip(self._trainable, found, strict=True)
        return [self._gradient(v, parts) for v, parts in pairs]

    def _gradient(
        self, variable: Variable, parts: list[Tensor | None]
    ) -> Tensor | tf.IndexedSlices | OuterGradient | None:
        if id(variable) in self._leaves:
            return self._slices(variable, parts)
        if id(variable) not in self._products:
            return _sum(parts)
        inputs, _ = self._products[id(variable)]
        return None if parts[0] is None else outer(inputs, parts[0])

    def _sources(self, variable: Variable) -> list[Tensor]:
        if id(variable) in self._products:
            return [self._products[id(variable)][1]]
        leaves = self._leaves.get(id(variable))
        if leaves is None:
            native = self.direct.native(variable)
            versions = self._versions[id(variable)]
            return versions if native is None else [*versions, native]
        return [rows for _, rows in leaves]

    def _slices(
        self, variable: Variable, parts: list[Tensor | None]
    ) -> tf.IndexedSlices | None:
        if all(part is None for part in parts):
            return None
        indices = [indices for indices, _ in self._leaves[id(variable)]]
        rows = [rows for _, rows in self._leaves[id(variable)]]
        values = [
            tf.zeros_like(r) if g is None else tf.convert_to_tensor(g)
            for g, r in zip(parts, rows, strict=True)
        ]
        shape = tf.constant([int(d) for d in variable.shape])
        return tf.IndexedSlices(tf.concat(values, 0), tf.concat(indices, 0), shape)

    def in_loop_layout(self, variable: Variable) -> Tensor:
        """The current value in the layout in which the loop carries it."""
        value: Any = self.get_current_value(variable)
        return (
            layout.to_loop_layout(value) if id(variable) in self._transposed else value
        )

    def values(self, variables: Iterable[Variable | None]) -> list[Any]:
        """Current values as they are carried; None where there is no variable."""
        return [None if v is None else self.in_loop_layout(v) for v in variables]

    def put(self, variable: Variable, value: Tensor) -> None:
        """Sets a value that is in the layout in which the loop carries it."""
        if id(variable) in self._transposed:
            value = layout.to_model_layout(value)
        self._set(variable, value)


def _graph() -> Graph | None:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _shaped(gradient: Tensor | None, shape: tf.TensorShape) -> Any:
    # The same gradient with a static shape, if it is a tensor of that shape.
    if isinstance(gradient, tf.Tensor):
        gradient.set_shape(shape)
    return gradient


def _sum(gradients: list[Tensor | None]) -> Tensor | None:
    present = [g for g in gradients if g is not None]
    if len(present) < 2:
        return present[0] if present else None
    return tf.add_n([tf.convert_to_tensor(g) for g in present])


def _assigned_inside(path: str) -> str:
    # The loop could not carry the value out of an inner graph.
    return (
        "A variable must not be assigned inside a branch or loop of the model (cond, "
        f"while_loop, scan, an RNN over a cell). Received: {path!r} assigned there. "
        "Assign it outside, with a `where` in place of a branch, build the RNN with "
        "unroll=True, or compile the model with run_eagerly=True."
    )
