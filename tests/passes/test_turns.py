"""Matrices that shrink and turn: which texts have them, and that the rewritten recurrence gives the same outputs and last states."""

from __future__ import annotations

import numpy as np
import pytest

from seqc.analysis.components import leaf
from seqc.compiler import Checked, check_source, prepared
from seqc.ir import interp
from seqc.ir.expr import variables, walk
from seqc.ir.interp import Reals, evaluate
from seqc.ir.rules import extent
from seqc.passes.turns import without_turns
from seqc.source import Source

INPUTS = "input q[K], k[K], v[V], a in (0, 1), g[K] in (-inf, 0), x[K], y\n  state S[K, V] in complex = 0\n  output before[V] = re(q @ S)"
TURNING = {
    "as it is written": "update S = polar(exp(g), x) * S + outer(complex(k, q), v) * a * y",
    "one angle for all": "update S = polar(a, y) * S + outer(k, v) + outer(exp(g) * x, v)",
    "two factors": "update S = exp(complex(g, x)) * conj(polar(a, y)) * S + outer(k, v)",
    "two lines": "update S = polar(a, x) * (S + outer(q, v))\n  update S = exp(complex(g, y)) * S + outer(k, v)",
}
OTHER = {
    "a factor that is no angle": "update S = complex(a, y) * S + outer(exp(g) * k * x, v)",
    "erased": "update S = polar(a, y) * S - outer(k, k @ S) + outer(exp(g) * x, v)",
    "real": "update S = a * S + outer(complex(k, x), v) * y * sum(g)",
}


def layer(update: str) -> Checked:
    body = f"  {INPUTS}\n  {update}\n  output o[V] = re(complex(q, k) @ S)\n"
    return check_source(Source("turn.seq", f"seqc 1\n\nlayer turn(K = 4, V = 3)\n\n{body}"))


@pytest.mark.parametrize("name", TURNING)
def test_the_same_outputs_and_last_states(name: str) -> None:
    found = layer(TURNING[name])
    rec = prepared(found)
    turned = without_turns(rec, found.sizes)
    assert len(turned.made) == 2 and set(turned.back) == {"S.re", "S.im"}
    re, im = (s for s in turned.rec.states if s.name in turned.back)
    assert leaf(im) not in variables(re.next) and leaf(re) not in variables(im.next)
    rng = np.random.default_rng(0)
    given = {i.name: rng.random((11, *(extent(found.sizes, a) for a in i.axes))) for i in rec.inputs}
    given["g"] = -given["g"]
    first = {s.name: rng.standard_normal((4, 3)) for s in rec.states}
    sizes = {**found.sizes, "heads": 1, "groups": 1}
    one = dict.fromkeys(turned.made[:1], np.ones([extent(found.sizes, a) for a in turned.rec.states[0].axes]))
    starts = {**first, **one, turned.made[1]: 0 * one[turned.made[0]]}
    wanted, ends = interp.run(rec, given, {}, sizes, states=first, head=0)
    outputs, last = interp.run(turned.rec, given, {}, sizes, states=starts, head=0)
    for o in rec.outputs:
        np.testing.assert_allclose(outputs[o.name], wanted[o.name], rtol=1e-12, atol=1e-12)
    for s in rec.states:
        np.testing.assert_allclose(evaluate(Reals(sizes), (turned.back[s.name],), last)[0], ends[s.name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OTHER)
def test_what_does_not_turn_stays(name: str) -> None:
    found = layer(OTHER[name])
    rec = prepared(found)
    assert without_turns(rec, found.sizes).rec is rec


def test_angles_are_taken_in_the_order_of_the_step() -> None:
    """Not as a set has them, which differs from process to process: a package would."""
    lines = [f"update S = polar(a, sum(k) * {n}) * S" for n in (2, 3, 5)] + [TURNING["one angle for all"]]
    found = layer("\n  ".join(lines))
    turned = without_turns(prepared(found), found.sizes)
    cosine = next(s.next for s in turned.rec.states if s.name == turned.made[0])
    numbers = [float(n.attr) for n in walk(cosine) if n.op.name == "const"]
    assert list(dict.fromkeys(x for x in numbers if x in (2, 3, 5))) == [5, 3, 2]
