"""The normal form of a memory's update, and the reason and line where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from small_specs import layer

from seqc.analysis.chain import Chain
from seqc.analysis.structure import analyse, leaf
from seqc.compiler import Checked, check_source, judge
from seqc.forms import Applies, Refuses
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir.expr import Expr, variables
from seqc.ir.interp import Reals, evaluate
from seqc.ir.meaning import arrange
from seqc.ir.rules import extent
from seqc.ir.text import show
from seqc.source import Source

# body -> per micro-step: the decay and the rows (write, value, read), as text
NORMAL: dict[str, tuple[str, tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]]] = {
    "plain sum": ("MEMORY\nupdate S = S + outer(k, v)\nREAD", (("", (("k", "v", ""),)),)),
    "scalar decay": ("MEMORY\ninput a in (0, 1)\nupdate S = a * S + outer(k, v)\nREAD", (("a", (("k", "v", ""),)),)),
    "key decay": ("MEMORY\ninput a[K] in (0, 1)\nupdate S = a * S + outer(k, v)\nREAD", (("a", (("k", "v", ""),)),)),
    "value decay": ("MEMORY\ninput a[V] in (0, 1)\nupdate S = a * S + outer(k, v)\nREAD", (("a", (("k", "v", ""),)),)),
    "decay of two factors": (
        "MEMORY\ninput a in (0, 1), g[K] in (-inf, 0)\nupdate S = a * (exp(g) * S) + outer(k, v)\nREAD",
        (("exp(g) * a", (("k", "v", ""),)),),
    ),
    "sum of decays": (
        "MEMORY\ninput a in (0, 1/2), b in (0, 1/2)\nupdate S = a * S + b * S + outer(k, v)\nREAD",
        (("a + b", (("k", "v", ""),)),),
    ),
    "decay behind the write": (
        "MEMORY\ninput a in (0, 1)\nupdate S = a * (S + outer(k, v))\nREAD",
        (("a", (("a * k", "v", ""),)),),
    ),
    "tied rank": (
        "MEMORY\ninput b in (0, 1)\nlearn S by descent(rate = b) on l2(S(k), v)\nREAD",
        (("", (("b * k", "v", "k"),)),),
    ),
    "tied rank behind a decay": (
        "MEMORY\ninput a in (0, 1), b in (0, 1)\nretain S by decay(a)\nlearn S by descent(rate = b) on l2(S(k), v)\nREAD",
        (("a", (("b * k", "v", "k * a"),)),),
    ),
    "untied rank": (
        "MEMORY\ninput e[K], w[K]\nupdate S = S - outer(w, S(e)) + outer(k, v)\nREAD",
        (("", (("w", "", "e"), ("k", "v", ""))),),
    ),
    "pairs in turn": (
        "input q[K], k[n, K], v[n, V]\nmemory S[K, V] = 0\nfor i in n\nlearn S by descent(rate = 1) on l2(S(k[i]), v[i])\nend\nREAD",
        (
            ("", (("select[n, 0](k)", "select[n, 0](v)", "select[n, 0](k)"),)),
            ("", (("select[n, 1](k)", "select[n, 1](v)", "select[n, 1](k)"),)),
        ),
    ),
    "pairs at once": (
        "input q[K], k[n, K], v[n, V]\nmemory S[K, V] = 0\nlearn S by descent(rate = 1) on sum[n](l2(S(k), v))\nREAD",
        (("", (("select[n, 0](k)", "select[n, 0](v)", "select[n, 0](k)"), ("select[n, 1](k)", "select[n, 1](v)", "select[n, 1](k)"))),),
    ),
    "pairs in turn, each from the start": (
        "input q[K], k[n, K], v[n, V]\nmemory S[K, V] = 0\nfor i in n"
        "\nlearn S by descent(rate = 1) on l2(S(k[i]), v[i]) at start(S)\nend\nREAD",
        (("", (("select[n, 0](k)", "select[n, 0](v)", "select[n, 0](k)"), ("select[n, 1](k)", "select[n, 1](v)", "select[n, 1](k)"))),),
    ),
    "tied rank behind a decay along values": (
        "MEMORY\ninput a[V] in (0, 1), b in (0, 1)\nretain S by decay(a)\nlearn S by descent(rate = b) on l2(S(k), v)\nREAD",
        (("a", ()), ("", (("b * k", "v", "k"),))),
    ),
    "a read between two updates": (
        "MEMORY\ninput a in (0, 1)\nupdate S = S + outer(k, v)\noutput p[V] = S(q)\nupdate S = a * S + outer(q, v)\nREAD",
        (("", (("k", "v", ""),)), ("a", (("q", "v", ""),))),
    ),
    "decays along both axes": (
        "MEMORY\ninput a[K] in (0, 1), b[V] in (0, 1), c in (0, 1)\nretain S by decay(c)\nretain S by decay(a)"
        "\nretain S by decay(b)\nupdate S = S + outer(k, v)\nREAD",
        (("c * a * b", (("k", "v", ""),)),),
    ),
    "decays along both axes behind the write": (
        "MEMORY\ninput a[K] in (0, 1), b[V] in (0, 1)\nupdate S = outer(a, b) * (S + outer(k, v))\nREAD",
        (("a * b", (("a * k", "b * v", ""),)),),
    ),
    "tied rank behind decays along both axes": (
        "MEMORY\ninput a[K] in (0, 1), b[V] in (0, 1)\nretain S by decay(b)\nretain S by decay(a)"
        "\nlearn S by descent(rate = 1) on l2(S(k), v)\nREAD",
        (("b * a", ()), ("", (("k", "v", "k"),))),
    ),
    "decay along values behind an erase": (
        "MEMORY\ninput b[V] in (0, 1)\nlearn S by descent(rate = 1) on l2(S(k), v)\nretain S by decay(b)\nREAD",
        (("", (("k", "v", "k"),)), ("b", ())),
    ),
    "erase along the other axis": (
        "MEMORY\ninput a[V] in (0, 1)\nretain S by decay(a)\nlearn S by descent(rate = 1) on l2(S @ v, k)\nREAD",
        (("a", (("v", "k", "v * a"),)),),
    ),
    "reads along both axes": (
        "MEMORY\ninput r[V]\nupdate S = S + outer(k, v)\nREAD\noutput p[K] = S @ r",
        (("", (("k", "v", ""),)),),
    ),
    "average": (
        "MEMORY\ninput w in (0, 1)\nupdate S = lerp(S, outer(k, v), w)\nREAD",
        (("1 - w", (("k", "w * v", ""),)),),
    ),
    "average of two steps": (
        "MEMORY\ninput w in (0, 1)\nupdate S = lerp(S, S - outer(k, S(k) - v), w)\nREAD",
        (("", (("w * k", "v", "k"),)),),
    ),
    "subtracted twice": (
        "MEMORY\ninput a in (0, 1)\nupdate S = outer(k, v) - a * (outer(q, v) - S)\nREAD",
        (("a", (("k", "v", ""), ("q", "-(a * v)", ""))),),
    ),
    "weighted pairs": (
        "input q[K], k[n, K], v[n, V], w[n]\nmemory S[K, V] = 0\nlearn S by descent(rate = 1) on sum[n](w * l2(S(k), v))\nREAD",
        (
            (
                "",
                (
                    ("select[n, 0](w) * select[n, 0](k)", "select[n, 0](v)", "select[n, 0](k)"),
                    ("select[n, 1](w) * select[n, 1](k)", "select[n, 1](v)", "select[n, 1](k)"),
                ),
            ),
        ),
    ),
    "a window of pairs": (
        "MEMORY\nlearn S by descent(rate = 1) on sum[n](l2(S(window[n](k)), window[n](v)))\nREAD",
        (("", (("select[n, 1](k@window2)", "select[n, 1](v@window2)", "select[n, 1](k@window2)"), ("k", "v", "k"))),),
    ),
    "a read of a sum": (
        "MEMORY\nupdate S = S - outer(k, k @ (S + outer(q, v)))\nREAD",
        (("", (("k", "-(sum[K](k * q) * v)", "k"),)),),
    ),
    "a read under another name of its axis": (
        "input q[K], k[K], v[K]\nstate S[K, K] = 0\nlet e[K] = k @ S - v\nupdate S = S - outer(k, e / 2)\noutput o[K] = q @ S",
        (("", (("k", "1/2 * v", "1/2 * k"),)),),
    ),
    "a scaled read between two updates": (
        "MEMORY\nupdate S = S + outer(k, v)\noutput p[V] = q @ (2 * S)\nupdate S = S + outer(q, v)\nREAD",
        (("", (("k", "v", ""),)), ("", (("q", "v", ""),))),
    ),
    "a vector read and taken whole": (
        "input k[K], x, b in (0, 1)\nstate z[K] = 0\nupdate z = z + b * k * (x - z @ k)\noutput o[K] = z",
        (("", (("b * k", "x", "k"),)),),
    ),
    "a vector without a key": (
        "input x[V], a in (0, 1)\nstate s[V] = 0\nupdate s = a * s + (1 - a) * x\noutput o[V] = s",
        (("a", (("1", "(1 - a) * x", ""),)),),
    ),
}


def chains(found: Checked) -> dict[str, Chain]:
    return analyse(found.recurrence, found.sizes).chains


def text(e: Expr | None) -> str:
    return "" if e is None else show(e)


@pytest.mark.parametrize("name", NORMAL)
def test_normal_form(name: str) -> None:
    body, want = NORMAL[name]
    found = layer(body)
    (chain,) = chains(found).values()
    assert tuple((text(s.decay), tuple((text(r.write), text(r.value), text(r.read)) for r in s.rows)) for s in chain.steps) == want
    assert isinstance(CHUNKWISE.applies(found.recurrence, found.sizes), Applies)


@pytest.mark.parametrize("name", NORMAL)
def test_normal_form_is_the_update(name: str) -> None:
    """The micro-steps, run as the module's formula says, give the next state."""
    found = layer(NORMAL[name][0])
    rec, rng = found.recurrence, np.random.default_rng(0)
    state = next(s for s in rec.states if s.name == "S" or len(rec.states) == 1)
    leaves = {v.name: rng.standard_normal([extent(found.sizes, a) for a in v.axes]) for v in (*variables(state.next), leaf(state))}
    A, chain = Reals(found.sizes), chains(found)[state.name]

    def at(e: Expr | None, axes: tuple[str, ...]) -> np.ndarray:
        if e is None:
            return np.zeros([1] * len(axes))
        return np.asarray(arrange(A, evaluate(A, (e,), leaves)[0], e.axes, axes))

    S = leaves[state.name]
    for step in chain.steps:
        before = S
        S = S * at(step.decay, state.axes) if step.decay is not None else S
        for row in step.rows:
            read = (
                0.0
                if row.read is None
                else (before * at(row.read, state.axes)).sum(tuple(state.axes.index(a) for a in chain.key), keepdims=True)
            )
            S = S + at(row.write, state.axes) * (at(row.value, state.axes) - read)
    np.testing.assert_allclose(S, evaluate(A, (state.next,), leaves)[0], rtol=1e-12, atol=1e-12)


