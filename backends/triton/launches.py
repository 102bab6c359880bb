"""Program -> launches: which programs of a grid compute which equations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seqc.analysis.chain import Refusal
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask, make, rebuild, walk
from seqc.ir.program import LEAD, TOKENS, Carry, Equation, Map, Program, Stage, body_roots, outer_of
from seqc.ir.rules import union
from seqc.passes.binary import binary_program

DIMENSIONS = 2  # of a tile, where axes can be had for the grid
WORK = 4  # products of matrices in one kernel
LOOPS = ("decayed", "unit_lower_inverse", "solve", "decayed_solve", "strict_solve", "convolve", "correlate")


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
    for stage in program.stages:
        if not isinstance(stage, (Map, Carry)):
            raise Refusal(f"a {type(stage).__name__} stage has no Triton kernel")
    program = _summed_later(binary_program(program), lead)
    results = tuple(replace(e, name=result(e.name)) for e in program.outputs if e.value.op.name != "var")
    stages: list[Stage] = []
    for s in (*program.stages, *([Map(results)] if results else [])):
        stages += _parts(s.equations, lead, f"@part{len(stages)}") if isinstance(s, Map) else [s]
    program, found = replace(program, stages=tuple(stages)), list[Launch]()
    for stage in program.stages:
        if isinstance(stage, Map):
            found += _grids(program.name, stage.equations, lead, len(found))
        elif isinstance(stage, Carry):
            values = [v for k in stage.carried for v in (k.init, k.next)] + [e.value for e in stage.equations]
            axes = union(tuple(v.type for v in values))
            own = tuple(a for a in lead if a not in _mixed(stage, lead))
            name = f"{program.name}_{len(found) + 1}"
            found.append(Launch(name, tuple(a for a in own if a in axes and a != stage.axis), own, stage, stage.equations))
    return program, tuple(_thinned(launch) for launch in found)


def _thinned(launch: Launch) -> Launch:
    """The launch with axes along which nothing happens in its grid, until no value has more than two dimensions or none is left."""
    values = [e.value for e in launch.equations]
    values += [v for k in launch.loop.carried for v in (k.init, k.next)] if launch.loop else []
    while True:
        nodes = list(walk(*values))
        if max((len(_tile(n, launch)) for n in nodes), default=0) <= DIMENSIONS:
            return launch
        free = [a for a in dict.fromkeys(a for v in values for a in _tile(v, launch)) if all(_passes(n, a) for n in nodes)]
        free = [a for a in free if all(a in v.axes for v in values)]
        if not free:
            return launch
        launch = replace(launch, grid=(*launch.grid, free[0]), lead=(*launch.lead, free[0]))


def _tile(node: Expr, launch: Launch) -> list[str]:
    return [a for a in node.axes if a not in launch.lead]


def _passes(node: Expr, axis: str) -> bool:
    """Whether a node does nothing along an axis and has no other of its length."""
    if any(b != axis and ops.base(axis) in ops.base(b).split("*") for b in node.axes):
        return False
    if node.op.name not in ("var", "contract", "broadcast") and axis in _words(node.attr):
        return False
    return axis in node.axes or not any(axis in x.axes for x in node.args)


def _words(attr: object) -> set[str]:
    if isinstance(attr, Mask):
        return {attr.row, attr.column}
    if isinstance(attr, Expr):
        return set(attr.axes)
    if isinstance(attr, tuple):
        return {w for part in attr for w in _words(part)}
    return {attr} if isinstance(attr, str) else set()


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


def _parts(equations: tuple[Equation, ...], lead: tuple[str, ...], name: str) -> list[Map]:
    """A Map with many products as several, each with a few: what later ones need of a product is written to memory, the rest is computed
    again. All products in one kernel would need more registers than there are."""
    work = [n for n in walk(*(e.value for e in equations)) if _is_work(n, lead)]
    if len(work) <= WORK:
        return [Map(equations)]
    first = {id(n) for n in work[:WORK]}
    later = {id(n) for n in work[WORK:]}
    rest = [e for e in equations if any(id(n) in later for n in walk(e.value))]
    here = [e for e in equations if e not in rest]
    named = {e.value: e for e in here}
    for node in _met(rest, first):
        if node not in named:
            named[node] = Equation(f"{name}_{len(named)}", node)
            here.append(named[node])
    table = {id(n): ops.var(e.name, n.axes, n.type.dtype) for n, e in named.items()}

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return table.get(id(node)) or (node if args == node.args else make(node.op, args, node.attr))

    moved = tuple(replace(e, value=v) for e, v in zip(rest, rebuild((e.value for e in rest), rule), strict=True))
    return [Map(tuple(here)), *_parts(moved, lead, f"{name}'")]


def _met(equations: list[Equation], nodes: set[int]) -> list[Expr]:
    """Those of some nodes that the equations meet first, from above."""
    found: dict[Expr, None] = {}
    todo, seen = [e.value for e in equations], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in nodes:
            found[node] = None
        else:
            todo += node.args
    return list(found)


def _is_work(node: Expr, lead: tuple[str, ...]) -> bool:
    """A product of matrices, or what takes a loop."""
    wide = all(sum(a not in lead for a in x.axes) > 1 for x in node.args)
    return node.op.name in LOOPS or (node.op.name == "contract" and len(node.args) == 2 and wide and bool(_lost(node)))


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
