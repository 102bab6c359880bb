"""Contractions: one matrix product where the axes allow it, else a product and a sum, else torch.einsum."""

from __future__ import annotations

from seqc.backends.torch.operands import ATOM, MATMUL, PRODUCT, UNARY, Operands, Text, dims_of, transposed, wrap
from seqc.ir.expr import Expr
from seqc.ir.program import BATCH, HEADS, LEAD
from seqc.ir.rules import union
from seqc.schedule.linear import layout
from seqc.schedule.rows import renamed


def contract(p: Operands, e: Expr) -> Text:
    if len(e.args) == 1:
        return _sum(p, e.args[0], e)
    x, y = e.args
    left, right, summed = _sides(e)
    rows = _rows(p, e)
    if rows is not None:
        return rows
    factors = _factors(p, e)
    if factors is not None:
        a, b = factors
        text = f"{wrap(*a, MATMUL if a[1] == MATMUL else UNARY)} @ {wrap(*b, UNARY)}"
        if not left:
            return f"({text})[..., 0, :]", ATOM
        return (text, MATMUL) if right else (f"({text})[..., 0]", ATOM)
    if not (left and right and summed):
        return _product_sum(p, e, x, y)
    return _einsum(p, e)


def accumulated(p: Operands, want: tuple[str, ...], x: Expr, product: Expr, sign: int) -> Text | None:
    """x + product or x - product in one call, for plain batches of matrices; None where the product would lie otherwise than x."""
    factors = factors_of(p, want, product)
    if factors is None:
        return None
    more = ", alpha=-1" if sign < 0 else ""
    text, level = p.expr(x)
    if p.owns(x, want):
        return f"{wrap(text, level, ATOM)}.baddbmm_({', '.join(factors)}{more})", ATOM
    return f"torch.baddbmm({', '.join((text, *factors))}{more})", ATOM


def grown(p: Operands, want: tuple[str, ...], e: Expr) -> Text | None:
    """A sum with a product of matrices, added to an operand that the sum may be written over; None where that is not so."""
    if e.op.name not in ("add", "sub"):
        return None
    for total, product in (e.args, e.args[::-1])[: 2 if e.op.name == "add" else 1]:
        product, sign = (product.args[0], -1) if product.op.name == "neg" else (product, 1)
        if p.owns(total, want) and p.axes(product) == want and (factors := plain_factors(p, product)):
            sign = sign if e.op.name == "add" else -sign
            return f"runtime.add_product({', '.join((p.expr(total)[0], *factors))}{', -1' if sign < 0 else ''})", ATOM
    return None


def plain_factors(p: Operands, e: Expr) -> tuple[str, str] | None:
    """The matrices of a product, which lies as `runtime.product` writes it; None where a value is no such product."""
    return factors_of(p, p.axes(e), renamed(e)) if _is_plain(renamed(e)) else None


def _is_plain(e: Expr) -> bool:
    """Whether a value is the product of two batches of matrices that have the same batch axes, at least one."""
    if e.op.name != "contract" or len(e.args) != 2 or e.type.dtype != "real":
        return False
    left, right, summed = _sides(e)
    shared = set(e.axes) - {*left, *right}
    return bool(left and right and summed and shared) and all(shared <= set(x.axes) for x in e.args)


def factors_of(p: Operands, want: tuple[str, ...], product: Expr) -> tuple[str, str] | None:
    """The two matrices of a product that lies as `want` says."""
    factors = _factors(p, product)
    if factors is None or any(a != b and a in product.axes for a, b in zip(want, p.axes(product), strict=True)):
        return None
    return factors[0][0], factors[1][0]


def _rows(p: Operands, e: Expr) -> Text | None:
    """A vector of every sequence times a matrix that all sequences share: the sequences are the rows of one product for each head."""
    for x, y in (e.args, e.args[::-1]):
        axes = p.axes(x)
        if axes[:-1] != (BATCH, HEADS) or set(y.axes) != {HEADS, axes[-1], p.axes(e)[-1]} or p.axes(e)[:-1] != (BATCH, HEADS):
            continue
        matrix = _matrix(p, y, axes[-1], p.axes(e)[-1], [HEADS])
        if matrix is not None and axes[-1] not in e.axes:
            return f"({wrap(*p.expr(x), ATOM)}.transpose(0, 1) @ {wrap(*matrix, UNARY)}).transpose(0, 1)", ATOM
    return None


