"""Recurrence -> Recurrence whose states do not overflow: exponentials without a bound are carried as exponents.

A value is a pair, mantissa times e^exponent. A sum takes the larger exponent, a quotient subtracts one, so that a softmax over
time, or a ratio of two sums of e^k v and e^k, never forms e^k. A state S that takes in an unbounded exponential is carried as
S e^-m, with m of its own: the exponent that its next value comes out with, as a running maximum of what was written,

    m_t = max(m_{t-1} + log D_t, k_t)        for S_t = D_t S_{t-1} + e^{k_t} w_t

Any m gives the same outputs: it is a choice of units, so it has no gradient. The rewriting is kept only if every output is free
of e^m. Softmax attention with a running maximum: Milakov & Gimelshein 2018, arXiv:1805.02867.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from seqc.analysis.bounds import bounds, is_decay
from seqc.analysis.components import BELOW_ALL, leaf
from seqc.analysis.exponents import Exponent, exponent, log_of, never_positive
from seqc.analysis.structure import domains
from seqc.analysis.terms import dependent
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.model import Domain
from seqc.ir.recurrence import Output, Recurrence, State

STRUCTURAL = ("broadcast", "rename", "select", "place", "shift", "flatten", "unflatten", "stop_gradient")
HOMOGENEOUS = ("neg", "abs", "relu")


NONE = Exponent()


@dataclass(frozen=True)
class Scaled:
    """mantissa e^exponent. bare: a state times factors that are no sum, whose decay may join the exponent."""

    mantissa: Expr
    exponent: Exponent = NONE
    bare: bool = False


class Declined(Exception):
    """No stabiliser follows from the text: a value would be formed that grows with the states."""


def stabilised(rec: Recurrence, sizes: Mapping[str, int]) -> Recurrence:
    """The recurrence with stabilisers as further states, or as it is where none is needed or none follows.

    Every state with a `stabiliser` is to be read as itself times e^stabiliser.
    """
    taking = _taking_in(rec, sizes)
    if not taking:
        return rec
    try:
        return _rewritten(rec, taking, sizes)
    except Declined:
        return rec


def _taking_in(rec: Recurrence, sizes: Mapping[str, int]) -> list[State]:
    """The states that keep their value, up to factors, and add to it what an exponential without a bound multiplies."""
    found = []
    for s in rec.states:
        stack, keeps, takes, met = [s.next], False, False, set[int]()
        while stack:
            node = stack.pop()
            if id(node) in met:
                continue
            met.add(id(node))
            keeps = keeps or node is leaf(s)
            takes = takes or (node.op.name == "exp" and _unbounded(node.args[0], domains(rec), sizes))
            match node.op.name:
                case "add" | "sub" | "neg" | "mul" | "contract" | "broadcast":
                    stack += node.args
                case "div":
                    stack.append(node.args[0])
                case "where":
                    stack += node.args[1:]
        if keeps and takes and s.dtype == "real":
            found.append(s)
    return found


def _unbounded(x: Expr, known: Mapping[str, Domain], sizes: Mapping[str, int]) -> bool:
    return bounds(x, known, sizes)[1] == inf and not never_positive(exponent(x), known, sizes)


def _rewritten(rec: Recurrence, taking: list[State], sizes: Mapping[str, int]) -> Recurrence:
    """States that come out with the same exponent share a stabiliser; axes of a stabiliser are those of that exponent."""
    groups = [tuple(s.name for s in taking)]
    axes: dict[str, tuple[str, ...]] = {s.name: () for s in taking}
    names = _fresh(rec, len(taking))
    while True:
        leaves = {n: ops.var(name, axes[n]) for name, group in zip(names, groups, strict=False) for n in group}
        scaling = _Scaling(rec, leaves, sizes)
        nexts = {s.name: scaling.settled(s.next) for s in taking}
        wider = {n: tuple(dict.fromkeys((*axes[n], *x.exponent.axes))) for n, x in nexts.items()}
        split = [g for group in groups for g in _alike(group, nexts)]
        if wider == axes and split == groups:
            break
        axes, groups = wider, split
    return _assembled(rec, scaling, nexts, leaves, groups)


def _alike(group: tuple[str, ...], nexts: Mapping[str, Scaled]) -> list[tuple[str, ...]]:
    kinds: dict[Exponent, list[str]] = {}
    for n in group:
        kinds.setdefault(nexts[n].exponent, []).append(n)
    return [tuple(k) for k in kinds.values()]


def _fresh(rec: Recurrence, count: int) -> list[str]:
    """m, m_2, ...: names that nothing has."""
    taken = {x.name for values in (rec.inputs, rec.params, rec.states, rec.outputs, rec.lines, rec.sizes) for x in values}
    taken |= {a for axes in rec.declared_axes for a in axes}
    wanted = ("m" if i == 1 else f"m_{i}" for i in range(1, count + len(taken) + 2))
    return [n for n in wanted if n not in taken][:count]


def _assembled(
    rec: Recurrence, scaling: _Scaling, nexts: Mapping[str, Scaled], leaves: Mapping[str, Expr], groups: list[tuple[str, ...]]
) -> Recurrence:
    """The recurrence over mantissas and stabilisers."""
    states = []
    for s in rec.states:
        if s.name in nexts:
            value = ops.broadcast(nexts[s.name].mantissa, s.axes)
            states.append(replace(s, next=value, stabiliser=leaves[s.name].name))
        else:
            states.append(replace(s, next=scaling.plain(s.next)))
    by_name = {s.name: s for s in rec.states}
    for group in groups:
        m, first = leaves[group[0]], by_name[group[0]]
        empty = all(ops.is_zero(by_name[n].init) for n in group)
        init = ops.broadcast(ops.number(BELOW_ALL if empty else 0), m.axes)
        value = ops.broadcast(nexts[group[0]].exponent.value, m.axes)
        states.append(State(m.name, m.axes, first.scope, "real", init, value, "stabiliser", first.span))
    outputs = tuple(Output(o.name, o.axes, scaling.plain(o.value), o.span) for o in rec.outputs)
    return replace(rec, states=tuple(states), outputs=outputs)


class _Scaling:
    """Values as mantissas and exponents, over states whose exponents have leaves."""

    def __init__(self, rec: Recurrence, leaves: Mapping[str, Expr], sizes: Mapping[str, int]):
        self.domains, self.sizes = domains(rec), sizes
        roots = (*(s.next for s in rec.states), *(o.value for o in rec.outputs))
        owned = {leaf(s): ops.stop_gradient(leaves[s.name]) for s in rec.states if s.name in leaves}
        self.sees = dependent(roots, owned)
        self.found: dict[int, Scaled] = {id(s): Scaled(s, exponent(m), True) for s, m in owned.items()}
        for node in walk(*roots):
            if id(node) not in self.found:
                self.found[id(node)] = self._of(node)

    def settled(self, e: Expr) -> Scaled:
        """A next value whose exponent is one part without a gradient: what the state's stabiliser becomes."""
        x = self.found[id(e)]
        if len(x.exponent.terms) == 1 and x.exponent.terms[0][0].op.name == "stop_gradient" and x.exponent.terms[0][1] == 1:
            return x
        unit = exponent(ops.stop_gradient(x.exponent.value))
        return Scaled(self._in_units(x, unit), unit)

    def plain(self, e: Expr) -> Expr:
        """The value itself. Raises Declined where its exponent may be positive."""
        x = self.found[id(e)]
        if id(e) not in self.sees:
            return e
        if not never_positive(x.exponent, self.domains, self.sizes):
            raise Declined
        return ops.broadcast(self._in_units(x, NONE), e.axes)

    # --- Two exponents -------------------------------------------------------------------------------------------

    def _larger(self, *values: Scaled) -> Exponent:
        """An exponent that none of the values' exceeds."""
        top, *others = dict.fromkeys(x.exponent for x in values if not ops.is_zero(x.mantissa)) or (NONE,)
        for y in others:
            if never_positive(y.minus(top), self.domains, self.sizes):
                continue
            if never_positive(top.minus(y), self.domains, self.sizes):
                top = y
            else:
                top = exponent(ops.stop_gradient(ops.maximum(top.value, y.value)))
        return top

    def _in_units(self, x: Scaled, unit: Exponent) -> Expr:
        """The mantissa that x has with this exponent."""
        rest = x.exponent.minus(unit)
        return ops.mul(ops.exp(rest.value), x.mantissa) if rest else x.mantissa

    # --- Nodes ---------------------------------------------------------------------------------------------------

    def _of(self, node: Expr) -> Scaled:
        args = [self.found[id(a)] for a in node.args]
        name = node.op.name
        if name == "exp" and node.type.dtype == "real":
            (x,) = node.args
            free = _unbounded(x, self.domains, self.sizes)
            return Scaled(ops.number(1), exponent(self.plain(x))) if free else Scaled(ops.exp(self.plain(x)))
        if not any(x.exponent for x in args) and not any(id(a) in self.sees for a in node.args):
            return Scaled(node)
        if name in ("add", "sub", "maximum", "where", "compare"):
            return self._together(node, args)
        if name in ("mul", "contract"):
            return self._product(node, args)
        if name == "div":
            top, below = args
            return Scaled(ops.div(top.mantissa, below.mantissa), top.exponent.minus(below.exponent))
        return self._alone(node, args)

    def _together(self, node: Expr, args: list[Scaled]) -> Scaled:
        """Sums, the larger of two, choices: all in the same units."""
        values = args[1:] if node.op.name == "where" else args
        unit = self._larger(*values)
        new = [self._in_units(x, unit) for x in values]
        if node.op.name == "where":
            return Scaled(node.op.build((self.plain(node.args[0]), *new), node.attr), unit)
        return Scaled(node.op.build(tuple(new), node.attr), NONE if node.op.name == "compare" else unit)

    def _product(self, node: Expr, args: list[Scaled]) -> Scaled:
        """Exponents are added. A state's decay joins its exponent, so that the largest term stays near one."""
        summed = {a for x in node.args for a in x.axes if a not in node.axes} if node.op.name == "contract" else set()
        total, bare = NONE, False
        mantissas = []
        for e, x in zip(node.args, args, strict=True):
            others = [y for y in args if y is not x]
            if not summed and not x.exponent and id(e) not in self.sees and any(y.bare for y in others) and self._decays(e):
                total = total.plus(exponent(log_of(e)))
            else:
                mantissas.append(x.mantissa)
            total = total.plus(x.exponent)
            bare = bare or (x.bare and not summed)
        if not set(total.axes) & summed:
            return Scaled(self._multiplied(node, mantissas), total, bare)
        along = tuple(a for a in total.axes if a in summed)
        unit = exponent(ops.stop_gradient(ops.max_over(total.value, along)))
        return Scaled(self._multiplied(node, [*mantissas, ops.exp(total.minus(unit).value)]), unit)

    def _multiplied(self, node: Expr, mantissas: list[Expr]) -> Expr:
        if node.op.name == "mul":
            product: Expr = ops.number(1)
            for x in mantissas:
                product = ops.mul(product, x)
            return product
        have = {a for x in mantissas for a in x.axes}
        counted = [ops.broadcast(ops.number(1), (a,)) for x in node.args for a in x.axes if a not in node.axes and a not in have]
        product = ops.contract((*mantissas, *dict.fromkeys(counted)), tuple(a for a in node.axes if a in have))
        return ops.broadcast(product, node.axes)

    def _decays(self, e: Expr) -> bool:
        return all(is_decay(e, self.domains, self.sizes)) or (
            e.op.name == "exp" and never_positive(exponent(e.args[0]), self.domains, self.sizes)
        )

    def _alone(self, node: Expr, args: list[Scaled]) -> Scaled:
        """Ops of one value, and those that know no exponents."""
        name, x = node.op.name, args[0]
        if name in HOMOGENEOUS:
            return Scaled(ops.unary(name, x.mantissa), x.exponent)
        if name == "sign":
            return Scaled(ops.unary(name, x.mantissa))
        if name == "log":
            return Scaled(ops.add(ops.log(x.mantissa), x.exponent.value))
        if name == "sqrt":
            return Scaled(ops.sqrt(x.mantissa), x.exponent.times(Fraction(1, 2)))
        if name == "power" and ops.is_number(node.args[1]):
            return Scaled(ops.power(x.mantissa, node.args[1]), x.exponent.times(Fraction(node.args[1].attr)))
        if name in STRUCTURAL and not self._touched(node, x):
            bare = x.bare and name in ("broadcast", "stop_gradient")
            attr = (*(a for a in node.axes if a not in x.mantissa.axes), *x.mantissa.axes) if name == "broadcast" else node.attr
            return Scaled(node.op.build((x.mantissa,), attr), x.exponent, bare)
        if all(id(a) not in self.sees for a in node.args):
            return Scaled(node)
        return Scaled(node.op.build(tuple(map(self.plain, node.args)), node.attr))

    def _touched(self, node: Expr, x: Scaled) -> bool:
        """Whether an op works along an axis that the exponent has."""
        if node.op.name in ("broadcast", "stop_gradient"):
            return False
        named = {n for part in _parts(node.attr) for n in ([part] if isinstance(part, str) else [])}
        return bool(named & set(x.exponent.axes))


def _parts(attr: object) -> list[object]:
    return [p for part in attr for p in _parts(part)] if isinstance(attr, tuple) else [attr]
