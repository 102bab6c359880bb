"""Program -> launches: which programs of a grid compute which equations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from seqc.backends.triton.cuts import Cuts, cut, decayed_kind, expanded, is_work, lost, made_before, sunk, words
from seqc.backends.triton.loops import mixed, summed_later
from seqc.backends.triton.micro import apart_in, in_rows, is_leaf, rows_of
from seqc.backends.triton.micro import nodes as tiles
from seqc.backends.triton.parts import parts
from seqc.backends.triton.scales import scaled
from seqc.backends.triton.wide import DIMENSIONS, is_wide, moved_apart, moves, summed_inside
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, walk
from seqc.ir.program import (
    BATCH,
    CHUNKS,
    LEAD,
    TOKENS,
    Carry,
    Equation,
    Map,
    Program,
    Solve,
    Stage,
    Unknown,
    changed,
    defined,
    roots,
)
from seqc.ir.rules import union
from seqc.passes.binary import binary_program, one_system_at_a_time
from seqc.passes.phases import prune


@dataclass(frozen=True)
class Launch:
    """One kernel: a program for each index of the axes of `grid`. loop: the Carry that it walks; else it has equations only.

    lead: the axes of which a value is seen at one index at a time; others are dimensions of tiles. place: what is counted through all
    sequences, chunks or tokens. folded: values that are computed where they are read. behind: equations over what the loop stacks, with
    the loop's axis, that it computes at each step; held: what the loop stacks for them alone, and does not write. split: axes of tiles
    whose blocks are programs of their own. walked: axes of tiles that a program goes through block by block, adding up what is summed
    over them.
    """

    name: str
    grid: tuple[str, ...]
    lead: tuple[str, ...]
    place: str
    loop: Carry | None
    equations: tuple[Equation, ...]
    folded: Mapping[str, Expr]
    behind: tuple[Equation, ...] = ()
    held: frozenset[str] = frozenset()
    split: tuple[str, ...] = ()
    walked: tuple[str, ...] = ()

    @property
    def values(self) -> list[Expr]:
        """What it computes, and what it computes rather than reads."""
        loop = [v for k in self.loop.carried for v in (k.init, k.next)] if self.loop else []
        return expanded([*loop, *(e.value for e in (*self.equations, *self.behind))], self.folded)


@dataclass(frozen=True)
class Iteration:
    """Launches that are repeated until they add nothing: `found` has for each unknown its name and those of its first value, of what is
    left of its equation and of what is added to it."""

    found: tuple[tuple[str, str, str, str], ...]
    launches: tuple[Launch, ...]


def leading(chunked: bool) -> tuple[str, ...]:
    """The axes of which a program sees one index at a time, never a tile: without chunks, tokens too."""
    return LEAD if chunked else (TOKENS, *LEAD)


def launches(program: Program, lead: tuple[str, ...]) -> tuple[Program, tuple[Launch | Iteration, ...]]:
    """The program with products of two factors and iterations spelled out, and its launches in order. Raises Refusal for what has none."""
    program = prune(scaled(in_rows(binary_program(one_system_at_a_time(program))), lead))
    every_head, collected = _collected_later([replace(e, name=result(e.name)) for e in copied(program)])
    here, summed = _places_apart(every_head, lead)
    outputs = frozenset(result(e.name) if e in copied(program) else e.value.name for e in program.outputs)
    made = {e.name for e in (*here, *summed)}
    named = outputs | made & {n.name for n in walk(*(e.value for e in (*summed, *collected))) if n.op.name == "var"}
    every = sunk(_solved_once([*program.stages, *(Map(es) for es in (here, summed, collected) if es)]), named, lead)
    stages = _prepared(moved_apart(summed_inside(every, lead), lead), lead, "@part")
    kept = {_first(u) for s in stages if isinstance(s, Solve) for u in s.unknowns}
    cuts = cut(stages, named | kept, lead)
    values = {e.value: e.name for s in program.stages if isinstance(s, Map) for e in s.equations}
    if (before := made_before(stages, cuts, lead, values)) != stages:
        stages = _needed(before, named | kept)
        cuts = cut(stages, named | kept, lead)
    found, count = list[Launch | Iteration](), 0
    for i, stage in enumerate(cuts.stages):
        if isinstance(stage, Solve):
            inner = [x for s in stage.steps for x in _launches(program.name, s, lead, count, cuts)]
            inner = [replace(x, name=f"{program.name}_{count + i + 1}") for i, x in enumerate(inner)]
            found.append(Iteration(tuple((u.name, _first(u), u.residual, _step(u)) for u in stage.unknowns), tuple(inner)))
            count += len(inner)
        else:
            found += (own := _launches(program.name, stage, lead, count, cuts, cuts.behind.get(i, ())))
            count += len(own)
    return replace(program, stages=tuple(stages)), tuple(found)


def _solved_once(stages: list[Stage]) -> list[Stage]:
    """The stages with a name for each solution that several Maps need, in a Map before the first of them: a system costs more than what
    it is solved for."""
    found, table = list[Stage](), dict[Expr, Expr]()
    systems = [{n for n in walk(*roots(s)) if n.op.name == "solve"} if isinstance(s, Map) else set() for s in stages]
    for i, s in enumerate(stages):
        if isinstance(s, Map):
            later = {n for some in systems[i + 1 :] for n in some} - {*table}
            for n in (n for n in walk(*roots(s)) if n in systems[i] & later):
                (value,) = substitute((n,), table)
                table[n] = ops.var(f"@solved{len(table)}", n.axes)
                found.append(Map((Equation(f"@solved{len(table) - 1}", value),)))
            s = changed(s, partial(substitute, replacements=table))
        found.append(s)
    return found


def _needed(stages: list[Stage], named: frozenset[str] | set[str]) -> list[Stage]:
    """The stages without equations of Maps that nothing reads any more."""
    found, read = list[Stage](), set(named)
    for s in reversed(stages):
        left = Map(tuple(e for e in s.equations if e.name in read)) if isinstance(s, Map) else s
        read |= {n.name for n in walk(*roots(left)) if n.op.name == "var"}
        found.append(left)
    return found[::-1]


def flat(found: Iterable[Launch | Iteration]) -> list[Launch]:
    """All launches, those of an iteration once."""
    return [x for f in found for x in (f.launches if isinstance(f, Iteration) else [f])]


def _prepared(stages: Iterable[Stage], lead: tuple[str, ...], name: str) -> list[Stage]:
    """Sums behind loops, Maps with few products, and iterations with what begins them before and what is added at their end."""
    found: list[Stage] = []
    for s in summed_later(stages, lead):
        here = f"{name}{len(found)}"
        if isinstance(s, Map):
            found = _with(found, parts(s.equations, lead, here), lead)
        elif isinstance(s, Solve):
            found.append(Map(tuple(Equation(_first(u), u.guess) for u in s.unknowns)))
            added = Map(tuple(Equation(_step(u), u.step) for u in s.unknowns))
            found.append(replace(s, residuals=(), steps=tuple(_prepared((*s.residuals, *s.steps, added), lead, f"{here}'"))))
        else:
            found.append(s)
    return found


def _with(found: list[Stage], more: list[Map], lead: tuple[str, ...]) -> list[Stage]:
    """Stages and more of them; a Map that needs nothing of a Map before it, and has no more products with it than a kernel may have, in
    one with that."""
    last, (first, *rest) = found[-1] if found else None, more
    if isinstance(last, Map) and not {e.name for e in last.equations} & {n.name for n in walk(*roots(first)) if n.op.name == "var"}:
        both = (*last.equations, *first.equations)
        grids = [{_lead(e.value, lead) for e in m.equations} for m in (last, first)]
        apart = any(moves(e.value, lead) for e in last.equations) != any(moves(e.value, lead) for e in first.equations)
        if not apart and not grids[0].isdisjoint(grids[1]) and len(parts(both, lead, "")) == 1:
            return [*found[:-1], Map(both), *rest]
    return [*found, *more]


def _first(u: Unknown) -> str:
    return f"{u.name}@first"


def _step(u: Unknown) -> str:
    return f"{u.name}@step"


def _launches(
    name: str, stage: Stage, lead: tuple[str, ...], before: int, cuts: Cuts, behind: tuple[Equation, ...] = ()
) -> list[Launch]:  # fmt: skip
    if isinstance(stage, Map):
        return [_cut(_thinned(x)) for x in _grids(name, stage.equations, lead, before, cuts.folded)]
    assert isinstance(stage, Carry)
    values = [v for k in stage.carried for v in (k.init, k.next)] + [e.value for e in stage.equations]
    axes = union(tuple(v.type for v in values))
    own = tuple(a for a in lead if a not in mixed(stage, lead))
    grid = tuple(a for a in own if a in axes and a != stage.axis)
    read = {n.name for s in cuts.stages if s is not stage for n in walk(*expanded(roots(s), cuts.folded)) if n.op.name == "var"}
    held = frozenset(e.name for e in stage.equations if behind) - cuts.outputs - read
    return [_cut(_thinned(Launch(f"{name}_{before + 1}", grid, own, lead[0], stage, stage.equations, cuts.folded, behind, held)))]


def copied(program: Program) -> list[Equation]:
    """Outputs that no stage makes for them alone: expressions, arguments handed through, a value given twice."""
    made, found = {leaf.name for s in program.stages if not isinstance(s, Solve) for leaf in defined(s)}, []
    for e in program.outputs:
        if e.value.op.name == "var" and e.value.name in made:
            made.remove(e.value.name)
        else:
            found.append(e)
    return found


def _cut(launch: Launch) -> Launch:
    """The launch with those axes of the text in blocks along which nothing happens but sums; tokens too, where tiles have three axes.

    Where nothing is summed and all that is work has the axis, blocks are programs. Else one program walks along it; not in a loop,
    whose state stays in registers whole.
    """
    nodes = list(tiles(launch.values))
    texts = dict.fromkeys(a for n in nodes for a in _tile(n, launch) if not a.startswith("@"))
    systems = any(n.op.name == "solve" and TOKENS in n.axes for n in nodes)  # one for every token, in a loop over all of them
    if launch.loop is None and not systems and any(TOKENS in _tile(n, launch) and is_wide(n, launch.lead) for n in nodes):
        texts |= {TOKENS: None}
    for axis in texts:
        if all(_passes(n, axis, launch.lead) for n in nodes):
            work = [n for n in nodes if is_work(n, launch.lead)]
            if launch.loop is not None or all(axis in n.axes for n in work):
                launch = replace(launch, split=(*launch.split, axis))
                continue
        if launch.loop is None and all(_passes(n, axis, launch.lead) or _is_sum(n, axis, launch.lead) for n in nodes):
            launch = replace(launch, walked=(*launch.walked, axis))
    return launch


def _thinned(launch: Launch) -> Launch:
    """The launch with axes along which nothing happens in its grid, until no value has more than two dimensions or none is left."""
    values = launch.values
    rows = {a for v in values if rows_of(v) is not v for a in apart_in(v)[0]}  # every program of such an axis would write all of them
    while True:
        nodes = list(tiles(values))
        if max((len(_tile(n, launch)) for n in nodes), default=0) <= DIMENSIONS:
            return launch
        free = [a for a in dict.fromkeys(a for v in values for a in _tile(v, launch)) if a not in rows and _one_by_one(launch, a)]
        if not free:
            return launch
        launch = replace(launch, grid=(*launch.grid, free[0]), lead=(*launch.lead, free[0]))


def _tile(node: Expr, launch: Launch) -> list[str]:
    return [a for a in node.axes if a not in launch.lead]


def _is_sum(node: Expr, axis: str, lead: tuple[str, ...]) -> bool:
    """Whether all that a node does along an axis is to sum."""
    sums = node.op.name == "contract" or (node.op.name == "decayed" and decayed_kind(node, lead) == "gram")
    return sums and axis not in node.axes


def _one_by_one(launch: Launch, axis: str) -> bool:
    """Whether all values have an axis and nothing happens along it, nor along what its other names were: what a loop carries has none."""
    values, lead = launch.values, launch.lead

    def allows(node: Expr) -> bool:
        renamed = node.op.name == "rename" and not launch.loop and (axis in node.axes or axis not in node.args[0].axes)
        return renamed or _is_free(node, axis, lead)

    if any(axis not in v.axes for v in values) or not all(map(allows, tiles(values))):
        return False
    todo, seen = [(rows_of(v), axis) for v in values], set[tuple[Expr, str]]()
    while todo:
        node, a = todo.pop()
        if (node, a) in seen:
            continue
        seen.add((node, a))
        if node.op.name == "var" and node.name in launch.folded:
            todo.append((launch.folded[node.name], a))
        elif node.op.name == "rename" and not is_leaf(node):
            todo.append((node.args[0], next((old for old, new in node.attr if new == a), a)))
        elif not is_leaf(node):
            if not _is_free(node, a, lead):
                return False
            todo += [(x, a) for x in node.args if a in x.axes]
    return True


def _passes(node: Expr, axis: str, lead: tuple[str, ...]) -> bool:
    """Whether a node does nothing along an axis and has no other of its length."""
    return not any(b != axis and ops.base(axis) in ops.base(b).split("*") for b in node.axes) and _is_free(node, axis, lead)


def _is_free(node: Expr, axis: str, lead: tuple[str, ...]) -> bool:
    """Whether a node does nothing along an axis."""
    if node.op.name == "decayed" and decayed_kind(node, lead):
        return axis in node.axes and axis not in words(node.attr[1])
    if node.op.name == "strict_solve":
        mask, _, rule, _ = node.attr
        return axis in node.axes and axis not in words(mask) and all(_passes(n, axis, lead) for n in walk(rule))
    own = node.attr[0] if node.op.name in ("convolve", "correlate") else node.attr
    if node.op.name not in ("var", "contract", "broadcast", "size") and axis in words(own):
        return False
    return axis in node.axes or not any(axis in x.axes for x in node.args)


def _collected_later(equations: list[Equation]) -> tuple[tuple[Equation, ...], tuple[Equation, ...]]:
    """Sums over the heads of a group as values of every head, and the sums: there is nothing to do for them where a group has one head."""
    here, sums = list[Equation](), list[Equation]()
    for e in equations:
        parts = e.value.args if e.value.op.name == "add" else (e.value,)
        if all(x.op.name == "collect" and x.attr == parts[0].attr for x in parts):
            values = [x.args[0] for x in parts]
            each = Equation(apart(e.name), values[0] if len(values) == 1 else ops.add(values[0], values[1]))
            here.append(each)
            sums.append(replace(e, value=ops.collect(ops.var(each.name, each.value.axes, each.value.type.dtype), *parts[0].attr)))
        else:
            here.append(e)
    return tuple(here), tuple(sums)


def _places_apart(equations: Iterable[Equation], lead: tuple[str, ...]) -> tuple[tuple[Equation, ...], tuple[Equation, ...]]:
    """Sums over rows and chunks with those of each chunk apart, which kernels of all chunks find beside other values; one program for all
    would read everything again. Only where what a chunk adds is a number, or a row of them."""
    here, sums = list[Equation](), list[Equation]()
    for e in equations:
        found = [n for n in walk(e.value) if n.op.name == "contract" and {CHUNKS, BATCH} <= {*lost(n)} and len(_free(n, lead)) <= 1]
        if TOKENS in lead or not found or len(_free(e.value, lead)) > 1:
            here.append(e)
            continue
        table = dict[Expr, Expr]()
        for i, n in enumerate(found):
            gone = tuple(a for a in lost(n) if a in lead)
            each = Equation(f"{apart(e.name)}{i or ''}", ops.contract(n.args, (*gone, *n.axes)))
            here.append(each)
            table[n] = ops.contract((ops.var(each.name, each.value.axes),), n.axes)
        sums.append(replace(e, value=substitute((e.value,), table)[0]))
    return tuple(here), tuple(sums)


def _free(e: Expr, lead: tuple[str, ...]) -> list[str]:
    return [a for a in e.axes if a not in lead]


def result(name: str) -> str:
    """The name of a tensor that holds an output which no stage names."""
    return f"@out.{name}"


def apart(name: str) -> str:
    """The name of a result's values of every head, which the result sums."""
    return f"{name}@each"


def _grids(name: str, equations: tuple[Equation, ...], lead: tuple[str, ...], before: int, folded: Mapping[str, Expr]) -> list[Launch]:
    """Independent equations, one launch for each set of leading axes."""
    groups: dict[tuple[str, ...], list[Equation]] = {}
    for e in equations:
        groups.setdefault(_lead(e.value, lead), []).append(e)
    return [Launch(f"{name}_{before + i + 1}", grid, lead, lead[0], None, tuple(es), folded) for i, (grid, es) in enumerate(groups.items())]


def _lead(e: Expr, lead: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in lead if a in e.axes)
