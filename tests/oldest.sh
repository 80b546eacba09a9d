#!/usr/bin/env bash
# Runs the default tests and the matrix on the oldest TensorFlow and Keras that
# pyproject.toml admits. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
pins=$(python - <<'PY'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
bounds = dict(re.match(r"(\w+)>=([\d.]+)", line).groups() for line in wanted)
print(*(f"{name}=={bounds[name]}.*" for name in ("tensorflow", "keras")))
PY
)
# The lower bound of Keras names a minor version: take its first release.
echo "+ $pins"
# shellcheck disable=SC2086
python -m pip install -q $pins -e ".[test]"
python -m pip list | grep -iE '^(tensorflow|keras|numpy) '
python -m pytest -m "not slow" "$@"
