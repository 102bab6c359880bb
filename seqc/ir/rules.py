"""Type rules of the ops: argument types and attribute -> type. They refuse with InternalError; users meet the checker first."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from seqc.diagnostics import InternalError
from seqc.ir.expr import TensorType

Types = tuple[TensorType, ...]


def union(types: Types) -> tuple[str, ...]:
    """The axes of an elementwise result: those of the widest argument, then what the others add."""
    axes: list[str] = []
    for t in sorted(types, key=lambda t: -len(t.axes)):
        axes.extend(a for a in t.axes if a not in axes)
    return tuple(axes)


def need(ok: bool, what: str, types: Types, attr: Any) -> None:
    if not ok:
        raise InternalError(f"{what}: {', '.join(map(str, types))} with {attr}")


def common_dtype(types: Types) -> str:
    return "complex" if any(t.dtype == "complex" for t in types) else "real"


def leaf(types: Types, attr: Any) -> TensorType:
    """attr: name, axes, dtype."""
    return TensorType(attr[1], attr[2])


def scalar(types: Types, attr: Any) -> TensorType:
    return TensorType()


def listed(types: Types, attr: Any) -> TensorType:
    """attr: the axes."""
    return TensorType(tuple(attr))


def same(types: Types, attr: Any) -> TensorType:
    need(types[0].dtype != "bool", "computes with a truth", types, attr)
    return types[0]


def elementwise(types: Types, attr: Any) -> TensorType:
    need(all(t.dtype != "bool" for t in types), "computes with a truth", types, attr)
    return TensorType(union(types), common_dtype(types))


def real(types: Types, attr: Any) -> TensorType:
    return TensorType(union(types))


def complex_(types: Types, attr: Any) -> TensorType:
    return TensorType(union(types), "complex")


def boolean(types: Types, attr: Any) -> TensorType:
    """attr: the relation; complex values have no order."""
    need(attr == "eq" or all(t.dtype == "real" for t in types), "orders what has no order", types, attr)
    return TensorType(union(types), "bool")


def where(types: Types, attr: Any) -> TensorType:
    need(types[0].dtype == "bool", "where needs a boolean", types, attr)
    return TensorType(union(types), common_dtype(types[1:]))


def drop(types: Types, attr: Any) -> TensorType:
    """attr: the axes that are reduced."""
    need(all(a in types[0].axes for a in attr), "reduces an axis that is not there", types, attr)
    return TensorType(tuple(a for a in types[0].axes if a not in attr), types[0].dtype)


def keep(types: Types, attr: Any) -> TensorType:
    """attr: the axes that stay, in their order."""
    present = union(types)
    need(all(a in present for a in attr), "keeps an axis that no argument has", types, attr)
    return TensorType(tuple(attr), types[0].dtype if len(types) == 1 else common_dtype(types))


def widen(types: Types, attr: Any) -> TensorType:
    """attr: all axes of the result."""
    need(all(a in attr for a in types[0].axes), "broadcast drops an axis", types, attr)
    return TensorType(tuple(attr), types[0].dtype)


def rename(types: Types, attr: Any) -> TensorType:
    """attr: pairs (old, new)."""
    table = dict(attr)
    need(all(a in types[0].axes for a in table), "renames an axis that is not there", types, attr)
    axes = tuple(table.get(a, a) for a in types[0].axes)
    need(len(set(axes)) == len(axes), "rename makes an axis twice", types, attr)
    return TensorType(axes, types[0].dtype)


def along(types: Types, attr: Any) -> TensorType:
    """attr starts with an axis that the argument has and keeps."""
    need(attr[0] in types[0].axes, "works along an axis that is not there", types, attr)
    return types[0]


def square(types: Types, attr: Any) -> TensorType:
    """attr: row and column axis of the argument."""
    need(all(a in types[0].axes for a in attr), "needs a matrix of other axes", types, attr)
    return types[0]


def append(types: Types, attr: Any) -> TensorType:
    """attr: the axis that gets one entry more, which the entry lacks."""
    rest = [a for a in types[0].axes if a != attr[0]]
    need(attr[0] in types[0].axes and all(a in rest for a in types[1].axes), "appends an entry that does not fit", types, attr)
    return types[0]


def select(types: Types, attr: Any) -> TensorType:
    """attr: axis, index from the front (or from the back if negative)."""
    return drop(types, (attr[0],))


def place(types: Types, attr: Any) -> TensorType:
    """attr: a new axis, index: zero elsewhere. The axis comes first."""
    need(attr[0] not in types[0].axes, "places along an axis that is there", types, attr)
    return TensorType((attr[0], *types[0].axes), types[0].dtype)


def stack(types: Types, attr: Any) -> TensorType:
    """attr: the new axis, which comes first."""
    need(all(set(t.axes) == set(types[0].axes) for t in types), "stacks unlike tensors", types, attr)
    return TensorType((attr[0], *types[0].axes), common_dtype(types))


def flatten(types: Types, attr: Any) -> TensorType:
    """attr: axes, the one that they become; it stands where the first of them stood."""
    old, new = attr
    need(all(a in types[0].axes for a in old), "flattens an axis that is not there", types, attr)
    kept = tuple(new if a == old[0] else a for a in types[0].axes if a == old[0] or a not in old)
    need(len({*kept}) == len(kept), "makes an axis twice", types, attr)
    return TensorType(kept, types[0].dtype)


def unflatten(types: Types, attr: Any) -> TensorType:
    """attr: the axes that come, the one that they were."""
    old, new = attr
    need(new in types[0].axes, "unflattens an axis that is not there", types, attr)
    axes: list[str] = []
    for a in types[0].axes:
        axes.extend(old if a == new else (a,))
    need(len({*axes}) == len(axes), "makes an axis twice", types, attr)
    return TensorType(tuple(axes), types[0].dtype)


def concat(types: Types, attr: Any) -> TensorType:
    """attr: the joined axis, which comes first; the axis of each argument that becomes a part of it."""
    new, parts = attr
    rest = {tuple(sorted(set(t.axes) - {p})) for t, p in zip(types, parts, strict=True)}
    need(len(rest) == 1, "joins unlike tensors", types, attr)
    return TensorType((new, *(a for a in types[0].axes if a != parts[0])), common_dtype(types))


def piece(types: Types, attr: Any) -> TensorType:
    """attr: the joined axis, its parts, which one."""
    axis, parts, which = attr
    need(axis in types[0].axes, "takes a piece of an axis that is not there", types, attr)
    return TensorType(tuple(parts[which] if a == axis else a for a in types[0].axes), types[0].dtype)


def solve(types: Types, attr: Any) -> TensorType:
    """attr: row and column axis of the matrix; the solution has the column axis in place of the row axis."""
    row, column = attr
    need(row in types[0].axes and column in types[0].axes and row in types[1].axes, "solve", types, attr)
    axes = tuple(column if a == row else a for a in types[1].axes)
    lead = tuple(a for a in types[0].axes if a not in (row, column) and a not in axes)
    return TensorType((*lead, *axes), common_dtype(types))


def apply_inverse(types: Types, attr: Any) -> TensorType:
    """attr: row and column axis of the first two arguments; the third has the row axis, and so has the result."""
    row, column = attr
    square = all({row, column} <= {*t.axes} for t in types[:2])
    need(square and row in types[2].axes and column not in types[2].axes, "applies a matrix along axes that are not there", types, attr)
    own = (row, column, *types[2].axes)
    return TensorType((*(a for a in union(types) if a not in own), *types[2].axes), common_dtype(types))


def masked(types: Types, attr: Any) -> TensorType:
    """attr: a mask over a row and a column axis of the argument."""
    need(attr.row in types[0].axes and attr.column in types[0].axes, "masks axes that are not there", types, attr)
    return types[0]


def decay(types: Types, attr: Any) -> TensorType:
    """attr: a mask. Arguments: L with the row axis, M with the column axis."""
    need(attr.row in types[0].axes and attr.column in types[1].axes, "decays over axes that are not there", types, attr)
    lead = tuple(a for a in union(types) if a not in (attr.row, attr.column))
    return TensorType((*lead, attr.row, attr.column))


def decayed_solve(types: Types, attr: Any) -> TensorType:
    """attr: a mask, whether the matrix is transposed. Arguments: P[row, column], the right side, L[row, k], M[column, k]."""
    mask, transposed = attr
    along = mask.column if transposed else mask.row
    need(along in types[1].axes, "solves along an axis that the right side lacks", types, attr)
    lead = (a for t in types for a in t.axes if a not in (mask.row, mask.column))
    return TensorType((*(a for a in dict.fromkeys(lead) if a not in types[1].axes), *types[1].axes))


def strict_solve(types: Types, attr: Any) -> TensorType:
    """attr: a mask, whether the matrix is transposed, the rule and its leaves. Arguments: P[row, column], the right side, what is given."""
    mask, back, rule, leaves = attr
    along = mask.column if back else mask.row
    need(mask.row in types[0].axes and mask.column in types[0].axes, "solves along axes that are not there", types, attr)
    need(len(types) == 1 + len(leaves) and {*rule.axes} == {*leaves[0].axes}, "a rule of other values", types, attr)
    need(all({along, *x.axes} <= {*t.axes} for t, x in zip(types[1:], leaves, strict=True)), "a row lacks an axis", types, attr)
    own = (mask.row, mask.column, *types[1].axes, *(a for x in leaves for a in x.axes))
    return TensorType((*(a for a in union(types) if a not in own), *types[1].axes))


def convolved(types: Types, attr: Any) -> TensorType:
    """attr: the axis along which, the axes that stay."""
    axis, out = attr
    need(all(axis in t.axes for t in types) and axis in out, "convolves along an axis that is not there", types, attr)
    need(all(a in union(types) for a in out), "keeps an axis that no argument has", types, attr)
    return TensorType(tuple(out), common_dtype(types))


def decayed(types: Types, attr: Any) -> TensorType:
    """attr: the axes that stay, the mask. Arguments: two factors, L, M."""
    out, mask = attr
    need(mask.row in types[2].axes and mask.column in types[3].axes, "decays over axes that are not there", types, attr)
    need(all(a in union(types) for a in out), "keeps an axis that no argument has", types, attr)
    return TensorType(tuple(out))


def extent(sizes: Mapping[str, int], axis: str) -> int:
    """The length of an axis: K', K~ count K, `2` counts two, `K*V` counts pairs."""
    base = axis.rstrip("'~")
    if base in sizes:
        return int(sizes[base])
    if base.isdigit():
        return int(base)
    if "*" not in base:
        raise InternalError(f"the axis `{axis}` has no length")
    return prod(extent(sizes, part) for part in base.split("*"))
