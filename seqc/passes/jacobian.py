"""Expressions -> their derivative applied to directions: forward mode, as the adjoint of the adjoint."""

from __future__ import annotations

from collections.abc import Sequence

from seqc.ir import ops
from seqc.ir.adjoint import adjoints
from seqc.ir.expr import Expr


def tangents(values: Sequence[Expr], wrt: Sequence[Expr], directions: Sequence[Expr]) -> tuple[Expr, ...]:
    """J d for values with derivative J in the leaves `wrt`.

    u -> J^T u is linear in u, so its own adjoint under d is J d, free of u: the op table needs one derivative rule for both modes.
    """
    seeds = [ops.var(f"@seed {i}", v.axes) for i, v in enumerate(values)]
    back = adjoints(zip(values, seeds, strict=True), wrt)
    return adjoints(zip(back, directions, strict=True), seeds)
