"""Expression -> the adjoints of chosen leaves: reverse-mode differentiation over the op table."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

from seqc.ir import ops
from seqc.ir.expr import Expr, walk


def fit(adjoint: Expr, axes: tuple[str, ...]) -> Expr:
    """An adjoint with exactly the given axes: summed over axes that were broadcast, widened over those it lost."""
    kept = tuple(a for a in axes if a in adjoint.axes)
    return ops.broadcast(ops.contract((adjoint,), kept), axes)


def adjoints(seeds: Iterable[tuple[Expr, Expr]], wrt: Sequence[Expr], hints: MutableMapping[Expr, str] | None = None) -> tuple[Expr, ...]:
    """For each node of `wrt`, the sum over (value, adjoint) seeds of the adjoint's pull-back to it; zero where none reaches.

    Nodes of `wrt` are treated as leaves: nothing is propagated below them. The adjoint of a node that `hints` names NAME
    is named d_NAME there.
    """
    seeds = tuple(seeds)
    total: dict[int, Expr] = {}

    def collect(node: Expr, adjoint: Expr) -> None:
        adjoint = fit(adjoint, node.axes)
        total[id(node)] = ops.add(total[id(node)], adjoint) if id(node) in total else adjoint

    for value, adjoint in seeds:
        collect(value, adjoint)
    order = tuple(walk(*(value for value, _ in seeds)))
    wanted = {id(e) for e in wrt}
    reaches: dict[int, bool] = {}
    for node in order:
        reaches[id(node)] = id(node) in wanted or any(reaches[id(a)] for a in node.args)
    for node in reversed(order):
        g = total.get(id(node))
        if g is None or id(node) in wanted or not reaches[id(node)] or ops.is_zero(g):
            continue
        if hints is not None and node in hints and g.op.name != "var":
            hints.setdefault(g, f"d_{hints[node]}")
        for arg, share in zip(node.args, node.op.vjp(node, g), strict=True):
            if share is not None and reaches[id(arg)] and arg.type.dtype != "bool":
                collect(arg, ops.unary("re", share) if arg.type.dtype == "real" and share.type.dtype == "complex" else share)
    zero = ops.number(0)
    return tuple(total.get(id(e), ops.broadcast(zero, e.axes)) for e in wrt)


def gradient(scalar: Expr, wrt: Sequence[Expr]) -> tuple[Expr, ...]:
    """The gradient of a scalar in each leaf of `wrt`, with the leaf's axes."""
    return adjoints(((scalar, ops.number(1)),), wrt)
