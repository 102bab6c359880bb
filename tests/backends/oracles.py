"""The comparison of a layer with an oracle: the interpreter's outputs, and outputs and gradients of every form that applies.

An oracle takes inputs, params and first states as tensors, and gives the outputs. Inputs are [batch, tokens, heads, ...], params
[heads, ...], states [batch, heads, ...] and named. It shares no code with the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from layers import Call, checked, draw, gradients, interpreted
from torch import Tensor

from seqc.compiler import judge
from seqc.forms import Applies
from seqc.ir.ops import base
from seqc.ir.rules import extent

BATCH, TOKENS, HEADS = 2, 37, 2
# No two axes share a length, so that none takes another's place unseen.
SIZES = {"K": 4, "V": 3, "D": 5, "N": 6, "P": 3, "m": 5, "M": 7, "L": 7, "R": 3}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Oracle:
    """run: the layer's outputs by other means; of: the layer, where the function's name is another.

    sizes: lengths of axes that belong together; positive: states that a denominator or a logarithm needs above zero;
    scale: a factor for inputs whose domain reaches further than the comparison should; fresh: first states are as the text has them.
    """

    run: Callable[..., Tensor]
    of: str = ""
    dtype: torch.dtype = torch.float64
    sizes: dict[str, int] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    scale: dict[str, float] = field(default_factory=dict)
    fresh: bool = False

    @property
    def layer(self) -> str:
        return self.of or self.run.__name__

    def __str__(self) -> str:
        return self.layer if self.run.__name__ == self.layer else f"{self.layer}-{self.run.__name__}"


def case(oracle: Oracle, seed: int = 0, **sizes: int) -> Call:
    """Random arguments. Declared states start anywhere; those that the compiler adds start at 0, as a sequence does."""
    c = checked(oracle.layer)
    rec = c.recurrence
    g = torch.Generator().manual_seed(seed)
    lengths = SIZES | oracle.sizes | dict(rec.values) | {"heads": HEADS, "depth": 0, "depths": 1} | sizes
    lengths |= {"groups": 1 if any(i.scope == "group" for i in rec.inputs) else HEADS}
    axes = {base(a) for axes in rec.declared_axes for a in axes} | {base(a) for s in rec.states for a in s.axes}
    assert all(a in lengths or a.isdigit() for a in axes), axes - set(lengths)

    def shape(axes: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(extent(lengths, a) for a in axes)

    lead = {
        "head": (BATCH, TOKENS, HEADS), "group": (BATCH, TOKENS, lengths["groups"]), "layer": (BATCH, TOKENS), "sequence": (BATCH, HEADS),
    }  # fmt: skip
    inputs = tuple(draw(i.domain, (*lead[i.scope], *shape(i.axes)), g, 1.0, oracle.dtype) for i in rec.inputs)
    inputs = tuple(x * oracle.scale.get(i.name, 1.0) for i, x in zip(rec.inputs, inputs, strict=True))
    params = tuple((torch.randn(HEADS, *shape(p.axes), generator=g, dtype=torch.float64) / 2).to(oracle.dtype) for p in rec.params)
    for x in (*inputs, *params):
        x.requires_grad_()
    states: list[Tensor] = []
    for s in () if oracle.fresh else rec.states:
        wide = torch.complex128 if s.dtype == "complex" else torch.float64
        place = {"head": (BATCH, HEADS), "group": (BATCH, lengths["groups"]), "layer": (BATCH,)}[s.scope]
        x = torch.randn(*place, *shape(s.axes), generator=g, dtype=wide) / 3
        x = x.abs() + 0.5 if s.name in oracle.positive else 0 * x if s.role == "hidden" else x
        x = x.to(oracle.dtype.to_complex() if s.dtype == "complex" else oracle.dtype)
        states.append(x.requires_grad_(s.role != "hidden"))
    return Call(c, lengths, inputs, params, tuple(states), None)


def wanted(oracle: Oracle, c: Call, **more: int) -> tuple[Tensor, ...]:
    """The oracle's outputs."""
    states = {s.name: x for s, x in zip(c.checked.recurrence.states, c.states, strict=False) if s.role != "hidden"}
    found = oracle.run(*c.inputs, *c.params, **{n.replace(".", "_"): x for n, x in states.items()}, **more)
    return found if isinstance(found, tuple) else (found,)


