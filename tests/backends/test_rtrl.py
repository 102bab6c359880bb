"""Real-time recurrent learning: the gradients of all tokens, with nothing of earlier calls in memory."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, SHIPPED
from layers import checked
from modules import inputs, small_sizes
from torch import Tensor

from seqc.backends.torch.module_rtrl import learning
from seqc.compiler import prepared

TOKENS, MODEL = 11, 16
LEARNS = ("elstm", "ema", "hgrn", "linoss", "lru", "mingru", "minlstm", "paragru", "paralstm", "qrnn", "s5", "sru", "sru1")
CUTS = ((1,) * TOKENS, (4, 1, 6), (TOKENS,))
REASONS = {
    "elman": "an entry of `h` sees other entries of `h`, so the Jacobian is dense",
    "lstm": "an entry of `c` sees other entries of `h`, so the Jacobian is dense",
    "m2rnn": "`W` is shared by the entries of `H` along `K`",
    "deltanet": "`beta` is shared by the entries of `S` along `K`",
    "rg_lru": "`x` goes through `conv`, which is not entry by entry at one token",
    "srwm": "`Wy` starts from a param",
    "slstm": "`c` is kept in units of e^m",
    "recurrent_delta_net": "`S` and `y` have unlike axes, so an entry of one sees many of the other",
}
OWN = """seqc 1

layer own(heads = 2, M = model / heads, N = 3)
  "A map inside the cell, two states that see each other, a gate made of a map twice, a param that the output sees as well."

  input   x[M], g[N] in (0, 1)
  param   W[M, N] = normal(0, 1), u[N] = normal(0, 1), R[N, N] = normal(0, 1)
  state   a[N] = 0, b[N] = 0.1
  update  a = lerp(a, tanh(x @ W - b), sigmoid(u * a) * g)
  update  b = lerp(b, a^2, sigmoid(u))
  output  h[N] = (a + b) @ R * u

  project s -> y
    let     z[heads, N] = linear(s, shift(s), bias = true)
    x = reshape(s)
    g = sigmoid(z * tanh(z))
    y = linear(h)
"""


def learned(layer: Any, x: Tensor, more: tuple[Tensor, ...], cut: tuple[int, ...], kept: bool = True) -> dict[str, Tensor]:
    """The gradients of the losses of all tokens, call by call; kept: whether states hand on what they are made of."""
    layer.zero_grad()
    at, state = 0, None
    for n in cut:
        y, state = layer(x[:, at : at + n], *more, state=state)
        loss(y, at).backward()
        if not kept:
            state = {name: v for name, v in state.items() if name != "rtrl"}
        at += n
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in layer.named_parameters()}


def loss(y: Tensor, at: int) -> Tensor:
    """The losses of tokens from `at` on: each token's own weights."""
    g = torch.Generator().manual_seed(5)
    weights = torch.randn(TOKENS, y.shape[0], y.shape[-1], generator=g, dtype=y.dtype).transpose(0, 1)
    return (y.tanh() * weights[:, at : at + y.shape[1]]).sum()


def layers(p: Any, **sizes: int) -> tuple[Any, Any]:
    """The same layer without and with real-time learning; no weight is zero."""
    torch.manual_seed(0)
    plain, online = p.Layer(MODEL, **sizes).double(), p.Layer(MODEL, **sizes, rtrl=True).double()
    with torch.no_grad():
        for w in plain.parameters():
            w.add_(torch.randn_like(w) / 4)
    online.load_state_dict(plain.state_dict())
    return plain, online


def check(p: Any, name: str = "", **sizes: int) -> None:
    """The gradients of every cut are those of backpropagation through all tokens; without sensitivities they are not."""
    plain, online = layers(p, **sizes)
    x, *once = inputs(plain, name, batch=3, tokens=TOKENS) if name else (torch.randn(3, TOKENS, MODEL, dtype=torch.float64),)
    more = tuple(once)
    whole = learned(plain, x, more, (TOKENS,))
    for cut in CUTS:
        found = learned(online, x, more, cut)
        for name, want in whole.items():
            assert (found[name] - want).abs().max() < 1e-9 * max(1.0, float(want.abs().max())), (name, cut)
    short = learned(online, x, more, CUTS[0], kept=False)
    assert max(float((short[n] - w).abs().max() / w.abs().max()) for n, w in whole.items()) > 1e-2


@pytest.mark.parametrize("name", [n if n == "elstm" else pytest.param(n, marks=pytest.mark.slow) for n in LEARNS])
def test_gradients_are_those_of_backpropagation(package, name: str) -> None:
    check(package(name), name, **small_sizes(checked(name).model))


@pytest.mark.slow
def test_a_cell_with_maps_of_its_own(package, tmp_path: Path) -> None:
    path = tmp_path / "own.seq"
    path.write_text(OWN)
    check(package(str(path)))


def test_results_and_states_are_those_of_the_plain_layer(package) -> None:
    """A frozen weight has no gradient; without gradients there is nothing to hand on."""
    plain, online = layers(package("paralstm"))
    x = torch.randn(2, TOKENS, MODEL, dtype=torch.float64)
    wanted, last = plain(x)
    online.af.requires_grad_(False)
    y, state = online(x[:, :5])
    z, state = online(x[:, 5:], state=state)
    assert (torch.cat((y, z), 1) - wanted).abs().max() < 1e-12
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(state["op"], last["op"], strict=True))
    assert "af" not in state["rtrl"] and "ac" in state["rtrl"]
    z.sum().backward()
    assert online.af.grad is None and online.ac.grad is not None
    with torch.no_grad():
        assert "rtrl" not in online(x)[1]


def test_nothing_of_earlier_tokens_is_kept(package) -> None:
    """What graphs hold is the same after 3 tokens and after 40, and no state has a graph. Of the plain layer it grows."""
    plain, online = layers(package("elstm"))
    x = torch.randn(2, 40, MODEL, dtype=torch.float64)

    class Held:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    def held(layer: Any) -> list[int]:
        """Numbers saved for a backward that are alive after each token's own backward."""
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def pack(x: Tensor) -> Held:
            h = Held(x)
            alive.add(h)
            return h

        state, found = layer.init_state(2), []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda h: h.x):
            for t in range(x.shape[1]):
                y, state = layer.step(x[:, t], state)
                y.square().sum().backward(retain_graph=layer is plain)
                del y
                found.append(sum(h.x.numel() for h in alive))
        if layer is online:
            assert not any(v.requires_grad for v in (state["op"], *(e for s in state["rtrl"].values() for e in s)))
        return found

    ours, others = held(online), held(plain)
    assert ours[2] == ours[-1]
    assert others[-1] > 10 * others[2]


@pytest.mark.parametrize("name", [n if n in LAYERS else pytest.param(n, marks=pytest.mark.slow) for n in REASONS])
def test_others_say_why_not(package, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} cannot learn in real time: {REASONS[name]}')}$"):
        package(name).Layer(MODEL, rtrl=True)


@pytest.mark.slow
def test_every_layer_learns_or_says_why_not() -> None:
    found = {n: learning(checked(n).model, checked(n).model.project, prepared(checked(n))) for n in SHIPPED}
    assert tuple(n for n, x in found.items() if not isinstance(x, str)) == LEARNS


def test_packed_rows_are_refused(package) -> None:
    _, online = layers(package("elstm"))
    with pytest.raises(ValueError, match=r"^with rtrl=True each row is one sequence: cu_seqlens is not taken$"):
        online(torch.randn(1, 4, MODEL, dtype=torch.float64), cu_seqlens=torch.tensor([0, 2, 4]))
