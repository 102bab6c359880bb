"""Recurrence -> Program, token by token: the definition itself, and the decode step."""

from __future__ import annotations

from collections.abc import Mapping

from seqc.forms.base import (
    VALID,
    Applies,
    Form,
    Lowered,
    Refuses,
    at_scope,
    body_leaves,
    final,
    initial,
    lifted,
    outer_leaves,
    per_head,
    state_lead,
)
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, HEADS, TOKENS, Carried, Carry, Equation, Program
from seqc.ir.recurrence import Recurrence

LONGEST = 4096  # operations of one state's step, above which only the loop over tokens is offered
# Ops that no Program of this edition can be printed with, in the words of a reason.
NEEDS = {"implicit": "an implicit step", "append": "a growing memory", "drop_last": "a growing memory"}


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """Always in principle; it refuses what no Program of this edition can carry."""
    for s in rec.states:
        if s.growing:
            return Refuses(f"`{s.name}` grows with every token; a state of fixed size is needed", s.span)
        if s.dtype == "complex":
            return Refuses(f"`{s.name}` is complex", s.span)
    for f in rec.folds:
        if f.order == "tree":
            return Refuses(f"`{f.state}` is folded along a tree", f.span)
    for line in (*((s.next, s.span) for s in rec.states), *((o.value, o.span) for o in rec.outputs)):
        for node in walk(line[0]):
            word = NEEDS.get(node.op.name) or ("a complex value" if node.type.dtype == "complex" else None)
            if word is not None:
                return Refuses(f"the line needs {word}", line[1])
    return Applies(("every recurrence is computed token by token",))


def regrouped(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """Whether tokens may be taken in other groups than one after the other, as all other forms do."""
    for f in rec.folds:
        if f.order == "left":
            repair = "without `by left` the operator is claimed to be associative"
            return Refuses(f"`{f.state}` is folded in order, token after token", f.span, (repair,))
    for s in rec.states:
        if sum(1 for _ in walk(s.next)) > LONGEST:
            return Refuses(f"a token changes `{s.name}` in so many operations that a form would take minutes to derive", s.span)
    return applies(rec, sizes)


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """One Carry along t; a token of the padding leaves every state as it is."""
    outer = outer_leaves(rec, (TOKENS,))
    table = body_leaves(rec, outer, TOKENS)
    for s in rec.states:
        own = ops.var(s.name, (*state_lead(s.scope), *s.axes), s.dtype)
        table[ops.var(s.name, s.axes, s.dtype)] = per_head(s.scope, own)
    is_token = ops.compare("gt", ops.var(VALID, (BATCH,)), ops.number(0))
    carried = []
    for s in rec.states:
        (value,) = lifted([s.next], at_scope(s.scope, table))
        leaf = ops.var(s.name, (*state_lead(s.scope), *s.axes), s.dtype)
        stepped = ops.where(is_token, _full(value, leaf.axes), leaf)
        carried.append(Carried(s.name, outer[initial(s.name)], ops.broadcast(stepped, leaf.axes), final(s.name)))
    values = lifted([o.value for o in rec.outputs], table)
    emitted, outputs = [], []
    for o, v in zip(rec.outputs, values, strict=True):
        full = (BATCH, HEADS, *o.axes)
        e = Equation(f"{o.name}@t", ops.broadcast(v, full), o.span.where)
        emitted.append(e)
        outputs.append(Equation(o.name, ops.var(e.name, (TOKENS, *full))))
    outputs += [Equation(final(s.name), ops.var(final(s.name), c.init.axes)) for s, c in zip(rec.states, carried, strict=True)]
    stage = Carry(TOKENS, False, tuple(carried), tuple(emitted))
    return Lowered(Program("recurrent", tuple(outer.values()), (stage,), tuple(outputs)), {})


def _full(value: Expr, axes: tuple[str, ...]) -> Expr:
    return ops.broadcast(value, axes)


NOTES = ("The recurrent form: token after token. Values lie as [tokens, B, H, ...].",)

RECURRENT = Form("recurrent", applies, lower, (TOKENS,), NOTES)
