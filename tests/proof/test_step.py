"""What stands before the forms is held to a token of the text: complex values, implicit steps, stabilisers, each wrong by a hair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import ROOT

from seqc.compiler import Checked, check_file, prepared
from seqc.forms import FORMS
from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.recurrence import Recurrence
from seqc.proof.bench import STEP
from seqc.proof.prove import Certificate, prove

Rule = Callable[[Expr, tuple[Expr, ...]], Expr | None]


def checked(name: str) -> Checked:
    return check_file(ROOT / "specs" / f"{name}.seq")


def certified(c: Checked, rec: Recurrence) -> Certificate:
    """The recurrent form of a recurrence, which computes just that, against the text."""
    (form,) = (f for f in FORMS if f.name == "recurrent")
    return prove(rec, {"recurrent": form.lower(rec, c.sizes)}, "seed", text=c.recurrence, sizes=c.sizes, points=4)


def changed(rec: Recurrence, rule: Rule) -> Recurrence:
    def new(e: Expr) -> Expr:
        return rebuild((e,), lambda node, args: rule(node, args) or (node if args == node.args else node.op.build(args, node.attr)))[0]

    states = tuple(replace(s, next=ops.broadcast(new(s.next), s.axes)) for s in rec.states)
    return replace(rec, states=states, outputs=tuple(replace(o, value=new(o.value)) for o in rec.outputs))


def swap(name: str, other: str) -> Rule:
    """One op for another."""
    return lambda node, args: ops.TABLE[other].build(args, node.attr) if node.op.name == name else None


def without(name: str) -> Rule:
    """An op's first argument in its place."""
    return lambda node, args: ops.broadcast(args[0], node.axes) if node.op.name == name else None


@pytest.mark.parametrize("name", ["lru", "s4d", "gateloop", "longhorn", "rwkv4", "mlstm"])
def test_what_is_right_is_accepted(name: str) -> None:
    c = checked(name)
    found = certified(c, prepared(c))
    assert found.ok and STEP in found.stages, (found.failures, found.gaps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("lru", swap("sin", "cos")), ("lru", swap("sub", "add")), ("s4d", swap("cos", "sin")), ("s4d", without("neg")),
        ("gateloop", swap("sub", "add")), ("gateloop", without("sin")), ("longhorn", without("div")), ("longhorn", swap("sub", "add")),
        ("mlstm", without("softplus")), ("rwkv4", swap("sub", "add")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_rejected(name: str, rule: Rule) -> None:
    c = checked(name)
    right = prepared(c)
    wrong = changed(right, rule)
    assert wrong != right
    assert STEP in {f.stage for f in certified(c, wrong).failures}


def test_a_stabiliser_is_free() -> None:
    """Any choice of units will do, such as the first of two exponents in place of the larger; but it must not be differentiated."""
    c = checked("rwkv4")
    right = prepared(c)
    assert certified(c, changed(right, without("maximum"))).ok
    assert "gradient" in {f.stage for f in certified(c, changed(right, without("stop_gradient"))).failures}
