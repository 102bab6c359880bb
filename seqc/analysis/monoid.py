"""States that are folded by an associative operator: what one token contributes is an element, and elements are joined in any grouping.

A state folded by a line of the text is its own element, joined by the line's operator. A state m whose step is a clipped affine map,

    m -> min(max(a m + g, low), high)    a >= 0, elementwise, a, g, low, high without m,

has the map as its element: such maps are closed under composition, and where a is one and g is zero, or an end is missing, they
stay so. Running maxima and minima, decayed peaks, max-plus sums and counters that saturate are among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from seqc.analysis.bounds import bounds
from seqc.analysis.components import Component, components, leaf
from seqc.analysis.terms import dependent
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk
from seqc.ir.recurrence import Fold, Recurrence, State


@dataclass(frozen=True)
class Monoid:
    """Elements as parts by name, each with the axes and the scope of the state whose name comes first in `of`.

    given: a token's element, over the token's leaves. left, right: leaves for the parts of two elements. joined: those of left and
    then right. acted: each state after the element `right`, over the states' own leaves.
    """

    states: tuple[State, ...]
    of: dict[str, State]
    given: dict[str, Expr]
    left: dict[str, Expr]
    right: dict[str, Expr]
    joined: dict[str, Expr]
    acted: dict[str, Expr]
    words: str


# --- Folds of the text -----------------------------------------------------------------------------------------


def together(rec: Recurrence) -> tuple[tuple[Fold, ...], ...]:
    """The claimed folds, those that are one operator in one group: they read each other's states or operands."""
    groups: list[list[Fold]] = []
    for f in (f for f in rec.folds if f.order == "claimed"):
        read = {v.name for v in variables(f.operator)}
        near = [g for g in groups if any({h.state, h.leaf.name} & read for h in g)]
        groups = [g for g in groups if g not in near] + [[h for g in near for h in g] + [f]]
    return tuple(tuple(g) for g in groups)


def declared(rec: Recurrence, folds: tuple[Fold, ...]) -> Monoid | None:
    """The group's monoid, if its states do nothing else in a token, and no operand depends on them."""
    states = {f.state: next(s for s in rec.states if s.name == f.state) for f in folds}
    operands = {f.leaf: ops.broadcast(f.operand, f.leaf.axes) for f in folds}
    for f in folds:
        s = states[f.state]
        (value,) = substitute((f.operator,), operands)
        if len(folds) > len(states) or ops.broadcast(value, s.axes) is not ops.broadcast(s.next, s.axes):
            return None
        if _behind(rec, f.operand) & set(states):
            return None
    left = {f.state: leaf(states[f.state]) for f in folds}
    joined = {f.state: ops.broadcast(f.operator, states[f.state].axes) for f in folds}
    return Monoid(
        tuple(states.values()), states, {f.state: f.operand for f in folds}, left, {f.state: f.leaf for f in folds}, joined, joined,
        "folded by an associative operator, certified in the prime field",
    )  # fmt: skip


def _behind(rec: Recurrence, value: Expr) -> set[str]:
    """The states that a value depends on, through others too."""
    nexts = {s.name: s.next for s in rec.states}
    found: set[str] = set()
    stack = [value]
    while stack:
        new = {v.name for v in variables(stack.pop())} & nexts.keys() - found
        found |= new
        stack += [nexts[n] for n in new]
    return found


# --- Clipped affine maps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clipped:
    """min(max(slope * m + offset, low), high); None for an end that is not there."""

    slope: Expr
    offset: Expr
    low: Expr | None
    high: Expr | None


def clipped(rec: Recurrence, s: State, sizes: Mapping[str, int]) -> Monoid | None:
    """The monoid of a state whose step is a clipped affine map with a slope of at least 0."""
    domains = {i.name: i.domain for i in rec.inputs}
    found = _map(s.next, leaf(s), lambda e: bounds(e, domains, sizes)[:2])
    if found is None or bounds(found.slope, domains, sizes)[0] < 0 or (found.low is None and found.high is None):
        return None
    own = {"slope": found.slope, "offset": found.offset, "low": found.low, "high": found.high}
    neutral = {"slope": ops.number(1), "offset": ops.number(0)}
    names = {word: f"{s.name}.{word}" for word, e in own.items() if e is not None and e is not neutral.get(word)}

    def leaves(side: str) -> dict[str, Expr | None]:
        return {w: ops.var(f"{names[w]}@{side}", s.axes) if w in names else own[w] for w in own}

    left, right = leaves("left"), leaves("right")
    joined = _then(_clip(left), _clip(right))
    after = _at(_clip(right), leaf(s))
    parts = {"slope": joined.slope, "offset": joined.offset, "low": joined.low, "high": joined.high}

    def picked(table: Mapping[str, Expr | None]) -> dict[str, Expr]:
        return {names[w]: ops.broadcast(e, s.axes) for w, e in table.items() if w in names and e is not None}

    of, acted = dict.fromkeys(names.values(), s), {s.name: ops.broadcast(after, s.axes)}
    return Monoid((s,), of, picked(own), picked(left), picked(right), picked(parts), acted, "clipped affine, elementwise")


def _clip(parts: Mapping[str, Expr | None]) -> Clipped:
    slope, offset = parts["slope"], parts["offset"]
    assert slope is not None and offset is not None
    return Clipped(slope, offset, parts["low"], parts["high"])


