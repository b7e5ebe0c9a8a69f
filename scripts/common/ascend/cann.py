"""Which CANN this host has: its version, the script that sets it up, the operators of a chip.

Up to 8.3 CANN lies in ascend-toolkit/latest and set_env.sh beside that link. Since 8.5 it lies in
cann-VERSION, with a link cann, and set_env.sh in it. Standard library only.
"""

import contextlib
import glob
import os
import platform
import re
import shutil
from typing import List, NamedTuple, Tuple

from common.core.cli import shown

# where CANN's installers put it by default: the newer one first
SET_ENV = "/usr/local/Ascend/cann/set_env.sh"
OLD_SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
TOOLKIT_INFO, OPS_INFO = "ascend_toolkit_install.info", "ascend_ops_install.info"
# Lines of CANN's version files, the first that fits counts: toolkit_installed_version=[7.7:8.1.RC1]
# is of 8.1, version=[8.0.RC1:x] and version=9.0.0 are of others.
VERSION_LINES = (
    re.compile(r"^\s*toolkit_(?:installed|running)_version\s*=\s*\[[^:\]]*:([\w.+-]+)", re.M),
    re.compile(r"^\s*[Vv]ersion\s*=\s*\[?([\w.+-]+)", re.M),
)
KERNELS = "opp/built-in/op_impl/ai_core/tbe/kernel"  # a folder for each family of chips
OPS_PACKAGES = (8, 5)  # from this CANN on, the operators' package is called Ascend-cann-CHIP-ops


class Family(NamedTuple):
    """Chips that share their operators."""

    soc: str  # a regular expression for their soc versions
    folder: str  # of their kernels
    package: str  # the word for them in the name of the operators' package

    def package_name(self, release: Tuple[int, ...]) -> str:
        """What the vendor calls the operators' package of a CANN (see numbers())."""
        if not release or release >= OPS_PACKAGES:
            return f"Ascend-cann-{self.package}-ops"
        if self.package == "A3":
            return "Atlas-A3-cann-kernels"
        return f"Ascend-cann-kernels-{self.package}"


FAMILIES = (
    Family(r"Ascend310P\w*", "ascend310p", "310p"),
    Family(r"Ascend310B\w*", "ascend310b", "310b"),
    Family(r"Ascend310", "ascend310", "310"),
    Family(r"Ascend910B\d[\w-]*", "ascend910b", "910b"),
    Family(r"Ascend910_93\w+", "ascend910_93", "A3"),
    Family(r"Ascend950\w*", "ascend950", "950"),
    Family(r"Ascend910\w*", "ascend910", "910"),
)


class Operators(NamedTuple):
    """The operators of a chip."""

    there: bool  # they were found
    state: str  # where they are, or which package was not found, or why nobody looked
    advice: str = ""  # what to do if they were looked for and not found


def numbers(version: str) -> Tuple[int, ...]:
    """The leading numbers of a version: 8.0.RC1 gives (8, 0)."""
    leading = re.split(r"[^0-9.]", version)[0]
    return tuple(map(int, re.findall(r"\d+", leading)))


def version_in(paths: List[str]) -> str:
    """The first version in version files, "" if it is missing."""
    for path in paths:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
            for line in VERSION_LINES:
                match = line.search(text)
                if match:
                    return match.group(1)
    return ""


def version_files(folder: str) -> List[str]:
    """The files in the folder of a CANN that say its version; this machine's processor first."""
    own = f"{folder}/{platform.machine()}-linux/{TOOLKIT_INFO}"
    others = sorted(glob.glob(f"{glob.escape(folder)}/*-linux/{TOOLKIT_INFO}"))
    return [f"{folder}/version.cfg", own, *others]


def folder_of_atc() -> List[str]:
    """The folder of the CANN whose atc is on the PATH; none if there is not one."""
    place = os.path.realpath(shutil.which("atc") or "")
    while place != os.path.dirname(place):
        place = os.path.dirname(place)
        if any(map(os.path.isfile, version_files(place))):
            return [place]
    return []


def folders() -> List[str]:
    """Where a CANN may be: what is set up in this shell, then the usual places, newest first."""
    variables = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
    found = [os.environ.get(name, "") for name in variables] + folder_of_atc()
    for root in ("/usr/local/Ascend", os.path.expanduser("~/Ascend")):
        releases = glob.glob(f"{glob.escape(root)}/cann-[0-9]*")
        releases.sort(key=lambda path: numbers(os.path.basename(path)[len("cann-") :]))
        found += [f"{root}/cann", *reversed(releases)]
        found += [f"{root}/ascend-toolkit/latest", f"{root}/latest"]
    return list(dict.fromkeys(filter(None, found)))


def home() -> str:
    """The folder of the first CANN that says its version, "" if there is not one."""
    return next((folder for folder in folders() if version_in(version_files(folder))), "")


def version() -> str:
    """The version of the first CANN that says one, "" if it is missing."""
    return version_in(version_files(home())) if home() else ""


def set_env() -> str:
    """The script of an installed CANN that puts atc on the PATH, "" if it is missing."""
    for folder in folders():
        for place in (folder, os.path.dirname(folder)):
            script = os.path.join(place, "set_env.sh")
            if os.path.isfile(script):
                return script
    return ""


def source() -> str:
    """The command that puts atc on the PATH."""
    script = set_env()
    if script:
        return f"source {shown(script)}"
    return f"source {SET_ENV} (up to CANN 8.3: {OLD_SET_ENV})"


def devlib() -> str:
    """The folder with the library that replaces the driver's where there is no driver."""
    return f"{home() or '/usr/local/Ascend/cann'}/{platform.machine()}-linux/devlib"


def family(soc: str) -> Family:
    """The family of a chip. Raises: LookupError for an unknown one."""
    for candidate in FAMILIES:
        if re.fullmatch(candidate.soc, soc):
            return candidate
    raise LookupError(soc)


def operators(soc: str) -> Operators:
    """Whether the operators of a chip are installed, as far as the files of CANN show it."""
    folder = home()
    try:
        wanted = family(soc)
    except LookupError:
        return Operators(False, f"not looked for: {soc or 'the chip'} is not known")
    if not folder:
        return Operators(False, f"{wanted.package_name(())} was not looked for: no CANN was found")
    kernels = f"{folder}/{KERNELS}/{wanted.folder}"
    with contextlib.suppress(OSError):
        if os.listdir(kernels):
            return Operators(True, f"{wanted.folder} in {shown(folder)}")
    installed = []
    for path in sorted(glob.glob(f"{glob.escape(folder)}/*-linux/{OPS_INFO}")):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            installed += re.findall(r"^package_name=(\S+)", file.read(), re.M)
    package = wanted.package_name(numbers(version())[:2])
    if package in installed:
        return Operators(True, f"{package} in {shown(folder)}")
    instead = f", only {', '.join(installed)}" if installed else ""
    return Operators(
        False,
        f"{package} was not found in {shown(folder)}{instead}",
        f"if atc fails: install {package}_{version()}_linux-{platform.machine()}.run",
    )
