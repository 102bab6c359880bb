"""Recurrence -> Recurrence where matrices that shrink and turn only shrink: a complex decay as a real one and a running turn.

Two states (x, y) with x' = c x - s y + b, y' = s x + c y + d for c = a cos(t), s = a sin(t), entry by entry, are the parts of a complex
number that is multiplied with a e^(it). With the product u of all e^(it) since the start, r = conj(u) (x + iy) has the real decay a:

    u' = e^(it) u      r' = a r + conj(u') (b + id)      x + iy = u r

u lacks the axes that the turn lacks, so it is small beside the matrices, whose parts no longer depend on each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product as cartesian

from seqc.analysis.affine import linear_parts, mixed_axes
from seqc.analysis.chain import Refusal
from seqc.analysis.components import components, leaf
from seqc.analysis.terms import addends, product, signed
from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild, substitute, walk
from seqc.ir.recurrence import Recurrence, State
from seqc.ir.rules import union

Complex = tuple[Expr, Expr]
ANGLES = 4  # the most angles whose signs are tried


@dataclass(frozen=True)
class Turned:
    """The new recurrence, the names of the states that it has besides, and the old states' values over the new ones'."""

    rec: Recurrence
    made: tuple[str, ...]
    back: dict[str, Expr]


def without_turns(rec: Recurrence, sizes: Mapping[str, int]) -> Turned:
    """The recurrence with every pair of turning matrices replaced; itself where there is none."""
    found = Turned(rec, (), {})
    for c in components(rec, sizes):
        if c.kind == "coupled" and len(c.states) == 2 and all(len(s.axes) > 1 for s in c.states):
            x, y = (next(s for s in found.rec.states if s.name == name) for name in c.names)
            if turn := _turn(x, y):
                found = _replaced(found, x, y, *turn)
    return found


def _turn(x: State, y: State) -> tuple[Expr, Complex] | None:
    """The decay a and (cos t, sin t) of two states, if they turn."""
    leaves, nexts = (leaf(x), leaf(y)), (x.next, y.next)
    if {*x.axes} != {*y.axes} or mixed_axes(nexts, leaves) & {*x.axes}:
        return None
    try:
        (xx, yx), (xy, yy) = (linear_parts(nexts, {e: ops.number(1)}) for e in leaves)
    except Refusal:
        return None
    if xx is None or yx is None or xy is None or yy is None or _expanded(xx) != _expanded(yy) or _expanded(xy) != _expanded(ops.neg(yx)):
        return None
    return _polar(xx, yx)


def _polar(c: Expr, s: Expr) -> tuple[Expr, Complex] | None:
    """a and (cos t, sin t) with c = a cos(t) and s = a sin(t), where t is a sum of angles, each once, plus or minus."""
    of_c, of_s = _expanded(c), _expanded(s)
    place = {node: i for i, node in enumerate(walk(c))}
    turning = sorted({f for term in of_c for f, _ in term if f.op.name in ("cos", "sin")}, key=lambda f: place[f])  # not as sets have them
    angles = tuple(dict.fromkeys(f.args[0] for f in turning))
    cosines = {(ops.unary("cos", x), 1) for x in angles}
    decays = [term - cosines for term, n in of_c.items() if cosines <= term and n == 1]
    if len(decays) != 1 or not angles or len(angles) > ANGLES:
        return None
    decay = product(f for f, n in sorted(decays[0], key=lambda power: place[power[0]]) for _ in range(n))
    for signs in cartesian((1, -1), repeat=len(angles)):
        turn: Complex = ops.number(1), ops.number(0)
        for x, sign in zip(angles, signs, strict=True):
            turn = _times(turn, (ops.unary("cos", x), signed(ops.unary("sin", x), sign)))
        if (_expanded(ops.mul(decay, turn[0])), _expanded(ops.mul(decay, turn[1]))) == (of_c, of_s):
            return decay, turn
    return None


def _expanded(e: Expr) -> dict[frozenset[tuple[Expr, int]], int]:
    """A value as a sum of products: the factors of each term with their powers, and how often it is there."""
    match e.op.name:
        case "add" | "sub" | "neg":
            total: Counter[frozenset[tuple[Expr, int]]] = Counter()
            for term, sign in addends(e):
                for powers, n in _expanded(term).items():
                    total[powers] += sign * n
            return {powers: n for powers, n in total.items() if n}
        case "broadcast":
            return _expanded(e.args[0])
        case "mul":
            total = Counter()
            for (x, n), (y, m) in cartesian(*(_expanded(a).items() for a in e.args)):
                total[frozenset((Counter(dict(x)) + Counter(dict(y))).items())] += n * m
            return {powers: n for powers, n in total.items() if n}
    return {} if ops.is_zero(e) else {frozenset() if ops.is_number(e, 1) else frozenset({(e, 1)}): 1}


def _replaced(found: Turned, x: State, y: State, decay: Expr, turn: Complex) -> Turned:
    rec, pair = found.rec, (x, y)
    axes = tuple(a for a in x.axes if a in union((turn[0].type, turn[1].type)))
    u = tuple(ops.var(f"{x.name}@{part}", axes) for part in ("cos", "sin"))
    after = _times((u[0], u[1]), turn)
    zeros = {leaf(s): ops.broadcast(ops.number(0), s.axes) for s in pair}
    b = substitute((x.next, y.next), zeros)
    written = _times((after[0], ops.neg(after[1])), (b[0], b[1]))
    nexts = [ops.broadcast(ops.add(ops.mul(decay, leaf(s)), w), s.axes) for s, w in zip(pair, written, strict=True)]
    back = {
        **dict(zip((leaf(x), leaf(y)), _parts((u[0], u[1]), (leaf(x), leaf(y))), strict=True)),
        **dict(zip((x.next, y.next), _parts(after, (nexts[0], nexts[1])), strict=True)),
    }
    states: list[State] = []
    for s in rec.states:
        if s is x:
            for v, first, n in zip(u, (1, 0), after, strict=True):
                init, next_ = (ops.broadcast(e, axes) for e in (ops.number(first), n))
                states.append(replace(x, name=v.name, axes=axes, init=init, next=next_, role="hidden"))
        states.append(replace(s, next=nexts[pair.index(s)]) if s in pair else replace(s, next=_seen(s.next, back)))
    outputs = tuple(replace(o, value=_seen(o.value, back)) for o in rec.outputs)
    new = replace(rec, states=tuple(states), outputs=outputs)
    ends = {s.name: _sum(back[leaf(s)]) for s in pair}
    return Turned(new, (*found.made, *(v.name for v in u)), {**found.back, **ends})


Terms = tuple[tuple[Expr, Expr, int], ...]  # scale, value, sign


def _times(a: Complex, b: Complex) -> Complex:
    return ops.sub(ops.mul(a[0], b[0]), ops.mul(a[1], b[1])), ops.add(ops.mul(a[1], b[0]), ops.mul(a[0], b[1]))


def _parts(u: Complex, r: Complex) -> tuple[Terms, Terms]:
    """The parts of u r as terms, which a read is distributed over."""
    return ((u[0], r[0], 1), (u[1], r[1], -1)), ((u[1], r[0], 1), (u[0], r[1], 1))


def _sum(terms: Terms) -> Expr:
    total: Expr = ops.number(0)
    for scale, value, sign in terms:
        total = ops.add(total, signed(ops.mul(scale, value), sign))
    return total


def _seen(e: Expr, back: Mapping[Expr, Terms]) -> Expr:
    """An expression over the old states, over the new ones: a contraction with an old state is a sum of contractions with new ones."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node in back:
            return _sum(back[node])
        old = [i for i, a in enumerate(node.args) if a in back]
        if node.op.name == "contract" and len(old) == 1:
            rest = [a for i, a in enumerate(args) if i not in old]
            terms = back[node.args[old[0]]]
            return _sum(tuple((ops.number(1), ops.contract((*rest, scale, value), node.axes), sign) for scale, value, sign in terms))
        return node if args == node.args else node.op.build(args, node.attr)

    return rebuild((e,), rule)[0]
