"""The op table's meaning in a prime field, exact wherever the reals' identities have a counterpart there.

exp(x) = g^x, so exp(a + b) = exp(a) exp(b), and exp(log(s) + x) = s exp(x); exponentials may stand in exponents once
more, after which they are oracles. The subgroup of g's powers plays the positive
numbers: every other residue lies in one of four cosets, and comparisons depend on the coset of the difference, so that
maxima and signs are symmetric and homogeneous under positive factors. cos t = (z + 1/z) / 2 with z = g^(k t), sin t the
same with i, a square root of -1. What has no gradient is a choice of units: its exponential is positive, a power of g.
What has no such meaning is an oracle: a random function, the same for equal arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from seqc.ir.expr import Mask
from seqc.ir.meaning import keeps, remembered
from seqc.proof import elimination, exact
from seqc.proof.composed import Composed, NoFieldMeaning
from seqc.proof.elimination import aligned, einsum
from seqc.proof.exact import ARITHMETIC
from seqc.proof.field import EXACT, MODULI, QUARTER, REAL, Integers, L, P, Residues, raised
from seqc.proof.number import LEVELS, WHOLE_LIMIT, Number, Rule, of, on_whole, small, values_of, whole_contraction
from seqc.proof.oracles import Oracles


class Field(Composed[Number]):
    """`seqc.ir.meaning`'s arithmetic over Numbers. `sizes` as there; `oracles` answers for what has no exact meaning.

    memo: values by sizes, by node and arguments: a form's programs hold each other, and what is the same is computed once.
    """

    def __init__(self, oracles: Oracles, sizes: Any, memo: dict[Any, dict[Any, Any]] | None = None):
        self.oracles, self.sizes = oracles, sizes
        self.memo = None if memo is None else memo.setdefault(tuple(sorted(sizes.items())), {})
        self._primitives: dict[str, Callable[[Number], Number]] = {
            "neg": self._neg, "exp": self._exp, "log": self._log, "sqrt": self._sqrt, "sin": self._sin, "cos": self._cos,
            "tanh": self._tanh,
            "erf": lambda x: self.oracle("erf", x), "floor": lambda x: self._rounded("floor", x),
            "ceil": lambda x: self._rounded("ceil", x), "trailing_zeros": self._trailing_zeros, "stop_gradient": self.plain,
        }  # fmt: skip

    def shape(self, x: Number) -> tuple[int, ...]:
        return x.p.shape

    # --- Numbers from nothing ------------------------------------------------------------------------------------

    def given(self, residues: Sequence[Residues]) -> Number:
        """An input: residues drawn apart for each level."""
        return Number(of(), lambda level: residues[level])

    def whole(self, values: Integers) -> Number:
        """Small whole numbers, points first."""
        return Number(of(), lambda level: ARITHMETIC[level].residues(values), values)

    def integers(self, values: np.ndarray) -> Number:
        return self.whole(values.astype(np.int64)[None])

    def rational(self, value: Fraction) -> Number:
        if value.denominator == 1 and abs(value.numerator) < WHOLE_LIMIT:
            return self.whole(np.array([value.numerator]))
        return Number(of(), lambda level: ARITHMETIC[level].residue(value)[None], known=True)

    def named(self, name: str) -> Number:
        residues = [self.oracles.draw(f"{name} {level}", MODULI[level], (1,)) for level in range(LEVELS)]
        return self.given([*residues, np.array([{"pi": np.pi, "inf": np.inf}[name]])])

    def oracle(self, name: str, *arguments: Number) -> Number:
        """A random function of the arguments' values."""
        ask = self.oracles.function
        return Number(values_of(*arguments), lambda level, *xs: ask(name, MODULI[level], *np.broadcast_arrays(*xs)))

    def _known(self, name: str, decide: Callable[..., Any], *arguments: Number) -> Number:
        """What is decided of numbers that are known, as they are; of others, or where one is too large, a random function."""
        if not all(x.known for x in arguments):
            return self.oracle(name, *arguments)
        return exact.number(decide(*arguments), lambda: self.oracle(name, *arguments))

    def _keyed(self, name: str, value: Callable[..., Residues], real: Callable[..., Any], *arguments: tuple[Number, int]) -> Number:
        """A value given by the residues of its arguments, each with a level; its exponential is a random function of it."""

        def needs(level: int) -> tuple[tuple[Number | None, int], ...]:
            if level == REAL:
                return tuple((x, REAL) for x, _ in arguments)
            return ((None, 0),) if level else arguments

        def rule(level: int, *xs: Residues) -> Residues:
            if level == REAL:
                return np.asarray(real(*xs))
            return self.oracles.function(f"exponent of {name}", MODULI[level], *xs) if level else value(*xs)

        return Number(needs, rule)

    # --- Logarithms ----------------------------------------------------------------------------------------------

    def plain(self, x: Number) -> Number:
        """The same value where its exponential cannot stay a product: a logarithm becomes a random function of its argument.

        The logarithm of one stays zero. The exponential of such a value is always a positive number, a power of g.
        """
        if x.extra is None:
            return x

        def rule(level: int, own: Residues, *argument: Residues) -> Residues:
            if level in (0, REAL):
                return own
            log = self.oracles.function("log in a product", MODULI[level], *argument)
            total: Residues = MODULI[level].add(own, np.where(argument[0] == 0, np.uint64(0), log))
            return total

        extra = x.extra
        return Number(lambda level: ((x, level), (extra, 0)) if level else ((x, 0),), rule, x.whole)

    def _branch(self, x: Residues) -> Residues:
        """The positive number that stands for x under roots and powers: x itself if it is positive, homogeneous otherwise."""
        return P.mul(x, self._units()[self.oracles.cosets(x)])

    def _units(self) -> Residues:
        """What makes a number of each coset positive."""
        shifts = np.concatenate([np.zeros(1, np.uint64), self.oracles.draw("branch", L, (3,))])
        units = np.array([pow(QUARTER, -c, P.value) for c in range(4)], np.uint64)
        return P.mul(units, raised(0, shifts))

    def _root(self, x: Residues) -> Residues:
        """The square root of the positive number that stands for x; l is odd, so that it is that number to the power of (l + 1) / 2."""
        units = self.oracles.power(self._units(), (L.value + 1) // 2)
        return P.mul(P.mul(self.oracles.half_power(x), x), units[self.oracles.cosets(x)])

    def _branch_power(self, x: Number, n: Number) -> Number:
        """x^n for an n that is no whole number."""
        powers = lambda base, exponent: P.powers(self._branch(base), exponent)  # noqa: E731
        return self._keyed("power", powers, lambda base, exponent: np.abs(base) ** exponent, (x, 0), (self.plain(n), 1))

    def _raised_extra(self, extra: Number, n: Number) -> Number:
        """s^n - 1 for s - 1: what a multiple of log(s) is the logarithm of."""
        factor, whole = _shifted(extra, 1), n.whole
        if whole is None:
            return _shifted(self._branch_power(factor, n), -1)
        rule: Rule = lambda level, s: MODULI[level].signed_powers(*np.broadcast_arrays(s, whole))  # noqa: E731
        return _shifted(Number(of(factor), rule), -1)

    # --- Elementwise ---------------------------------------------------------------------------------------------

    def structural(self, fn: Callable[..., Any], *values: Number) -> Number:
        whole = extra = None
        if any(x.extra is not None for x in values):
            extra = self.structural(fn, *(_zeros(x) if x.extra is None else x.extra for x in values))
        if all(x.whole is not None for x in values):
            whole = fn(*[x.whole for x in values])
        return Number(values, lambda level, *xs: fn(*xs), whole, extra, all(x.known for x in values))

    def combine(self, name: str, x: Number, y: Number) -> Number:
        known = x.known and y.known
        match name:
            case "add":
                extra = self._joined(x.extra, y.extra)
                return Number(of(x, y), lambda level, a, b: ARITHMETIC[level].add(a, b), on_whole(np.add, x, y), extra, known)
            case "sub":
                extra = self._joined(x.extra, None if y.extra is None else _inverted(y.extra))
                return Number(of(x, y), lambda level, a, b: ARITHMETIC[level].sub(a, b), on_whole(np.subtract, x, y), extra, known)
            case "mul":
                return self._mul(x, y)
            case "div":
                return self._mul(x, remembered(self, "inverse", (y,), lambda: self._inverse(y)))
            case "modulo":
                return self._modulo(x, y)
        raise NoFieldMeaning(name)

    def _modulo(self, x: Number, y: Number) -> Number:
        whole = on_whole(np.mod, x, y)
        if whole is not None:
            return self.whole(whole)
        return self._known("modulo", exact.modulo, x, y)

    def _inverse(self, x: Number) -> Number:
        inverse: Rule = lambda level, a: ARITHMETIC[EXACT].inverse(a) if level == EXACT else self.oracles.inverse(level, a)  # noqa: E731
        return Number(of(self.plain(x)), inverse, known=x.known)

    def _mul(self, x: Number, y: Number) -> Number:
        if x.extra is not None and y.extra is not None:
            x, y = self.plain(x), self.plain(y)
        extra = self._raised_extra(x.extra, y) if x.extra is not None else self._raised_extra(y.extra, x) if y.extra is not None else None
        known = x.known and y.known
        return Number(of(x, y), lambda level, a, b: ARITHMETIC[level].mul(a, b), on_whole(np.multiply, x, y), extra, known)

    def _joined(self, x: Number | None, y: Number | None) -> Number | None:
        """s t - 1 for s - 1 and t - 1."""
        if x is None or y is None:
            return y if x is None else x
        return _shifted(self._mul(_shifted(x, 1), _shifted(y, 1)), -1)

    def primitive(self, name: str, x: Number) -> Number:
        if name not in self._primitives:
            raise NoFieldMeaning(name)
        return self._primitives[name](x)

    def _neg(self, x: Number) -> Number:
        extra = None if x.extra is None else _inverted(x.extra)
        return Number(of(x), lambda level, a: ARITHMETIC[level].neg(a), None if x.whole is None else -x.whole, extra, x.known)

    def _exp(self, x: Number) -> Number:
        extra, ends = x.extra, self.oracles.ordered  # the exponential of -inf is 0, where real numbers say that it is one

        def needs(level: int) -> tuple[tuple[Number | None, int], ...]:
            if level == REAL:
                return ((x, REAL),)
            if level == LEVELS - 1:
                return ((x, 1), *(((extra, level),) if extra is not None else ()))
            return ((x, level + 1), *(((x, REAL),) if ends else ()), *(((extra, level),) if extra is not None else ()))

        def rule(level: int, below: Residues, *more: Residues) -> Residues:
            if level == REAL:
                return np.exp(below)
            if level == LEVELS - 1:  # no level below: a random function, but of the factors that are known as such
                drawn = self.oracles.function("exponent of exp", MODULI[level], below)
                power = np.where(below == 0, np.uint64(1), drawn)
                return MODULI[level].add(power, MODULI[level].mul(power, more[0])) if more else power
            power = raised(level, below)
            if ends:
                power = power if level else np.where(np.isneginf(more[0]), np.uint64(0), power)
                more = more[1:]
            return MODULI[level].add(power, MODULI[level].mul(power, more[0])) if more else power

        return Number(needs, rule)

    def _log(self, x: Number) -> Number:
        def rule(level: int, value: Residues) -> Residues:
            if level == REAL:
                return np.log(np.abs(value))
            return np.zeros_like(value) if level else self.oracles.function("log", P, value)

        return Number(lambda level: ((x, REAL if level == REAL else 0),), rule, None, _shifted(self.plain(x), -1))

    def _sqrt(self, x: Number) -> Number:
        return self._keyed("sqrt", self._root, lambda v: np.sqrt(np.abs(v)), (x, 0))

    def _turned(self, exponent: Residues) -> tuple[Residues, Residues]:
        """z = g^(k x) and 1/z: e^(i x) and its conjugate."""
        angle = L.mul(exponent, self.oracles.draw("angle", L, (1,)))
        return raised(0, angle), raised(0, L.neg(angle))

    def _cos(self, x: Number) -> Number:
        half = P.residue(Fraction(1, 2))[None]
        return self._keyed("cos", lambda exponent: P.mul(P.add(*self._turned(exponent)), half), np.cos, (self.plain(x), 1))

    def _sin(self, x: Number) -> Number:
        half = P.residue(Fraction(1, 2 * QUARTER))[None]
        return self._keyed("sin", lambda exponent: P.mul(P.sub(*self._turned(exponent)), half), np.sin, (self.plain(x), 1))

    def _tanh(self, x: Number) -> Number:
        """1 - 2 / (1 + e^2x). As of a cosine, its own exponential is a random function: a state may pass through it at every token.

        A sigmoid is made of exponentials at all levels, since a decay may be its logarithm.
        """

        def value(exponent: Residues) -> Residues:
            half = _squashed(L.add(exponent, exponent))
            return P.sub(P.add(half, half), np.ones(1, np.uint64))

        return self._keyed("tanh", value, np.tanh, (self.plain(x), 1))

    def _rounded(self, name: str, x: Number) -> Number:
        return x if x.whole is not None else self._known(name, lambda x: exact.rounded(name, x), x)

    def _trailing_zeros(self, x: Number) -> Number:
        if x.whole is None:
            return self._known("trailing_zeros", exact.trailing_zeros, x)
        low = np.maximum(x.whole & -x.whole, 1).astype(float)
        return self.whole(np.where(x.whole == 0, 1024, np.log2(low).astype(np.int64)))

    def power(self, x: Number, n: Number, exponent: Fraction | None) -> Number:
        """x^n: whole powers exactly, others as powers of the positive number that stands for x."""
        if exponent is None and n.whole is not None and n.whole.size == 1:
            exponent = Fraction(int(n.whole.ravel()[0]))
        if exponent is None:
            return self._branch_power(x, n)
        steps, part = int(exponent // 1), exponent % 1
        if not part:
            return Number(of(self.plain(x)), lambda level, a: ARITHMETIC[level].power(a, steps), known=x.known)
        share = int(L.residue(part))
        value = lambda base: P.mul(P.power(base, steps), self.oracles.power(self._branch(base), share))  # noqa: E731
        return self._keyed("power", value, lambda base: np.abs(base) ** float(exponent), (x, 0))

    # --- Choices -------------------------------------------------------------------------------------------------

    def compare(self, relation: str, x: Number, y: Number) -> Number:
        """1 or 0: by the numbers if they are known, else by the coset of the difference, half of which are positive.

        Cosets know no transitive order. Where one is needed, comparisons go by the real numbers behind the residues.
        """
        if x.whole is not None and y.whole is not None:
            order = np.sign(x.whole - y.whole)
        elif x.known and y.known:
            order = exact.order(x, y, lambda: self._order(relation, x, y))
        else:
            order = self._order(relation, x, y)
        holds = {"lt": order < 0, "le": order <= 0, "gt": order > 0, "ge": order >= 0, "eq": order == 0}[relation]
        return self.whole(holds.astype(np.int64))

    def _order(self, relation: str, x: Number, y: Number) -> Integers:
        """Of what is not known as a number."""
        order: Integers
        if relation == "eq":
            order = (x.p != y.p).astype(np.int64)
        elif self.oracles.ordered:
            order = np.where(x.p == y.p, 0, np.sign(np.nan_to_num(x.residue(REAL) - y.residue(REAL)))).astype(np.int64)
        else:
            order = np.array([1, 1, -1, -1, 0])[self.oracles.cosets(P.sub(x.p, y.p))]
        return order

    def where(self, condition: Number, x: Number, y: Number) -> Number:
        assert condition.whole is not None
        chosen = condition.whole != 0
        return self.structural(lambda a, b: np.where(chosen, a, b), x, y)

    # --- Along axes ----------------------------------------------------------------------------------------------

    def sum(self, x: Number, axes: tuple[int, ...]) -> Number:
        extra = None if x.extra is None else _shifted(Number(of(_shifted(x.extra, 1)), lambda level, s: _product(level, s, axes)), -1)
        whole = None if x.whole is None else small(x.whole.sum(axis=axes))
        return Number(of(x), lambda level, a: ARITHMETIC[level].sum(a, axes), whole, extra, x.known)

    def cumsum(self, x: Number, axis: int, reverse: bool) -> Number:
        turned = self.structural(lambda a: np.flip(a, axis), x) if reverse else x
        whole, extra = None if turned.whole is None else small(np.cumsum(turned.whole, axis)), None
        if turned.extra is not None:
            extra = _shifted(Number(of(_shifted(turned.extra, 1)), lambda level, s: MODULI[level].cumprod(s, axis)), -1)
        total = Number(of(turned), lambda level, a: ARITHMETIC[level].cumsum(a, axis), whole, extra, x.known)
        return self.structural(lambda a: np.flip(a, axis), total) if reverse else total

    def contract(self, values: Iterable[Number], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Number:
        values = tuple(values)
        if any(x.extra is not None for x in values):
            return self._summed_product(values, axes, out)
        whole = whole_contraction(values, axes, out)
        return Number(of(*values), lambda level, *xs: einsum(ARITHMETIC[level], xs, axes, out), whole, known=all(x.known for x in values))

    def _summed_product(self, values: tuple[Number, ...], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Number:
        """The contraction of values with logarithms in them, product by product."""
        union = (elimination.POINT, *out, *dict.fromkeys(a for group in axes for a in group if a not in out))

        def wide(x: Number, group: tuple[str, ...]) -> Number:
            return self.structural(lambda a: aligned(a, (elimination.POINT, *group), union), x)

        total = wide(values[0], axes[0])
        for x, group in zip(values[1:], axes[1:], strict=True):
            total = self._mul(total, wide(x, group))
        gone = tuple(range(1 + len(out), len(union)))
        return self.sum(total, gone) if gone else total

    def exp_masked(self, x: Number, mask: Mask) -> Number:
        return self.structural(lambda a: np.where(keeps(mask, *a.shape[-2:]), a, np.uint64(0)), self._exp(x))

    def solve(self, matrix: Number, rhs: Number) -> Number:
        inverse = remembered(self, "inverse matrix", (matrix,), lambda: self.inverse_matrix(matrix))
        return Number(of(inverse, self.plain(rhs)), lambda level, a, b: elimination.matmul(MODULI[level], a, b))

    def inverse_matrix(self, x: Number) -> Number:
        def once(level: int, a: Residues) -> Residues:
            found: Residues = self.oracles.once(("inverse matrix", level), lambda m: elimination.inverse(MODULI[level], m), a)
            return found

        return Number(of(self.plain(x)), once)

    def unit_lower_inverse(self, x: Number) -> Number:
        return Number(of(self.plain(x)), lambda level, a: elimination.unit_lower_inverse(MODULI[level], a))


def _squashed(exponent: Residues) -> Residues:
    """1 / (1 + e^-x) mod p for an exponent x."""
    return P.inverse(P.add(np.ones(1, np.uint64), raised(0, L.neg(exponent))))


def _shifted(x: Number, by: int) -> Number:
    """The value plus one, or minus one."""
    one = np.ones(1, np.uint64)
    return Number(of(x), lambda level, a: MODULI[level].add(a, one) if by > 0 else MODULI[level].sub(a, one))


def _inverted(extra: Number) -> Number:
    """1 / s - 1 for s - 1."""
    return _shifted(Number(of(_shifted(extra, 1)), lambda level, s: MODULI[level].inverse(s)), -1)


def _zeros(x: Number) -> Number:
    return Number(of(x), lambda level, a: np.zeros_like(a))


def _product(level: int, factors: Residues, axes: tuple[int, ...]) -> Residues:
    """The product over dimensions."""
    for axis in sorted((a % factors.ndim for a in axes), reverse=True):
        factors = MODULI[level].prod(factors, axis)
    return factors
