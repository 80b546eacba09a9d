"""`python -m benchmarks {equality,quick,threshold,speed,growth,extremes,figures}`"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import equality, extremes, figures, growth, quick, speed, threshold

if __name__ == "__main__":
    commands = {
        "equality": equality.main,
        "quick": quick.main,
        "threshold": threshold.main,
        "speed": speed.main,
        "growth": growth.main,
        "extremes": extremes.main,
        "figures": figures.main,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        raise SystemExit(f"usage: python -m benchmarks {{{','.join(commands)}}}")
    raise SystemExit(commands[sys.argv[1]](sys.argv[2:]))
