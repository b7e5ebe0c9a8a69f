"""What the tests share: running a script as a user does, the sample photos, and the expected values."""
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Optional

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "test" / "data"
GOLDEN = DATA / "golden"
for folder in (ROOT, ROOT / "scripts", GOLDEN):
    sys.path.insert(0, str(folder))


def run(script: str, *args: object, env: Optional[Dict[str, str]] = None, **options: object
        ) -> "subprocess.CompletedProcess[str]":
    """Run a script of the repository (path from its root) with this Python; its output as text, decoded leniently."""
    command = [sys.executable, str(ROOT / script)] + [os.fspath(a) if isinstance(a, os.PathLike) else a if isinstance(
        a, bytes) else str(a) for a in args]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          universal_newlines=True, errors="replace",
                          env=dict(os.environ, **(env or {})), **options)  # type: ignore[call-overload]


def succeed(script: str, *args: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Like run(); the script must exit with 0."""
    done = run(script, *args, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refusal(script: str, *args: object, status: int = 1, **options: object) -> str:
    """Run a script that must refuse: exit status `status`, no traceback; returns what it says on stderr."""
    done = run(script, *args, **options)  # type: ignore[arg-type]
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip(), "a refusal says why"
    return done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def listed_sha256(name: str) -> Dict[str, str]:
    """{file name: SHA-256} of a golden list."""
    lines = (GOLDEN / name).read_text().splitlines()
    return {line.split("  ")[1]: line.split("  ")[0] for line in lines}


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample data set: val_union/ (20 photos), val_label.txt, model_best.pth.tar."""
    folder = tmp_path_factory.mktemp("sample")
    succeed("scripts/make_sample.py", folder)
    return folder
