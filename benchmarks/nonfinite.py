"""What it costs to look at each loss and gradient: the loop with and without.

`python -m benchmarks nonfinite [workload ...]`. The models take turns. One thread, so
that the times are steady.
"""

from __future__ import annotations

import sys

REPEATS = 15
TARGET = 1.10  # times the loop that does not look
MODES = ("propagate", "skip", "raise")
_EXAMPLES = {
    "linear-20": 65_536,
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
    "cnn": 512,
    "lstm-20x8": 1_024,
    "embedding-100k": 4_096,
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 if a mode changes the loss or costs more."""
    import tensorflow as tf

    from benchmarks import measuring, record
    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS

    tf.config.threading.set_intra_op_parallelism_threads(1)
    failed = False
    print("| workload | propagate | skip | raise | skip, times | raise, times | met |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments or list(_EXAMPLES):
        loops = [
            keras_arms.timed_loop(WORKLOADS[name], _EXAMPLES[name], nonfinite=mode)
            for mode in MODES
        ]
        (base, skip, stop), agree = measuring.in_turn(name, loops, REPEATS)
        met = max(skip, stop) <= TARGET * base
        failed = failed or not (agree and met)
        print(
            f"| {name} | {base:.3g} | {skip:.3g} | {stop:.3g} | {skip / base:.2f} | "
            f"{stop / base:.2f} | {'yes' if met else 'NO'} |",
            flush=True,
        )
    line = record.line(record.environment())
    print(f"\nMicroseconds per example, the loop alone, medians of {REPEATS}. {line}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
