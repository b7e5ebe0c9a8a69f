"""The environment of a machine with an Ascend card, made of the stand-ins: for tests."""

import os
import sys
from pathlib import Path
from typing import Dict

ATC_NEEDS = (
    "attrs cython numpy decorator sympy cffi pyyaml pathlib2 psutil protobuf scipy requests absl-py"
).split()
HERE = Path(__file__).resolve().parent
HOST_PYTHON = os.path.join(
    sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"
)


def ascend_environment(folder: Path, **switches: str) -> Dict[str, str]:
    """Environment variables under which npu-smi, atc and `python3 -m ais_bench` are the stand-ins.

    `folder` gets a `host/python3` outside of virtual environments, as on a machine where CANN is
    set up: it stands first on the PATH after the stand-ins. `switches` are those of
    python/ascend_standin.py, for instance STANDIN_FAULT="atc-fail=8".
    """
    host = folder / "host"
    host.mkdir(parents=True, exist_ok=True)
    link = host / "python3"
    if not link.is_symlink():
        link.symlink_to(HOST_PYTHON)
    give_host_packages(folder / "user")
    path = os.pathsep.join([str(HERE / "bin"), str(host), os.environ.get("PATH", os.defpath)])
    environment = {
        "PATH": path,
        "PYTHONPATH": str(HERE / "python"),
        "TRESNET_TEST_PYTHON": sys.executable,
        "TRESNET_PYTHON": sys.executable,
        "STANDIN_LOG": str(folder / "calls.jsonl"),
        "PYTHONUSERBASE": str(folder / "user"),
    }
    environment.update(switches)
    return environment


def give_host_packages(base: Path, numpy: str = "1.24.4") -> None:
    """Install what atc needs for the user `base`; a virtual environment ignores it."""
    packages = base / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for name in ATC_NEEDS:
        version = numpy if name == "numpy" else "1.0"
        metadata = packages / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
