"""Ops that are made of other ops: sigmoid of exp, softplus of log and exp, the maximum of a comparison.

Their definitions in the field, and their derivatives in forward mode, follow from those of their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

V = TypeVar("V")


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

    def shape(self, x: V) -> tuple[int, ...]:
        """Points first."""
        raise NotImplementedError

    def unary(self, name: str, x: V) -> V:
        return COMPOSED[name](self, x) if name in COMPOSED else self.primitive(name, x)

    def binary(self, name: str, x: V, y: V) -> V:
        return self.where(self.compare("ge", x, y), x, y) if name == "maximum" else self.combine(name, x, y)

    def complex(self, x: V, y: V) -> V:
        raise NoFieldMeaning("complex")

    def maximum_over(self, x: V, axes: tuple[int, ...]) -> V:
        """The maximum from the first entry to the last."""
        shape = self.shape(x)

        def in_front(a: np.ndarray) -> np.ndarray:
            # A part of a value (its logarithm, a derivative) may be one number for many entries.
            moved = np.moveaxis(np.broadcast_to(a, shape), axes, range(1, 1 + len(axes)))
            return moved.reshape((moved.shape[0], -1, *moved.shape[1 + len(axes) :]))

        rows = self.structural(in_front, x)
        total = self.structural(lambda a: a[:, 0], rows)
        for i in range(1, self.shape(rows)[1]):
            total = self.binary("maximum", total, self.structural(lambda a, i=i: a[:, i], rows))
        return total


def _one_plus(A: Composed[Any], x: Any) -> Any:
    return A.combine("add", A.rational(Fraction(1)), x)


def _sigmoid(A: Composed[Any], x: Any) -> Any:
    return A.combine("div", A.rational(Fraction(1)), _one_plus(A, A.primitive("exp", A.primitive("neg", x))))


def _relu(A: Composed[Any], x: Any) -> Any:
    zero = A.rational(Fraction(0))
    return A.where(A.compare("gt", x, zero), x, zero)


def _sign(A: Composed[Any], x: Any) -> Any:
    zero = A.rational(Fraction(0))
    negative = A.where(A.compare("lt", x, zero), A.rational(Fraction(-1)), zero)
    return A.where(A.compare("gt", x, zero), A.rational(Fraction(1)), negative)


COMPOSED: dict[str, Callable[[Composed[Any], Any], Any]] = {
    "sigmoid": _sigmoid,
    "softplus": lambda A, x: A.primitive("log", _one_plus(A, A.primitive("exp", x))),
    "expm1": lambda A, x: A.combine("sub", A.primitive("exp", x), A.rational(Fraction(1))),
    "log1p": lambda A, x: A.primitive("log", _one_plus(A, x)),
    "relu": _relu,
    "sign": _sign,
    "abs": lambda A, x: A.combine("mul", x, _sign(A, x)),
}
