#!/usr/bin/env bash
# Builds wheel and sdist. Installs each in an empty environment and imports it. Then the
# default tests and the matrix of the sdist run against the installed wheel, in a folder
# without the source of the package. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONHOME

python3 -m venv "$work/build"
"$work/build/bin/python" -m pip install -q "build>=1.2" twine
"$work/build/bin/python" -m build --outdir "$work/dist" . >/dev/null
"$work/build/bin/python" -m twine check --strict "$work"/dist/*
ls "$work/dist"

for file in "$work"/dist/*.tar.gz "$work"/dist/*.whl; do
  echo "+ $(basename "$file")"
  rm -rf "$work/venv"
  python3 -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install -q "$file"
  (cd "$work" && "$work/venv/bin/python" - <<'PY'
import keras_sgd_plus

folder = keras_sgd_plus.__file__
assert "site-packages" in folder, folder
optimizer = keras_sgd_plus.SGDPlus(learning_rate=0.01, momentum=0.9)
print(keras_sgd_plus.__version__, optimizer.get_config()["momentum"])
PY
  )
done

# Here the environment holds the wheel.
mkdir "$work/tree"
tar -xzf "$work"/dist/*.tar.gz -C "$work/tree" --strip-components=1
rm -r "$work/tree/keras_sgd_plus"
"$work/venv/bin/python" -m pip install -q "$(ls "$work"/dist/*.whl)[test]"
cd "$work/tree"
"$work/venv/bin/python" -m pytest -m "not slow" "$@"
