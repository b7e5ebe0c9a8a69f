#!/usr/bin/env bash
# Set up what is needed, then check and test everything:
#     bash test/run.sh [--quick] [arguments for pytest]
# --quick leaves out what takes long (chains, kills, power losses): for the change at hand, in less than a minute.
set -Eeuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=$("${PYTHON:-python3}" scripts/setup_env.py -r requirements.txt -r test/requirements.txt)
"${PYTHON:-python3}" scripts/timm_source.py
bin=$(dirname -- "$python")
quick=""
if [[ ${1-} == --quick ]]; then
    quick="not slow and "
    shift
fi

echo "== ruff and shellcheck =="
"$python" -m ruff check .
mapfile -t shell_scripts < <(git ls-files --cached --others --exclude-standard | xargs -r grep -lE '^#!(/usr/bin/env bash|/bin/sh)' --)
PATH=$bin:$PATH shellcheck "${shell_scripts[@]}"

# Models of 125 MB are written by the dozen: in memory, where there is enough of it.
room=$(df --output=avail --block-size=1G /dev/shm 2>/dev/null | tail -n 1 || true)
if ((${room:-0} >= 12)); then
    TMPDIR=$(mktemp -d /dev/shm/tests-XXXXXX)
    export TMPDIR
    trap 'rm -rf -- "$TMPDIR"' EXIT
fi
unset PYTHONDONTWRITEBYTECODE  # hundreds of Pythons start: what they import is compiled once
# Memory that a program has given back stays its own: the system would fill it with zeros each time it is taken again,
# which is half of the system's share of the time with networks of 125 to 320 MB.
export GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000

echo "== pytest =="
status=0
for part in "not alone" alone; do  # what measures time has the machine to itself, at the end
    workers=(-n 2)
    if [[ $part == alone ]]; then workers=(); fi
    "$python" -m pytest test -m "$quick$part" "${workers[@]}" "$@" || status=$?
    if ((status == 5)); then status=0; fi  # none of the tests asked for is in this part
    if ((status)); then exit "$status"; fi
done