def _at(f: Clipped, m: Expr) -> Expr:
    value = ops.add(ops.mul(f.slope, m), f.offset)
    value = value if f.low is None else ops.maximum(value, f.low)
    return value if f.high is None else ops.minimum(value, f.high)


def _scaled(f: Clipped, by: Expr, plus: Expr) -> Clipped:
    """by f + plus, for by >= 0."""

    def moved(e: Expr) -> Expr:
        return ops.add(ops.mul(by, e), plus)

    low, high = (None if e is None else moved(e) for e in (f.low, f.high))
    return Clipped(ops.mul(by, f.slope), moved(f.offset), low, high)


def _negated(f: Clipped) -> Clipped:
    """-f. The ends trade places, which is right because low <= high: every step that sets one moves the other along."""
    low, high = (None if e is None else ops.neg(e) for e in (f.high, f.low))
    return Clipped(ops.neg(f.slope), ops.neg(f.offset), low, high)


def _above(f: Clipped, e: Expr) -> Clipped:
    """max(f, e)"""
    low = e if f.low is None else ops.maximum(f.low, e)
    return Clipped(f.slope, f.offset, low, None if f.high is None else ops.maximum(f.high, e))


def _then(f: Clipped, g: Clipped) -> Clipped:
    """g after f."""
    found = _scaled(f, g.slope, g.offset)
    found = found if g.low is None else _above(found, g.low)
    return found if g.high is None else _negated(_above(_negated(found), ops.neg(g.high)))


def _map(root: Expr, m: Expr, bound: Callable[[Expr], tuple[float, float]]) -> Clipped | None:
    """The value as a clipped affine map of the leaf, if its ops say so. bound: the least and the largest of a value without it."""
    sees = dependent((root,), (m,))
    if id(root) not in sees:
        return None
    found: dict[int, Clipped | None] = {id(m): Clipped(ops.number(1), ops.number(0), None, None)}
    for node in walk(root):
        if id(node) in sees and id(node) not in found:
            maps = [found[id(a)] if id(a) in sees else a for a in node.args]
            found[id(node)] = None if None in maps or set(node.axes) != set(m.axes) else _node(node.op.name, maps, bound)
    return found[id(root)]


def _node(op: str, args: Sequence[Clipped | Expr | None], bound: Callable[[Expr], tuple[float, float]]) -> Clipped | None:
    match op, *args:
        case "broadcast", Clipped() as f:
            return f
        case "neg", Clipped() as f:
            return _negated(f)
        case "relu", Clipped() as f:
            return _above(f, ops.number(0))
        case ("maximum", Clipped() as f, Expr() as e) | ("maximum", Expr() as e, Clipped() as f):
            return _above(f, e)
        case "sub", (Clipped() | Expr()) as other, Clipped() as f:
            return _node("add", (other, _negated(f)), bound)
        case ("add", Clipped() as f, Expr() as e) | ("add", Expr() as e, Clipped() as f):
            return _scaled(f, ops.number(1), e)
        case "sub", Clipped() as f, Expr() as e:
            return _scaled(f, ops.number(1), ops.neg(e))
        case "add", Clipped(a, b, None, None), Clipped(c, d, None, None):
            return Clipped(ops.add(a, c), ops.add(b, d), None, None)
        case "div", Clipped() as f, Expr() as e:
            return _node("mul", (f, ops.div(ops.number(1), e)), bound)
        case ("mul", Clipped() as f, Expr() as e) | ("mul", Expr() as e, Clipped() as f):
            low, high = bound(e)
            if low >= 0:
                return _scaled(f, e, ops.number(0))
            return _negated(_scaled(f, ops.neg(e), ops.number(0))) if high <= 0 else None
    return None


def monoid(rec: Recurrence, c: Component, sizes: Mapping[str, int]) -> Monoid | None:
    """The monoid that a component's states are folded with, if its steps show one."""
    return clipped(rec, c.states[0], sizes) if len(c.states) == 1 and c.kind == "coupled" else None


Part = Component | Monoid


def parts(rec: Recurrence, sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """All groups of states, those that are folded together as one, in an order in which each reads only earlier ones."""
    found = [m for folds in together(rec) if (m := declared(rec, folds)) is not None]
    folded = {s.name for m in found for s in m.states}
    rest = [c for c in components(rec, sizes) if not folded & set(c.names)]
    waiting: list[Part] = [*found, *rest]
    order: list[Part] = []
    done: set[str] = set()
    while waiting:
        ready = next((p for p in waiting if _reads(rec, p) <= done | {s.name for s in p.states}), waiting[0])
        order.append(ready)
        waiting.remove(ready)
        done |= {s.name for s in ready.states}
    return tuple(order)


def _reads(rec: Recurrence, p: Part) -> set[str]:
    return {v.name for s in p.states for v in variables(s.next)} & {s.name for s in rec.states}


COMPARES = ("maximum", "max_over", "relu", "abs", "sign", "compare")


def by_order(rec: Recurrence, sizes: Mapping[str, int]) -> bool:
    """Whether states are folded by an operator that compares: regrouping it needs what only an order has."""
    found = [m for p in parts(rec, sizes) if (m := p if isinstance(p, Monoid) else monoid(rec, p, sizes)) is not None]
    return any(node.op.name in COMPARES for m in found for node in walk(*m.joined.values()))
