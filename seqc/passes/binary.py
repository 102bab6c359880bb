"""Expression -> expression: contractions of many tensors, and of matrices with known inverses, as contractions of two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from itertools import product
from math import prod

from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild, walk
from seqc.ir.program import LEAD, Program, changed, changed_equations
from seqc.ir.rules import union
from seqc.passes.phases import prune

MATRIX = 2  # axes
MOST = 4  # terms of a sum
LINEAR = ("mul", "contract", "add", "sub", "neg", "rename")

Sum = tuple[list[list[Expr]], set[str]]  # the factors of each term, and the axes that the terms sum over


def binary(roots: Iterable[Expr], worthless: Iterable[str] = LEAD) -> tuple[Expr, ...]:
    """The values of some roots. worthless: axes that do not count in the choice of pairs: of which one index is seen at a time."""
    free, roots = frozenset(worthless), tuple(roots)
    sums = _Sums(free)
    matrices = {n for s in walk(*roots) if s.op.name == "solve" for n in walk(s.args[0])}

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "contract" and not (node in matrices and len(args) <= 2):  # `one_system_at_a_time` has chosen those
            terms, _ = sums.multiplied(args, node.axes)
            if terms != [[*args]] or len(args) > 2:
                return reduce(ops.add, (_pairwise(factors, node.axes, free) for factors in terms))
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


class _Sums:
    """Arguments of contractions as sums of products of matrices, where they have more axes than those: they need not be made."""

    def __init__(self, free: frozenset[str]) -> None:
        self.free, self.known = free, dict[Expr, Sum]()

    def terms(self, e: Expr) -> Sum:
        """The sum, or the value itself where it is none. No recursion: what it is made of is looked at first."""
        todo = [e]
        while todo:
            missing = [a for a in todo[-1].args if self._is_open(a)] if self._is_open(todo[-1]) else []
            if missing:
                todo += missing
            elif self._is_open(node := todo.pop()):
                self.known[node] = self._sum(node)
        return self.known.get(e, ([[e]], set()))

    def _is_open(self, e: Expr) -> bool:
        return not self._is_small(e) and e.op.name in LINEAR and e not in self.known

    def _is_small(self, e: Expr) -> bool:
        return sum(a not in self.free for a in e.axes) <= MATRIX

    def _sum(self, e: Expr) -> Sum:
        terms, bound = self._expanded(e)
        small = len(terms) <= MOST and all(self._is_small(f) for factors in terms for f in factors)
        # A term that lacks an axis would not be summed over it.
        whole = small and all({*e.axes} <= {a for f in factors for a in f.axes} for factors in terms)
        return (terms, bound) if whole else ([[e]], set())

    def _expanded(self, e: Expr) -> Sum:
        name = e.op.name
        if name in ("mul", "contract"):
            terms, bound = self.multiplied(e.args, e.axes)
            return terms, bound | {a for x in e.args for a in x.axes} - {*e.axes}
        (terms, bound), *more = (_apart(self.terms(a), {*e.axes}) for a in e.args)
        for others, own in more:
            terms, bound = [*terms, *(others if name == "add" else _negative(others))], bound | own
        if name == "rename":
            terms = _renamed(terms, dict(e.attr))
        return (_negative(terms) if name == "neg" else terms), bound

    def multiplied(self, args: tuple[Expr, ...], out: tuple[str, ...]) -> Sum:
        """A product as a sum of at most MOST products. What an argument sums over has a name of its own."""
        sums = [self.terms(a) for a in args]
        while prod(len(terms) for terms, _ in sums) > MOST:
            longest = max(range(len(args)), key=lambda i: len(sums[i][0]))
            sums[longest] = [[args[longest]]], set()
        for i in range(len(args)):
            others = {*out, *(x for j, (terms, _) in enumerate(sums) if j != i for factors in terms for f in factors for x in f.axes)}
            sums[i] = _apart(sums[i], others)
        terms = [[f for factors in choice for f in factors] for choice in product(*(terms for terms, _ in sums))]
        return terms, {a for _, bound in sums for a in bound}


def _negative(terms: list[list[Expr]]) -> list[list[Expr]]:
    return [[ops.neg(first), *rest] for first, *rest in terms]


def _renamed(terms: list[list[Expr]], table: Mapping[str, str]) -> list[list[Expr]]:
    return [[ops.rename(f, {a: b for a, b in table.items() if a in f.axes}) for f in factors] for factors in terms]


def _apart(some: Sum, others: set[str]) -> Sum:
    """A sum over axes with names that others do not have."""
    terms, bound = some
    table, used = dict[str, str](), others | {a for factors in terms for f in factors for a in f.axes}
    for a in sorted(bound & others):
        table[a] = f"{a}~"
        while table[a] in used:
            table[a] += "~"
        used.add(table[a])
    return _renamed(terms, table) if table else terms, {table.get(a, a) for a in bound}


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
