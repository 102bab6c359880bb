"""Program -> launches: which programs of a grid compute which equations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seqc.analysis.chain import Refusal
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import LEAD, TOKENS, Carry, Equation, Map, Program, Stage, body_roots, outer_of
from seqc.ir.rules import union
from seqc.passes.binary import binary_program


@dataclass(frozen=True)
class Launch:
    """One kernel: a program for each index of the axes of `grid`. loop: the Carry that it walks; else it has equations only.

    lead: the axes of which a value is seen at one index at a time; others are dimensions of tiles.
    """

    name: str
    grid: tuple[str, ...]
    lead: tuple[str, ...]
    loop: Carry | None
    equations: tuple[Equation, ...]


def leading(chunked: bool) -> tuple[str, ...]:
    """The axes of which a program sees one index at a time, never a tile: without chunks, tokens too."""
    return LEAD if chunked else (TOKENS, *LEAD)


def launches(program: Program, lead: tuple[str, ...]) -> tuple[Program, tuple[Launch, ...]]:
    """The program with products of two factors, and its launches in order. Raises Refusal for a stage that has none."""
    program = _summed_later(binary_program(program), lead)
    found: list[Launch] = []
    for stage in program.stages:
        if isinstance(stage, Map):
            found += _grids(program.name, stage.equations, lead, len(found))
        elif isinstance(stage, Carry):
            values = [v for k in stage.carried for v in (k.init, k.next)] + [e.value for e in stage.equations]
            axes = union(tuple(v.type for v in values))
            own = tuple(a for a in lead if a not in _mixed(stage, lead))
            name = f"{program.name}_{len(found) + 1}"
            found.append(Launch(name, tuple(a for a in own if a in axes and a != stage.axis), own, stage, stage.equations))
        else:
            raise Refusal(f"a {type(stage).__name__} stage has no Triton kernel")
    results = tuple(replace(e, name=result(e.name)) for e in program.outputs if e.value.op.name != "var")
    found += _grids(program.name, results, lead, len(found))
    return program, tuple(found)


def _summed_later(program: Program, lead: tuple[str, ...]) -> Program:
    """A Carry's equation that sums what is carried over leading axes, as one that does not, and the sum behind the Carry."""
    stages: list[Stage] = []
    for stage in program.stages:
        if not isinstance(stage, Carry):
            stages.append(stage)
            continue
        states = {k.name for k in stage.carried}
        kept, sums = [], []
        for e in stage.equations:
            gone = tuple(a for a in lead if e.value in _sums(e.value, states, lead) and a in _lost(e.value))
            if gone:
                each = Equation(f"{e.name}@each", ops.contract(e.value.args, (*gone, *e.value.axes)))
                sums.append(replace(e, value=ops.contract((outer_of(each, stage.axis),), (stage.axis, *e.value.axes))))
                kept.append(each)
            else:
                kept.append(e)
        stages.append(replace(stage, equations=tuple(kept)))
        stages += [Map(tuple(sums))] if sums else []
    return replace(program, stages=tuple(stages))


def _mixed(stage: Carry, lead: tuple[str, ...]) -> set[str]:
    """The leading axes over which a step sums what it carries: one program must see all of them."""
    states = {k.name for k in stage.carried}
    return {a for v in body_roots(stage) for node in _sums(v, states, lead) for a in _lost(node) if a in lead}


def _sums(value: Expr, states: set[str], lead: tuple[str, ...]) -> list[Expr]:
    """The nodes that sum what depends on the states over a leading axis."""
    seen: set[int] = set()
    found = []
    for node in walk(value):
        if (node.op.name == "var" and node.name in states) or any(id(a) in seen for a in node.args):
            seen.add(id(node))
            if node.op.name == "contract" and any(a in lead for a in _lost(node)):
                found.append(node)
    return found


def _lost(node: Expr) -> tuple[str, ...]:
    return tuple(a for a in union(tuple(x.type for x in node.args)) if a not in node.axes)


def result(name: str) -> str:
    """The name of a tensor that holds an output which no stage names."""
    return f"@out.{name}"


def _grids(name: str, equations: tuple[Equation, ...], lead: tuple[str, ...], before: int) -> list[Launch]:
    """Independent equations, one launch for each set of leading axes."""
    groups: dict[tuple[str, ...], list[Equation]] = {}
    for e in equations:
        groups.setdefault(_lead(e.value, lead), []).append(e)
    return [Launch(f"{name}_{before + i + 1}", grid, lead, None, tuple(es)) for i, (grid, es) in enumerate(groups.items())]


def _lead(e: Expr, lead: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in lead if a in e.axes)
