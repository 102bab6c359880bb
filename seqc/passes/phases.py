"""Program -> Program: each Carry cut by dependence on the carried state into pre, carry and post.

Only what the next state needs, and depends on the last one, stays sequential. The rest is independent over the axis and
becomes a Map before (pre) or after (post), where one batched operation serves all steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk
from seqc.ir.program import Carry, Equation, Map, Program, Stage, body_roots, outer_of, scope
from seqc.passes.lift import lift

# Nodes that cost nothing where they are used: hoisting them would only write them to memory.
CHEAP = ("var", "const", "constant", "size", "iota", "eye", "rename", "broadcast", "neg")


class _Namer:
    def __init__(self, taken: Iterable[str]):
        self.taken = set(taken)

    def __call__(self, wanted: str) -> str:
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}{n}", n + 1
        self.taken.add(name)
        return name


def split(program: Program, hints: dict[Expr, str], *, post: tuple[str, ...]) -> Program:
    """Every Carry cut. `hints` names nodes for readers; post parts are cut off only for Carries along axes in `post`,
    since they need the state of every step in memory."""
    leaves = dict(scope(program))
    carried = [k.name for s in program.stages if isinstance(s, Carry) for k in s.carried]
    name = _Namer([*leaves, *carried, *(e.name for e in program.outputs)])
    stages: list[Stage] = []
    for stage in program.stages:
        if isinstance(stage, Carry):
            stages.extend(_cut(stage, leaves, hints, name, stage.axis in post))
        else:
            stages.append(stage)
        for s in stages:
            for e in s.equations:
                leaf = outer_of(e, s.axis) if isinstance(s, Carry) else ops.var(e.name, e.value.axes, e.value.type.dtype)
                leaves.setdefault(e.name, leaf)
    return prune(replace(program, stages=tuple(stages)))


def _cut(stage: Carry, leaves: dict[str, Expr], hints: dict[Expr, str], name: _Namer, post: bool) -> list[Stage]:
    axis = stage.axis
    state = {k.name for k in stage.carried}
    roots = body_roots(stage)
    bound = _reaching(roots, state)
    outside = {v: leaves[v.name] for v in variables(*roots) if v.name not in state}
    pre, table = _hoist(roots, len(stage.carried), bound, outside, axis, hints, name)
    whole = [e for e in stage.equations if id(e.value) not in bound]  # equations that never see the state
    lifted = lift((e.value for e in whole), outside)
    pre += [Equation(e.name, _stacked(v, axis, e.value), e.note) for e, v in zip(whole, lifted, strict=True)]
    rest = [e for e in stage.equations if id(e.value) in bound]
    new = substitute([*(k.next for k in stage.carried), *(e.value for e in rest)], table)
    nexts, values = new[: len(stage.carried)], new[len(stage.carried) :]
    _follow(hints, table, outside)
    carry = replace(stage, carried=tuple(replace(k, next=n) for k, n in zip(stage.carried, nexts, strict=True)))
    equations = [replace(e, value=v) for e, v in zip(rest, values, strict=True)]
    after: list[Equation] = []
    if post:
        equations, after = _postpone(equations, nexts, state, leaves, {e.name: e for e in pre}, axis, hints, name)
    out: list[Stage] = [Map(tuple(pre))] if pre else []
    out.append(replace(carry, equations=tuple(equations)))
    return out + ([Map(tuple(after))] if after else [])


def _follow(hints: dict[Expr, str], *tables: dict[Expr, Expr]) -> None:
    """The names of nodes, for what the nodes have become."""
    old = list(hints)
    for table in tables:
        for before, after in zip(old, lift(old, table), strict=True):
            hints.setdefault(after, hints[before])


def _reaching(roots: tuple[Expr, ...], names: set[str]) -> set[int]:
    """The nodes below which one of the named leaves occurs."""
    found: set[int] = set()
    for node in walk(*roots):
        if (node.op.name == "var" and node.name in names) or any(id(a) in found for a in node.args):
            found.add(id(node))
    return found


def _stacked(value: Expr, axis: str, inner: Expr) -> Expr:
    """A hoisted value with the axis in front, whether or not it varies along it."""
    return ops.broadcast(value, (axis, *inner.axes))


def _hoist(
    roots: tuple[Expr, ...], nexts: int, bound: set[int], outside: dict[Expr, Expr], axis: str, hints: dict[Expr, str], name: _Namer
) -> tuple[list[Equation], dict[Expr, Expr]]:
    """The largest subexpressions that do not see the state, as equations before the Carry, and what stands for them inside.

    The first `nexts` roots are next states: one that does not see the last state is such a subexpression as a whole.
    """
    frontier: dict[Expr, None] = {e: None for e in roots[:nexts] if id(e) not in bound}
    for node in walk(*roots):
        if id(node) in bound:
            frontier.update((a, None) for a in node.args if id(a) not in bound)
    worth = [_core(e) for e in frontier]
    worth = list(dict.fromkeys(e for e in worth if e.op.name not in CHEAP))
    lifted = lift(worth, outside)
    equations, table = [], {}
    for inner, value in zip(worth, lifted, strict=True):
        varies = axis in value.axes
        n = name(hints.get(inner, "pre"))
        equations.append(Equation(n, _stacked(value, axis, inner) if varies else ops.broadcast(value, inner.axes)))
        table[inner] = ops.var(n, inner.axes, inner.type.dtype)
    return equations, table


def _core(e: Expr) -> Expr:
    """The node below renames and signs, which cost nothing inside."""
    while e.op.name in ("rename", "broadcast", "neg"):
        e = e.args[0]
    return e


def _postpone(
    equations: list[Equation], nexts: tuple[Expr, ...], state: set[str], leaves: dict[str, Expr], pre: dict[str, Equation],
    axis: str, hints: dict[Expr, str], name: _Namer,
) -> tuple[list[Equation], list[Equation]]:  # fmt: skip
    """Equations moved behind the Carry: it emits only the states and values that they share with the next state."""
    needed = _reaching(nexts, state)
    needed_order = {id(n) for n in walk(*nexts)} & needed
    emitted: dict[Expr, Expr] = {}
    kept: list[Equation] = []
    names = {e.value: e.name for e in reversed(equations)}
    for node in walk(*(e.value for e in equations)):
        shared = id(node) in needed_order and node.op.name not in ("rename", "neg", "broadcast")
        if shared or (node.op.name == "var" and node.name in state):
            wanted = f"{node.name}_start" if node.op.name == "var" else hints.get(node, "kept")
            e = Equation(names[node] if node in names else name(wanted), node)
            kept.append(e)
            emitted[node] = outer_of(e, axis)
    read = [v for v in variables(*(e.value for e in equations)) if v.name not in state]
    along = {n for n, e in pre.items() if axis in e.value.axes}
    outer = {v: ops.var(v.name, (axis, *v.axes), v.type.dtype) if v.name in along else leaves.get(v.name, v) for v in read}
    done = {e.name for e in kept}
    equations = [e for e in equations if e.name not in done]
    lifted = lift((e.value for e in equations), {**outer, **emitted})
    _follow(hints, {**outer, **emitted})
    after = [Equation(e.name, _stacked(v, axis, e.value), e.note) for e, v in zip(equations, lifted, strict=True)]
    return kept, after


def prune(program: Program) -> Program:
    """The program without equations, carried values and stages that no output needs."""
    live = {v.name for v in variables(*(e.value for e in program.outputs))}
    stages: list[Stage] = []
    for stage in reversed(program.stages):
        if isinstance(stage, Map):
            equations = tuple(e for e in stage.equations if e.name in live)
            live |= {v.name for v in variables(*(e.value for e in equations))}
            if equations:
                stages.append(Map(equations))
            continue
        equations = tuple(e for e in stage.equations if e.name in live)
        wanted = {k.name for k in stage.carried if k.final in live} | {v.name for v in variables(*(e.value for e in equations))}
        while True:
            grown = wanted | {v.name for k in stage.carried if k.name in wanted for v in variables(k.next)}
            if grown == wanted:
                break
            wanted = grown
        carried = tuple(k for k in stage.carried if k.name in wanted)
        kept = replace(stage, carried=carried, equations=equations)
        live |= {v.name for v in variables(*body_roots(kept), *(k.init for k in carried))}
        if carried or equations:
            stages.append(kept)
    return replace(program, stages=tuple(reversed(stages)))
