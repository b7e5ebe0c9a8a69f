#!/bin/sh
# Compile an ONNX file for an Ascend chip with CANN's atc: finds the Python for onnx2om.py. `--help` says more.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
unset PYTHONHOME PYTHONSAFEPATH # with them Python finds no virtual environment's packages, and no files beside a program
python=${TRESNET_PYTHON:-$("${PYTHON:-python3}" "$here/setup_env.py" --dry-run)}
if ! command -v "$python" >/dev/null; then
    echo "onnx2om.sh: there is no Python at $python; make it by python3 $here/setup_env.py, or set TRESNET_PYTHON to one that has the package onnx" >&2
    exit 1
fi
exec "$python" "$here/onnx2om.py" "$@"
