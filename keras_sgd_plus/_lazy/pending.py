"""The protocol of weights whose updates wait.

    entered = pending.enter(values, num_updates, numbers)  # before some updates
    for each update:
        shown = entered.show(values, state)          # the model sees these
        ...forward, gradients, the rule for all other weights...
        shown = shown.step(gradients, rates, applies)
        values, state = shown.carried(values), shown.state
    values = entered.finish(values, state)           # every weight is up to date

Between `enter` and `finish` the carry holds values that are behind; `state` says by how
much. Everything here is tensors in, tensors out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from keras_sgd_plus._private.types import Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient
from keras_sgd_plus._rule.part import Numbers

# Id of a variable -> None: it may wait; a text: it is updated as a whole, and the user
# is warned why; an empty text: as a whole, without a warning.
Reasons = dict[int, str | None]


class Misread(NamedTuple):
    """Weights that the model uses in another way than was planned."""

    tables: Reasons
    kernels: dict[int, Any]  # by id: None


class Reader(Protocol):
    """The scope in which the model reads variables during one update."""

    def is_here(self) -> bool:
        """Whether the caller traces in the scope, and not in a branch or loop."""
        ...

    def leaf(self, variable: Variable, indices: Tensor, rows: Tensor) -> Tensor:
        """Takes the gradient of a table by these rows; returns them."""
        ...

    def has_plain_product(self, variable: Variable) -> bool:
        """Whether a kernel was multiplied, and nobody differentiates by its inputs."""
        ...

    def get_current_value(self, variable: Variable) -> Tensor:
        """The value that the scope holds for a variable."""
        ...


class Shown(Protocol):
    """Pending weights during one update."""

    @property
    def state(self) -> Any:
        """Tensors that the loop carries from update to update."""
        ...

    @property
    def weights(self) -> frozenset[int]:
        """Indices, among the weights of the rule, of those that wait."""
        ...

    @property
    def positions(self) -> frozenset[int]:
        """Positions in the carry of those weights and their slots."""
        ...

    def placed(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The carry's values, with placeholders for those that are behind."""
        ...

    def look_up(self, reader: Reader, variable: Variable, indices: Tensor) -> Tensor:
        """Rows as they are after all updates so far; None for another variable."""
        ...

    def misread(self, reader: Reader, gradients: Mapping[int, Gradient]) -> Misread:
        """Weights that cannot wait in this model, as the trace so far shows."""
        ...

    def step(
        self,
        gradients: Mapping[int, Gradient],
        rates: Sequence[Tensor],
        applies: Tensor,
    ) -> Shown:
        """The weights after one update with these gradients, by index."""
        ...

    def carried(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The carry's values with those of the pending weights put in."""
        ...


class Entered(Protocol):
    """Pending weights during a stretch of updates."""

    @property
    def start(self) -> Any:
        """The state before the first update."""
        ...

    def show(self, values: Sequence[Tensor], state: Any) -> Shown:
        """The weights for one update."""
        ...

    def finish(self, values: Sequence[Tensor], state: Any) -> list[Tensor]:
        """The carry's values once every waiting update is made."""
        ...


class Pending(Protocol):
    """Pending weights of a model, as far as tracing knows them."""

    def enter(
        self, values: Sequence[Tensor], num_updates: Tensor, numbers: Numbers
    ) -> Entered | None:
        """Begins a stretch of updates; None: nothing waits.

        Args:
            values: the carry's.
            num_updates: () int32, the most that there will be.
            numbers: of the rule.
        """
        ...

    def new_reasons(
        self, looked_up: Collection[int], gradients: Mapping[int, Gradient]
    ) -> Reasons:
        """Variables that could wait and do not, as the trace so far shows.

        Args:
            looked_up: ids of variables in which rows were looked up, other than those
                that wait.
            gradients: by the weight's index.
        """
        ...

    def warning(self) -> str | None:
        """A warning of weights that could not wait, or None."""
        ...
