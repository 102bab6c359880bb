"""What the printed `module.py` computes, around a plain token loop that stands for the generated op."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hand_made import DELTA, DELTA_OP, SHIFTED, SHIFTED_OP, package
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def delta(tmp_path: Path) -> ModuleType:
    return package(tmp_path, DELTA, DELTA_OP)


@pytest.fixture(params=["delta", "shift"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A layer in float64 and a function that makes its inputs besides x."""
    torch.manual_seed(0)
    if request.param == "delta":
        return package(tmp_path, DELTA, DELTA_OP).Layer(5).double(), lambda n: ()
    made = package(tmp_path, SHIFTED, SHIFTED_OP).Layer(8, groups=1).double()
    return made, lambda n: (torch.rand(n, 2, 4, dtype=torch.float64),)


def test_is_what_the_page_says(delta: ModuleType) -> None:
    torch.manual_seed(0)
    layer = delta.TinyDelta(5, heads=3).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)

    def conv(z: Tensor, weights: Any) -> Tensor:
        return F.conv1d(F.pad(z.mT, (3, 0)), weights.weight, weights.bias, groups=z.shape[-1]).mT

    def made(target: Any) -> Tensor:
        return F.silu(conv(target.linear(x), target.conv))

    def unit(z: Tensor) -> Tensor:
        return z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    q = unit(made(layer.q).unflatten(-1, (3, 4))) / 2
    k = unit(made(layer.k).unflatten(-1, (3, 2, 4)))
    v = made(layer.v).unflatten(-1, (3, 2, 3))
    beta = 2 * torch.sigmoid(layer.beta.linear(x)).unflatten(-1, (3, 2))
    g = -layer.A_log.exp() * torch.log1p(torch.exp(layer.g.linear(x) + layer.dt_bias))
    o, _ = delta.tiny_delta(q, k, v, beta, g)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.y.rmsnorm.weight
    y = layer.y.linear(o.flatten(-2) * F.silu(layer.y.linear_2(x)))
    torch.testing.assert_close(layer(x)[0], y, rtol=1e-12, atol=1e-12)


def test_shift_rope_and_groups_are_what_the_page_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = package(tmp_path, SHIFTED, SHIFTED_OP)
    layer, x = module.Layer(8, groups=1).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    low = torch.rand(2, 2, 4, dtype=torch.float64)
    torch.nn.init.normal_(layer.v.headwise.bias)

    def back(z: Tensor) -> Tensor:
        return F.pad(z, (0, 0, 1, 0))[:, :-1]

    def rope(z: Tensor) -> Tensor:
        angle = torch.arange(6, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 1e-2], dtype=torch.float64)
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (2, 2))) * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    d = back(x) - x
    q = rope(layer.q.linear(x + d / 2).unflatten(-1, (2, 4))) + torch.tensor([3.0, 4.5], dtype=torch.float64)[:, None]
    k = rope(layer.k.linear(x).unflatten(-1, (1, 4)))
    v = rope(layer.c.linear(back(back(d))).unflatten(-1, (2, 4)))
    v = torch.einsum("bthi,hoi->btho", v, layer.v.headwise.weight) + layer.v.headwise.bias
    w = torch.sigmoid(layer.w.linear(layer.w.linear_2(x))).unflatten(-1, (2, 4))
    w = w + (1 - w) * low[:, None]
    o = (q * w * v + k * low.sum(-1)[:, None, :, None]).cumsum(1)
    y = layer.y.linear((F.layer_norm(o, (4,)) * F.layer_norm(q, (4,))).flatten(-2)) + q.flatten(-2) * 0.5
    torch.testing.assert_close(layer(x, low)[0], y, rtol=1e-11, atol=1e-11)


def test_prefix_and_steps_are_the_whole(layer: Any) -> None:
    module, more = layer
    extra, x = more(2), torch.randn(2, 9, module.model, dtype=torch.float64)
    whole, final = module(x, *extra)
    y, state = module(x[:, :4], *extra)
    ys = [y]
    for t in range(4, 9):
        y, state = module.step(x[:, t], *extra, state)
        ys.append(y[:, None])
    torch.testing.assert_close(torch.cat(ys, 1), whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state["op"], final["op"], rtol=1e-11, atol=1e-11)
    y, state = module.step(x[:, 0], *extra, module.init_state(2))
    torch.testing.assert_close(y, whole[:, 0], rtol=1e-11, atol=1e-11)


