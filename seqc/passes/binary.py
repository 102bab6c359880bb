"""Expression -> expression: contractions of many tensors, and of matrices with known inverses, as contractions of two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.program import LEAD, Program, changed, changed_equations
from seqc.ir.rules import union
from seqc.passes.phases import prune

MATRIX = 2  # axes


def binary(roots: Iterable[Expr], worthless: Iterable[str] = LEAD) -> tuple[Expr, ...]:
    """The values of some roots. worthless: axes that do not count in the choice of pairs: of which one index is seen at a time."""
    free = frozenset(worthless)

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "contract" and len(factors := [f for a in args for f in _factors(a, free)]) > 2:
            return _pairwise(factors, node.axes, free)
        if node.op.name == "apply_inverse":
            row, column = map(str, node.attr)
            return ops.contract((args[1], ops.rename(args[2], {row: column})), node.axes)
        return node if args == node.args else node.op.build(args, node.attr)

    return rebuild(roots, rule)


def one_system_at_a_time(program: Program) -> Program:
    """The program with the matrices of systems of equations in pairs for one matrix at a time, as kernels see them."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "solve":
            args = (*binary(args[:1], (*LEAD, *({*args[0].axes} - {*node.attr}))), args[1])
        return node if args == node.args else node.op.build(args, node.attr)

    return _changed(program, lambda roots: rebuild(roots, rule))


def binary_program(program: Program) -> Program:
    """The program with contractions of two tensors only, and without what nothing needs then."""
    return prune(_changed(program, binary))


def _changed(program: Program, change: Callable[[Iterable[Expr]], tuple[Expr, ...]]) -> Program:
    stages = tuple(changed(s, change) for s in program.stages)
    return replace(program, stages=stages, outputs=changed_equations(program.outputs, change))


def _factors(e: Expr, free: frozenset[str]) -> list[Expr]:
    """What an argument of a contraction is an outer product of, if it has more axes than a matrix: it need not be made."""
    if sum(a not in free for a in e.axes) <= MATRIX:
        return [e]
    if e.op.name == "mul" and all({*x.axes} - {*y.axes} for x, y in (e.args, e.args[::-1])):
        return [f for a in e.args for f in _factors(a, free)]
    if e.op.name == "rename" and len(inside := _factors(e.args[0], free)) > 1:
        return [ops.rename(f, {old: new for old, new in e.attr if old in f.axes}) for f in inside]
    return [e]


def _pairwise(args: list[Expr], out: tuple[str, ...], free: frozenset[str]) -> Expr:
    items = list(args)
    while len(items) > 2:
        pairs = [(i, j) for i in range(len(items)) for j in range(i + 1, len(items))]
        best = min(pairs, key=lambda p: (_cost(items, p, out, free), p))
        joined = _join(items, best, out)
        items = [x for n, x in enumerate(items) if n not in best] + [joined]
    return ops.contract(items, out)


def _kept(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...]) -> tuple[str, ...]:
    others = {a for n, x in enumerate(items) if n not in pair for a in x.axes} | set(out)
    return tuple(a for a in union(tuple(items[i].type for i in pair)) if a in others)


def _cost(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...], free: frozenset[str]) -> int:
    """How many axes the product of two has, of those that are long: time and the text's."""
    return sum(a not in free for a in _kept(items, pair, out))


def _join(items: list[Expr], pair: tuple[int, int], out: tuple[str, ...]) -> Expr:
    return ops.contract((items[pair[0]], items[pair[1]]), _kept(items, pair, out))