def _sides(e: Expr) -> tuple[list[str], list[str], list[str]]:
    """Of a product: the axes of its left factor alone, of its right factor alone, and those that it sums over."""
    x, y = e.args
    left = [a for a in x.axes if a not in y.axes and a not in LEAD and a in e.axes]
    right = [a for a in y.axes if a not in x.axes and a not in LEAD and a in e.axes]
    return left, right, [a for a in union((x.type, y.type)) if a not in e.axes]


def _factors(p: Operands, e: Expr) -> tuple[Text, Text] | None:
    """[.., m, k] and [.., k, n], operands swapped or transposed so that their product lies in the kernel's order."""
    x, y = e.args
    left, right, summed = _sides(e)
    if len(summed) != 1 or summed[0] in LEAD or not all(summed[0] in a.axes for a in e.args):
        return None
    if len(left) > 1 or len(right) > 1 or not (left or right):
        return None
    k = summed[0]
    if left and right and p.axes(e).index(left[0]) > p.axes(e).index(right[0]):
        x, y, left, right = y, x, right, left
    shared = [a for a in p.axes(e) if a not in (*left, *right)]
    if [a for a in p.axes(e) if a in (*left, *right)] != list(p.axes(e)[len(shared) :]):
        return None  # a named batch axis lies behind the matrix axes
    a = _matrix(p, x, left[0] if left else None, k, shared)
    b = _matrix(p, y, k, right[0] if right else None, shared)
    return None if a is None or b is None else (a, b)


def _matrix(p: Operands, e: Expr, row: str | None, column: str | None, shared: list[str]) -> Text | None:
    """A tensor as batch axes, then [row, column]; a missing one gets length 1."""
    axes = p.axes(e)
    wanted = [a for a in (row, column) if a is not None]
    if set(axes[len(axes) - len(wanted) :]) != set(wanted):
        return None
    text, precedence = p.expr(e)
    batch = axes[: len(axes) - len(wanted)]
    if len(wanted) == 2 and list(axes[-2:]) != wanted:
        text, precedence = transposed(text, precedence)
    if row is None:
        text, precedence = f"{wrap(text, precedence, ATOM)}[..., None, :]", ATOM
    if column is None:
        text, precedence = f"{wrap(text, precedence, ATOM)}[..., None]", ATOM
    present = [a for a in shared if a in batch]
    if list(batch) != present:
        return None
    gaps = [a not in batch for a in shared]
    while gaps and gaps[0]:
        gaps.pop(0)
    if any(gaps):
        index = ", ".join("None" if g else ":" for g in gaps)
        return f"{wrap(text, precedence, ATOM)}[{index}]", ATOM
    return text, precedence


def _product_sum(p: Operands, e: Expr, x: Expr, y: Expr) -> Text:
    """Elementwise product, then the sum over what does not stay."""
    every = layout(p.kernel.order, union((x.type, y.type)))
    dims = [i - len(every) for i, a in enumerate(every) if a not in e.axes]
    for one, other in ((x, y), (y, x)):
        if e.type.dtype == "real" and dims and p.owns(one, every):
            return f"{wrap(*p.expr(one), ATOM)}.mul_({p.operand(other, every)[0]}).sum({dims_of(dims)})", ATOM
    text = f"{wrap(*p.operand(x, every), PRODUCT)} * {wrap(*p.operand(y, every), PRODUCT)}"
    return (f"({text}).sum({dims_of(dims)})", ATOM) if dims else (text, PRODUCT)


def _sum(p: Operands, x: Expr, e: Expr) -> Text:
    axes = p.axes(x)
    dims = [i - len(axes) for i, a in enumerate(axes) if a not in e.axes]
    text, precedence = p.expr(x)
    return (f"{wrap(text, precedence, ATOM)}.sum({dims_of(dims)})", ATOM) if dims else (text, precedence)


def _einsum(p: Operands, e: Expr) -> Text:
    letters: dict[str, str] = {}
    for a in (a for x in e.args for a in p.axes(x)):
        wish = a.lstrip("@")[0].lower()
        free = [c for c in (wish, *"bhctrskvnmdefgijlopquwxyz") if c not in letters.values()]
        letters.setdefault(a, free[0])
    spec = ",".join("".join(letters[a] for a in p.axes(x)) for x in e.args)
    out = "".join(letters[a] for a in p.axes(e))
    return f'torch.einsum("{spec}->{out}", {", ".join(p.expr(x)[0] for x in e.args)})', ATOM
