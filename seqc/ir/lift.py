"""Token-level expressions -> the same over more axes: named axes make it mechanical."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.rules import union


def lift(roots: Iterable[Expr], leaves: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    """The roots with leaves (or whole nodes) replaced by values that carry more axes, which every op carries along.

    An op that lists its result's axes keeps the new ones in front.
    """
    table = {id(k): v for k, v in leaves.items()}

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if id(node) in table:
            return table[id(node)]
        if args == node.args:
            return node
        new = _added(node, args)
        match node.op.name:
            case "contract" | "broadcast":
                return node.op.build(args, (*new, *node.axes))
            case "stack":
                return ops.stack(args, str(node.attr[0]))
            case "concat":
                axis, parts = node.attr
                return ops.concat(_even(args, parts), axis, parts)
            case "convolve" | "correlate":
                axis, out = node.attr
                return node.op.build(args, (axis, (*new, *out)))
            case "decayed":
                out, mask = node.attr
                return node.op.build(args, ((*new, *out), mask))
        return node.op.build(args, node.attr)

    return rebuild(roots, rule)


def _added(node: Expr, args: tuple[Expr, ...]) -> tuple[str, ...]:
    """The axes that the new arguments have and the old ones had not."""
    before = union(tuple(a.type for a in node.args))
    return tuple(a for a in union(tuple(a.type for a in args)) if a not in before)


def _even(args: tuple[Expr, ...], parts: tuple[str, ...]) -> tuple[Expr, ...]:
    """Joined tensors with equal axes besides their parts."""
    rest = [a for arg, p in zip(args, parts, strict=True) for a in arg.axes if a != p]
    shared = tuple(dict.fromkeys(rest))
    return tuple(ops.broadcast(arg, (p, *shared)) for arg, p in zip(args, parts, strict=True))
