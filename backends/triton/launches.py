"""Program -> launches: which programs of a grid compute which equations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seqc.analysis.chain import Refusal
from seqc.ir.expr import Expr
from seqc.ir.program import LEAD, TOKENS, Carry, Equation, Map, Program
from seqc.ir.rules import union
from seqc.passes.binary import binary_program


@dataclass(frozen=True)
class Launch:
    """One kernel: a program for each index of the axes of `grid`. loop: the Carry that it walks; else it has equations only."""

    name: str
    grid: tuple[str, ...]
    loop: Carry | None
    equations: tuple[Equation, ...]


def leading(chunked: bool) -> tuple[str, ...]:
    """The axes of which a program sees one index at a time, never a tile: without chunks, tokens too."""
    return LEAD if chunked else (TOKENS, *LEAD)


def launches(program: Program, lead: tuple[str, ...]) -> tuple[Program, tuple[Launch, ...]]:
    """The program with products of two factors, and its launches in order. Raises Refusal for a stage that has none."""
    program = binary_program(program)
    found: list[Launch] = []
    for stage in program.stages:
        if isinstance(stage, Map):
            found += _grids(program.name, stage.equations, lead, len(found))
        elif isinstance(stage, Carry):
            values = [v for k in stage.carried for v in (k.init, k.next)] + [e.value for e in stage.equations]
            axes = union(tuple(v.type for v in values))
            name = f"{program.name}_{len(found) + 1}"
            found.append(Launch(name, tuple(a for a in lead if a in axes and a != stage.axis), stage, stage.equations))
        else:
            raise Refusal(f"a {type(stage).__name__} stage has no Triton kernel")
    results = tuple(replace(e, name=result(e.name)) for e in program.outputs if e.value.op.name != "var")
    found += _grids(program.name, results, lead, len(found))
    return program, tuple(found)


def result(name: str) -> str:
    """The name of a tensor that holds an output which no stage names."""
    return f"@out.{name}"


def _grids(name: str, equations: tuple[Equation, ...], lead: tuple[str, ...], before: int) -> list[Launch]:
    """Independent equations, one launch for each set of leading axes."""
    groups: dict[tuple[str, ...], list[Equation]] = {}
    for e in equations:
        groups.setdefault(_lead(e.value, lead), []).append(e)
    return [Launch(f"{name}_{before + i + 1}", grid, None, tuple(es)) for i, (grid, es) in enumerate(groups.items())]


def _lead(e: Expr, lead: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in lead if a in e.axes)
