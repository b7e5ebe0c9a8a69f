"""The C files of this folder, compiled and loaded: set-up compiles them, and whoever finds them missing does."""
import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile

from common.cli import why

HERE = os.path.dirname(os.path.abspath(__file__))


def has_avx2() -> bool:
    """Whether this CPU is an x86-64 with the 256-bit integer instructions; without them that code must not run."""
    if platform.machine() != "x86_64":  # under emulation /proc/cpuinfo may be the host's
        return False
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return bool(re.search(r"^flags\s*:.* avx2( |$)", file.read(), re.MULTILINE))


def load(name: str) -> ctypes.CDLL:
    """The C file `name` as a loaded library. Raises: RuntimeError with the reason if there is none."""
    source = os.path.join(HERE, name)
    try:
        with open(source, "rb") as file:
            text = file.read()
        flags = ["-std=gnu99", "-O3", "-shared", "-fPIC"] + (["-mavx2"] if has_avx2() else [])
        key = hashlib.sha256(repr((text, flags, platform.machine())).encode()).hexdigest()[:16]
        cache = os.path.join(HERE, "__pycache__")
        library = os.path.join(cache, f"{name[:-len('.c')]}-{key}.so")
        if os.access(library, os.R_OK):
            return ctypes.CDLL(library)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise RuntimeError("no C compiler (cc, gcc) is installed")
        with contextlib.suppress(OSError):  # where the program cannot be written to, it is compiled every time
            os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache if os.access(cache, os.W_OK) else None) as scratch:
            made = os.path.join(scratch, "made.so")
            subprocess.run([compiler, *flags, source, "-o", made], check=True, timeout=60, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            loaded = ctypes.CDLL(made)
            with contextlib.suppress(OSError), open(made, "rb") as file:
                os.fsync(file.fileno())
                os.replace(made, library)  # several runs may do this at once: each has its own, whole
            return loaded
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{name} cannot be compiled or loaded ({why(error)})") from None
