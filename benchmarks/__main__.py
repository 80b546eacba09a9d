"""The benchmarks by name: `python -m benchmarks speed --quick`."""

import importlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

COMMANDS = (
    "equality",
    "quick",
    "threshold",
    "speed",
    "growth",
    "extremes",
    "ablation",
    "profile",
    "nonfinite",
    "replicas",
    "embeddings",
    "accuracy",
    "robustness",
    "order",
    "linear",
    "figures",
    "readme",
)

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}}")
    module = importlib.import_module(f"benchmarks.{sys.argv[1]}")
    raise SystemExit(module.main(sys.argv[2:]))
