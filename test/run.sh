#!/usr/bin/env bash
# Set up what is needed, then check and test everything:  bash test/run.sh [arguments for pytest]
set -Eeuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=$("${PYTHON:-python3}" scripts/setup_env.py -r requirements.txt -r test/requirements.txt)
"${PYTHON:-python3}" scripts/timm_source.py
bin=$(dirname -- "$python")

echo "== ruff and shellcheck =="
"$python" -m ruff check .
mapfile -t shell_scripts < <(git ls-files --cached --others --exclude-standard | xargs -r grep -lE '^#!/usr/bin/env bash' --)
PATH=$bin:$PATH shellcheck "${shell_scripts[@]}"

echo "== pytest =="
exec "$python" -m pytest test "$@"
