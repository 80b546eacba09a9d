#!/usr/bin/env bash
# Runs the default tests on Keras's nightly build, in an environment of its own. Where it
# cannot be downloaded, says so and does nothing. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
if ! python -m pip download -q --pre --no-deps -d "$work/keras" keras-nightly; then
  echo "keras-nightly cannot be downloaded here: nothing was tested"
  exit 0
fi
python -m pip install -q -e ".[test]"
# Both have the module `keras`: the second takes the place of the first.
python -m pip uninstall -q -y keras
python -m pip install -q --no-deps "$work"/keras/keras_nightly-*.whl
python -m pip list | grep -iE '^(tensorflow|keras-nightly|numpy) '
python -m pytest "$@"
