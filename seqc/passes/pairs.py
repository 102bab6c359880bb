"""Recurrence -> Recurrence without complex numbers: a complex value is a pair of real ones.

A complex state `h` becomes the states `h.re` and `h.im`. Every op that is linear over the real numbers acts on both parts; products,
quotients and exponentials are written out. Real values are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

from seqc.analysis.chain import Refusal
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.recurrence import Fold, Line, Output, Recurrence, State

Pair = tuple[Expr, Expr | None]  # real and imaginary part; None is zero
POWERS = 8  # the largest whole exponent of a complex power


def in_pairs(rec: Recurrence) -> Recurrence:
    """The recurrence over real values. Raises Refusal for complex inputs and outputs, and for functions that it does not write out."""
    if not any(n.type.dtype == "complex" for n in walk(*(s.next for s in rec.states), *(o.value for o in rec.outputs))):
        return rec
    for i in rec.inputs:
        if i.dtype == "complex":
            raise Refusal(f"the input `{i.name}` is complex", ops.var(i.name, i.axes, i.dtype))
    roots = [e for s in rec.states for e in (s.init, s.next)] + [o.value for o in rec.outputs] + [e.value for e in rec.lines]
    roots += [e for f in rec.folds for e in (f.operand, f.leaf, f.operator)]
    parts = _Parts(roots)
    states: list[State] = []
    for s in rec.states:
        (first, first_im), (next_, next_im) = parts.of(s.init), parts.of(s.next)
        if s.dtype != "complex":
            states.append(replace(s, init=first, next=next_))
            continue
        zero = ops.broadcast(ops.number(0), s.axes)
        states.append(replace(s, name=f"{s.name}.re", dtype="real", init=first, next=ops.broadcast(next_, s.axes)))
        states.append(replace(s, name=f"{s.name}.im", dtype="real", init=first_im or zero, next=ops.broadcast(next_im or zero, s.axes)))
    outputs = tuple(_output(o, parts) for o in rec.outputs)
    lines = [Line(e.name, part, e.span) for e in rec.lines for part in parts.of(e.value) if part is not None]
    folds = tuple(part for f in rec.folds for part in _folded(f, parts))
    return replace(rec, states=tuple(states), outputs=outputs, lines=tuple(lines), folds=folds)


def _folded(f: Fold, parts: _Parts) -> tuple[Fold, ...]:
    """A fold of a complex state as folds of its parts, which read each other."""
    triples = tuple(zip(*(parts.of(e) for e in (f.operand, f.leaf, f.operator)), strict=True))
    if f.leaf.type.dtype != "complex":
        return (replace(f, operand=triples[0][0], leaf=triples[0][1], operator=triples[0][2]),)
    zero = ops.broadcast(ops.number(0), f.leaf.axes)
    names = (f"{f.state}.re", f"{f.state}.im")
    return tuple(
        replace(f, state=n, operand=operand or zero, leaf=leaf, operator=operator or zero)
        for n, (operand, leaf, operator) in zip(names, triples, strict=True)
    )


def _output(o: Output, parts: _Parts) -> Output:
    value, im = parts.of(o.value)
    if im is not None:
        raise Refusal(f"the output `{o.name}` is complex", o.value)
    return replace(o, value=value)


class _Parts:
    """The parts of all nodes below some roots."""

    def __init__(self, roots: Iterable[Expr]):
        self.found: dict[int, Pair] = {}
        for node in walk(*roots):
            self.found[id(node)] = self._pair(node)

    def of(self, e: Expr) -> Pair:
        return self.found[id(e)]

    def _pair(self, node: Expr) -> Pair:
        name, args = node.op.name, [self.found[id(a)] for a in node.args]
        if name == "var":
            if node.type.dtype != "complex":
                return node, None
            return ops.var(f"{node.name}.re", node.axes), ops.var(f"{node.name}.im", node.axes)
        rule = RULES.get(name)
        if rule is not None:
            return rule(*args)
        if name == "contract":
            return _contracted(args, node.axes)
        if name == "solve" and any(im is not None for _, im in args):
            return _solved(args[0], args[1], *map(str, node.attr))
        if name == "power" and args[0][1] is not None:
            return _power(args[0], node)
        if all(im is None for _, im in args):
            re = tuple(re for re, _ in args)
            return (node if re == node.args else node.op.build(re, node.attr)), None
        if node.op.linear and (node.op.joint or len(node.op.linear) == 1):
            return self._linear(node, args)
        raise Refusal(f"`{name}` of a complex value", node)

    def _linear(self, node: Expr, args: list[Pair]) -> Pair:
        """An op that acts on both parts alike; arguments in which it is not linear are real."""
        linear = range(len(args)) if len(node.op.linear) > len(args) else node.op.linear
        if any(im is not None for i, (_, im) in enumerate(args) if i not in linear):
            raise Refusal(f"`{node.op.name}` of a complex value", node)
        re = node.op.build(tuple(re for re, _ in args), node.attr)
        zeros = [ops.broadcast(ops.number(0), x.axes) for x, _ in args]
        pairs = enumerate(zip(args, zeros, strict=True))
        return re, node.op.build(tuple(x if i not in linear else y or zero for i, ((x, y), zero) in pairs), node.attr)


def _both(x: Expr | None, y: Expr | None, sign: int = 1) -> Expr | None:
    """x + y or x - y, where either may be zero."""
    if y is None:
        return x
    if x is None:
        return y if sign > 0 else ops.neg(y)
    return ops.add(x, y) if sign > 0 else ops.sub(x, y)


def _add(x: Pair, y: Pair) -> Pair:
    return ops.add(x[0], y[0]), _aligned(_both(x[1], y[1]), x, y)


def _sub(x: Pair, y: Pair) -> Pair:
    return ops.sub(x[0], y[0]), _aligned(_both(x[1], y[1], -1), x, y)


def _aligned(im: Expr | None, *pairs: Pair) -> Expr | None:
    """An imaginary part with all the axes of the sum: one addend may have none."""
    if im is None:
        return None
    axes = tuple(dict.fromkeys(a for re, _ in pairs for a in re.axes))
    return ops.broadcast(im, axes) if set(axes) != set(im.axes) else im


def _mul(x: Pair, y: Pair) -> Pair:
    (a, b), (c, d) = x, y
    re = _both(ops.mul(a, c), None if b is None or d is None else ops.mul(b, d), -1)
    im = _both(None if d is None else ops.mul(a, d), None if b is None else ops.mul(b, c))
    assert re is not None
    return re, im


def _div(x: Pair, y: Pair) -> Pair:
    c, d = y
    if d is None:
        return ops.div(x[0], c), None if x[1] is None else ops.div(x[1], c)
    size = ops.add(ops.mul(c, c), ops.mul(d, d))
    re, im = _mul(x, (c, ops.neg(d)))
    return ops.div(re, size), None if im is None else ops.div(im, size)


def _neg(x: Pair) -> Pair:
    return ops.neg(x[0]), None if x[1] is None else ops.neg(x[1])


def _exp(x: Pair) -> Pair:
    size = ops.exp(x[0])
    if x[1] is None:
        return size, None
    return ops.mul(size, ops.unary("cos", x[1])), ops.mul(size, ops.unary("sin", x[1]))


def _expm1(x: Pair) -> Pair:
    """e^(a + ib) - 1 = expm1(a) cos b - 2 sin(b/2)^2 + i e^a sin b: no part loses digits where both are small."""
    small = ops.unary("expm1", x[0])
    if x[1] is None:
        return small, None
    half = ops.unary("sin", ops.mul(ops.number(Fraction(1, 2)), x[1]))
    re = ops.sub(ops.mul(small, ops.unary("cos", x[1])), ops.mul(ops.number(2), ops.mul(half, half)))
    return re, ops.mul(ops.exp(x[0]), ops.unary("sin", x[1]))


def _abs(x: Pair) -> Pair:
    if x[1] is None:
        return ops.unary("abs", x[0]), None
    return ops.sqrt(ops.add(ops.mul(x[0], x[0]), ops.mul(x[1], x[1]))), None


def _complex(x: Pair, y: Pair) -> Pair:
    if x[1] is not None or y[1] is not None:
        raise Refusal("a complex number with complex parts")
    axes = tuple(dict.fromkeys((*x[0].axes, *y[0].axes)))
    return ops.broadcast(x[0], axes), ops.broadcast(y[0], axes)


def _power(x: Pair, node: Expr) -> Pair:
    exponent = node.args[1]
    n = exponent.attr if ops.is_number(exponent) else None
    if n is None or n.denominator != 1 or abs(n) > POWERS:
        raise Refusal("a power of a complex value that is no small whole number", node)
    total: Pair = (ops.number(1), None)
    for _ in range(abs(int(n))):
        total = _mul(total, x)
    return total if n >= 0 else _div((ops.number(1), None), total)


def _solved(matrix: Pair, rhs: Pair, row: str, column: str) -> Pair:
    """The complex system as a real one of twice the size: [[A, -B], [B, A]] [x, y] = [b, c]."""

    def joined(x: Expr, y: Expr, pair: str, axis: str) -> Expr:
        return ops.flatten(ops.stack((x, y), pair), (pair, axis), f"2*{axis}")

    (a, b), (right, right_im) = matrix, rhs
    b = b if b is not None else ops.broadcast(ops.number(0), a.axes)
    right_im = right_im if right_im is not None else ops.broadcast(ops.number(0), right.axes)
    rows = joined(a, ops.neg(b), "2'", column), joined(b, a, "2'", column)
    found = ops.solve(joined(*rows, "2", row), joined(right, right_im, "2", row), f"2*{row}", f"2*{column}")
    parts = ops.unflatten(found, ("2'", column), f"2*{column}")
    return ops.select(parts, "2'", 0), ops.select(parts, "2'", 1)


def _contracted(args: list[Pair], axes: tuple[str, ...]) -> Pair:
    """The product of all pairs, multiplied out: a term with k imaginary factors counts i^k."""
    terms: list[tuple[list[Expr], int]] = [([], 0)]
    for re, im in args:
        terms = [([*t, x], k + (n > 0)) for t, k in terms for n, x in enumerate((re, im)) if x is not None]
    parts: list[Expr | None] = [None, None]
    for factors, k in terms:
        parts[k % 2] = _both(parts[k % 2], ops.contract(factors, axes), 1 if k % 4 < 2 else -1)
    assert parts[0] is not None
    return parts[0], parts[1]


RULES: Mapping[str, Callable[..., Pair]] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "neg": _neg, "exp": _exp, "expm1": _expm1, "abs": _abs, "complex": _complex,
    "re": lambda x: (x[0], None), "im": lambda x: (x[1] or ops.broadcast(ops.number(0), x[0].axes), None),
    "conj": lambda x: (x[0], None if x[1] is None else ops.neg(x[1])),
}  # fmt: skip
