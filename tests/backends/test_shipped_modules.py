"""The `nn.Module` of every shipped layer that has a form: it runs, every weight learns, and steps are the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from conftest import LAYERS, SHIPPED
from oracles import apart, forms

pytestmark = pytest.mark.slow  # not part of `make check`

MODEL, TOKENS = 16, 19
SIZES = {"heads": 2, "K": 4, "V": 4, "N": 4, "P": 4, "m": 4, "M": 8}
NAMES = [name for name in SHIPPED if name not in LAYERS]  # those run in a process of their own, in test_standalone.py


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_steps(package: Callable[[str], ModuleType], name: str) -> None:
    if not forms(name):
        return
    p = package(name)
    torch.manual_seed(0)
    own = p.Layer.__init__.__kwdefaults__
    layer = p.Layer(MODEL, **{n: v for n, v in SIZES.items() if n in own and not (n == "heads" and own[n] in (1, None))}).double()
    x = torch.randn(2, TOKENS, MODEL, dtype=torch.float64)
    more = ()
    if "low" in inspect.signature(layer.forward).parameters:  # a bound for the decay of every channel
        more = (torch.full((2, layer.heads, getattr(layer, "K", MODEL)), 0.3, dtype=torch.float64),)
    y, _ = layer(x, *more)
    assert y.shape == x.shape and y.std() > 1e-3
    y.square().sum().backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in layer.parameters())
    if name == "jrt":  # the first call reads the prefix
        ahead, now = layer(x[:, :8])
        steps = [ahead]
    else:
        steps, now = [], layer.init_state(2)
    for t in range(8 if name == "jrt" else 0, TOKENS):
        out, now = layer.step(x[:, t], *more, now)
        steps.append(out[:, None])
    assert apart(torch.cat(steps, 1), y) < 1e-9
