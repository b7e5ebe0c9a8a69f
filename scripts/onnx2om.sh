#!/bin/sh
# Compile an ONNX file for an Ascend chip with CANN's atc; see --help.
# This file only finds the Python for onnx2om.py.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
# With these Python finds neither a virtual environment's packages nor the files beside a program.
unset PYTHONHOME PYTHONSAFEPATH
# CANN's set_env.sh leaves an empty word in PYTHONPATH. For Python that is the current folder, whose files it would run.
if [ -n "${PYTHONPATH-}" ]; then
    PYTHONPATH=$(printf '%s' "$PYTHONPATH" | tr -s ':' | sed 's/^://; s/:$//')
fi
python=${TRESNET_PYTHON:-$("${PYTHON:-python3}" "$here/setup_env.py" --dry-run)}
if ! command -v "$python" >/dev/null; then
    echo "onnx2om.sh: there is no Python at $python; create it with python3 $here/setup_env.py," \
        "or set TRESNET_PYTHON to a Python that has the package onnx" >&2
    exit 1
fi
exec "$python" "$here/onnx2om.py" "$@"
