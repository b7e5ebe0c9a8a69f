"""Where the set-up puts what it makes: the environment, timm's source, class names, C libraries.

That is the checkout. If its user names a folder, or the checkout cannot be written, all of it is in
one folder, which is the virtual environment as well: a step that runs in it finds the rest.
Standard library only, and none of our modules.
"""

import os
import sys
from typing import List, NamedTuple

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
VARIABLE = "TRESNET_VENV"  # names the folder, as --venv does
BESIDE = "tresnet-venv"  # beside the work folder, where the checkout cannot be written
STAMP = "finished"  # a file in the environment's folder, the last that a set-up writes
BEGUN = "begun"  # a file in a folder that a set-up is filling
LOCK = ".venv.lock"
TIMM, PATCHED = "pytorch-image-models", ".patched-with"  # timm's source, the file that ends it
UNFINISHED = "-unfinished"  # ends the name of a folder that timm's source is put into
CLASS_NAMES, LIBRARIES = ".class-names", ".libraries"


class Place(NamedTuple):
    """Where everything is, or will be."""

    base: str  # the folder that the set-up writes to
    venv: str  # the virtual environment's folder
    is_default: bool = False  # whether this program chose it although it is not the checkout

    @property
    def folder(self) -> str:
        """The one folder for everything; "" if that is the checkout."""
        return "" if self.base == ROOT else self.base

    @property
    def python(self) -> str:
        return os.path.join(self.venv, "bin", "python")

    @property
    def lock(self) -> str:
        return os.path.join(self.base, LOCK)

    @property
    def timm(self) -> str:
        """The folder of timm's source: the checkout's, if it is there and patched."""
        shared = os.path.join(ROOT, TIMM)
        is_there = os.path.exists(os.path.join(shared, PATCHED))
        return shared if is_there else os.path.join(self.base, TIMM)

    @property
    def class_names(self) -> List[str]:
        """The folders that may hold names of classes; new ones go into the last."""
        folders = [os.path.join(ROOT, CLASS_NAMES), os.path.join(self.base, CLASS_NAMES)]
        return folders[-1:] if self.base == ROOT else folders

    @property
    def libraries(self) -> List[str]:
        """Where compiled C files may be kept beside the folder of the packages."""
        return [] if self.base == ROOT else [os.path.join(self.base, LIBRARIES)]

    @property
    def own_files(self) -> List[str]:
        """What is in the environment's folder beside the environment."""
        return [] if self.base == ROOT else [LOCK, TIMM, TIMM + UNFINISHED, CLASS_NAMES, LIBRARIES]


def checkout() -> Place:
    """The checkout; a Python that the variable PYTHON names has an environment of its own."""
    suffix = "-%d.%d" % sys.version_info[:2] if os.environ.get("PYTHON") else ""
    return Place(ROOT, os.path.join(ROOT, ".venv" + suffix))


def in_folder(folder: str, is_default: bool = False) -> Place:
    """One folder for everything."""
    return Place(os.path.abspath(folder), os.path.abspath(folder), is_default)


def named() -> str:
    """The folder that this program's user has chosen without an option, or "".

    The variable names it, or the Python that runs this program is in it.
    """
    folder = os.environ.get(VARIABLE, "")
    is_ours = os.path.exists(os.path.join(sys.prefix, LOCK))
    return sys.prefix if is_ours and not folder else folder


def current() -> Place:
    """The place that a step uses."""
    folder = named()
    return in_folder(folder) if folder else checkout()