# where the read stands -> (micro-steps done, the decay it sees on top)
READS = {
    "output o[V] = S(q)\nretain S by decay(a)\nupdate S = S + outer(k, v)": (0, ""),
    "retain S by decay(a)\nREAD\nupdate S = S + outer(k, v)": (0, "a"),
    "retain S by decay(a)\nupdate S = S + outer(k, v)\nREAD": (1, ""),
    "update S = S + outer(k, v)\nretain S by decay(a)\nREAD": (1, ""),
}


@pytest.mark.parametrize("body", READS, ids=("before", "between", "after", "after the decay"))
def test_where_a_read_stands(body: str) -> None:
    rec = (found := layer("MEMORY\ninput a in (0, 1)\n" + body)).recurrence
    structure = analyse(rec, found.sizes)
    read = structure.readers["S"].read(rec.outputs[0].value)
    assert read is not None and show(read.query) == "q"
    version = structure.chains["S"].versions[read.version]
    assert (version.done, text(version.decay)) == READS[body]


def test_states_in_series() -> None:
    found = layer(
        "MEMORY\ninput a in (0, 1)\nmemory R[K, V] = 0\nupdate S = a * S + outer(k, v)\nupdate R = R + outer(k, S(q))\noutput o[V] = R(q)"
    )
    assert [s.name for s in analyse(found.recurrence, found.sizes).order] == ["S", "R"]
    assert isinstance(CHUNKWISE.applies(found.recurrence, found.sizes), Applies)


