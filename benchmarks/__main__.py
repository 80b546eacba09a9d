"""`python -m benchmarks equality`"""

import sys

from benchmarks import equality

if __name__ == "__main__":
    commands = {"equality": equality.main}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        raise SystemExit(f"usage: python -m benchmarks {{{','.join(commands)}}}")
    raise SystemExit(commands[sys.argv[1]](sys.argv[2:]))
