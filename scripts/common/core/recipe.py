"""What a product depends on: the code that runs, options, versions of packages, inputs.

A recipe is a JSON object. A product is up to date only if the recipe that would make it now equals
the one in its record. The code is the SHA-256 of the files that a program imports at any depth; so
products are not made again when a module changes that their program never imports.
Standard library only.
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
# Modules that do not change a product: a recipe holds the options' values, and progress is shown.
NOT_COUNTED = ("options.py", "progress.py")
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]+))",
    re.MULTILINE,
)
C_FILE = re.compile(r"[\"'](\w+/\w+\.c)[\"']")  # as native.load() takes it


# ---- the code ------------------------------------------------------------------------------------


def imported_names(text: str) -> Set[str]:
    """The dotted names that a Python source imports anywhere; `from a import b` gives a and a.b."""
    names: Set[str] = set()
    for package, members, modules in IMPORT.findall(text):
        if package:
            words = re.findall(r"(\w+)(?:\s+as\s+\w+)?", members)
            names.update([package, *(f"{package}.{word}" for word in words)])
        for module in modules.split(","):
            names.add(module.split(" as ")[0].strip())
    return names


def module_files(name: str) -> Iterator[str]:
    """Yield our files that importing a dotted name loads: a module and its packages."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = os.path.join(SCRIPTS, *parts[:count])
        for candidate in (path + ".py", os.path.join(path, "__init__.py")):
            if os.path.isfile(candidate):
                yield candidate


def closure(program: str) -> List[str]:
    """The sorted paths of our files that a program needs: itself, all that it imports, C files."""
    needed: Set[str] = set()
    waiting = [os.path.abspath(program)]
    while waiting:
        path = waiting.pop()
        if path in needed or os.path.basename(path) in NOT_COUNTED:
            continue
        needed.add(path)
        if path.endswith(".c"):
            continue
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for name in imported_names(text):
            waiting += module_files(name)
        c_files = (os.path.join(SCRIPTS, "common", name) for name in C_FILE.findall(text))
        waiting += filter(os.path.isfile, c_files)
    return sorted(needed)


@functools.lru_cache(maxsize=None)
def sources(program: str) -> str:
    """SHA-256 over the names and contents of the files in the closure() of a program."""
    digest = hashlib.sha256()
    for path in closure(program):
        digest.update(f"{os.path.relpath(path, ROOT)} {sha256(path)}\n".encode())
    return digest.hexdigest()


def version_of(package: str) -> str:
    """The version of a package here, "" if it is not installed; it is not imported."""
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        import pkg_resources

        try:
            return str(pkg_resources.get_distribution(package).version)
        except pkg_resources.DistributionNotFound:
            return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def versions(packages: Iterable[str]) -> Dict[str, str]:
    return {package: version_of(package) for package in packages}


# ---- files ---------------------------------------------------------------------------------------


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
    """SHA-256, checksum and identity of a file. Raises: OSError; Refusal unless it is regular."""
    return read_once(os.path.abspath(path), record.identity(os.stat(path)))


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return content_of(path).sha256


def input_content(path: str) -> Content:
    """The content of a file that another step made. Raises: Refusal if its record disagrees."""
    content = content_of(path)
    made = record.read(path).made.get(os.path.basename(path))
    if made and made.checksum != content.checksum:
        raise Refusal(
            f"{shown(path)} changed after this program created it; run the step that creates it "
            "again, or give a file of your own another name"
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
    """The recipe of a product.

    program: the file of the program that makes it.
    packages: those that compute; their versions count.
    inputs: files that other steps make; settings: other files. The contents of both count.
    more: versions of other programs, the device, and so on.
    Raises: Refusal if an input is no longer what its own record says.
    """
    input_contents = {path: input_content(path) for path in inputs}
    setting_contents = {path: content_of(path) for path in settings}
    row = {
        "tool": os.path.basename(program),
        "sources": sources(program),
        "options": options,
        "versions": versions(packages),
        "inputs": names_and_sha256(input_contents),
        "settings": names_and_sha256(setting_contents),
        **more,
    }
    as_in_record = json.loads(json.dumps(row))  # a tuple becomes a list
    return Recipe(as_in_record, {**input_contents, **setting_contents})


def names_and_sha256(contents: Dict[str, Content]) -> List[List[str]]:
    return [[os.path.basename(path), content.sha256] for path, content in contents.items()]
