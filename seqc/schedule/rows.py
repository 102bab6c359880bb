"""Inside a loop, sequences and heads as one axis: its products are then of plain batches of matrices, which cost least to call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, make, rebuild, variables, walk
from seqc.ir.program import BATCH, GROUPS, HEADS, ROWS, Carry, body_roots
from seqc.ir.rules import union

BOTH = (BATCH, HEADS)
SPOKEN = ("contract", "broadcast")  # ops whose attribute lists the axes of the result


def merges(stage: Carry, leaves: Mapping[str, Expr]) -> bool:
    """Whether every value that the loop sees has both axes, or neither, and no op inside tells them apart."""
    seen = [*(k.init for k in stage.carried), *variables(*body_roots(stage)), *(e.value for e in stage.equations)]
    if any(GROUPS in v.axes or (BATCH in v.axes) != (HEADS in v.axes) for v in seen):
        return False
    return not any(_tells_apart(n) for n in walk(*body_roots(stage)))


def _tells_apart(node: Expr) -> bool:
    """Whether an op treats sequences and heads otherwise than as batch axes."""
    if (BATCH in node.axes) != (HEADS in node.axes) or (any(BATCH in a.axes for a in node.args) and BATCH not in node.axes):
        return True
    return node.op.name not in (*SPOKEN, "var") and bool(_names(node.attr) & set(BOTH))


def _names(attr: object) -> set[str]:
    if isinstance(attr, tuple):
        return {name for part in attr for name in _names(part)}
    return {attr} if isinstance(attr, str) else set()


def over_rows(stage: Carry, hints: Mapping[Expr, str]) -> tuple[Carry, dict[Expr, str]]:
    """The stage's body with `@n` in place of both axes. First values stay as they are: they stand outside."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "var":
            return ops.var(node.name, merged(node.axes), node.type.dtype)
        attr = merged(node.attr) if node.op.name in SPOKEN else node.attr
        return node if (args, attr) == (node.args, node.attr) else make(node.op, args, attr)

    roots = body_roots(stage)
    new = rebuild(roots, rule)
    nexts, values = new[: len(stage.carried)], new[len(stage.carried) :]
    carried = tuple(replace(k, next=n) for k, n in zip(stage.carried, nexts, strict=True))
    equations = tuple(replace(e, value=v) for e, v in zip(stage.equations, values, strict=True))
    hinted = {n: hints[old] for old, n in zip(walk(*roots), rebuild(walk(*roots), rule), strict=True) if old in hints}
    return replace(stage, carried=carried, equations=equations), {**hints, **hinted}


def merged(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes with `@n` where sequences and heads stood."""
    return tuple(ROWS if a == BATCH else a for a in axes if a != HEADS)


def accumulates(node: Expr) -> tuple[Expr, Expr, int] | None:
    """x, product and sign of a sum x + product or x - product that is one call: over plain batches of matrices."""
    if node.op.name not in ("add", "sub") or len(node.axes) != 3 or ROWS not in node.axes:
        return None
    x, y = node.args
    if any(set(a.axes) != set(node.axes) for a in (x, y)):
        return None
    if node.op.name == "add" and not is_product(renamed(y)):
        x, y = y, x
    return (x, renamed(y), 1 if node.op.name == "add" else -1) if is_product(renamed(y)) else None


def renamed(e: Expr) -> Expr:
    """What a rename renames: the same tensor, unless axes exchange their names."""
    return e.args[0] if e.op.name == "rename" and not {new for _, new in e.attr} & set(e.args[0].axes) else e


def is_product(e: Expr) -> bool:
    """Whether a value is one product of plain batches of matrices."""
    if e.op.name != "contract" or len(e.args) != 2 or any(len(a.axes) != 3 or ROWS not in a.axes for a in e.args):
        return False
    return len([a for a in union(tuple(a.type for a in e.args)) if a not in e.axes]) == 1
