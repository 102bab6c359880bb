"""What a `fold` claims: laws that hold are certified, others stop the text; and a grouping that no law allows is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqc.analysis import monoid
from seqc.compiler import check_source, prepared
from seqc.diagnostics import SpecError
from seqc.forms.scan import lower
from seqc.ir import ops
from seqc.ir.expr import substitute, variables
from seqc.proof.arithmetic import Field
from seqc.proof.field import MODULI, P, raised
from seqc.proof.oracles import Oracles
from seqc.proof.prove import prove
from seqc.source import Source


def text(fold: str, init: str, more: str = "x[K]", before: str = "") -> Source:
    return Source("f.seq", f"seqc 1\n\nlayer f(K = 3)\n  input {more}\n{before}  state s[K] = {init}\n  fold s = {fold}\n  output s\n")


HOLD = (
    ("s + x", "0"), ("s * x", "1"), ("max(s, x)", "-inf"), ("min(s, x)", "inf"), ("s + x + s * x", "0"), ("log(exp(s) + exp(x))", "-inf"),
    ("s + x - 3", "3"), ("max(s, x)", "0", "x[K] in (0, inf)"), ("abs(s) * x", "1", "x[K] in (0, inf)"),
)  # fmt: skip


@pytest.mark.parametrize("case", HOLD, ids=lambda c: c[0])
def test_laws_that_hold(case: tuple[str, ...]) -> None:
    assert check_source(text(*case)).recurrence.folds[0].order == "claimed"


WRONG = (
    ("s - x", "0", "is not associative"), ("(s + x) / 2", "0", "is not associative"), ("s + 2 * x", "0", "is not associative"),
    ("max(s, x) + 1", "0", "is not associative"), ("9/10 * s + x", "0", "is not associative"),
    ("max(s, abs(x))", "0", "is not associative"),
    ("s + x", "1", "not neutral: it changes an element that it comes before"), ("s * x", "0", "not neutral"),
    ("max(s, x)", "0", "not neutral"),
    ("max(s, x) + log1p(exp(-abs(s - x)))", "-inf", "nothing shows that its operator is associative"),
)  # fmt: skip


@pytest.mark.parametrize(("fold", "init", "reason"), WRONG)
def test_laws_that_do_not_hold(fold: str, init: str, reason: str) -> None:
    """One diagnostic, at the line of the fold."""
    with pytest.raises(SpecError) as found:
        check_source(text(fold, init))
    (said,) = found.value.diagnostics
    assert reason in said.message
    assert said.primary is not None and said.primary.span.line == 6
    assert said.code == "fold-law" and said.helps


def test_the_same_operators_in_order_claim_nothing() -> None:
    for fold, init, _ in WRONG[:9]:
        check_source(text(f"{fold} by left", init))


def test_folds_that_read_each_other_are_one_operator() -> None:
    """Neither is one by itself; and a wrong scale in one of them is found."""
    right = "seqc 1\n\nlayer f(V = 3)\n  input a, b[V]\n  state s = 1, t[V] = 0\n"
    right += "  fold s = s * a\n  fold t = start(s) * b + t\n  output t\n"
    folds = check_source(Source("f.seq", right)).recurrence.folds
    assert [[f.state for f in group] for group in monoid.together(check_source(Source("f.seq", right)).recurrence)] == [["s", "t"]]
    assert {v.name for v in variables(folds[1].operator)} == {"s", "t", "t@operand"}
    with pytest.raises(SpecError, match="not associative"):
        check_source(Source("f.seq", right.replace("start(s) * b", "2 * start(s) * b")))


# --- The proof behind them ---------------------------------------------------------------------------------------


def verdict(source: Source, change: Any = None, monkeypatch: Any = None) -> bool:
    checked = check_source(source)
    rec = prepared(checked)
    if change is not None:
        found = monoid.declared
        monkeypatch.setattr("seqc.analysis.monoid.declared", lambda rec, folds: change(found(rec, folds)))
    return prove(rec, {"scan": lower(rec, checked.sizes)}, "seed", sizes=checked.sizes).ok


MATRICES = Source("f.seq", "seqc 1\n\nlayer f(K = 2)\n  input x[K, K]\n  state M[K, K] = eye[K]\n  fold M = M @ x\n  output M\n")


def test_elements_joined_in_the_wrong_order_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(m: monoid.Monoid) -> monoid.Monoid:
        (n,) = m.joined
        (joined,) = substitute((m.joined[n],), {m.left[n]: m.right[n], m.right[n]: m.left[n]})
        return replace(m, joined={n: joined})

    assert verdict(MATRICES)
    assert not verdict(MATRICES, turned, monkeypatch)


@pytest.mark.parametrize("step", ["max(s + g, x)", "max(keep * s, x)", "min(max(s + x, g), g + 1)"])
def test_clipped_maps_are_proved(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true composition; a composition that forgets to move the end along fails."""
    source = text(step, "0", "x[K], g[K], keep[K] in (0, 1)" if "keep" in step else "x[K], g[K]")
    source = Source("f.seq", source.text.replace("fold", "update"))
    if "keep" in step:
        source = Source("f.seq", source.text.replace(", g[K]", ""))
    assert verdict(source)
    good = monoid.clipped

    def lazy(rec: Any, s: Any, sizes: Any) -> Any:
        m = good(rec, s, sizes)
        assert m is not None
        (low,) = (n for n in m.of if n.endswith(".low"))
        return replace(m, joined={**m.joined, low: ops.maximum(m.left[low], m.right[low])})

    monkeypatch.setattr("seqc.analysis.monoid.clipped", lazy)
    assert not verdict(source)


