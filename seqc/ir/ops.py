"""What an op is, the table of all ops, and the functions that build nodes.

A row of the table holds everything that is known about an op: the type rule, the derivative, the arguments in which it
is linear, its meaning (written once over an `Arithmetic`, so that float64, the prime field and dual numbers share it),
its cost and its simplification. Printers add one table each. The rows stand in `seqc.ir.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from seqc.ir.expr import Attr, Expr, Mask, TensorType, make
from seqc.ir.rules import extent, union

Adjoints = tuple[Expr | None, ...]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class OpDef:
    """One operation.

    `linear` lists the arguments in which the op is linear, each with the others held fixed; `joint` says that it is
    linear in all of those together (a sum), not only in one at a time (a product).
    """

    name: str
    infer: Callable[[tuple[TensorType, ...], Any], TensorType]
    vjp: Callable[[Expr, Expr], Adjoints]
    meaning: Callable[..., Any]
    linear: tuple[int, ...] = ()
    joint: bool = False
    flops: Callable[[Expr, Sizes], int] = lambda e, sizes: numel(e.axes, sizes)
    simplify: Callable[[tuple[Expr, ...], Any], Expr | None] | None = None

    def build(self, args: tuple[Expr, ...], attr: Attr = ()) -> Expr:
        """The node, simplified."""
        simpler = self.simplify(args, attr) if self.simplify else None
        return simpler if simpler is not None else make(self, args, attr)

    def __repr__(self) -> str:
        return self.name


def numel(axes: Iterable[str], sizes: Sizes) -> int:
    """How many numbers a tensor of these axes holds."""
    n = 1
    for a in axes:
        n *= extent(sizes, a)
    return n


def base(axis: str) -> str:
    """The size that an axis counts: K for K, K' and K~."""
    return axis.rstrip("'~")


TABLE: dict[str, OpDef] = {}  # by name; filled by seqc.ir.table, which the package imports


# --- Building nodes: the only way to make one ------------------------------------------------------------------


def var(name: str, axes: Iterable[str] = (), dtype: str = "real") -> Expr:
    return make(TABLE["var"], (), (name, tuple(axes), dtype))


def number(value: int | Fraction) -> Expr:
    return make(TABLE["const"], (), Fraction(value))


def constant(name: str) -> Expr:
    """`pi` or `inf`."""
    return make(TABLE["constant"], (), name)


def size(axis: str) -> Expr:
    """The length of an axis, as a number."""
    return make(TABLE["size"], (), base(axis))


def iota(axis: str) -> Expr:
    """0, 1, 2, ... along the axis."""
    return make(TABLE["iota"], (), (axis,))


def eye(row: str, column: str) -> Expr:
    return make(TABLE["eye"], (), (row, column))


def unary(name: str, x: Expr) -> Expr:
    return TABLE[name].build((x,))


def neg(x: Expr) -> Expr:
    return unary("neg", x)


def exp(x: Expr) -> Expr:
    return unary("exp", x)


def log(x: Expr) -> Expr:
    return unary("log", x)


def sqrt(x: Expr) -> Expr:
    return unary("sqrt", x)


def conj(x: Expr) -> Expr:
    return unary("conj", x)


def stop_gradient(x: Expr) -> Expr:
    return unary("stop_gradient", x)


def add(x: Expr, y: Expr) -> Expr:
    return TABLE["add"].build((x, y))


def sub(x: Expr, y: Expr) -> Expr:
    return TABLE["sub"].build((x, y))


def mul(x: Expr, y: Expr) -> Expr:
    return TABLE["mul"].build((x, y))


def div(x: Expr, y: Expr) -> Expr:
    return TABLE["div"].build((x, y))


def power(x: Expr, n: Expr) -> Expr:
    return TABLE["power"].build((x, n))


def maximum(x: Expr, y: Expr) -> Expr:
    return TABLE["maximum"].build((x, y))


