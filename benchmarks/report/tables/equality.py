"""The table of `equality`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from benchmarks.equality.equality import NUM_UPDATES, Model
from benchmarks.report.tables import markdown


def equality(findings: Iterable[Model]) -> Iterator[str]:
    """A row per model, and how many are equal or within their bound."""
    # The first model comes after minutes of progress, which is not shown in a table.
    rest = iter(findings)
    first, found = next(rest), []

    def rows() -> Iterator[list[str]]:
        for model in itertools.chain([first], rest):
            found.append(model)
            yield [
                f"{model.id:17}",
                f"{'yes' if model.bit_equal else 'no':18}",
                f"{model.off:.1e} ",
                f"{model.defaults:.1e} ",
                f"{model.bound:.1e}",
                f"{markdown.yes(not model.missed):3}",
            ]

    yield (
        f"After {NUM_UPDATES} updates with momentum 0.9, against keras.optimizers.SGD "
        "with batch_size=1, jit_compile=True.\n"
        "Difference: max|difference| / max|change|, the largest over weights, "
        "statistics and velocities.\n"
    )
    columns = ["bit-equal, all off", "all off", "defaults", "bound  ", "met"]
    yield from markdown.lines([f"{'model':17}", *columns], rows())
    equal = sum(model.bit_equal for model in found)
    within = sum(not model.missed for model in found)
    yield f"\nBit-equal with all off: {equal} of {len(found)} models."
    yield f"Within the bound with the defaults: {within} of them."
