#!/bin/sh
# The whole chain: images and a checkpoint in, accuracy and throughput out. `bash scripts/pipeline.sh --help` says more.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
python=${PYTHON:-python3}
unset PYTHONSAFEPATH # it keeps programs from finding the modules beside them
# CANN's set_env.sh leaves an empty word in PYTHONPATH. For Python that is the current folder, whose files it would run.
if [ -n "${PYTHONPATH-}" ]; then
    PYTHONPATH=$(printf '%s' "$PYTHONPATH" | tr -s ':' | sed 's/^://; s/:$//')
fi
if [ -n "${PYTHONHOME-}" ]; then
    echo "pipeline.sh: PYTHONHOME=$PYTHONHOME is ignored, because with it a virtual environment finds no packages" >&2
    unset PYTHONHOME
fi
if ! command -v "$python" >/dev/null; then
    echo "pipeline.sh: there is no $python on the PATH; install Python 3.7 or newer, or name yours: PYTHON=python3.11 bash scripts/pipeline.sh" >&2
    exit 1
fi
trap 'echo "pipeline.sh: interrupted" >&2; exit 130' INT # else Ctrl-C would look like an old Python
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 7))' 2>/dev/null; then
    echo "pipeline.sh: '$python' is not Python 3.7 or newer; name yours: PYTHON=python3.11 bash scripts/pipeline.sh" >&2
    exit 1
fi
trap - INT
exec "$python" "$here/pipeline.py" "$@"
