"""Stabilisers: which recurrences get them, what they leave as it is, and that the proof tells a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from seqc.compiler import Checked, check_source, prepared
from seqc.forms import FORMS, Applies, Lowered
from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.interp import Reals, evaluate
from seqc.ir.recurrence import Recurrence, State
from seqc.passes.implicit import solved
from seqc.passes.pairs import in_pairs
from seqc.proof.prove import prove
from seqc.source import Source

RATIO = """seqc 1

layer ratio(K = 3)
  input   k[K], v[K], f in (-inf, 0)
  param   u[K] = 0
  state   num[K] = 0, den[K] = 0
  output  o[K] = (num + exp(u + k) * v) / (den + exp(u + k))
  update  num = exp(f) * num + exp(k) * v
  update  den = exp(f) * den + exp(k)
"""


def read(text: str) -> Checked:
    return check_source(Source("ratio.seq", text))


def shipped(name: str) -> Checked:
    path = next(p for p in (ROOT / "specs" / f"{name}.seq", ROOT / "tests/backends/specs" / f"{name}.seq") if p.exists())
    return check_source(Source(str(path), path.read_text("utf-8")), beside=Path(path).parent)


def stabilisers(rec: Recurrence) -> dict[str, tuple[str, ...]]:
    return {s.name: s.axes for s in rec.states if s.role == "stabiliser"}


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("rwkv4", {"m": ("D",)}), ("aaren", {"m": ()}), ("mlstm", {"m": ()}), ("lightnet", {"m": ("K",)}),
        ("scaled_keys", {"m": ("K",)}), ("scaled_slots", {"m_2": ("m",)}),
    ],
)  # fmt: skip
def test_what_takes_in_unbounded_exponentials(name: str, wanted: dict[str, tuple[str, ...]]) -> None:
    """States that are read as a ratio share one stabiliser, with the axes of what was exponentiated."""
    rec = prepared(shipped(name))
    assert stabilisers(rec) == wanted
    (m,) = wanted
    assert {s.stabiliser for s in rec.states if s.role == "declared"} == {m}


@pytest.mark.parametrize("name", ["gla", "gsa", "mamba2", "rg_lru", "mingru", "linear_attention", "abc"])
def test_bounded_exponentials_stay_as_they_are(name: str) -> None:
    c = shipped(name)
    assert prepared(c) is solved(in_pairs(c.recurrence)) or prepared(c) == solved(in_pairs(c.recurrence))


def test_none_where_an_output_grows_with_its_state() -> None:
    assert not stabilisers(prepared(read(RATIO.replace(" / (den + exp(u + k))", " + den"))))


def test_states_in_other_units_have_their_own() -> None:
    """Two pairs with different keys: two stabilisers."""
    text = RATIO.replace("k[K], v[K]", "k[K], v[K], j[K]").replace("state   num", "state   top[K] = 0, low[K] = 0, num")
    text += "  update  top = top + exp(j) * v\n  update  low = low + exp(j)\n  output  p[K] = top / low\n"
    rec = prepared(read(text))
    assert stabilisers(rec) == {"m": ("K",), "m_2": ("K",)}
    assert {s.name: s.stabiliser for s in rec.states} == {"top": "m", "low": "m", "num": "m_2", "den": "m_2", "m": None, "m_2": None}


def test_a_step_is_the_text_s_step_in_other_units() -> None:
    """For random states and stabilisers, by the float64 interpreter; and finite where the text's own step is not."""
    c = read(RATIO)
    rec, rng = prepared(c), np.random.default_rng(0)
    A = Reals({"K": 3})
    for shift in (0.0, 1e4):
        given = {n: rng.normal(size=3) for n in ("k", "v", "u", "num")} | {"den": rng.uniform(1, 2, 3), "m": rng.normal(size=3) + shift}
        given |= {"f": np.asarray(-0.3)}
        given["k"] = given["k"] + shift
        values = evaluate(A, [*(s.next for s in rec.states), *(o.value for o in rec.outputs)], given)
        assert all(np.isfinite(x).all() for x in values)
        if shift:
            continue
        unit = np.exp(given["m"])
        plain = {**given, "num": given["num"] * unit, "den": given["den"] * unit}
        wanted = evaluate(A, [*(s.next for s in c.recurrence.states), *(o.value for o in c.recurrence.outputs)], plain)
        new = np.exp(values[2])
        for found, x in zip((values[0] * new, values[1] * new, values[3]), wanted, strict=True):
            np.testing.assert_allclose(found, x, rtol=1e-13)


def changed(rec: Recurrence, name: str, rule: object) -> Recurrence:
    states = tuple(replace(s, next=_changed(s.next, rule)) if s.name == name else s for s in rec.states)
    return replace(rec, states=states)


def _changed(e: Expr, rule: object) -> Expr:
    return rebuild((e,), lambda node, args: rule(node, args) or (node if args == node.args else node.op.build(args, node.attr)))[0]  # type: ignore[operator]


def halved(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
    """The exponents m - m' and k - m' by half."""
    return ops.exp(ops.div(args[0], ops.number(2))) if node.op.name == "exp" and node.args[0].op.name in ("sub", "add") else None


def with_gradient(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
    """The running maximum differentiated."""
    return args[0] if node.op.name == "stop_gradient" and args[0].op.name == "maximum" else None


@pytest.mark.parametrize("rule", [halved, with_gradient])
def test_the_proof_rejects_wrong_units(rule: object) -> None:
    c = read(RATIO)
    right = prepared(c)
    rec = changed(right, "num", rule)
    assert rec != right
    forms = {form.name: form.lower(rec, c.sizes) for form in FORMS if form.name == "recurrent"}
    found = prove(rec, forms, "seed", text=solved(in_pairs(c.recurrence)), sizes=c.sizes)
    assert not found.ok
    assert {f.stage for f in found.failures} == {"one token of the text"}


@pytest.mark.slow
def test_the_proof_rejects_a_form_that_forgets_to_change_units() -> None:
    """A chunkwise program lowered from a step whose decay lacks the change of units, against the right recurrence."""
    c = read(RATIO)
    right = prepared(c)
    wrong = changed(right, "den", halved)
    applying = [form for form in FORMS if isinstance(form.applies(right, c.sizes), Applies)]
    lowered: dict[str, Lowered] = {form.name: form.lower(wrong, c.sizes) for form in applying}
    assert set(lowered) == {"chunkwise", "scan", "recurrent"}
    found = prove(right, lowered, "seed", text=solved(in_pairs(c.recurrence)), sizes=c.sizes)
    assert {f.form for f in found.failures} == set(lowered)


def test_a_step_of_many_turns_is_read_once() -> None:
    """Every turn reads the memory twice: paths double with each, nodes do not."""
    text = (ROOT / "specs/deltaproduct.seq").read_text("utf-8").replace("n = 2", "n = 64")
    c = check_source(Source("deltaproduct.seq", text))
    assert prepared(c) is c.recurrence


def test_declared_states_come_first() -> None:
    names: list[State] = list(prepared(shipped("mlstm")).states)
    assert [s.name for s in names] == ["C", "n", "m"]
