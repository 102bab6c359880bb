"""The op table: one row per op, with everything that is known about it, and the functions that build nodes.

A row holds the type rule, the derivative, the arguments in which the op is linear, its meaning (written once over an
`Arithmetic`, so that float64, the prime field and dual numbers share it), its cost and its simplification. Printers
add one table each.

A derivative takes the node and its adjoint `g` and gives an adjoint per argument. A contribution may carry more axes
than its argument (which was broadcast) or fewer (it is constant along them): `seqc.passes.differentiate` fits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from seqc.diagnostics import InternalError
from seqc.ir import rules
from seqc.ir.expr import Attr, Expr, Mask, TensorType, make
from seqc.ir.rules import extent, union

Adjoints = tuple[Expr | None, ...]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class OpDef:
    """One operation; see the module's docstring.

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


def means(name: str) -> Callable[[Any, Expr, tuple[Any, ...]], Any]:
    """A function of `seqc.ir.meaning`, looked up when it is first run: checking a text needs no NumPy."""

    def run(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
        from seqc.ir import meaning

        return getattr(meaning, name)(A, e, args)

    return run


def numel(axes: Iterable[str], sizes: Sizes) -> int:
    """How many numbers a tensor of these axes holds."""
    n = 1
    for a in axes:
        n *= extent(sizes, a)
    return n


def base(axis: str) -> str:
    """The size that an axis counts: K for K, K' and K~."""
    return axis.rstrip("'~")


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


def decay(upper: Expr, lower: Expr, mask: Mask) -> Expr:
    """exp(L[row] - M[column]) under the mask, zero elsewhere; the exponent is formed before exp."""
    return TABLE["decay"].build((upper, lower), mask)


def decayed(x: Expr, y: Expr, upper: Expr, lower: Expr, out: Iterable[str], mask: Mask) -> Expr:
    """Sum of x * y * exp(L[row, k] - M[column, k]) under the mask over the axes not in `out`."""
    return TABLE["decayed"].build((x, y, upper, lower), (tuple(out), mask))


def decayed_solve(P: Expr, right: Expr, upper: Expr, lower: Expr, mask: Mask, transposed: bool = False) -> Expr:
    """u with u_i + sum over j of P_ij exp(L_ik - M_jk) u_jk = right_ik under a strict mask; or with the matrix transposed."""
    return TABLE["decayed_solve"].build((P, right, upper, lower), (mask, transposed))


def implicit(body: Expr, unknown: Expr) -> Expr:
    """The value W with W = body(W), for a body affine in the leaf `unknown`."""
    return TABLE["implicit"].build((body,), unknown.attr)


# --- Derivatives -----------------------------------------------------------------------------------------------


def _none(e: Expr, g: Expr) -> Adjoints:
    return tuple(None for _ in e.args)


def _through(derivative: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Adjoints]:
    """An elementwise function whose derivative is given in its argument and its value; of a complex one, the conjugate counts."""
    return lambda e, g: (mul(g, conj(derivative(e.args[0], e))),)


def _full(g: Expr, axes: tuple[str, ...]) -> Expr:
    """The adjoint with all of the node's axes: a constant one may lack some."""
    return broadcast(g, (*(a for a in g.axes if a not in axes), *axes))


def _d_mul(e: Expr, g: Expr) -> Adjoints:
    x, y = e.args
    return mul(g, conj(y)), mul(g, conj(x))


def _d_div(e: Expr, g: Expr) -> Adjoints:
    y = conj(e.args[1])
    return div(g, y), neg(div(mul(g, conj(e)), y))


def _d_power(e: Expr, g: Expr) -> Adjoints:
    x, n = e.args
    towards_n = None if n.op.name in ("const", "size") else mul(g, conj(mul(e, log(x))))
    return mul(g, conj(mul(n, power(x, sub(n, number(1)))))), towards_n


def _d_maximum(e: Expr, g: Expr) -> Adjoints:
    first = compare("ge", *e.args)
    return where(first, g, number(0)), where(first, number(0), g)


def _d_where(e: Expr, g: Expr) -> Adjoints:
    condition = e.args[0]
    return None, where(condition, g, number(0)), where(condition, number(0), g)


def _d_max_over(e: Expr, g: Expr) -> Adjoints:
    assert isinstance(e.attr, tuple)
    hit = where(compare("eq", e.args[0], e), number(1), number(0))
    return (mul(g, div(hit, sum_over(hit, map(str, e.attr)))),)


def _d_contract(e: Expr, g: Expr) -> Adjoints:
    def towards(i: int) -> Expr:
        others = (g, *(conj(a) for j, a in enumerate(e.args) if j != i))
        have = union(tuple(a.type for a in others))
        return contract(others, tuple(a for a in e.args[i].axes if a in have))

    return tuple(towards(i) for i in range(len(e.args)))


def _d_inverse(e: Expr, g: Expr) -> Adjoints:
    """T = (I + A)^-1: dA = -T^T dT T^T, strictly lower."""
    row, column = e.attr  # type: ignore[misc]
    x, y = f"{row}~", f"{column}~"
    left, right = rename(e, {row: x, column: row}), rename(e, {row: column, column: y})
    inner = rename(_full(g, e.axes), {row: x, column: y})
    half = contract((left, inner), tuple(y if a == column else a for a in e.axes))
    return (neg(masked(contract((half, right), e.axes), Mask(row, column))),)


def _d_solve(e: Expr, g: Expr) -> Adjoints:
    row, column = e.attr  # type: ignore[misc]
    adjoint = solve(e.args[0], _full(g, e.axes), column, row)
    return neg(contract((adjoint, e), e.args[0].axes)), adjoint


def _d_decay(e: Expr, g: Expr) -> Adjoints:
    mask = e.attr
    assert isinstance(mask, Mask)
    return contract((g, e), tuple(a for a in e.axes if a != mask.column)), neg(contract((g, e), tuple(a for a in e.axes if a != mask.row)))


def _d_decayed(e: Expr, g: Expr) -> Adjoints:
    """Closed in the family: dL = x * dx and dM = -y * dy for the factors x[row, k] and y[column, k], one of which may be the result."""
    _, mask = e.attr  # type: ignore[misc]
    assert isinstance(mask, Mask)
    first, second, upper, lower = e.args
    g = _full(g, e.axes)
    d_first = decayed(g, second, upper, lower, first.axes, mask)
    d_second = decayed(g, first, upper, lower, second.axes, mask)
    values = ((first, d_first), (second, d_second), (e, g))
    x, dx = next(v for v in values if mask.row in v[0].axes and mask.column not in v[0].axes)
    y, dy = next(v for v in values if mask.column in v[0].axes and mask.row not in v[0].axes)
    return d_first, d_second, mul(x, dx), neg(mul(y, dy))


def _d_decayed_solve(e: Expr, g: Expr) -> Adjoints:
    """u = (I + N)^-1 r with N_ij = P_ij exp(L_i - M_j): dr solves the transposed system, dN = -dr u^T, N u = r - u."""
    mask, transposed = e.attr  # type: ignore[misc]
    assert isinstance(mask, Mask)
    P, right, upper, lower = e.args
    here, there = (mask.column, mask.row) if transposed else (mask.row, mask.column)
    g = _full(g, e.axes)
    d_right = rename(decayed_solve(P, rename(g, {here: there}), upper, lower, mask, not transposed), {there: here})
    pair = (rename(e, {here: mask.row}), rename(d_right, {here: mask.column})) if transposed else (
        rename(d_right, {here: mask.row}), rename(e, {here: mask.column}))  # fmt: skip
    d_P = neg(decayed(*pair, upper, lower, P.axes, mask))
    of_right, of_adjoint = mul(d_right, sub(e, right)), mul(e, sub(g, d_right))
    if transposed:
        return d_P, d_right, rename(neg(of_adjoint), {here: mask.row}), neg(of_right)
    return d_P, d_right, of_right, rename(of_adjoint, {here: mask.column})


def _d_stack(e: Expr, g: Expr) -> Adjoints:
    axis = e.attr[0]  # type: ignore[index]
    return tuple(select(g, axis, i) if axis in g.axes else g for i in range(len(e.args)))  # type: ignore[arg-type, operator]


def _d_concat(e: Expr, g: Expr) -> Adjoints:
    axis, parts = e.attr  # type: ignore[misc]
    g = _full(g, e.axes)
    return tuple(piece(g, axis, parts, i) for i in range(len(e.args)))  # type: ignore[arg-type]


def _d_piece(e: Expr, g: Expr) -> Adjoints:
    axis, parts, which = e.attr  # type: ignore[misc]
    g = _full(g, e.axes)
    rest = tuple(a for a in g.axes if a != parts[which])  # type: ignore[index]
    return (concat((g if i == which else broadcast(number(0), (p, *rest)) for i, p in enumerate(parts)), axis, parts),)  # type: ignore[arg-type]


def _d_append(e: Expr, g: Expr) -> Adjoints:
    axis = str(e.attr[0])  # type: ignore[index]
    g = _full(g, e.axes)
    return TABLE["drop_last"].build((g,), (axis,)), select(g, axis, -1)


def _d_implicit(e: Expr, g: Expr) -> Adjoints:
    raise InternalError("an implicit value has no derivative")


# --- Simplification: identities that hold everywhere on the op's domain -----------------------------------------


def is_number(x: Expr, value: int | None = None) -> bool:
    return x.op.name == "const" and (value is None or x.attr == value)


def _zero(axes: tuple[str, ...]) -> Expr:
    return broadcast(number(0), axes)


def is_zero(x: Expr) -> bool:
    return is_number(x, 0) or (x.op.name == "broadcast" and is_number(x.args[0], 0))


def _s_neg(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if is_number(x):
        return number(-x.attr)  # type: ignore[operator, arg-type]
    if is_zero(x):
        return x
    return x.args[0] if x.op.name == "neg" else None


def _s_add(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if is_number(x) and is_number(y):
        return number(x.attr + y.attr)  # type: ignore[operator]
    for one, other in ((x, y), (y, x)):
        if is_zero(one) and one.type.dtype == "real":
            return broadcast(other, union((x.type, y.type)))
    return sub(x, y.args[0]) if y.op.name == "neg" else None


def _s_sub(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if is_number(x) and is_number(y):
        return number(x.attr - y.attr)  # type: ignore[operator]
    if is_zero(y):
        return broadcast(x, union((x.type, y.type)))
    if is_zero(x):
        return broadcast(neg(y), union((x.type, y.type)))
    return add(x, y.args[0]) if y.op.name == "neg" else None


def _s_mul(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if is_number(x) and is_number(y):
        return number(x.attr * y.attr)  # type: ignore[operator]
    for one, other in ((x, y), (y, x)):
        if is_zero(one):
            return _zero(union((x.type, y.type)))
        if is_number(one, 1):
            return other
        if is_number(one, -1):
            return neg(other)
        if one.op.name == "neg":
            return neg(mul(one.args[0], other))
        if one.op.name == "broadcast" and is_number(one.args[0]) and set(one.axes) <= set(other.axes):
            return mul(one.args[0], other)
        if is_number(one) and other.op.name == "mul" and is_number(other.args[0]):
            return mul(number(one.attr * other.args[0].attr), other.args[1])  # type: ignore[operator]
        if one.op.name == "div" and is_number(one.args[0], 1):
            return div(other, one.args[1])
        if is_number(one) and one is y:
            return mul(one, other)  # numbers stand first
    return None


def _s_div(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if is_number(x) and is_number(y) and y.attr != 0:
        return number(Fraction(x.attr) / Fraction(y.attr))  # type: ignore[arg-type]
    if is_number(y, 1):
        return x
    return _zero(union((x.type, y.type))) if is_zero(x) else None


def _s_power(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, n = args
    if is_number(n, 1):
        return x
    if is_number(n, 0):
        return broadcast(number(1), x.axes)
    if is_number(x) and is_number(n) and n.attr.denominator == 1 and abs(n.attr) < 64 and (x.attr != 0 or n.attr > 0):  # type: ignore[union-attr, operator, arg-type]
        return number(Fraction(x.attr) ** int(n.attr))  # type: ignore[arg-type]
    return None


def _s_contract(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """Numbers and signs leave; a zero makes zero; a lone argument that keeps its axes is itself."""
    if any(is_zero(a) for a in args):
        return _zero(attr)
    if len(args) == 1 and args[0].axes == attr:
        return args[0]
    if len(args) == 1 and args[0].op.name == "mul" and args[0].type.dtype == "real":
        return contract(args[0].args, attr) if union(tuple(a.type for a in args[0].args)) == args[0].axes else None
    if len(args) > 1 and any(a.op.name == "neg" for a in args):
        inner = contract((a.args[0] if a.op.name == "neg" else a for a in args), attr)
        return neg(inner) if sum(a.op.name == "neg" for a in args) % 2 else inner
    if len(args) > 1 and any(is_number(a) for a in args):
        rest = tuple(a for a in args if not is_number(a)) or (number(1),)
        result = contract(rest, attr)
        for a in args:
            result = mul(a, result) if is_number(a) and rest != (a,) else result
        return result
    if len(args) == 2 and not (set(args[0].axes) | set(args[1].axes)) - set(attr):
        product = mul(*args)
        return product if product.axes == attr else None
    return None


def _s_broadcast(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if set(x.axes) == set(attr):
        return x if x.axes == attr else TABLE["contract"].build((x,), attr)
    return broadcast(x.args[0], attr) if x.op.name == "broadcast" else None


def _s_rename(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if not attr:
        return x
    table = dict(attr)
    if x.op.name == "rename":
        first = dict(x.attr)  # type: ignore[arg-type]
        whole = {a: table.get(first.get(a, a), first.get(a, a)) for a in x.args[0].axes}
        return rename(x.args[0], whole)
    if x.op.name == "broadcast" and is_number(x.args[0]):
        return broadcast(x.args[0], (table.get(a, a) for a in x.axes))
    return None


def _s_linear(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """A linear rearrangement of zero is zero."""
    return _zero(args[0].axes) if is_zero(args[0]) else None


def _s_masked(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    if is_zero(args[0]) or (args[0].op.name in ("masked", "decay") and args[0].attr == attr):
        return args[0]
    return None


def _s_unit(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    return args[0] if is_number(args[0]) else None


def _s_select(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, (axis, index) = args[0], attr
    if x.op.name == "stack" and x.attr[0] == axis:  # type: ignore[index]
        return x.args[index]
    if x.op.name == "broadcast" and axis not in x.args[0].axes:
        return broadcast(x.args[0], (a for a in x.axes if a != axis))
    return None


def _s_where(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    condition, x, y = args
    return broadcast(x, union(tuple(a.type for a in args))) if x is y else None


def _s_real(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """`conj` and `re` of a real value are the value."""
    return args[0] if args[0].type.dtype == "real" else None


def _s_exp(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    return number(1) if is_number(args[0], 0) else broadcast(number(1), args[0].axes) if is_zero(args[0]) else None


# --- Costs -----------------------------------------------------------------------------------------------------


def _free(e: Expr, sizes: Sizes) -> int:
    return 0


def _products(e: Expr, sizes: Sizes) -> int:
    axes = union(tuple(a.type for a in e.args))
    return (2 if len(e.args) > 1 else 1) * numel(axes, sizes)


def _cubic(e: Expr, sizes: Sizes) -> int:
    return numel(e.args[0].axes, sizes) * sizes[base(str(e.attr[0]))] // 3  # type: ignore[index]


def _decayed_cost(e: Expr, sizes: Sizes) -> int:
    return 3 * _products(e, sizes)


# --- The rows --------------------------------------------------------------------------------------------------


def _unary(name: str, derivative: Callable[[Expr, Expr], Expr] | None, simplify: Any = None, **row: Any) -> OpDef:
    vjp = _through(derivative) if derivative else _none
    return OpDef(name, rules.same, vjp, means("unary"), simplify=simplify, **row)


EVERY = tuple(range(64))

ROWS: tuple[OpDef, ...] = (
    OpDef("var", rules.leaf, _none, means("var"), flops=_free),
    OpDef("const", rules.scalar, _none, means("const"), flops=_free),
    OpDef("constant", rules.scalar, _none, means("constant"), flops=_free),
    OpDef("size", rules.scalar, _none, means("size"), flops=_free),
    OpDef("iota", rules.listed, _none, means("iota"), flops=_free),
    OpDef("eye", rules.listed, _none, means("eye"), flops=_free),
    _unary("neg", lambda x, y: number(-1), _s_neg, linear=(0,)),
    _unary("exp", lambda x, y: y, _s_exp),
    _unary("log", lambda x, y: div(number(1), x)),
    _unary("sqrt", lambda x, y: div(number(1), mul(number(2), y))),
    _unary("abs", lambda x, y: unary("sign", x)),
    _unary("sign", None),
    _unary("sin", lambda x, y: unary("cos", x)),
    _unary("cos", lambda x, y: neg(unary("sin", x))),
    _unary("tanh", lambda x, y: sub(number(1), mul(y, y))),
    _unary("sigmoid", lambda x, y: mul(y, sub(number(1), y))),
    _unary("softplus", lambda x, y: unary("sigmoid", x)),
    _unary("relu", lambda x, y: where(compare("gt", x, number(0)), number(1), number(0))),
    _unary("erf", lambda x, y: mul(div(number(2), sqrt(constant("pi"))), exp(neg(mul(x, x))))),
    _unary("expm1", lambda x, y: add(y, number(1))),
    _unary("log1p", lambda x, y: div(number(1), add(number(1), x))),
    _unary("floor", None),
    _unary("ceil", None),
    _unary("trailing_zeros", None),
    _unary("stop_gradient", None, _s_unit),
    OpDef("conj", rules.same, lambda e, g: (conj(g),), means("unary"), (0,), simplify=_s_real),
    OpDef("re", rules.real, lambda e, g: (g,), means("unary"), (0,), simplify=_s_real),
    OpDef("im", rules.real, lambda e, g: (complex_(number(0), g),), means("unary"), (0,)),
    OpDef("complex", rules.complex_, lambda e, g: (unary("re", g), unary("im", g)), means("complex_"), (0, 1), joint=True),
    OpDef("add", rules.elementwise, lambda e, g: (g, g), means("binary"), (0, 1), joint=True, simplify=_s_add),
    OpDef("sub", rules.elementwise, lambda e, g: (g, neg(g)), means("binary"), (0, 1), joint=True, simplify=_s_sub),
    OpDef("mul", rules.elementwise, _d_mul, means("binary"), (0, 1), simplify=_s_mul),
    OpDef("div", rules.elementwise, _d_div, means("binary"), (0,), simplify=_s_div),
    OpDef("power", rules.elementwise, _d_power, means("power"), simplify=_s_power),
    OpDef("maximum", rules.elementwise, _d_maximum, means("binary")),
    OpDef("modulo", rules.elementwise, lambda e, g: (g, None), means("binary")),
    OpDef("compare", rules.boolean, _none, means("compare")),
    OpDef("where", rules.where, _d_where, means("where"), (1, 2), joint=True, simplify=_s_where),
    OpDef("max_over", rules.drop, _d_max_over, means("max_over")),
    OpDef("contract", rules.keep, _d_contract, means("contract"), EVERY, flops=_products, simplify=_s_contract),
    OpDef("broadcast", rules.widen, lambda e, g: (g,), means("broadcast"), (0,), flops=_free, simplify=_s_broadcast),
    OpDef("rename", rules.rename, lambda e, g: (rename(g, {n: o for o, n in e.attr}),), means("rename"), (0,), flops=_free, simplify=_s_rename),  # type: ignore[misc, union-attr]
    OpDef("cumsum", rules.along, lambda e, g: (cumsum(_full(g, e.axes), e.attr[0], not e.attr[1]),), means("cumsum"), (0,), simplify=_s_linear),  # type: ignore[index, arg-type]
    OpDef("shift", rules.along, lambda e, g: (shift(_full(g, e.axes), e.attr[0], -e.attr[1]),), means("shift"), (0,), flops=_free, simplify=_s_linear),  # type: ignore[index, arg-type, operator]
    OpDef("select", rules.select, lambda e, g: (place(g, *e.attr),), means("select"), (0,), flops=_free, simplify=_s_select),  # type: ignore[misc]
    OpDef("place", rules.place, lambda e, g: (select(_full(g, e.axes), *e.attr),), means("place"), (0,), flops=_free),  # type: ignore[misc]
    OpDef("stack", rules.stack, _d_stack, means("stack"), EVERY, joint=True, flops=_free),
    OpDef("flatten", rules.flatten, lambda e, g: (unflatten(_full(g, e.axes), *e.attr),), means("flatten"), (0,), flops=_free),  # type: ignore[misc]
    OpDef("unflatten", rules.unflatten, lambda e, g: (flatten(_full(g, e.axes), *e.attr),), means("unflatten"), (0,), flops=_free),  # type: ignore[misc]
    OpDef("concat", rules.concat, _d_concat, means("concat"), EVERY, joint=True, flops=_free),
    OpDef("piece", rules.piece, _d_piece, means("piece"), (0,), flops=_free),
    OpDef("append", rules.append, _d_append, means("append"), (0, 1), joint=True, flops=_free),
    OpDef("drop_last", rules.along, lambda e, g: (append(_full(g, e.axes), number(0), e.attr[0]),), means("drop_last"), (0,), flops=_free),  # type: ignore[index, arg-type]
    OpDef("spread", lambda t, a: rules.rename(t, ((a[0], a[1]),)), lambda e, g: (collect(_full(g, e.axes), *e.attr),), means("spread"), (0,), flops=_free),  # type: ignore[misc]
    OpDef("collect", lambda t, a: rules.rename(t, ((a[1], a[0]),)), lambda e, g: (spread(_full(g, e.axes), *e.attr),), means("collect"), (0,)),  # type: ignore[misc]
    OpDef("solve", rules.solve, _d_solve, means("solve"), (1,), flops=_cubic),
    OpDef("masked", rules.masked, lambda e, g: (masked(_full(g, e.axes), e.attr),), means("masked"), (0,), simplify=_s_masked),  # type: ignore[arg-type]
    OpDef("unit_lower_inverse", rules.square, _d_inverse, means("unit_lower_inverse"), flops=_cubic),
    OpDef("decay", rules.decay, _d_decay, means("decay")),
    OpDef("decayed", rules.decayed, _d_decayed, means("decayed"), (0, 1), flops=_decayed_cost),
    OpDef("decayed_solve", rules.decayed_solve, _d_decayed_solve, means("decayed_solve"), (1,), flops=_decayed_cost),
    OpDef("implicit", lambda t, a: t[0], _d_implicit, means("implicit")),
)

TABLE: dict[str, OpDef] = {row.name: row for row in ROWS}
