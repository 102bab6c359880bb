"""Matrices that depend on each other through numbers and rows: the joint step that is read off the text, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from small_specs import layer

from seqc.analysis.coupled import Coordinates, Coupling
from seqc.analysis.structure import analyse, leaf
from seqc.compiler import Checked
from seqc.forms import Applies, Refuses
from seqc.forms.chunkwise import CHUNKWISE
from seqc.forms.scan import SCAN
from seqc.ir.expr import Expr, variables
from seqc.ir.interp import Reals, evaluate
from seqc.ir.meaning import arrange
from seqc.ir.rules import extent
from seqc.ir.text import show

TWO = "input q[K], k[K], w[K], v[V]\nstate S[K, V] = 0, M[K, V] = 0"

# body -> names, rows (write, value, reads), what each state becomes, as text
JOINT: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "momentum behind a decay": (
        "MEMORY\ninput a in (0, 1), mu in (0, 1)\nretain S by decay(a)\nlearn S by momentum(rate = 1/2, keep = mu) on l2(S(k), v)\nREAD",
        ["k -v | k: a S"],
        {"S": "a S, -mu S.m, -1/2 0", "S.m": "mu S.m, 1/2 0"},
    ),
    "momentum, the gradient before the decay": (
        "MEMORY\ninput a in (0, 1), mu in (0, 1)\nretain S by decay(a)"
        "\nlearn S by momentum(rate = 1/2, keep = mu) on l2(S(k), v) at start(S)\nREAD",
        ["k -v | k: 1 S"],
        {"S": "a S, -mu S.m, -1/2 0", "S.m": "mu S.m, 1/2 0"},
    ),
    "momentum, the decay behind the step": (
        "MEMORY\ninput a in (0, 1), mu in (0, 1)\nlearn S by momentum(rate = 1, keep = mu) on l2(S(k), v)\nretain S by decay(a)\nREAD",
        ["k -v | k: 1 S"],
        {"S": "a S, -(mu * a) S.m, -a 0", "S.m": "mu S.m, 1 0"},
    ),
    "momentum without a correction": (
        "MEMORY\ninput mu in (-1, 1)\nlearn S by momentum(rate = 1, keep = mu) on dot(S(k), v)\nREAD",
        ["k -v"],
        {"S": "1 S, -mu S.m, -1 0", "S.m": "mu S.m, 1 0"},
    ),
    "pairs in turn": (
        "input q[K], k[n, K], v[n, V], mu in (0, 1)\nmemory S[K, V] = 0\nfor i in n"
        "\nlearn S by momentum(rate = 1, keep = mu) on l2(S(k[i]), v[i])\nend\nREAD",
        [
            "select[n, 0](k) -select[n, 0](v) | select[n, 0](k): 1 S",
            "select[n, 1](k) -select[n, 1](v) | select[n, 1](k): 1 S, -mu S.m, -1 0",
        ],
        {"S": "1 S, -mu - mu * mu S.m, -1 - mu 0, -1 1", "S.m": "mu * mu S.m, mu 0, 1 1"},
    ),
    "pairs at once": (
        "input q[K], k[n, K], v[n, V], mu in (0, 1)\nmemory S[K, V] = 0"
        "\nlearn S by momentum(rate = 1, keep = mu) on sum[n](l2(S(k), v))\nREAD",
        ["select[n, 0](k) -select[n, 0](v) | select[n, 0](k): 1 S", "select[n, 1](k) -select[n, 1](v) | select[n, 1](k): 1 S"],
        {"S": "1 S, -mu S.m, -1 0, -1 1", "S.m": "mu S.m, 1 0, 1 1"},
    ),
    "one row that two states write": (
        f"{TWO}\nlet e = S(k) - v + w @ M\nupdate S = S - outer(k, e)\nupdate M = M - 2 * outer(k, e)\noutput o[V] = q @ S".replace(
            "S(k)", "k @ S"
        ),
        ["k v | k: -1 S | w: -1 M"],
        {"S": "1 S, 1 0", "M": "1 M, 2 0"},
    ),
    "mutual": (
        "MEMORY\nmemory R[K, V] = 0\nupdate S = S + outer(k, v - R(k))\nupdate R = R + outer(k, S(k))\nREAD",
        ["k v | k: -1 R", "k  | k: 1 S, 1 0"],
        {"S": "1 S, 1 0", "R": "1 R, 1 1"},
    ),
    "turning": (
        f"{TWO}\ninput t\nlet old = S\nupdate S = cos(t) * S - sin(t) * M + outer(k, v)\nupdate M = sin(t) * old + cos(t) * M"
        "\noutput o[V] = q @ S + w @ M",
        ["k v"],
        {"S": "cos(t) S, -sin(t) M, 1 0", "M": "sin(t) S, cos(t) M"},
    ),
    "signed decay": ("MEMORY\ninput a in (-1, 1)\nupdate S = a * S + outer(k, v)\nREAD", ["k v"], {"S": "a S, 1 0"}),
    "growth": ("MEMORY\ninput a in (0, inf)\nupdate S = a * S + outer(k, v)\nREAD", ["k v"], {"S": "a S, 1 0"}),
    "negative": ("MEMORY\ninput a in (0, 1)\nupdate S = outer(k, v) - a * S\nREAD", ["k v"], {"S": "-a S, 1 0"}),
    "reads of two lines in one": (
        "MEMORY\nupdate S = S - outer(k, S(k))\nupdate S = S - outer(q, S(q) + start(S)(k)) + outer(k, v)\nREAD",
        ["k  | k: -1 S", "q  | q: -1 S, -1 0 | k: -1 S", "k v"],
        {"S": "1 S, 1 0, 1 1, 1 2"},
    ),
}


def coordinates(x: Coordinates) -> str:
    return ", ".join([f"{show(d)} {n}" for n, d in x.states.items()] + [f"{show(g)} {r}" for r, g in x.rows.items()])


def found(checked: Checked) -> Coupling:
    (only,) = analyse(checked.recurrence, checked.sizes).couplings.values()
    return only


@pytest.mark.parametrize("name", JOINT)
def test_joint_step(name: str) -> None:
    body, rows, next_ = JOINT[name]
    c = found(spec := layer(body))
    shown = [" | ".join([f"{show(r.write)} {'' if r.value is None else show(r.value)}", *_reads(r)]) for r in c.rows]
    assert shown == rows
    assert {n: coordinates(x) for n, x in c.next.items()} == next_
    assert isinstance(CHUNKWISE.applies(spec.recurrence, spec.sizes), Applies)
    assert isinstance(SCAN.applies(spec.recurrence, spec.sizes), Refuses)


def _reads(row: object) -> list[str]:
    return [f"{show(t.query)}: {coordinates(t.of)}" for t in row.terms]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", JOINT)
def test_joint_step_is_the_update(name: str) -> None:
    """Rows and coordinates, run as the module's formulas say, give the next states and the outputs."""
    spec = layer(JOINT[name][0])
    rec, rng, c = spec.recurrence, np.random.default_rng(0), found(spec)
    roots = (*(s.next for s in rec.states), *(o.value for o in rec.outputs), *(leaf(s) for s in rec.states))
    leaves = {v.name: rng.standard_normal([extent(spec.sizes, a) for a in v.axes]) for v in variables(*roots)}
    A = Reals(spec.sizes)

    def at(e: Expr, axes: tuple[str, ...] = ()) -> np.ndarray:
        return np.asarray(arrange(A, evaluate(A, (e,), leaves)[0], e.axes, axes))

    written: list[np.ndarray] = []

    def matrix(x: Coordinates) -> np.ndarray:
        total = sum(at(d) * leaves[n] for n, d in x.states.items())
        return total + sum(at(g) * written[r] for r, g in x.rows.items())

    for row in c.rows:
        w = np.zeros(extent(spec.sizes, "V")) if row.value is None else at(row.value, ("V",))
        for t in row.terms:
            w = w + at(t.query, ("K",)) @ matrix(t.of)
        written.append(np.outer(at(row.write, ("K",)), w))
    for s in rec.states:
        np.testing.assert_allclose(matrix(c.next[s.name]), evaluate(A, (s.next,), leaves)[0], rtol=1e-12, atol=1e-12)
    for read, of in c.reads:
        np.testing.assert_allclose(at(read.query, ("K",)) @ matrix(of), evaluate(A, (read.node,), leaves)[0], rtol=1e-12, atol=1e-12)


