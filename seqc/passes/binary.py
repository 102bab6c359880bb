"""Expression -> expression: contractions of many tensors, and of matrices with known inverses, as contractions of two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.program import LEAD, Program, changed, changed_equations
from seqc.ir.rules import union
from seqc.passes.phases import prune

# What an axis is worth in the choice: time and state axes are long, batch axes are in every tensor.
WEIGHT = dict.fromkeys(LEAD, 0)


def binary(roots: Iterable[Expr]) -> tuple[Expr, ...]:
    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "contract" and len(args) > 2:
            return _pairwise(args, node.axes)
        if node.op.name == "apply_inverse":
            row, column = map(str, node.attr)
            return ops.contract((args[1], ops.rename(args[2], {row: column})), node.axes)
        return node if args == node.args else node.op.build(args, node.attr)

    return rebuild(roots, rule)


def binary_program(program: Program) -> Program:
    """The program with contractions of two tensors only, and without what nothing needs then."""
    stages = tuple(changed(s, binary) for s in program.stages)
    return prune(replace(program, stages=stages, outputs=changed_equations(program.outputs, binary)))


def _pairwise(args: tuple[Expr, ...], out: tuple[str, ...]) -> Expr:
    items = list(args)
    while len(items) > 2:
        pairs = [(i, j) for i in range(len(items)) for j in range(i + 1, len(items))]
        best = min(pairs, key=lambda p: (_cost(items, p, out), p))
        joined = _join(items, best, out)
        items = [x for n, x in enumerate(items) if n not in best] + [joined]
    return ops.contract(items, out)


def _kept(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...]) -> tuple[str, ...]:
    others = {a for n, x in enumerate(items) if n not in pair for a in x.axes} | set(out)
    return tuple(a for a in union(tuple(items[i].type for i in pair)) if a in others)


def _cost(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...]) -> int:
    return sum(WEIGHT.get(a, 1) for a in _kept(items, pair, out))


def _join(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...]) -> Expr:
    return ops.contract((items[pair[0]], items[pair[1]]), _kept(items, pair, out))
