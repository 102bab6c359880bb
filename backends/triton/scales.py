"""Numbers per row out of products of matrices: (s * x) y = s * (x y). A factor that is read goes to the tensor cores as it lies in memory.

A number per entry of the summed axis goes to the other factor, if that is computed. Else a factor is loaded, multiplied and rounded
again, in registers, for every product that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

from seqc.backends.triton.cuts import is_product
from seqc.backends.triton.micro import read_from
from seqc.ir import ops
from seqc.ir.expr import Expr, make, rebuild
from seqc.ir.program import Equation, Map, Program, changed, changed_equations


@dataclass(frozen=True)
class _Parted:
    """A value as numbers per row and what is read, for readers: the axes that it has where it is made."""

    axes: tuple[str, ...]
    scales: tuple[Expr, ...]
    core: Expr


def scaled(program: Program, lead: tuple[str, ...]) -> Program:
    """The program with such numbers behind products, or on the other side. lead: axes of which a program sees one index."""
    known: dict[str, _Parted] = {}
    stages = []
    for stage in program.stages:
        new = changed(stage, lambda values: _moved(values, known, lead))
        stages.append(_named(new, known, lead) if isinstance(new, Map) else new)
    outputs = changed_equations(program.outputs, lambda values: _moved(values, known, lead))
    return replace(program, stages=tuple(stages), outputs=outputs)


def _named(stage: Map, known: dict[str, _Parted], lead: tuple[str, ...]) -> Map:
    """The Map with names for the parts of what has parts."""
    found = list[Equation]()
    for e in stage.equations:
        scales, core = _parts(e.value, known, lead)
        if scales:
            own = [Equation(f"{e.name}@{i}", s) for i, s in enumerate((*scales, core))]
            *names, last = (ops.var(x.name, x.value.axes) for x in own)
            known[e.name] = _Parted(e.value.axes, tuple(names), last)
            found += own
        found.append(e)
    return Map(tuple(found))


def _moved(values: Iterable[Expr], known: Mapping[str, _Parted], lead: tuple[str, ...]) -> tuple[Expr, ...]:
    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        new = node if args == node.args else make(node.op, args, node.attr)
        return _behind(new, known, lead) if is_product(new, lead) else new

    return rebuild(values, rule)


def _behind(node: Expr, known: Mapping[str, _Parted], lead: tuple[str, ...]) -> Expr:
    parted = [_parts(x, known, lead) for x in node.args]
    cores, outside = [core for _, core in parted], list[Expr]()
    for i, (scales, _) in enumerate(parted):
        other = 1 - i
        for s in scales:
            if {*s.axes} <= {*node.axes}:
                outside.append(s)
            else:
                to = other if read_from(cores[other]) is None and {*s.axes} <= {*cores[other].axes} else i
                cores[to] = ops.mul(s, cores[to])
    if not outside and all(core is x for core, x in zip(cores, node.args, strict=True)):
        return node
    return reduce(ops.mul, outside, ops.contract(cores, node.axes))


def _parts(x: Expr, known: Mapping[str, _Parted], lead: tuple[str, ...]) -> tuple[tuple[Expr, ...], Expr]:
    """A value as numbers per row, or none, and what is read."""
    scales, core = _factors(x, known, lead)
    return (scales, core) if scales and read_from(core) is not None else ((), x)


def _factors(x: Expr, known: Mapping[str, _Parted], lead: tuple[str, ...]) -> tuple[tuple[Expr, ...], Expr]:
    def tile(e: Expr) -> int:
        return sum(a not in lead for a in e.axes)

    if x.op.name == "var" and x.name in known:
        of = known[x.name]
        gone = {*of.axes} - {*x.axes}
        own = [ops.var(e.name, tuple(a for a in e.axes if a not in gone)) for e in (*of.scales, of.core)]
        return tuple(own[:-1]), own[-1]
    if x.op.name == "rename":
        scales, core = _factors(x.args[0], known, lead)
        old_new = dict(x.attr)
        moved = [ops.rename(e, {a: b for a, b in old_new.items() if a in e.axes}) for e in (*scales, core)]
        return tuple(moved[:-1]), moved[-1]
    if x.op.name == "mul":
        for one, other in (x.args, x.args[::-1]):
            if tile(one) < tile(other) == tile(x) > 1 and {*one.axes} <= {*other.axes}:
                scales, core = _factors(other, known, lead)
                return (one, *scales), core
    return (), x


