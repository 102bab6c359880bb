"""Steps of the library that solve a small problem: what they give is its least value. Losses against other words for them."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # not part of `make check`
SPECS = ROOT / "tests/backends/specs"


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_the_step_on_the_simplex_is_the_least_value(package) -> None:
    """Row by row: weights sum to what they did, and where one is above 0 all have the same slope: rate G + 2 (W / old - 1)."""
    torch.manual_seed(0)
    p = package(str(SPECS / "simplex_linear.seq"))
    q, k, rate = draw(1, 1, 2, 4), 9 * draw(1, 1, 2, 4), torch.full((1, 1, 2), 0.9, dtype=torch.float64)
    y = draw(1, 1, 2, 5).softmax(-1)
    old = draw(1, 2, 4, 5).softmax(-1)
    _, W = p.simplex_linear(q, k, y, rate, initial_state=old, output_final_state=True)
    assert torch.allclose(W.sum(-1), torch.ones(1, 2, 4, dtype=torch.float64), atol=1e-12) and (W >= 0).all()
    start = old.clone().requires_grad_()
    loss = (y[:, 0] * -F.log_softmax(torch.einsum("bhk,bhkv->bhv", k[:, 0], start), -1)).sum()
    (G,) = torch.autograd.grad(loss, start)
    slope, inside = 0.9 * G + 2 * (W / old - 1), W > 0
    assert 0 < (~inside).sum() < inside.sum()  # some weights fall to 0
    for row, kept in zip(slope.flatten(0, 2), inside.flatten(0, 2), strict=True):
        assert row[kept].max() - row[kept].min() < 1e-9
        assert (row[~kept] > row[kept].max() - 1e-9).all()


def test_a_proximal_step_is_the_least_value(package) -> None:
    """The gradient of G . W + |W - old|^2 / (2 rate) + |W|^2 / (2 pull) is zero there, G being that of Huber's loss of the norm."""
    torch.manual_seed(0)
    p = package(str(SPECS / "ridge_deep.seq"))
    q, k, v = (draw(1, 1, 2, 3) for _ in range(3))
    rate, pull, delta = (torch.full((1, 1, 2), x, dtype=torch.float64) for x in (0.3, 2.0, 1.5))
    old = (draw(2, 3, 6).requires_grad_(), draw(2, 6, 3).requires_grad_())
    _, states = p.ridge_deep(q, k, v, rate, pull, delta, *old, output_final_state=True)
    read = k[0, 0] + torch.einsum("hd,hde->he", torch.einsum("hd,hde->he", k[0, 0], old[0]).tanh(), old[1])
    r = (read - v[0, 0]).norm(dim=-1)
    loss = F.huber_loss(r, torch.zeros_like(r), reduction="sum", delta=1.5)
    assert (r < 1.5).any() and (r > 1.5).any()
    for G, before, after in zip(torch.autograd.grad(loss, old), old, states, strict=False):
        assert (G + (after[0] - before) / 0.3 + after[0] / 2.0).abs().max() < 1e-10
