"""The number of examples in a block, by the size of the kernel."""

from __future__ import annotations

MIN_ENTRIES = 2_048  # of a kernel; a block of a smaller one costs more than it spares
_LARGE = 1_000_000  # entries


def block_size(num_inputs: int, num_outputs: int) -> int | None:
    """Examples in a block; None for a kernel that is updated at once."""
    entries = num_inputs * num_outputs
    if entries < MIN_ENTRIES:
        return None
    return 64 if entries < _LARGE else 32
