"""Loops whose steps sum over axes that could be programs of their own, with the sums behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from seqc.backends.triton.cuts import lost
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, walk
from seqc.ir.program import Carry, Equation, Map, Stage, body_roots, inside, outer_of


def summed_later(stages: Iterable[Stage], lead: tuple[str, ...]) -> list[Stage]:
    """Loops whose programs are as many as can be. A Carry's equation that sums what is carried over leading axes becomes one that does
    not, and a sum behind the Carry; a state that takes in such a sum, and that no other state reads, a Carry behind it."""
    found: list[Stage] = []
    for stage in stages:
        for loop in _loops(stage, lead) if isinstance(stage, Carry) else (stage,):
            found += _sums_behind(loop, lead) if isinstance(loop, Carry) else (loop,)
    return found


def mixed(stage: Carry, lead: tuple[str, ...]) -> set[str]:
    """The leading axes over which a step sums what it carries: one program must see all of them."""
    states = {k.name for k in stage.carried}
    return {a for v in body_roots(stage) for node in _sums(v, states, lead) for a in lost(node) if a in lead}


def _loops(stage: Carry, lead: tuple[str, ...]) -> tuple[Carry, ...]:
    """The loop, or one that no longer mixes and another with the states that did: what those take in, the first hands on at each step."""
    states = {k.name for k in stage.carried}
    later = {k.name for k in stage.carried if _sums(k.next, states, lead)}
    while more := {k.name for k in stage.carried if later & _read(k.next)} - later:
        later |= more
    if not later or later == states:
        return (stage,)
    first = replace(stage, carried=tuple(k for k in stage.carried if k.name not in later),
                    equations=tuple(e for e in stage.equations if not later & _read(e.value)))  # fmt: skip
    behind = replace(stage, carried=tuple(k for k in stage.carried if k.name in later),
                     equations=tuple(e for e in stage.equations if later & _read(e.value)))  # fmt: skip
    handed = _largest(body_roots(behind), states - later, later, lead)
    each = [Equation(f"{behind.carried[0].name}@each{i}", n) for i, n in enumerate(handed)]
    table = {n: inside(outer_of(e, stage.axis), stage.axis) for n, e in zip(handed, each, strict=True)}
    first = replace(first, equations=(*first.equations, *each))
    carried = tuple(replace(k, next=substitute((k.next,), table)[0]) for k in behind.carried)
    equations = tuple(replace(e, value=substitute((e.value,), table)[0]) for e in behind.equations)
    return first, replace(behind, carried=carried, equations=equations)


def _largest(values: Iterable[Expr], own: set[str], others: set[str], lead: tuple[str, ...]) -> list[Expr]:
    """The largest values that read some of a loop's `own` states and none of the `others`, and sum over no leading axis."""
    found, todo, seen = dict[Expr, None](), list(values), set[Expr]()
    while todo:
        node = todo.pop()
        if node in seen or not own & _read(node):
            continue
        seen.add(node)
        if others & _read(node) or _sums(node, own, lead):
            todo += node.args
        else:
            found[node] = None
    return list(found)


def _read(value: Expr) -> set[str]:
    return {n.name for n in walk(value) if n.op.name == "var"}


def _sums_behind(stage: Carry, lead: tuple[str, ...]) -> list[Stage]:
    """A loop, and the sums of its equations behind it."""
    states = {k.name for k in stage.carried}
    kept, sums = [], []
    for e in stage.equations:
        gone = tuple(a for a in lead if e.value in _sums(e.value, states, lead) and a in lost(e.value))
        if gone:
            each = Equation(f"{e.name}@each", ops.contract(e.value.args, (*gone, *e.value.axes)))
            sums.append(replace(e, value=ops.contract((outer_of(each, stage.axis),), (stage.axis, *e.value.axes))))
            kept.append(each)
        else:
            kept.append(e)
    return [replace(stage, equations=tuple(kept)), *([Map(tuple(sums))] if sums else [])]


def _sums(value: Expr, states: set[str], lead: tuple[str, ...]) -> list[Expr]:
    """The nodes that sum what depends on the states over a leading axis."""
    seen: set[int] = set()
    found = []
    for node in walk(value):
        if (node.op.name == "var" and node.name in states) or any(id(a) in seen for a in node.args):
            seen.add(id(node))
            if node.op.name == "contract" and any(a in lead for a in lost(node)):
                found.append(node)
    return found