def apart(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """The largest difference relative to the largest value, or to 1 if that is smaller than a thousandth."""
    a, b = (torch.as_tensor(v).detach().to(torch.complex128) for v in (x, y))
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.isfinite(torch.view_as_real(a)).all()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() if a.numel() else 0.0


def forms(name: str) -> tuple[str, ...]:
    """The forms that a layer has."""
    return tuple(form for form, verdict in judge(checked(name)).items() if isinstance(verdict, Applies))


def spoken(oracle: Oracle) -> dict[str, float]:
    """How far the interpreter's outputs are from the oracle's."""
    c = case(oracle)
    truth = wanted(oracle, c)
    assert len(truth) == len(c.checked.recurrence.outputs)
    return {"interpreter": max(apart(x, y) for x, y in zip(interpreted(c), truth, strict=False))}


def sloped(oracle: Oracle, step: float = 1e-6) -> float:
    """How far the interpreter's derivative along a random direction is from the oracle's gradient, by a central difference."""
    c = case(oracle)
    truth = wanted(oracle, c)
    moved = tuple(x for x in c.arguments if x.requires_grad)
    g = torch.Generator().manual_seed(2)
    along = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in moved]
    weights = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in truth]

    def beside(by: float) -> Call:
        pairs = iter(x + by * d for x, d in zip(moved, along, strict=True))
        new = [next(pairs) if x.requires_grad else x for x in c.arguments]
        n, k = len(c.inputs), len(c.inputs) + len(c.params)
        return Call(c.checked, c.sizes, tuple(new[:n]), tuple(new[n:k]), tuple(new[k:]), None)

    up, down = (interpreted(beside(by))[: len(truth)] for by in (step, -step))
    found = sum((torch.as_tensor((x - y) / (2 * step)) * w).sum() for x, y, w in zip(up, down, weights, strict=True))
    total = sum(((x * w).sum() for x, w in zip(truth, weights, strict=True)), torch.zeros((), dtype=oracle.dtype))
    slopes = torch.autograd.grad(total, moved, allow_unused=True)
    want = sum((s.conj() * d).real.sum() for s, d in zip(slopes, along, strict=True) if s is not None)
    return apart(torch.as_tensor(found), torch.as_tensor(want))


def compiled(package: Callable[[str], ModuleType], oracle: Oracle) -> dict[str, float]:
    """How far each form's outputs and gradients, and those of the package's own loop, are from the oracle's. No form, no differences."""
    if not forms(oracle.layer):
        return {}
    c = case(oracle)
    truth, far, p = wanted(oracle, c), {}, package(oracle.layer)
    assert set(p.FORMS) == set(forms(oracle.layer))
    moved = tuple(x for x in c.arguments if x.requires_grad)
    slopes = gradients(truth, moved)
    for form in ("reference", *p.FORMS):
        found = c.run(p, form)[: len(truth)]
        far[form] = max(apart(x, y) for x, y in zip(found, truth, strict=True))
        far[f"{form} gradients"] = max(apart(x, y) for x, y in zip(gradients(found, moved), slopes, strict=True))
    return far


def each_of(*oracles: Oracle, **wrong: str) -> list[Any]:
    """Oracles as parameters; wrong: layers that are known not to pass, and why."""
    marks = {name: pytest.mark.xfail(reason=reason, strict=False) for name, reason in wrong.items()}
    return [pytest.param(o, id=str(o), marks=[marks[str(o)]] if str(o) in marks else []) for o in oracles]


def close(oracle: Oracle, far: dict[str, float]) -> None:
    """Every difference is one of rounding."""
    assert all(x < TOLERANCE[oracle.dtype] for x in far.values()), far


# --- What loops are written with -----------------------------------------------------------------------------------


def each(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The values of each token."""
    return zip(*(x.unbind(1) for x in tensors), strict=True)


def column(x: Tensor) -> Tensor:
    return x[..., None]


def outer(x: Tensor, y: Tensor) -> Tensor:
    return x[..., :, None] * y[..., None, :]


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix times a column."""
    return (matrix @ x[..., None])[..., 0]
