"""Which states change entry by entry. What only looks so is refused, and numbers say the same: the Jacobian by differences."""

from __future__ import annotations

import numpy as np
import pytest

from seqc.analysis.chain import Refusal
from seqc.analysis.local import local_states
from seqc.compiler import check_source, prepared
from seqc.ir import interp
from seqc.source import Source

TEXT = """seqc 1

layer toy(N = 4, M = 3)
  input   x[N], z[M], g in (0, 1)
  param   w[N] = 0, W[M, N] = 0, R[N, N] = 0, s = 0
  state   a[N] = 0, b[N] = 0
  update  a = {}
  update  b = lerp(b, a, 1/2)
  output  b
  output  o = sum(x) * sum(w) + sum(z @ W) * g + s * sum(x @ R)
"""
LOCAL = (
    "tanh(a * w + b)", "where(a >= x, a, b * w)", "max(a, b) + exp(-abs(x))", "a * g + sum(x)", "a * sigmoid(z @ W)",
    "sum[M](outer(z, a))", "relu(a) - b / (1 + a^2)", "a + roll[N](x, 1)",
)  # fmt: skip
WIDE = (
    "a @ R", "a * sum(a)", "softmax(a) + b", "roll[N](a, 1)", "cumsum(b)", "l2norm(a)", "a - mean(b)", "a * b[0]", "a + max(b)", "R @ b",
    "a + w * sum(a * w)", "a * (x @ outer(a, x))", "a + norm(b) * x", "a * s", "tanh(a) + sum(w) * x", "a + (W @ x) @ W * a",
)  # fmt: skip


def jacobian(rec: object, after: str, before: str) -> np.ndarray:
    """How one state after a token depends on another before it."""
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 4), "z": (1, 3), "g": (1,)}
    inputs = {n: rng.uniform(0.2, 0.8, s) for n, s in shapes.items()}
    params = {n: rng.normal(size=s) for n, s in (("w", (4,)), ("W", (3, 4)), ("R", (4, 4)), ("s", ()))}
    states = {n: rng.normal(size=4) for n in "ab"}

    def run(step: np.ndarray) -> np.ndarray:
        moved = states | {before: states[before] + step}
        return interp.run(rec, inputs, params, {"N": 4, "M": 3, "heads": 1, "groups": 1}, states=moved)[1][after]  # type: ignore[arg-type]

    return np.stack([(run(e) - run(-e)) / 2e-6 for e in 1e-6 * np.eye(4)], 1)


@pytest.mark.parametrize("text", LOCAL)
def test_entry_by_entry(text: str) -> None:
    rec = prepared(check_source(Source("toy.seq", TEXT.format(text))))
    assert [s.name for s in local_states(rec, ())] == ["a", "b"]
    for after in "ab":
        for before in "ab":
            found = jacobian(rec, after, before)
            assert abs(found - np.diag(np.diag(found))).max() < 1e-7


@pytest.mark.parametrize("text", WIDE)
def test_what_mixes_entries_is_refused(text: str) -> None:
    rec = prepared(check_source(Source("toy.seq", TEXT.format(text))))
    with pytest.raises(Refusal):
        local_states(rec, ())


def test_an_input_with_weights_has_to_feed_one_entry_each() -> None:
    rec = prepared(check_source(Source("toy.seq", TEXT.format("a * g + x"))))
    assert local_states(rec, ()) == local_states(rec, ["x"])
    with pytest.raises(Refusal) as caught:
        local_states(rec, ["g"])
    assert caught.value.reason == "`g` is shared by the entries of `a` along `N`"
