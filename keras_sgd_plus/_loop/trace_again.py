"""Facts that a trace found and that the next one has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_sgd_plus._private.types import Variable


class TraceAgain(BaseException):
    """A trace cannot be used, but the next one can with these facts.

    Args:
        variables: the model wrote them, and the carry did not hold them.
        kernels: by id, the variables that the layer's inputs depend on, or None if the
            kernel cannot be updated in blocks (`_pending.blocks`).
        reasons: of variables whose updates may or may not wait (`_pending.protocol`).
        direct: the model reads them past the scope (`direct`).
    """

    def __init__(
        self,
        variables: Sequence[Variable] = (),
        reasons: Mapping[int, str | None] | None = None,
        kernels: Mapping[int, Any] | None = None,
        direct: Sequence[Variable] = (),
    ) -> None:
        super().__init__()
        self.variables = list(variables)
        self.reasons = dict(reasons or {})
        self.kernels = dict(kernels or {})
        self.direct = list(direct)
