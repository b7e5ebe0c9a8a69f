"""What a product depends on: the code that is really run, the options, the versions of what computes, the inputs.

A recipe is a JSON object. A product is up to date only if the recipe that would make it now is the one in its record.
The code is named by the SHA-256 of the files that a program imports, directly or through what it imports; so a change
of a module that a program never loads does not make its products again. Standard library only.
"""

import functools
import hashlib
import json
import os
import re
import zlib
from typing import Any, Dict, Iterable, Iterator, List, Set

from common.core import files, record
from common.core.cli import ROOT, Refusal, shown
from common.core.record import Content, Recipe

SCRIPTS = os.path.join(ROOT, "scripts")
# What these modules say reaches a recipe by other ways: the values of options stand in it, and progress makes nothing.
NOT_COUNTED = ("options.py", "progress.py")
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]+))",
    re.MULTILINE,
)
C_FILE = re.compile(r"[\"'](\w+/\w+\.c)[\"']")  # as native.load() takes it


# ---- the code --------------------------------------------------------------------------------------------------------


def imported_names(text: str) -> Set[str]:
    """The dotted names that a Python source imports anywhere in it; of `from a import b` both a and a.b."""
    names: Set[str] = set()
    for package, members, plain in IMPORT.findall(text):
        if package:
            names.add(package)
            names.update(
                f"{package}.{word}" for word in re.findall(r"(\w+)(?:\s+as\s+\w+)?", members)
            )
        for word in plain.split(","):
            names.add(word.split(" as ")[0].strip())
    return names


def module_files(name: str) -> Iterator[str]:
    """The files of this program that importing a dotted name loads: the module and the packages that it lies in."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = os.path.join(SCRIPTS, *parts[:count])
        for candidate in (path + ".py", os.path.join(path, "__init__.py")):
            if os.path.isfile(candidate):
                yield candidate


def closure(program: str) -> List[str]:
    """The files of this program that a program's file needs: itself, what it imports at any depth, and C files."""
    found: Set[str] = set()
    waiting = [os.path.abspath(program)]
    while waiting:
        path = waiting.pop()
        if path in found or os.path.basename(path) in NOT_COUNTED:
            continue
        found.add(path)
        if path.endswith(".c"):
            continue
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for name in imported_names(text):
            waiting += module_files(name)
        c_files = (os.path.join(SCRIPTS, "common", name) for name in C_FILE.findall(text))
        waiting += filter(os.path.isfile, c_files)
    return sorted(found)


@functools.lru_cache(maxsize=None)
def sources(program: str) -> str:
    """SHA-256 over the closure() of a program's file: the names of the files below the checkout and their content."""
    digest = hashlib.sha256()
    for path in closure(program):
        digest.update(f"{os.path.relpath(path, ROOT)} {sha256(path)}\n".encode())
    return digest.hexdigest()


def versions(packages: Iterable[str]) -> Dict[str, str]:
    """{package: its version here, "" if it is not installed}; nothing is imported."""
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:  # Python 3.7
        from pkg_resources import DistributionNotFound as PackageNotFoundError  # type: ignore[assignment,no-redef]
        from pkg_resources import get_distribution

        def version(distribution_name: str) -> str:
            return str(get_distribution(distribution_name).version)

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


# ---- files -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def read_once(path: str, _: record.Identity) -> Content:
    digest, crc = hashlib.sha256(), 0
    with open(files.open_regular(path), "rb", buffering=0) as stream:
        before = record.identity(os.fstat(stream.fileno()))
        for chunk in iter(lambda: stream.read(files.CHUNK), b""):
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
        if record.identity(os.fstat(stream.fileno())) != before:
            raise Refusal(
                f"{shown(path)} was changed while it was read; run the same command again"
            )
    return Content(digest.hexdigest(), f"{crc:08x}", before)


def content_of(path: str) -> Content:
    """SHA-256, checksum and identity of a file. Raises: OSError; Refusal for what is not a regular file."""
    return read_once(os.path.abspath(path), record.identity(os.stat(path)))


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return content_of(path).sha256


def input_content(path: str) -> Content:
    """What a file holds that another tool made. Raises: Refusal if its own record says that it made something else."""
    content = content_of(path)
    made = record.read(path).made.get(os.path.basename(path))
    if made and made.checksum != content.checksum:
        raise Refusal(
            f"{shown(path)} is not what it was when it was made: it is damaged, or another file was put in "
            "its place; make it again (what made it sees that), or give a file of your own another name"
        )
    return content


def make(
    program: str,
    options: Dict[str, Any],
    packages: Iterable[str] = (),
    inputs: Iterable[str] = (),
    settings: Iterable[str] = (),
    **more: Any,
) -> Recipe:
    """What a product depends on, as JSON gives it back, and the content of the files that were read for it.

    program: its file; packages: those that compute; inputs: files that other tools make, settings: other files, both
    by content; more: versions of other programs, the device, and so on.
    Raises: Refusal if an input is no longer what its own record says.
    """
    found = {path: input_content(path) for path in inputs}
    others = {path: content_of(path) for path in settings}
    row = {
        "tool": os.path.basename(program),
        "sources": sources(program),
        "options": options,
        "versions": versions(packages),
        "inputs": [[os.path.basename(path), content.sha256] for path, content in found.items()],
        "settings": [[os.path.basename(path), content.sha256] for path, content in others.items()],
        **more,
    }
    return Recipe(dict(json.loads(json.dumps(row))), {**found, **others})