@pytest.mark.parametrize("step", ["max(s * x, 0)", "max(-s, x)", "max(s, 2 * s - x)", "max(abs(s), x)", "max(s * (x - 3), x)"])
def test_maps_that_are_not_closed_are_left_alone(step: str) -> None:
    checked = check_source(Source("f.seq", text(step, "0").text.replace("fold", "update")))
    assert monoid.clipped(checked.recurrence, checked.recurrence.states[0], checked.sizes) is None


def test_comparisons_are_those_of_an_order_where_one_is_asked_for() -> None:
    """Cosets choose a largest of three that depends on the grouping; real numbers do not."""

    def three(ordered: bool) -> tuple[Field, list[Any]]:
        oracles = Oracles("seed", ordered)
        field = Field(oracles, {})
        return field, [field.given([oracles.draw(f"{n} {k}", m, (64,)) for k, m in enumerate(MODULI)]) for n in "xyz"]

    def agree(ordered: bool) -> bool:
        A, (x, y, z) = three(ordered)
        left, right = A.binary("maximum", A.binary("maximum", x, y), z), A.binary("maximum", x, A.binary("maximum", y, z))
        return bool((left.p == right.p).all())

    assert agree(True)
    assert not agree(False)


FUNCTIONS = ("exp", "log", "sqrt", "sin", "cos", "neg", "sigmoid", "tanh", "softplus", "abs", "relu", "expm1", "log1p")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_real_numbers_follow_the_functions(name: str) -> None:
    oracles = Oracles("seed", ordered=True)
    field = Field(oracles, {})
    drawn = [oracles.draw(f"x {k}", m, (32,)) for k, m in enumerate(MODULI)]
    positive = field.given([raised(0, drawn[0] % np.uint64(MODULI[1].value)), *drawn[1:3], np.abs(drawn[3])])
    value = {
        "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "neg": np.negative, "tanh": np.tanh, "abs": np.abs,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "softplus": lambda x: np.log1p(np.exp(x)), "relu": lambda x: np.maximum(x, 0),
        "expm1": np.expm1, "log1p": np.log1p,
    }[name]  # fmt: skip
    assert np.allclose(field.unary(name, positive).residue(3), value(np.abs(drawn[3])))
    assert field.unary(name, positive).p.dtype == P.residue(1).dtype
