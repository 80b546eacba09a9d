#!/usr/bin/env bash
# Runs the default tests on Keras's nightly build, in an environment of its own. With
# --if-available it does nothing where that cannot be downloaded. Other arguments go to
# pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
optional=no
if [ "${1:-}" = "--if-available" ]; then
  optional=yes
  shift
fi
if ! python -m pip download -q --pre --no-deps -d "$work/keras" keras-nightly; then
  echo "keras-nightly cannot be downloaded here: nothing was tested"
  [ "$optional" = yes ] && exit 0
  exit 1
fi
python -m pip install -q -e ".[test]"
# Both have the module `keras`: the second takes the place of the first.
python -m pip uninstall -q -y keras
python -m pip install -q --no-deps "$work"/keras/keras_nightly-*.whl
python -m pip list | grep -iE '^(tensorflow|keras-nightly|numpy) '
python -m pytest "$@"