def test_no_tokens(tmp_path: Path) -> None:
    """Convolutions give nothing for nothing, and their past stays as it is."""
    op = "def tiny_delta(q, k, v, *rest, initial_state=None, **options):\n    return v[..., 0, :], initial_state\n"
    made = package(tmp_path, DELTA, op).Layer(5)
    before = made(torch.randn(2, 6, 5))[1]
    y, after = made(torch.randn(2, 0, 5), state=before)
    assert y.shape == (2, 0, 5)
    for name in ("q.conv", "k.conv", "v.conv"):
        assert torch.equal(after[name], before[name])
    packed = made(torch.randn(1, 0, 5), cu_seqlens=torch.tensor([0, 0]))[0]
    assert packed.shape == (1, 0, 5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_sequences_are_separate_rows(layer: Any, dtype: torch.dtype) -> None:
    module, more = layer
    lengths = [1, 6, 2, 4]
    cu_seqlens = torch.tensor([0, 1, 7, 9, 13], dtype=dtype)
    extra, x = more(4), torch.randn(1, 13, module.model, dtype=torch.float64)
    first, state = module(x, *extra, cu_seqlens=cu_seqlens)
    second, _ = module(x, *extra, state=state, cu_seqlens=cu_seqlens)
    for i, (row, length) in enumerate(zip(x[0].split(lengths), lengths, strict=True)):
        own = tuple(e[i : i + 1] for e in extra)
        y, _ = module(torch.cat([row, row])[None], *own)
        a, b = (z[0].split(lengths)[i] for z in (first, second))
        torch.testing.assert_close(torch.cat([a, b])[None], y, rtol=1e-11, atol=1e-11)
        assert length == len(a)


def test_every_parameter_has_a_gradient(layer: Any) -> None:
    module, more = layer
    module(torch.randn(2, 5, module.model, dtype=torch.float64), *more(2))[0].square().sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and bool(p.grad.abs().sum() > 0), name


def test_weights_have_their_names(delta: ModuleType) -> None:
    shapes = {n: tuple(p.shape) for n, p in delta.Layer(5).named_parameters()}
    assert shapes["q.conv.weight"] == (8, 1, 4)
    assert shapes["v.conv.bias"] == (12,)
    assert shapes["y.rmsnorm.weight"] == (3,)
    assert shapes["A_log"] == (2,)
    assert {"q.linear.weight", "y.linear.weight", "y.linear_2.weight"} <= set(shapes)


def test_initial_values(delta: ModuleType) -> None:
    torch.manual_seed(0)
    layer = delta.Layer(64, heads=1000).requires_grad_(False)
    assert float(layer.A_log.exp().min()) > 0 and float(layer.A_log.exp().max()) < 16 and layer.A_log.unique().numel() > 990
    dt = F.softplus(layer.dt_bias)
    assert float(dt.min()) >= 1e-3 and float(dt.max()) <= 0.1001 and float(dt.log().mean()) == pytest.approx(-4.6, abs=0.2)
    assert float(layer.q.linear.weight.abs().max()) == pytest.approx(1 / 8, rel=1e-3)
    assert float(layer.q.conv.weight.abs().max()) == pytest.approx(1 / 2, rel=1e-3)
    assert not layer.v.conv.bias.any() and bool((layer.y.rmsnorm.weight == 1).all())


def test_first_tokens_are_kept(tmp_path: Path) -> None:
    text = """
layer tiny_first(heads = 2, K = 3, M = 4)
  input ke[M, K] per sequence, q[K]
  state z[K] = 0
  update z = z + q
  output o[K] = sum[M](ke) * z
  project x -> y
    ke = elu(first[M](linear(x))) + 1
    q = linear(x)
    y = linear(o)
"""
    op = """
import torch

def tiny_first(ke, q, *, initial_state=None, output_final_state=False, cu_seqlens=None, form="auto"):
    assert ke.shape[1:] == (2, 4, 3)
    return q * ke.sum(2)[:, None], q[:, -1]
"""
    torch.manual_seed(0)
    layer = package(tmp_path, text, op).Layer(5).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    whole, _ = layer(x)
    y, state = layer(x[:, :5])
    z, _ = layer(x[:, 5:], state=state)
    torch.testing.assert_close(torch.cat([y, z], 1), whole)
    with pytest.raises(ValueError, match="needs 4 tokens"):
        layer(x[:, :3])
