"""The types of what is given on the command line: choices, sizes, and the options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from seqc.terminal import BadUsage

LARGEST = 1 << 20  # of a size, as seqc.options has it


class Color(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


class Kind(StrEnum):
    """What can be listed."""

    layers = "layers"
    objectives = "objectives"
    retentions = "retentions"
    algorithms = "algorithms"
    functions = "functions"


class Stage(StrEnum):
    """The arrows of the pipeline."""

    ast = "ast"
    model = "model"
    recurrence = "recurrence"
    stabilised = "stabilised"
    structure = "structure"
    program = "program"
    adjoint = "adjoint"
    kernel = "kernel"


class Memory(StrEnum):
    """The memories that `seqc new` has a text for."""

    matrix = "matrix"
    diagonal = "diagonal"
    deep = "deep"


class Backend(StrEnum):
    """What kernels are printed in."""

    torch = "torch"
    triton = "triton"


Device = StrEnum("Device", ["cuda", "cpu"])
Timed = StrEnum("Timed", ["auto", "torch", "triton"])  # the backends whose kernels are timed
Dtype = StrEnum("Dtype", ["float32", "bfloat16", "float16", "float64"])
Floats = StrEnum("Floats", ["bf16", "fp16", "fp32"])  # what kernels of a GPU are given
Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A .seq file, or the name of a layer that comes with seqc.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Colored = Annotated[Color, typer.Option("--color", envvar="SEQC_COLOR", help="When to use colour; NO_COLOR is honoured.")]
Sizes = Annotated[list[str] | None, typer.Option("-s", "--size", metavar="NAME=N", help="A size in place of the default. Repeatable.")]
Chunk = Annotated[int, typer.Option("--chunk-size", min=1, max=1024, help="Tokens per chunk of the chunkwise form.")]


def sizes_given(given: list[str] | None) -> dict[str, int]:
    """The sizes of `-s NAME=N`. Raises BadUsage for what is not that."""
    sizes: dict[str, int] = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value.strip().isascii() or not value.strip().isdigit() or len(value) > 9:
            raise BadUsage(f"`-s {text}` is not NAME=N with a whole number N")
        if name in sizes:
            raise BadUsage(f"the size `{name}` is given twice")
        if not 0 < int(value) <= LARGEST:
            raise BadUsage(f"`-s {text}` is out of range: a size is a whole number from 1 to {LARGEST}")
        sizes[name] = int(value)
    return sizes
