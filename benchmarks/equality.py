"""SGDPlus against `keras.optimizers.SGD` at `batch_size=1`, model by model.

Each model of the zoo makes 300 updates in given order. Keras is compiled with
`jit_compile=True`. The first column has our XLA setting and our forms of layers off, so
that XLA gets the same operations and emits the same kernels for many models; the second
has the defaults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support.compare import NUM_UPDATES, bound_of, difference, snapshot

OFF = {
    "XLA_FLAGS": "--xla_backend_extra_options="
    "xla_cpu_small_while_loop_byte_threshold=1024",
    "KERAS_SGD_PLUS_LOWERING": "0",
}


def measure(case_id: str) -> tuple[float, bool]:
    """The difference after 300 updates, and whether it is zero to the last bit."""
    import keras

    from keras_sgd_plus import SGDPlus
    from tests.support.zoo import ZOO

    case = ZOO[case_id]
    x, y = case.data(NUM_UPDATES)
    finals = []
    for ours in (True, False):
        settings = {"learning_rate": case.learning_rate, "momentum": 0.9}
        model = case.model()
        with case.policy():
            if ours:
                optimizer = SGDPlus(**settings, order="given")
            else:
                optimizer = keras.optimizers.SGD(**settings)
        size = 128 if ours else 1
        with case.policy():
            model.compile(
                optimizer, case.loss, metrics=case.metrics(), jit_compile=not ours
            )
            model(x[:1])  # builds subclassed models
            before = snapshot(model)
            model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
        finals.append(snapshot(model))
    found = difference(before, *finals)
    return found.relative, found.bit_equal


def child(case_ids: list[str]) -> None:
    """Prints a line of JSON per model."""
    for case_id in case_ids:
        print(json.dumps([case_id, *measure(case_id)]), flush=True)


def _run(
    case_ids: list[str], settings: dict[str, str]
) -> dict[str, tuple[float, bool]]:
    environment = {k: v for k, v in os.environ.items() if k not in OFF}
    environment.update(settings, TF_CPP_MIN_LOG_LEVEL="3")
    command = [sys.executable, "-m", "benchmarks.equality", *case_ids]
    results = {}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            case_id, relative, equal = json.loads(line)
            results[case_id] = (relative, equal)
            print(f"\r{len(results)} of {len(case_ids)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return results


def main(case_ids: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 if a model is out of its bound."""
    from tests.support.zoo import ZOO

    case_ids = case_ids or list(ZOO)
    off, on = _run(case_ids, OFF), _run(case_ids, {})
    print(
        f"After {NUM_UPDATES} updates with momentum 0.9, against keras.optimizers.SGD "
        "with batch_size=1, jit_compile=True.\n"
        "Difference: max|difference| / max|change|, the largest over weights, "
        "statistics and velocities.\n"
    )
    print(f"| {'model':17} | bit-equal, all off | all off | defaults | bound   | met |")
    print("| --- | --- | --- | --- | --- | --- |")
    failed = 0
    for case_id in case_ids:
        bound = bound_of(ZOO[case_id].dtype)
        met = on[case_id][0] <= bound
        failed += not met
        print(
            f"| {case_id:17} | {'yes' if off[case_id][1] else 'no':18} | "
            f"{off[case_id][0]:.1e}  | {on[case_id][0]:.1e}  | {bound:.1e} | "
            f"{'yes' if met else 'NO':3} |"
        )
    equal = sum(equal for _, equal in off.values())
    print(f"\nBit-equal with all off: {equal} of {len(case_ids)} models.")
    print(f"Within the bound with the defaults: {len(case_ids) - failed} of them.")
    return int(failed > 0)


if __name__ == "__main__":
    child(sys.argv[1:])
