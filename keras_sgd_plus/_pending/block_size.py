"""The number of examples in a block, by the size of the kernel.

Measured by `python -m benchmarks blocks`. A block needs the products of its inputs with
each other, so a kernel with few outputs spares less than these cost; and one with few
inputs is soon multiplied anyway. With momentum there is a velocity to spare, too.
"""

from __future__ import annotations

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