# body -> the reason, and the statement that is to blame
REFUSED: dict[str, tuple[str, str, str]] = {
    "a decay along keys": (
        "MEMORY\ninput a[K] in (0, 1)\nretain S by decay(a)\nlearn S by momentum(rate = 1, keep = 1/2) on l2(S(k), v)\nREAD",
        "`S` and `S.m` depend on each other, and a factor of them differs along `K`",
        "retain",
    ),
    "a momentum kept along values": (
        "MEMORY\ninput mu[V] in (0, 1)\nlearn S by momentum(rate = 1, keep = mu) on l2(S(k), v)\nREAD",
        "`S` and `S.m` depend on each other, and a factor of them differs along `V`",
        "learn",
    ),
    "a nonlinear objective": (
        "MEMORY\nlearn S by momentum(rate = 1, keep = 1/2) on huber(S(k), v, 1)\nREAD",
        "is not affine in `S`: its read passes through",
        "learn",
    ),
    "a factor of the states": (
        "MEMORY\nretain S by decay(sigmoid(sum(S(q))))\nlearn S by momentum(rate = 1, keep = 1/2) on l2(S(k), v)\nREAD",
        "a factor of `S` and `S.m` depends on them",
        "retain",
    ),
    "a step made orthogonal": (
        "input q[K], k[K], v[K]\nmemory S[K, K] = 0\nlearn S by muon(rate = 1, keep = 1/2) on l2(S(k), v)\noutput o[K] = S(q)",
        "of `S` and `S.m` is not affine in them: it passes through",
        "learn",
    ),
    "a choice": (
        "MEMORY\ninput r\nretain S by chosen(r)\nlearn S by momentum(rate = 1, keep = 1/2) on l2(S(k), v)\nREAD"
        "\n\nretention chosen(W, r) = where(r > 0, W, 0)",
        "its read passes through `where`",
        "retain",
    ),
    "unlike axes": (
        "MEMORY\nstate z[K, n] = 0\nupdate S = S + outer(k, v) * sum(z)\nupdate z = z * sum(S(k))\nREAD",
        "`S` and `z` depend on each other and have unlike axes",
        "update z",
    ),
    "no key": (
        "input x[K, V], a in (0, 1)\nstate S[K, V] = 0, M[K, V] = 0\nlet old = S\nupdate S = a * S - M\nupdate M = M + old + x"
        "\noutput o[K, V] = S",
        "nothing reads them along a key axis",
        "update S",
    ),
    "used whole": (
        "MEMORY\nlearn S by momentum(rate = 1, keep = 1/2) on l2(S(k), v)\nREAD / (1 + sum(S * S))",
        "`S` is used as a whole here",
        "output",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_reason_and_the_line(name: str) -> None:
    body, reason, statement = REFUSED[name]
    spec = layer(body)
    verdict = CHUNKWISE.applies(spec.recurrence, spec.sizes)
    assert isinstance(verdict, Refuses)
    assert reason in verdict.reason
    assert verdict.span is not None and spec.source.line(verdict.span.line).strip().startswith(statement), verdict.span


def test_a_number_without_a_bound_says_why_it_is_no_decay() -> None:
    spec = layer(JOINT["signed decay"][0])
    verdict = CHUNKWISE.applies(spec.recurrence, spec.sizes)
    assert isinstance(verdict, Applies) and "nothing shows that the decay of `S` is positive" in verdict.evidence[0]
