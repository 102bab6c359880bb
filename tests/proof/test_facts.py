"""Facts of the analysis are tried by the step itself: the certificate lists them, and an unsound one stops the compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import ROOT, every

from seqc.analysis import monoid
from seqc.analysis.structure import analyse
from seqc.compiler import Checked, check_file, check_source, compile_checked, judge, prepared
from seqc.forms import Applies
from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild
from seqc.ir.recurrence import Recurrence
from seqc.outcome import certificate_said
from seqc.proof import facts
from seqc.proof.facts import Claim, examine
from seqc.source import Source


def layer(body: str, sizes: str = "K = 3, V = 2") -> Checked:
    return check_source(Source("f.seq", f"seqc 1\n\nlayer f({sizes})\n{body}\n"))


def examined(c: Checked) -> tuple[facts.Fact, ...]:
    forms = [n for n, v in judge(c).items() if isinstance(v, Applies)]
    found, gaps = examine(prepared(c), c.sizes, "seed", forms)
    assert not gaps
    return found


@every
def test_facts_of_shipped_layers_hold(name: str) -> None:
    assert all(f.holds for f in examined(check_file(ROOT / "specs" / f"{name}.seq")))


def test_what_is_said() -> None:
    said = {(f.states, f.words) for f in examined(check_file(ROOT / "specs" / "mlstm.seq"))}
    assert {(("C",), "affine in `C`"), (("C",), "diagonal along `V`"), (("m",), "independent of `C`, `n`")} <= said
    lines = [f"{' '.join(f.states)} {f.words}" for f in examined(check_file(ROOT / "specs" / "ema.seq"))]
    assert any("linear in states and inputs together" in x for x in lines)
    lines = "  fold s = s + x\n  update m = max(m - 1/4, x)\n  output s\n  output m"
    fold = layer(f"  input x[K]\n  state s[K] = 0, m[K] = 0\n{lines}", "K = 3")
    assert [f.states for f in examined(fold) if "any grouping" in f.words and f.holds] == [("s",), ("m",)]


# --- Unsound ones ------------------------------------------------------------------------------------------------


def overlooking(op: str) -> Callable[[Recurrence], Recurrence]:
    """The recurrence without an op, which an unsound analysis would see."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == op:
            return ops.broadcast(args[0], node.axes)
        return node if args == node.args else node.op.build(args, node.attr)

    def without(rec: Recurrence) -> Recurrence:
        return replace(rec, states=tuple(replace(s, next=ops.broadcast(rebuild((s.next,), rule)[0], s.axes)) for s in rec.states))

    return without


NONLINEAR = "  input x[K]\n  state h[K] = 0\n  update h = tanh(h / 2 + x)\n  output h"
MIXED = "  input x[K]\n  state h[K] = 0\n  update h = x * cumsum[K](h) + x\n  output h"
MATRIX = "  input k[K], v[V], q[K]\n  memory S[K, V] = 0\n  update S = S / 2 - outer(k, tanh(S(k))) + outer(k, v)\n  output o[V] = S(q)"


@pytest.mark.parametrize(
    ("body", "op", "words"),
    [
        (NONLINEAR, "tanh", "affine in `h`"), (MATRIX, "tanh", "affine in `S`"), (MIXED, "cumsum", "diagonal along `K`"),
    ],
)  # fmt: skip
def test_an_analysis_that_overlooks_an_op_stops_the_compilation(body: str, op: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = layer(body, "K = 3, V = 2" if "V" in body else "K = 3")
    monkeypatch.setattr(facts, "analyse", lambda rec, sizes: analyse(overlooking(op)(rec), sizes))
    found = compile_checked(c).certificate
    assert not found.ok and not found.failures
    (wrong,) = (f for f in found.facts if not f.holds)
    said = "\n".join(certificate_said(found))
    assert wrong.words == words and f"line {wrong.line}" in said and words in said and "is not proved" in said


TWO = "  input x[K]\n  state h[K] = 0, z[K] = 0\n  update h = h / 2 + x\n  update z = z / 2 + x * h\n  output h\n  output z"


@pytest.mark.parametrize(
    "claim",
    [
        Claim("unread", ("z",), ("h",)), Claim("linear", ("h", "z")), Claim("unread", ("h",), ("h",)),
    ],
)  # fmt: skip
def test_claims_that_do_not_hold(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("h", "z")
    right = [Claim("affine", ("h",), ("h",)), Claim("unread", ("h",), ("z",)), Claim("diagonal", both, both, "K")]
    monkeypatch.setattr(facts, "claims", lambda *a: iter((*right, claim)))
    found, _ = examine(prepared(layer(TWO, "K = 3")), {"K": 3}, "seed", ())
    assert [f.holds for f in found] == [True] * 3 + [False]


def test_a_grouping_that_no_law_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composition of clipped maps that forgets to move the end along."""
    c = layer("  input x[K], g[K]\n  state m[K] = 0\n  update m = max(m + g, x)\n  output m", "K = 3")
    good = monoid.clipped

    def lazy(rec, s, sizes):
        m = good(rec, s, sizes)
        (low,) = (n for n in m.of if n.endswith(".low"))
        return replace(m, joined={**m.joined, low: ops.maximum(m.left[low], m.right[low])})

    assert all(f.holds for f in examined(c))
    monkeypatch.setattr("seqc.analysis.monoid.clipped", lazy)
    assert [f.states for f in examined(c) if not f.holds] == [("m",)]
