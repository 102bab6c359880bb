"""What a compiled kernel needs, read from what the compiler wrote: a cubin, or the text of a kernel for AMD."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton

CUBIN_PRODUCT = re.compile(r"(?<![.\w])[A-Z]+MMA\b")  # HMMA, IMMA, HGMMA, UTCHMMA, ...; HFMA2.MMA is none
AMD_PRODUCT = re.compile(r"\bv_s?mfmac?_")


@dataclass(frozen=True)
class Binary:
    """A thread's registers and bytes of stack, where spilled registers lie; a block's bytes of shared memory; instructions in the text.

    spills: instructions that store to the stack (NVIDIA), or registers that are spilled (AMD). products: those of tensor cores.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    products: int


@cache
def examined(path: str, shared: int) -> Binary:
    """The kernel in a file. shared: what the compiler says of its shared memory, which a launch asks for."""
    return (_cubin if path.endswith(".cubin") else _amdgcn)(path, shared)


def binary_file(files: Iterable[str]) -> str:
    """Of the files that the compiler wrote, the one to examine."""
    return next(f for f in files if f.endswith((".cubin", ".amdgcn")))


def _cubin(path: str, shared: int) -> Binary:
    usage, code = (_said(flag, path) for flag in ("-res-usage", "-sass"))
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    return Binary(registers, stack, len(re.findall(r"(?<![.\w])STL\b", code)), shared, len(CUBIN_PRODUCT.findall(code)))


def _said(flag: str, path: str) -> str:
    """By the disassembler that comes with Triton."""
    return subprocess.run([triton.knobs.nvidia.cuobjdump.path, flag, path], capture_output=True, text=True, check=True).stdout


def _amdgcn(path: str, shared: int) -> Binary:
    code = Path(path).read_text("utf-8")

    def said(name: str) -> int:
        return int(re.findall(rf"^\s*\.{name}:\s*(\d+)", code, re.MULTILINE)[-1])

    spills = said("vgpr_spill_count") + said("sgpr_spill_count")
    local = max(shared, said("group_segment_fixed_size"))
    return Binary(said("vgpr_count"), said("private_segment_fixed_size"), spills, local, len(AMD_PRODUCT.findall(code)))