# body -> the reason, and the statement that is to blame
REFUSED: dict[str, tuple[str, str, str]] = {
    "nonlinear": ("MEMORY\nupdate S = tanh(S) + outer(k, v)\nREAD", "is not affine in `S`: it passes through `tanh`", "update"),
    "two functions of reads": (
        "MEMORY\nupdate S = S + outer(k, tanh(S(k) - v)) - outer(q, abs(S(q)))\nREAD",
        "what `S` writes is not one function of its reads",
        "update",
    ),
    "a function of two reads": (
        "MEMORY\nupdate S = S + outer(k, tanh(S(k)) * S(q)) + outer(q, v)\nREAD",
        "two factors depend on `S`",
        "update",
    ),
    "a function of a read and a decay per value": (
        "MEMORY\ninput b[V] in (0, 1)\nupdate S = b * S + outer(k, tanh(S(k) - v))\nREAD",
        "`S` decays along `V`, and what it writes is no affine function of its reads",
        "update",
    ),
    "choice": ("MEMORY\ninput r\nupdate S = where(r > 1/2, S, 0) + outer(k, v)\nREAD", "it passes through `where`", "update"),
    "two axes": (
        "MEMORY\ninput a[K] in (0, 1), b[V] in (0, 1)\nupdate S = S - outer(a, b) * S + outer(k, v)\nREAD",
        "a decay along both `K` and `V` is no product of two",
        "update",
    ),
    "growth along one of two axes": (
        "MEMORY\ninput a[K] in (0, 1/2), b[V] in (0, 2)\nupdate S = outer(a, b) * S + outer(k, v)\nREAD",
        "nothing bounds the decay of `S` by 1",
        "update",
    ),
    "erases along both axes": (
        "MEMORY\nupdate S = S - outer(k, S(k)) - outer(S @ v, v)\nREAD",
        "the update reads `S` along `K` and along `V`",
        "update",
    ),
    "read along a part of its axes": (
        "input q[K], r[n], k[n, K], v[V]\nstate S[n, K, V] = 0\nupdate S = S + outer(r, outer(q, v) - r @ S)"
        "\noutput o[n, V] = sum[K](k * S)",
        "is read along `K`, which is neither all of `n` nor all of `K, V`",
        "output",
    ),
    "used whole": ("MEMORY\nupdate S = S + outer(k, v)\nREAD / (1 + sum(S * S))", "`S` is used as a whole here", "output"),
    "matrix": ("MEMORY\ninput A[K, K]\nupdate S = A @ S + outer(k, v)\nREAD", "mixes the entries of `S` along `K`", "update"),
    "gate of the state": (
        "MEMORY\nupdate S = sigmoid(sum(S(q))) * S + outer(k, v)\nREAD",
        "a factor of `S` depends on it",
        "update",
    ),
    "write of the state": (
        "input q[K], k[K]\nmemory S[K, K] = 0\nupdate S = S + outer(S(k), k)\noutput o[K] = S(q)",
        "depends on `S`",
        "update",
    ),
    "no outer product": (
        "input q[K], A[K, V]\nmemory S[K, V] = 0\nupdate S = S + A\nREAD",
        "is no outer product of a key and a value",
        "update",
    ),
    "forgotten": ("MEMORY\nupdate S = outer(k, v)\nREAD", "no state is a sum of decayed writes", "update"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_reason_and_the_line(name: str) -> None:
    body, reason, statement = REFUSED[name]
    found = layer(body)
    verdict = CHUNKWISE.applies(found.recurrence, found.sizes)
    assert isinstance(verdict, Refuses)
    assert reason in verdict.reason
    assert verdict.span is not None and found.source.line(verdict.span.line).strip().startswith(statement), verdict.span


@pytest.mark.slow
def test_a_step_of_very_many_operations_is_left_to_the_loop_over_tokens() -> None:
    """Deriving a form takes time with the square of the operations; a text may have thousands, and is answered all the same."""
    text = (ROOT / "specs/deltaproduct.seq").read_text("utf-8").replace("n = 2", "n = 1024")
    verdicts = judge(check_source(Source("deltaproduct.seq", text)))
    assert isinstance(verdicts["recurrent"], Applies)
    for name in ("chunkwise", "scan", "conv"):
        refused = verdicts[name]
        assert isinstance(refused, Refuses) and "so many operations" in refused.reason and refused.span is not None


def test_a_state_times_itself_is_no_decay() -> None:
    """Both factors are one node: taking one away must leave the other."""
    step = "  state   h[N] = 0\n  update  h = h / 2 + u + h * h / 1000000\n  output  o[N] = h\n"
    text = f"seqc 1\n\nlayer square(N = 3)\n  input   u[N]\n{step}"
    verdicts = judge(check_source(Source("square.seq", text)))
    assert {name for name, v in verdicts.items() if isinstance(v, Applies)} == {"newton", "recurrent"}
