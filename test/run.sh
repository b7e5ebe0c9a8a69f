#!/usr/bin/env bash
# Set up what is needed, then check and test everything:
#     bash test/run.sh [--quick] [arguments for pytest]
# --quick leaves out what takes long (chains, kills, power losses): for the change at hand.
set -Eeuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=$("${PYTHON:-python3}" scripts/setup_env.py -r requirements.txt -r test/requirements.txt)
"${PYTHON:-python3}" scripts/timm_source.py
bin=$(dirname -- "$python")
marked=()
if [[ ${1-} == --quick ]]; then
    marked=(-m "not slow")
    shift
fi

echo "== ruff, mypy and shellcheck =="
"$python" -m ruff check .
"$python" -m ruff format --check .
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
    "$python" -m mypy
else
    echo "mypy is skipped: it needs Python 3.9, and this is $("$python" --version)"
fi
mapfile -t shell_scripts < <(git ls-files --cached --others --exclude-standard |
    xargs -r grep -lE '^#!(/usr/bin/env bash|/bin/sh)' --)
PATH=$bin:$PATH shellcheck "${shell_scripts[@]}"

# Models of 125 MB are written by the dozen: in memory, where there is enough of it.
room=$(df --output=avail --block-size=1G /dev/shm 2>/dev/null | tail -n 1 || true)
if ((${room:-0} >= 12)); then
    TMPDIR=$(mktemp -d /dev/shm/tests-XXXXXX)
    export TMPDIR
    trap 'rm -rf -- "$TMPDIR"' EXIT
fi
unset PYTHONDONTWRITEBYTECODE # hundreds of Pythons start: what they import is compiled once
# Memory that a program gives back stays its own. Otherwise the system fills it with zeros each time
# it is taken again: half of the system's share of the time, with networks of 125 to 320 MB.
export GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000

echo "== pytest =="
"$python" -m pytest test "${marked[@]}" -n 2 "$@"
