"""The op table's meaning in a prime field, exact wherever the reals' identities have a counterpart there.

exp(x) = g^x, so exp(a + b) = exp(a) exp(b), and exp(log(s) + x) = s exp(x). The subgroup of g's powers plays the positive
numbers: every other residue lies in one of four cosets, and comparisons depend on the coset of the difference, so that
maxima and signs are symmetric and homogeneous under positive factors. cos t = (z + 1/z) / 2 with z = g^(k t), sin t the
same with i, a square root of -1. What has no such meaning is an oracle: a random function, the same for equal arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

from seqc.ir.expr import Mask
from seqc.ir.meaning import keeps
from seqc.proof import elimination
from seqc.proof.elimination import aligned, einsum
from seqc.proof.field import QUARTER, Integers, L, P, Residues, cosets, raise_generator
from seqc.proof.number import Exponent, Number, Rule
from seqc.proof.oracles import Oracles

V = TypeVar("V")
WHOLE_LIMIT = 2**31  # products of smaller ones fit in 64 bits
TO_SUBGROUP = 4 * pow(4, -1, L.prime)  # x^this is x's part in the generator's subgroup: 1 mod l, 0 mod 4


class NoFieldMeaning(Exception):
    """An op that the field has no meaning for yet: the proof cannot speak of this program."""

    def __init__(self, op: str):
        self.op = op
        super().__init__(f"`{op}` has no meaning in the field")


class Composed(Generic[V]):
    """The ops that are made of others. Subclasses give the others."""

    def rational(self, value: Fraction) -> V:
        raise NotImplementedError

    def primitive(self, name: str, x: V) -> V:
        raise NotImplementedError

    def combine(self, name: str, x: V, y: V) -> V:
        raise NotImplementedError

    def compare(self, relation: str, x: V, y: V) -> V:
        raise NotImplementedError

    def where(self, condition: V, x: V, y: V) -> V:
        raise NotImplementedError

    def structural(self, fn: Callable[..., Any], *values: V) -> V:
        raise NotImplementedError

    def unary(self, name: str, x: V) -> V:
        return COMPOSED[name](self, x) if name in COMPOSED else self.primitive(name, x)

    def binary(self, name: str, x: V, y: V) -> V:
        return self.where(self.compare("ge", x, y), x, y) if name == "maximum" else self.combine(name, x, y)

    def complex(self, x: V, y: V) -> V:
        raise NoFieldMeaning("complex")

    def maximum_over(self, x: V, axes: tuple[int, ...]) -> V:
        """The maximum from the first entry to the last."""
        counts: list[int] = []

        def in_front(a: np.ndarray) -> np.ndarray:
            moved = np.moveaxis(a, axes, range(1, 1 + len(axes)))
            rows = moved.reshape((moved.shape[0], -1, *moved.shape[1 + len(axes) :]))
            counts.append(rows.shape[1])
            return rows

        rows = self.structural(in_front, x)
        total = self.structural(lambda a: a[:, 0], rows)
        for i in range(1, counts[0]):
            total = self.binary("maximum", total, self.structural(lambda a, i=i: a[:, i], rows))
        return total


def _one_plus(A: Composed[Any], x: Any) -> Any:
    return A.combine("add", A.rational(Fraction(1)), x)


def _sigmoid(A: Composed[Any], x: Any) -> Any:
    return A.combine("div", A.rational(Fraction(1)), _one_plus(A, A.primitive("exp", A.primitive("neg", x))))


def _tanh(A: Composed[Any], x: Any) -> Any:
    """1 - 2 / (1 + e^(2x))"""
    two, squared = A.rational(Fraction(2)), A.primitive("exp", A.combine("mul", A.rational(Fraction(2)), x))
    return A.combine("sub", A.rational(Fraction(1)), A.combine("div", two, _one_plus(A, squared)))


def _relu(A: Composed[Any], x: Any) -> Any:
    zero = A.rational(Fraction(0))
    return A.where(A.compare("gt", x, zero), x, zero)


def _sign(A: Composed[Any], x: Any) -> Any:
    zero = A.rational(Fraction(0))
    negative = A.where(A.compare("lt", x, zero), A.rational(Fraction(-1)), zero)
    return A.where(A.compare("gt", x, zero), A.rational(Fraction(1)), negative)


COMPOSED: dict[str, Callable[[Composed[Any], Any], Any]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": lambda A, x: A.primitive("log", _one_plus(A, A.primitive("exp", x))),
    "expm1": lambda A, x: A.combine("sub", A.primitive("exp", x), A.rational(Fraction(1))),
    "log1p": lambda A, x: A.primitive("log", _one_plus(A, x)),
    "relu": _relu,
    "sign": _sign,
    "abs": lambda A, x: A.combine("mul", x, _sign(A, x)),
}


class Field(Composed[Number]):
    """`seqc.ir.meaning`'s arithmetic over Numbers. `sizes` as there; `oracles` answers for what has no exact meaning."""

    def __init__(self, oracles: Oracles, sizes: Any):
        self.oracles, self.sizes = oracles, sizes
        self._primitives: dict[str, Callable[[Number], Number]] = {
            "neg": self._neg, "exp": self._exp, "log": self._log, "sqrt": self._sqrt, "sin": self._sin, "cos": self._cos,
            "erf": lambda x: self.oracle("erf", x), "floor": lambda x: self._rounded("floor", x),
            "ceil": lambda x: self._rounded("ceil", x), "trailing_zeros": self._trailing_zeros, "stop_gradient": lambda x: x,
        }  # fmt: skip

    # --- Numbers from nothing ------------------------------------------------------------------------------------

    def given(self, p: Residues, l: Residues) -> Number:  # noqa: E741
        """An input: residues drawn apart for values and for exponents."""
        return Number(p, lambda: Exponent(l))

    def whole(self, values: Integers) -> Number:
        """Small whole numbers, points first."""
        return Number(P.residues(values), lambda: Exponent(L.residues(values)), (), values)

    def integers(self, values: np.ndarray) -> Number:
        return self.whole(values.astype(np.int64)[None])

    def rational(self, value: Fraction) -> Number:
        if value.denominator == 1 and abs(value.numerator) < WHOLE_LIMIT:
            return self.whole(np.array([value.numerator]))
        return self.given(P.residue(value)[None], L.residue(value)[None])

    def named(self, name: str) -> Number:
        return self.given(self.oracles.draw(name, P, (1,)), self.oracles.draw(name, L, (1,)))

    def oracle(self, name: str, *arguments: Number) -> Number:
        """A random function of the arguments' values."""
        residues = np.broadcast_arrays(*(x.p for x in arguments))
        return self._keyed(name, self.oracles.function(name, P, *residues))

    def _keyed(self, name: str, p: Residues) -> Number:
        """A value whose exponent is a random function of it."""
        return Number(p, lambda: Exponent(self.oracles.function(f"exponent of {name}", L, p)))

    # --- Exponents -----------------------------------------------------------------------------------------------

    def plain(self, e: Exponent) -> Residues:
        """The exponent as one residue mod l: a logarithm's share becomes a random function of its argument."""
        return e.l if e.extra is None else L.add(e.l, self.oracles.function("log in a product", L, e.extra))

    def _branch(self, x: Residues) -> Residues:
        """The positive number that stands for x under roots and powers: x itself if it is positive, homogeneous otherwise."""
        shifts = np.concatenate([np.zeros(1, np.uint64), self.oracles.draw("branch", L, (3,))])
        factors = raise_generator(shifts)[np.maximum(cosets(x), 0)]
        return P.mul(P.power(x, TO_SUBGROUP), factors)

    def _multiplied(self, x: Exponent, whole_x: Integers | None, y: Exponent, whole_y: Integers | None) -> Exponent:
        if x.extra is not None and y.extra is not None:
            return Exponent(L.mul(self.plain(x), self.plain(y)))
        if x.extra is None and y.extra is None:
            return Exponent(L.mul(x.l, y.l))
        if x.extra is None:
            x, whole_x, y, whole_y = y, whole_y, x, whole_x
        assert x.extra is not None
        factor = P.add(x.extra, np.ones(1, np.uint64))
        raised = P.powers(self._branch(factor), y.l) if whole_y is None else P.signed_powers(*np.broadcast_arrays(factor, whole_y))
        return Exponent(L.mul(x.l, y.l), P.sub(raised, np.ones(1, np.uint64)))

    # --- Elementwise ---------------------------------------------------------------------------------------------

    def structural(self, fn: Callable[..., Any], *values: Number) -> Number:
        def rule(*parts: Exponent) -> Exponent:
            moved = fn(*(e.l for e in parts))
            if all(e.extra is None for e in parts):
                return Exponent(moved)
            return Exponent(moved, fn(*(np.zeros_like(e.l) if e.extra is None else e.extra for e in parts)))

        wholes = [x.whole for x in values]
        return Number(fn(*(x.p for x in values)), rule, values, None if any(w is None for w in wholes) else fn(*wholes))

    def combine(self, name: str, x: Number, y: Number) -> Number:
        match name:
            case "add":
                return Number(P.add(x.p, y.p), _added, (x, y), _whole(np.add, x, y))
            case "sub":
                return Number(P.sub(x.p, y.p), lambda a, b: _added(a, _negated(b)), (x, y), _whole(np.subtract, x, y))
            case "mul":
                rule: Rule = lambda a, b: self._multiplied(a, x.whole, b, y.whole)  # noqa: E731
                return Number(P.mul(x.p, y.p), rule, (x, y), _whole(np.multiply, x, y))
            case "div":
                return self.combine("mul", x, Number(P.inverse(y.p), lambda e: Exponent(L.inverse(self.plain(e))), (y,)))
            case "modulo":
                whole = _whole(np.mod, x, y)
                return self.oracle("modulo", x, y) if whole is None else self.whole(whole)
        raise NoFieldMeaning(name)

    def primitive(self, name: str, x: Number) -> Number:
        if name not in self._primitives:
            raise NoFieldMeaning(name)
        return self._primitives[name](x)

    def _neg(self, x: Number) -> Number:
        return Number(P.neg(x.p), _negated, (x,), None if x.whole is None else -x.whole)

    def _exp(self, x: Number) -> Number:
        e = x.exponent()
        power = raise_generator(e.l)
        return self._keyed("exp", power if e.extra is None else P.add(power, P.mul(power, e.extra)))

    def _log(self, x: Number) -> Number:
        extra = P.sub(x.p, np.ones(1, np.uint64))
        return Number(self.oracles.function("log", P, x.p), lambda: Exponent(np.zeros_like(extra), extra))

    def _sqrt(self, x: Number) -> Number:
        return self._keyed("sqrt", P.power(self._branch(x.p), pow(2, -1, L.prime)))

    def _turned(self, x: Number) -> tuple[Residues, Residues]:
        """z = g^(k x) and 1/z: e^(i x) and its conjugate."""
        angle = L.mul(self.plain(x.exponent()), self.oracles.draw("angle", L, (1,)))
        return raise_generator(angle), raise_generator(L.neg(angle))

    def _cos(self, x: Number) -> Number:
        return self._keyed("cos", P.mul(P.add(*self._turned(x)), P.residue(Fraction(1, 2))[None]))

    def _sin(self, x: Number) -> Number:
        return self._keyed("sin", P.mul(P.sub(*self._turned(x)), P.residue(Fraction(1, 2 * QUARTER))[None]))

    def _rounded(self, name: str, x: Number) -> Number:
        return self.oracle(name, x) if x.whole is None else x

    def _trailing_zeros(self, x: Number) -> Number:
        if x.whole is None:
            return self.oracle("trailing_zeros", x)
        low = np.maximum(x.whole & -x.whole, 1).astype(float)
        return self.whole(np.where(x.whole == 0, 1024, np.log2(low).astype(np.int64)))

    def power(self, x: Number, n: Number, exponent: Fraction | None) -> Number:
        """x^n: whole powers exactly, others as powers of the positive number that stands for x."""
        if exponent is None and n.whole is not None and n.whole.size == 1:
            exponent = Fraction(int(n.whole.ravel()[0]))
        if exponent is None:
            return self._keyed("power", P.powers(self._branch(x.p), self.plain(n.exponent())))
        steps, part = divmod(exponent, 1)
        value = P.power(x.p, int(steps))
        if not part:
            return Number(value, lambda e: Exponent(L.power(self.plain(e), int(steps))), (x,))
        return self._keyed("power", P.mul(value, P.power(self._branch(x.p), int(L.residue(part)))))

    # --- Choices -------------------------------------------------------------------------------------------------

    def compare(self, relation: str, x: Number, y: Number) -> Number:
        """1 or 0: by the numbers if they are whole, else by the coset of the difference, half of which are positive."""
        if x.whole is not None and y.whole is not None:
            order = np.sign(x.whole - y.whole)
        elif relation == "eq":
            order = (x.p != y.p).astype(np.int64)
        else:
            order = np.array([1, 1, -1, -1, 0])[cosets(P.sub(x.p, y.p))]
        holds = {"lt": order < 0, "le": order <= 0, "gt": order > 0, "ge": order >= 0, "eq": order == 0}[relation]
        return self.whole(holds.astype(np.int64))

    def where(self, condition: Number, x: Number, y: Number) -> Number:
        assert condition.whole is not None
        chosen = condition.whole != 0
        return self.structural(lambda a, b: np.where(chosen, a, b), x, y)

    # --- Along axes ----------------------------------------------------------------------------------------------

    def sum(self, x: Number, axes: tuple[int, ...]) -> Number:
        def rule(e: Exponent) -> Exponent:
            return Exponent(L.sum(e.l, axes), None if e.extra is None else _product(e.extra, axes))

        return Number(P.sum(x.p, axes), rule, (x,), None if x.whole is None else x.whole.sum(axis=axes))

    def cumsum(self, x: Number, axis: int, reverse: bool) -> Number:
        turned = self.structural(lambda a: np.flip(a, axis), x) if reverse else x

        def rule(e: Exponent) -> Exponent:
            one = np.ones(1, np.uint64)
            return Exponent(L.cumsum(e.l, axis), None if e.extra is None else P.sub(P.cumprod(P.add(e.extra, one), axis), one))

        whole = None if turned.whole is None else np.cumsum(turned.whole, axis)
        total = Number(P.cumsum(turned.p, axis), rule, (turned,), whole)
        return self.structural(lambda a: np.flip(a, axis), total) if reverse else total

    def contract(self, values: Iterable[Number], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Number:
        values = tuple(values)

        def rule(*parts: Exponent) -> Exponent:
            if all(e.extra is None for e in parts):
                return Exponent(einsum(L, [e.l for e in parts], axes, out))
            return self._summed_product(values, parts, axes, out)

        return Number(einsum(P, [x.p for x in values], axes, out), rule, values, _whole_contraction(values, axes, out))

    def _summed_product(
        self, values: tuple[Number, ...], parts: tuple[Exponent, ...], axes: list[tuple[str, ...]], out: tuple[str, ...]
    ) -> Exponent:
        """The contraction of exponents of which some hold logarithms: products of powers instead of sums of products."""
        kept = tuple(out)
        union = (elimination.POINT, *kept, *dict.fromkeys(a for group in axes for a in group if a not in kept))
        total, whole = Exponent(np.ones(1, np.uint64).reshape((1,) * len(union))), np.ones((1,) * len(union), np.int64)
        known: Integers | None = whole
        for x, e, group in zip(values, parts, axes, strict=True):
            have = (elimination.POINT, *group)
            wide = Exponent(aligned(e.l, have, union), None if e.extra is None else aligned(e.extra, have, union))
            factor = None if x.whole is None else aligned(x.whole.astype(np.uint64), have, union).astype(np.int64)
            total = self._multiplied(total, known, wide, factor)
            known = None if known is None or factor is None else known * factor
        gone = tuple(range(1 + len(kept), len(union)))
        return Exponent(L.sum(total.l, gone), None if total.extra is None else _product(total.extra, gone))

    def exp_masked(self, x: Number, mask: Mask) -> Number:
        kept = keeps(mask, *x.p.shape[-2:])
        return self._keyed("exp", np.where(kept, self._exp(x).p, np.uint64(0)))

    def solve(self, matrix: Number, rhs: Number) -> Number:
        rule: Rule = lambda a, b: Exponent(elimination.solve(L, self.plain(a), self.plain(b)))  # noqa: E731
        return Number(elimination.solve(P, matrix.p, rhs.p), rule, (matrix, rhs))

    def unit_lower_inverse(self, x: Number) -> Number:
        rule: Rule = lambda e: Exponent(elimination.unit_lower_inverse(L, self.plain(e)))  # noqa: E731
        return Number(elimination.unit_lower_inverse(P, x.p), rule, (x,))


def _added(x: Exponent, y: Exponent) -> Exponent:
    """Exponents add, factors multiply: (1 + a)(1 + b) - 1."""
    total = L.add(x.l, y.l)
    if x.extra is None or y.extra is None:
        extra = y.extra if x.extra is None else x.extra
        return Exponent(total, None if extra is None else np.broadcast_to(extra, total.shape))
    return Exponent(total, P.add(P.add(x.extra, y.extra), P.mul(x.extra, y.extra)))


def _negated(x: Exponent) -> Exponent:
    """1 / (1 + a) - 1"""
    one = np.ones(1, np.uint64)
    return Exponent(L.neg(x.l), None if x.extra is None else P.sub(P.inverse(P.add(x.extra, one)), one))


def _product(extra: Residues, axes: tuple[int, ...]) -> Residues:
    """The factors multiplied over dimensions."""
    one = np.ones(1, np.uint64)
    total = P.add(extra, one)
    for axis in sorted((a % extra.ndim for a in axes), reverse=True):
        total = P.prod(total, axis)
    return P.sub(total, one)


def _whole(op: Callable[..., Any], x: Number, y: Number) -> Integers | None:
    """The op on the numbers themselves, while they stay small."""
    if x.whole is None or y.whole is None:
        return None
    found = np.asarray(op(x.whole, y.whole))
    return found if not found.size or np.abs(found).max() < WHOLE_LIMIT else None


def _whole_contraction(values: tuple[Number, ...], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Integers | None:
    """The contraction of the numbers themselves: masks and positions stay what they are."""
    wholes = [x.whole for x in values]
    if any(w is None for w in wholes):
        return None
    names = {a: i for i, a in enumerate(dict.fromkeys(a for group in axes for a in group), start=1)}
    operands: list[Any] = [x for w, group in zip(wholes, axes, strict=True) for x in (w, [0, *(names[a] for a in group)])]
    return np.asarray(np.einsum(*operands, [0, *(names[a] for a in out)]))