def minimum(x: Expr, y: Expr) -> Expr:
    return neg(maximum(neg(x), neg(y)))


def modulo(x: Expr, n: Expr) -> Expr:
    return TABLE["modulo"].build((x, n))


def compare(relation: str, x: Expr, y: Expr) -> Expr:
    """relation: lt, le, gt, ge or eq."""
    return TABLE["compare"].build((x, y), relation)


def where(condition: Expr, x: Expr, y: Expr) -> Expr:
    return TABLE["where"].build((condition, x, y))


def complex_(re: Expr, im: Expr) -> Expr:
    return TABLE["complex"].build((re, im))


def sum_over(x: Expr, axes: Iterable[str]) -> Expr:
    gone = tuple(axes)
    return contract((x,), tuple(a for a in x.axes if a not in gone))


def max_over(x: Expr, axes: Iterable[str]) -> Expr:
    return TABLE["max_over"].build((x,), tuple(axes))


def contract(args: Iterable[Expr], out: Iterable[str]) -> Expr:
    """The product of the arguments, summed over every axis that is not in `out` (einsum over named axes)."""
    return TABLE["contract"].build(tuple(args), tuple(out))


def broadcast(x: Expr, axes: Iterable[str]) -> Expr:
    return TABLE["broadcast"].build((x,), tuple(axes))


def rename(x: Expr, table: Mapping[str, str]) -> Expr:
    return TABLE["rename"].build((x,), tuple((a, table[a]) for a in x.axes if table.get(a, a) != a))


def cumsum(x: Expr, axis: str, reverse: bool = False) -> Expr:
    """The inclusive running sum along an axis."""
    return TABLE["cumsum"].build((x,), (axis, reverse))


def shift(x: Expr, axis: str, by: int) -> Expr:
    """y[i] = x[i - by], zero where there is none."""
    return TABLE["shift"].build((x,), (axis, by))


def convolve(x: Expr, y: Expr, axis: str, out: Iterable[str]) -> Expr:
    """z[t] = sum over s <= t of x[t - s] y[s] along an axis, and over every axis that is not in `out`."""
    return TABLE["convolve"].build((x, y), (axis, tuple(out)))


def correlate(x: Expr, y: Expr, axis: str, out: Iterable[str]) -> Expr:
    """z[s] = sum over t >= s of x[t] y[t - s] along an axis, and over every axis that is not in `out`."""
    return TABLE["correlate"].build((x, y), (axis, tuple(out)))


def select(x: Expr, axis: str, index: int) -> Expr:
    return TABLE["select"].build((x,), (axis, index))


def place(x: Expr, axis: str, index: int) -> Expr:
    return TABLE["place"].build((x,), (axis, index))


def gather(x: Expr, axis: str, index: Expr) -> Expr:
    """x at a computed index along an axis."""
    hit = where(compare("eq", iota(axis), index), number(1), number(0))
    rest = tuple(a for a in x.axes if a != axis)
    return contract((x, hit), (*rest, *(a for a in index.axes if a not in rest)))


def stack(args: Iterable[Expr], axis: str) -> Expr:
    args = tuple(args)
    axes = union(tuple(a.type for a in args))
    return TABLE["stack"].build(tuple(broadcast(a, axes) for a in args), (axis,))


def flatten(x: Expr, axes: Iterable[str], new: str) -> Expr:
    return TABLE["flatten"].build((x,), (tuple(axes), new))


def unflatten(x: Expr, axes: Iterable[str], old: str) -> Expr:
    return TABLE["unflatten"].build((x,), (tuple(axes), old))


def concat(args: Iterable[Expr], axis: str, parts: Iterable[str]) -> Expr:
    """The arguments one after the other; `parts` names the axis of each that is joined (size 1: the axis `1`)."""
    return TABLE["concat"].build(tuple(args), (axis, tuple(parts)))


