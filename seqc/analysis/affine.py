"""How a value depends on leaves where the op table says that the dependence is linear: its linear part, and the axes it mixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seqc.analysis.chain import Refusal
from seqc.analysis.components import Component, leaf
from seqc.analysis.terms import dependent
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, walk
from seqc.ir.rules import union

MIXED = 64  # the most entries that a transition may mix: it is composed as a dense matrix
PLAIN = ("contract", "broadcast", "add", "sub", "neg", "mul", "div", "where", "complex", "var")  # ops that tell no axis from another


def mixed_axes(roots: Iterable[Expr], leaves: Iterable[Expr]) -> set[str]:
    """The axes along which the roots are not elementwise in the leaves: summed, renamed, selected, shifted, ... on the way."""
    roots, found = tuple(roots), set[str]()
    reached = dependent(roots, leaves)
    for node in walk(*roots):
        if id(node) not in reached:
            continue
        if node.op.name == "contract":
            found |= {a for x in node.args for a in x.axes if a not in node.axes}
        elif node.op.name not in PLAIN:
            found |= _named(node.attr)
    return found


def _named(attr: object) -> set[str]:
    if isinstance(attr, tuple):
        return {name for part in attr for name in _named(part)}
    return {attr} if isinstance(attr, str) else set()


def linear_parts(roots: Iterable[Expr], seeds: Mapping[Expr, Expr | None]) -> list[Expr | None]:
    """What the roots add for the seeds in place of the leaves: root(leaf + seed) - root(leaf). None stands for zero.

    A seed may lack axes of its leaf in which nothing tells one entry from another, and have further ones. Raises Refusal
    where a root is not affine in the leaves together.
    """
    roots = tuple(roots)
    reached = dependent(roots, seeds)
    parts: dict[int, Expr | None] = {id(leaf): seed for leaf, seed in seeds.items()}
    for node in walk(*roots):
        if id(node) in reached and id(node) not in parts:
            parts[id(node)] = _part(node, reached, parts)
    return [parts.get(id(root)) for root in roots]


def _part(node: Expr, reached: set[int], parts: Mapping[int, Expr | None]) -> Expr | None:
    at = [i for i, a in enumerate(node.args) if id(a) in reached]
    linear = range(len(node.args)) if len(node.op.linear) > len(node.args) else node.op.linear
    if any(i not in linear for i in at) or (len(at) > 1 and not node.op.joint):
        raise Refusal(f"it passes through `{node.op.name}`", node)
    new = [parts[id(a)] if i in at else None for i, a in enumerate(node.args)]
    if all(p is None for p in new):
        return None
    if node.op.joint:
        pairs = enumerate(zip(node.args, new, strict=True))
        args = tuple((_zero(node, a) if i in linear else a) if p is None else p for i, (a, p) in pairs)
    else:
        args = tuple(a if p is None else p for a, p in zip(node.args, new, strict=True))
    value = _rebuilt(node, args)
    own = {x for i in at for x in node.args[i].axes}
    missing = tuple(a for a in node.axes if a not in own and a not in value.axes)  # what an addend without the leaf brings in
    return ops.broadcast(value, (*missing, *value.axes)) if missing else value


def _zero(node: Expr, like: Expr) -> Expr:
    """Zero as an addend; where parts are joined, as long as the part that it stands for."""
    return ops.broadcast(ops.number(0), like.axes) if node.op.name in ("concat", "append") else ops.number(0)


def _rebuilt(node: Expr, args: tuple[Expr, ...]) -> Expr:
    have, had = union(tuple(a.type for a in args)), union(tuple(a.type for a in node.args))
    match node.op.name:
        case "contract":
            return node.op.build(args, (*(a for a in have if a not in had), *(a for a in node.axes if a in have)))
        case "broadcast":
            return node.op.build(args, (*have, *(a for a in node.axes if a not in had and a not in have)))
        case "stack":
            return ops.stack(args, str(node.attr[0]))
        case "concat":
            new, joined = node.attr
            rest = tuple(dict.fromkeys(a for x, p in zip(args, joined, strict=True) for a in x.axes if a != p))
            return ops.concat([ops.broadcast(x, (p, *rest)) for x, p in zip(args, joined, strict=True)], new, joined)
    return node.op.build(args, node.attr)


@dataclass(frozen=True)
class Transition:
    """The linear part of several states' step, composed over tokens.

    Entry (i, j) says what state i holds of state j at the start of a stretch of tokens: S_i = entry . S_j over the axes of j
    that the step mixes, named with `~~` at the start's side; elementwise in the others. `start`: before the first token.
    `next`: after one token more, over the entries' leaves. `fixed`: entries that are the same at all tokens; they have no leaf.
    """

    mixed: dict[str, tuple[str, ...]]
    leaves: dict[tuple[str, str], Expr]
    start: dict[tuple[str, str], Expr]
    next: dict[tuple[str, str], Expr]
    fixed: dict[tuple[str, str], Expr]


def source(axis: str) -> str:
    """A mixed axis at the start of a stretch."""
    return f"{axis}~~"


def transition(states: Mapping[Expr, Expr]) -> Transition:
    """states: each leaf with its next value. Raises Refusal where a next value is not affine in them together."""
    names = {leaf.name: leaf for leaf in states}
    touched = mixed_axes(states.values(), states)
    mixed = {n: tuple(a for a in leaf.axes if a in touched) for n, leaf in names.items()}
    axes: dict[tuple[str, str], tuple[str, ...]] = {(n, n): (*mixed[n], *map(source, mixed[n])) for n in names}
    while True:
        leaves = {(i, j): ops.var(f"{i}.of.{j}" if i != j else f"{i}.keep", a) for (i, j), a in axes.items()}
        nexts: dict[tuple[str, str], Expr] = {}
        for j in names:
            parts = linear_parts(states.values(), {leaf: leaves.get((i, j)) for i, leaf in names.items()})
            nexts |= {(i, j): p for i, p in zip(names, parts, strict=True) if p is not None}
        wider = {ij: tuple(dict.fromkeys((*axes.get(ij, ()), *p.axes))) for ij, p in nexts.items()}
        if all(set(axes.get(ij, ("",))) == set(a) for ij, a in wider.items()):
            break
        axes |= wider
    start = {ij: ops.broadcast(_identity(mixed[ij[0]]) if ij[0] == ij[1] else ops.number(0), x.axes) for ij, x in leaves.items()}
    fixed = {ij: start[ij] for ij, x in leaves.items() if nexts.get(ij) is x}
    moving = {ij: x for ij, x in leaves.items() if ij not in fixed}
    known = {leaves[ij]: e for ij, e in fixed.items()}
    composed = substitute((nexts.get(ij, ops.number(0)) for ij in moving), known)
    return Transition(mixed, moving, {ij: start[ij] for ij in moving}, dict(zip(moving, composed, strict=True)), fixed)


def _identity(axes: tuple[str, ...]) -> Expr:
    return ops.contract([ops.eye(a, source(a)) for a in axes], (*axes, *map(source, axes))) if axes else ops.number(1)


def applied(t: Transition, entries: Mapping[tuple[str, str], Expr], states: Mapping[str, Expr], i: str, axes: tuple[str, ...]) -> Expr:
    """What state i holds of the states at the start of a stretch, as a value of the given axes."""
    total: Expr = ops.number(0)
    for (to, j), entry in {**t.fixed, **entries}.items():
        if to != i:
            continue
        start = ops.rename(states[j], {a: source(a) for a in t.mixed[j]})
        every = union((entry.type, start.type))
        share = ops.contract((entry, start), tuple(a for a in every if a not in map(source, t.mixed[j])))
        total = ops.add(total, share)
    return ops.broadcast(total, tuple(dict.fromkeys((*axes, *total.axes))))


def fitting(c: Component, sizes: Mapping[str, int]) -> Transition:
    """The component's transition. Raises Refusal if it is not affine or mixes too much."""
    names = " and ".join(f"`{n}`" for n in c.names)
    try:
        found = transition({leaf(s): s.next for s in c.states})
    except Refusal as r:
        raise Refusal(f"the update is not affine in {names}: {r.reason}", r.cause) from r
    for n, axes in found.mixed.items():
        total = 1
        for a in axes:
            total *= int(sizes.get(ops.base(a), MIXED + 1))
        if total > MIXED:
            s = next(s for s in c.states if s.name == n)
            along = ", ".join(f"`{a}`" for a in axes)
            raise Refusal(f"the update mixes the entries of `{n}` along {along}: its product over tokens is too large", s.next)
    return found
