"""Program -> Program: each Carry cut by dependence on the carried state into pre, carry and post.

Only what the next state needs, and depends on the last one, stays sequential. The rest is independent over the axis and
becomes a Map before (pre) or after (post), where one batched operation serves all steps. What is computed after a Carry from
the states of every step needs these in memory: along tokens, post takes only what that makes no larger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk
from seqc.ir.lift import lift
from seqc.ir.program import (
    BATCH,
    LEAD,
    Carry,
    Equation,
    Map,
    Program,
    Solve,
    Stage,
    body_roots,
    defined,
    names,
    outer_of,
    roots,
    scope,
    within,
)

# Nodes that cost nothing where they are used: hoisting them would only write them to memory.
CHEAP = ("var", "const", "constant", "size", "iota", "eye", "rename", "broadcast", "neg")
FREE = ("rename", "neg", "broadcast")  # of CHEAP, those that have arguments


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
    """Every Carry cut. `hints` names nodes for readers; for Carries along axes in `post` all that the next state does not need is
    cut off, for others what takes no more memory."""
    stages = _split(program.stages, dict(scope(program)), hints, _Namer(names(program)), post)
    return prune(_summed_at_once(replace(program, stages=tuple(stages))))


def _split(stages: tuple[Stage, ...], leaves: dict[str, Expr], hints: dict[Expr, str], name: _Namer, post: tuple[str, ...]) -> list[Stage]:
    """leaves: what is named outside; what the new stages name is added."""
    out: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Carry):
            new = _cut(stage, leaves, hints, name, stage.axis in post)
        elif isinstance(stage, Solve):
            new = [replace(stage, steps=tuple(_split(stage.steps, {**leaves, **within(stage)}, hints, name, post)))]
        else:
            new = [stage]
        leaves.update((leaf.name, leaf) for s in new for leaf in defined(s))
        out += new
    return out


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
    leaving = equations if post else _leaving(equations, nexts, state)
    apart = [e for e in equations if e not in leaving]
    equations, after = _postpone(leaving, apart, nexts, state, leaves, {e.name: e for e in pre}, axis, hints, name)
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
    while e.op.name in FREE:
        e = e.args[0]
    return e


def _leaving(equations: list[Equation], nexts: tuple[Expr, ...], state: set[str]) -> list[Equation]:
    """The equations that the next state does not need and that a Map computes from values that take no more memory than they do: from
    what the Carry emits anyway, from values of fewer axes, or from fewer values than it has operations. Where sequences are summed (a
    weight's gradient), as many axes will do."""
    bound = _reaching((*nexts, *(e.value for e in equations)), state)
    path = {id(n) for n in walk(*nexts)} & bound
    emitted = {id(e.value) for e in equations if id(e.value) in path or e.value.op.name == "var"}
    found = []
    for e in equations:
        if id(e.value) in emitted:
            continue
        new, work = _sources(e.value, bound, path, emitted)
        own, axes = _inner(e.value), [_inner(n) for n in new]
        summed = BATCH not in e.value.axes and all(len(a) <= len(own) for a in axes)
        if summed or all(a < own for a in axes) or (len(new) < work and all(a <= own for a in axes)):
            found.append(e)
            emitted |= {id(n) for n in new}
    return found


def _inner(e: Expr) -> set[str]:
    return set(e.axes) - set(LEAD)


def _sources(value: Expr, bound: set[int], path: set[int], emitted: set[int]) -> tuple[list[Expr], int]:
    """What a value off the path needs of it and is not emitted yet, and the number of operations from there."""
    new: dict[Expr, None] = {}
    seen: set[int] = set()
    work, todo = 0, [value]
    while todo:
        node = todo.pop()
        if id(node) in seen or id(node) not in bound or id(node) in emitted:
            continue
        seen.add(id(node))
        if node.op.name == "var" or (id(node) in path and node.op.name not in FREE):
            new[node] = None
            continue
        work += node.op.name not in CHEAP
        todo.extend(node.args)
    return list(new), work


def _postpone(
    equations: list[Equation], apart: list[Equation], nexts: tuple[Expr, ...], state: set[str], leaves: dict[str, Expr],
    pre: dict[str, Equation], axis: str, hints: dict[Expr, str], name: _Namer,
) -> tuple[list[Equation], list[Equation]]:  # fmt: skip
    """What the Carry emits, and equations moved behind it: it emits the states and values that they share with the next state, and
    the equations that are set apart."""
    needed = _reaching(nexts, state)
    needed_order = {id(n) for n in walk(*nexts)} & needed
    emitted = {e.value: outer_of(e, axis) for e in apart}
    kept = list(apart)
    names = {e.value: e.name for e in reversed(equations)}
    for node in walk(*(e.value for e in equations)):
        shared = id(node) in needed_order and node.op.name not in FREE
        if node not in emitted and (shared or (node.op.name == "var" and node.name in state)):
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


def _summed_at_once(program: Program) -> Program:
    """A product that a Map names for one sum alone is formed inside the sum, and never written out."""
    products = {e.name: e.value for s in program.stages if isinstance(s, Map) for e in s.equations if e.value.op.name == "contract"}
    read = [*(r for s in program.stages for r in roots(s)), *(e.value for e in program.outputs)]
    uses = Counter(a.name for n in walk(*read) for a in n.args if a.op.name == "var")
    uses.update(r.name for r in read if r.op.name == "var")
    table = {}
    for node in walk(*(e.value for e in program.outputs)):
        inner = products.get(node.args[0].name) if node.op.name == "contract" and node.args[0].op.name == "var" else None
        if inner is not None and len(node.args) == 1 and len(inner.args) > 1 and uses[node.args[0].name] == 1:
            table[node] = ops.contract(inner.args, node.axes)
    values = substitute((e.value for e in program.outputs), table)
    return replace(program, outputs=tuple(replace(e, value=v) for e, v in zip(program.outputs, values, strict=True)))


def prune(program: Program) -> Program:
    """The program without equations, carried values and stages that no output needs."""
    live = {v.name for v in variables(*(e.value for e in program.outputs))}
    return replace(program, stages=_live(program.stages, live))


def _live(stages: tuple[Stage, ...], live: set[str]) -> tuple[Stage, ...]:
    """What of the stages names something in `live`; what that reads is added there."""
    out: list[Stage] = []
    for stage in reversed(stages):
        kept: Stage | None
        if isinstance(stage, Map):
            equations = tuple(e for e in stage.equations if e.name in live)
            kept = Map(equations) if equations else None
        elif isinstance(stage, Carry):
            kept = _live_carry(stage, live)
        else:
            kept = _live_solve(stage) if any(u.name in live for u in stage.unknowns) else None
        if kept is not None:
            live |= {v.name for v in variables(*roots(kept))}
            out.append(kept)
    return tuple(reversed(out))


def _live_carry(stage: Carry, live: set[str]) -> Carry | None:
    equations = tuple(e for e in stage.equations if e.name in live)
    wanted = {k.name for k in stage.carried if k.final in live} | {v.name for v in variables(*(e.value for e in equations))}
    while True:
        grown = wanted | {v.name for k in stage.carried if k.name in wanted for v in variables(k.next)}
        if grown == wanted:
            break
        wanted = grown
    carried = tuple(k for k in stage.carried if k.name in wanted)
    return replace(stage, carried=carried, equations=equations) if carried or equations else None


def _live_solve(stage: Solve) -> Solve:
    """All unknowns belong together; of an iteration what they need."""
    live = {u.residual for u in stage.unknowns} | {v.name for v in variables(*(u.step for u in stage.unknowns))}
    steps = _live(stage.steps, live)
    residuals = tuple(m for m in _live(stage.residuals, live) if isinstance(m, Map))
    return replace(stage, residuals=residuals, steps=steps)
