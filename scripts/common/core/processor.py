"""The processor of this machine: its name, and whether it adds 8-bit products exactly.

Without instructions for dot products, ONNX Runtime's int8 kernels for x86-64 add pairs of products
of unsigned and signed bytes in 16 bits, and a sum beyond 32,767 becomes 32,767. Weights of 7 bits
cannot exceed it: 2 · 255 · 64 = 32,640. Standard library only.
Source: MLAS in ONNX Runtime, platform.cpp and qgemm_kernel_avx2.cpp.
"""

import contextlib
import functools
import os
import platform
import re
from typing import Mapping, NamedTuple

from common.core import cli

CPUINFO = "/proc/cpuinfo"
# {machine: the instructions for dot products of bytes, as the kernel names them}
DOT_PRODUCTS = {
    "x86_64": ("avx512_vnni", "avx_vnni"),
    "aarch64": ("asimddp",),
}
EXACT_BITS, SAFE_BITS = 8, 7  # of weights: with such instructions, and without


class Processor(NamedTuple):
    """A processor as its system describes it."""

    name: str
    dot_product: str  # its instruction for dot products of bytes, "" if it has none

    @property
    def weight_bits(self) -> int:
        """The bits of int8 weights whose sums are exact here."""
        return EXACT_BITS if self.dot_product else SAFE_BITS


def described(text: str, machine: str) -> Processor:
    """The processor of a text as in /proc/cpuinfo; machine: as os.uname() names it."""
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)  # ARM has none
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    here = flags.group(1).split() if flags else []
    present = [flag for flag in DOT_PRODUCTS.get(machine, ()) if flag in here]
    words = name.group(1) if name else platform.processor() or machine
    return Processor(" ".join(words.split()), present[0] if present else "")


@functools.lru_cache(maxsize=None)
def this() -> Processor:
    """The processor of this machine; where the system does not describe it, one without flags."""
    text = ""
    with contextlib.suppress(OSError), open(CPUINFO, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return described(text, os.uname().machine)


def warn_of(metadata: Mapping[str, str]) -> None:
    """Say on stderr if an int8 model is computed inexactly here. metadata: of the ONNX file."""
    if metadata.get("precision") != "int8" or this().dot_product:
        return
    if metadata.get("weight_bits") == str(SAFE_BITS):
        return
    cli.say(
        f"warning: this int8 model has weights of {EXACT_BITS} bits, and this CPU "
        f"({this().name}) has no VNNI or dot product instructions: its sums may saturate, and the "
        f"accuracy is lower here; quantise again here, or with --quant-bits {SAFE_BITS}"
    )