def piece(x: Expr, axis: str, parts: Iterable[str], which: int) -> Expr:
    return TABLE["piece"].build((x,), (axis, tuple(parts), which))


def append(x: Expr, e: Expr, axis: str) -> Expr:
    """x with one entry more along a growing axis."""
    return TABLE["append"].build((x, e), (axis,))


def spread(x: Expr, groups: str, heads: str) -> Expr:
    """Each group's value for each of its heads, in order."""
    return TABLE["spread"].build((x,), (groups, heads))


def collect(x: Expr, groups: str, heads: str) -> Expr:
    """The sum over each group's heads."""
    return TABLE["collect"].build((x,), (groups, heads))


def solve(matrix: Expr, rhs: Expr, row: str, column: str) -> Expr:
    """y with sum over column of matrix[row, column] y[column] = rhs[row]."""
    return TABLE["solve"].build((matrix, rhs), (row, column))


def masked(x: Expr, mask: Mask) -> Expr:
    return TABLE["masked"].build((x,), mask)


def unit_lower_inverse(x: Expr, row: str, column: str) -> Expr:
    """(I + x)^-1 for a strictly lower triangular x[row, column]."""
    return TABLE["unit_lower_inverse"].build((x,), (row, column))


def apply_inverse(x: Expr, inverse: Expr, right: Expr, row: str, column: str) -> Expr:
    """y with (I + x) y = right along the row axis, for x[row, column] strictly lower triangular and its `unit_lower_inverse`.

    The product of the inverse and the right side, but its derivative with respect to x is -d_right y^T, without the inverse.
    """
    return TABLE["apply_inverse"].build((x, inverse, right), (row, column))


def decay(upper: Expr, lower: Expr, mask: Mask) -> Expr:
    """exp(L[row] - M[column]) under the mask, zero elsewhere; the exponent is formed before exp."""
    return TABLE["decay"].build((upper, lower), mask)


def decayed(x: Expr, y: Expr, upper: Expr, lower: Expr, out: Iterable[str], mask: Mask) -> Expr:
    """Sum of x * y * exp(L[row, k] - M[column, k]) under the mask over the axes not in `out`.

    Axes of time and place always stay, so that a factor that lacks one is broadcast and its derivative fitted by the caller.
    """
    out = tuple(out)
    every = dict.fromkeys(a for e in (x, y, upper, lower) for a in e.axes)
    lead = (a for a in every if a.startswith("@") and a not in (mask.row, mask.column, *out))
    return TABLE["decayed"].build((x, y, upper, lower), ((*lead, *out), mask))


def decayed_solve(P: Expr, right: Expr, upper: Expr, lower: Expr, mask: Mask, transposed: bool = False) -> Expr:
    """u with u_i + sum over j of P_ij exp(L_ik - M_jk) u_jk = right_ik under a strict mask; or with the matrix transposed."""
    return TABLE["decayed_solve"].build((P, right, upper, lower), (mask, transposed))


def strict_solve(P: Expr, right: Expr, given: Iterable[Expr], mask: Mask, rule: Expr, leaves: Iterable[Expr], back: bool = False) -> Expr:
    """u_i = rule(right_i - sum over j of P_ij u_j, given_i), with P zero but under a strict mask; or with the matrix transposed.

    The rule is an expression over formal leaves: what a row finds, then one for each value that is given to it.
    """
    return TABLE["strict_solve"].build((P, right, *given), (mask, back, rule, tuple(leaves)))


def implicit(body: Expr, unknown: Expr) -> Expr:
    """The value W with W = body(W), for a body affine in the leaf `unknown`."""
    return TABLE["implicit"].build((body,), unknown.attr)


def is_number(x: Expr, value: int | None = None) -> bool:
    return x.op.name == "const" and (value is None or x.attr == value)


def is_zero(x: Expr) -> bool:
    return is_number(x, 0) or (x.op.name == "broadcast" and is_number(x.args[0], 0))
