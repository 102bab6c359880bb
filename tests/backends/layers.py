"""Random calls of a layer's operator, and what the float64 interpreter says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, pairwise
from math import isfinite
from types import ModuleType
from typing import Any

import numpy as np
import torch
from conftest import ROOT
from torch import Tensor

from seqc.compiler import Checked, check_file, check_source, prepared
from seqc.diagnostics import SpecError
from seqc.forms.base import unseen
from seqc.ir import interp
from seqc.ir.model import Domain
from seqc.ir.ops import base
from seqc.ir.recurrence import Recurrence, State
from seqc.ir.rules import extent
from seqc.options import Options

LENGTHS = (5, 3, 4, 2, 6)


@dataclass(frozen=True)
class Call:
    """Arguments of one call: inputs and params in declared order, first states, ends of packed rows."""

    checked: Checked
    sizes: dict[str, int]
    inputs: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    cu_seqlens: Tensor | None
    rec: Recurrence = field(init=False, repr=False)  # as forms take it, with stabilisers
    units: dict[str, Tensor] = field(init=False, repr=False)  # of the first states, random, by stabiliser

    def __post_init__(self) -> None:
        object.__setattr__(self, "rec", prepared(self.checked))
        object.__setattr__(self, "units", self._units() if self.states else {})

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return (*self.inputs, *self.params, *self.states)

    def run(self, package: ModuleType, form: str, arguments: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Outputs and last states. form `reference` is the package's own token loop."""
        rec = self.checked.recurrence
        n = len(rec.inputs) + len(rec.params)
        args = self.arguments if arguments is None else arguments
        function = package.reference if form == "reference" else getattr(package, rec.name)
        parts = self.in_units([part for x in args[n:] for part in ((x.real, x.imag) if x.is_complex() else (x,))])
        state: Any = None if not parts else parts if len(parts) > 1 else parts[0]
        kind = "auto" if form == "reference" else form
        named = {name: {"depth": 2, "depths": 5, **self.sizes}[name] for name in unseen(rec)}
        out, last = function(*args[:n], **named, initial_state=state, output_final_state=True, cu_seqlens=self.cu_seqlens, form=kind)
        rest = self.in_text_units(last if isinstance(last, tuple) else (last,))
        states = [torch.complex(rest.pop(0), rest.pop(0)) if s.dtype == "complex" else rest.pop(0) for s in rec.states]
        return (*(out if isinstance(out, tuple) else (out,)), *states)

    def in_units(self, states: list[Tensor]) -> tuple[Tensor, ...]:
        """First states as the package takes them: S e^-m, and m, where the state has a stabiliser."""
        found = []
        for s, x in zip(self.rec.states, states, strict=False):
            m = self.units.get(s.stabiliser or "")
            found.append(x if m is None else x * torch.exp(-_beside(m, self.rec, s)).to(x.dtype))
        return (*found, *(self.units.values() if states else ()))

    def _units(self) -> dict[str, Tensor]:
        g, dtype = torch.Generator().manual_seed(7), next((x.real.dtype for x in self.states if x.dtype != torch.int64), torch.float64)
        lead = {"head": (len(self.states[0]), self.sizes["heads"]), "layer": (len(self.states[0]),)}
        shapes = {m.name: (*lead[m.scope], *(extent(self.sizes, a) for a in m.axes)) for m in self.rec.states if m.role == "stabiliser"}
        return {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}

    def in_text_units(self, states: tuple[Tensor, ...]) -> list[Tensor]:
        """Last states as the text has them."""
        by_name = {s.name: x for s, x in zip(self.rec.states, states, strict=True)}
        found = []
        for s in self.rec.states:
            if s.role != "stabiliser":
                x = by_name[s.name]
                found.append(x * torch.exp(_beside(by_name[s.stabiliser], self.rec, s)) if s.stabiliser else x)
        return found


def _beside(m: Tensor, rec: Recurrence, s: State) -> Tensor:
    """A stabiliser with the axes of its state."""
    own = next(t.axes for t in rec.states if t.name == s.stabiliser)
    lead = m.dim() - len(own)
    shape = [*m.shape[:lead], *(m.shape[lead + own.index(a)] if a in own else 1 for a in s.axes)]
    return m.reshape(shape)


@cache
def checked(name: str) -> Checked:
    return check_file(ROOT / "specs" / f"{name}.seq")


def draw(domain: Domain, shape: tuple[int, ...], generator: torch.Generator, extreme: float, dtype: torch.dtype) -> Tensor:
    """A value inside its domain. extreme: how far an unbounded log decay reaches (e^-20 per step at 20), and a wide interval beyond 1."""
    u = torch.rand(shape, generator=generator, dtype=torch.float64)
    low, high = domain.low, domain.high
    if domain.unit:
        x = torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    elif isfinite(low) and isfinite(high):
        middle, reach = (low + high) / 2, min((high - low) / 2, 1 + extreme)
        x = middle + 2 * reach * (0.02 + 0.96 * u - 0.5)
    elif isfinite(high):
        x = high - extreme * u - 1e-3
    elif isfinite(low):
        x = low + u + 1e-2
    else:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype)


def lengths_of(c: Checked, lengths: tuple[int, ...]) -> dict[str, int]:
    """`lengths` for the layer's axes in turn. Sizes that are compiled in, and what those are made of, are the text's; a size with a
    formula follows from the others; an axis that counts to a number has its length from the rules."""
    rec, values = c.recurrence, dict(c.recurrence.values)
    axes = dict.fromkeys(base(a) for x in (*rec.inputs, *rec.params, *rec.states, *rec.outputs) for a in x.axes)
    axes |= dict.fromkeys(n for n in unseen(rec) if n not in ("depth", "depths"))
    kept = {n for s in c.model.sizes if s.name in values for n in re.findall(r"[A-Za-z_]\w*", s.formula or "")} | set(values)
    sizes = dict(c.sizes) | dict.fromkeys(axes, 2) | dict(zip(axes, lengths * 3, strict=False))
    sizes |= {n: c.sizes[n] for n in kept if n in c.sizes}
    free = {s.name: sizes[s.name] for s in c.model.sizes if s.name in axes and s.name not in kept and (s.formula or "").isdigit()}
    linked = [s.name for s in c.model.sizes if s.name in axes and s.name not in kept | set(free) and s.name in c.sizes]
    if not linked:
        return sizes
    try:
        found = check_source(c.source, Options(sizes=tuple(free.items())), ROOT / "specs").sizes
    except SpecError:  # a half of an odd number, say
        free = {n: 2 * x for n, x in free.items()}
        found = check_source(c.source, Options(sizes=tuple(free.items())), ROOT / "specs").sizes
    return sizes | free | {n: found[n] for n in linked}


def call(
    name: str, T: int, *, seed: int = 0, B: int = 2, heads: int = 2, groups: int | None = None, ends: tuple[int, ...] | None = None,
    extreme: float = 1.0, dtype: torch.dtype = torch.float64, lengths: tuple[int, ...] = LENGTHS, grad: bool = True,
    spec: Checked | None = None,
) -> Call:  # fmt: skip
    """A random call: `ends` packs sequences into one row."""
    c = spec or checked(name)
    rec = c.recurrence
    g = torch.Generator().manual_seed(seed)
    sizes = lengths_of(c, lengths)
    groups = groups or (1 if any(i.scope == "group" for i in rec.inputs) else heads)
    sizes |= {"heads": heads, "groups": groups}
    B = 1 if ends else B
    N = len(ends) - 1 if ends else B

    def inputs(T: int, B: int, extreme: float) -> tuple[Tensor, ...]:
        lead = {"head": (B, T, heads), "group": (B, T, groups), "layer": (B, T), "sequence": (N, heads)}
        return tuple(draw(i.domain, lead[i.scope] + tuple(extent(sizes, a) for a in i.axes), g, extreme, dtype) for i in rec.inputs)

    given = inputs(T, B, extreme)
    first = {"head": (heads,), "group": (groups,), "layer": ()}
    shapes = [(*first[p.scope], *(extent(sizes, a) for a in p.axes)) for p in rec.params]
    params = tuple(torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes)
    past = tuple(accumulate(range(4, N + 4), initial=0))
    before = [x if i.scope == "sequence" else y for i, x, y in zip(rec.inputs, given, inputs(past[-1], 1, 1.0), strict=True)]
    states = reached(Call(c, sizes, tuple(before), params, (), torch.tensor(past)), g, torch.promote_types(dtype, torch.float32))
    for x in (*given, *params, *states):
        x.requires_grad_(grad and (x.is_floating_point() or x.is_complex()))
    return Call(c, sizes, given, params, states, torch.tensor(ends) if ends else None)


RATES = ("theta", "eta", "rate", "lr", "gamma")  # inputs by which memories that learn in blocks step


def steady(c: Call) -> Call:
    """The call with small steps where a memory learns in blocks: one that diverges leaves the range of narrow types."""
    rec = c.checked.recurrence
    if all(s.clock.every is None for s in rec.states):
        return c
    given = [x.detach() / 16 if i.name in RATES else x for i, x in zip(rec.inputs, c.inputs, strict=True)]
    return replace(c, inputs=tuple(x.requires_grad_(y.requires_grad) for x, y in zip(given, c.inputs, strict=True)))


def reached(past: Call, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The states after a past of its own for each sequence, every entry times a number near 1: as general as states are, yet what
    is positive, a denominator say, stays so, and clocks differ."""
    rec, found = past.checked.recurrence, []
    for s, x in zip(rec.states, interpreted(past)[len(rec.outputs) :], strict=True):
        value = torch.as_tensor(x)
        if s.integer:
            found.append(value.round().long())
            continue
        value = value * (0.9 + 0.2 * torch.rand(value.shape, generator=generator, dtype=torch.float64))
        found.append(value.to(dtype.to_complex() if s.dtype == "complex" else dtype))
    return tuple(found)


def split(c: Call, t: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs of the first t tokens, and of the others; what is given once per sequence goes to both."""
    once = [i.scope == "sequence" for i in c.checked.recurrence.inputs]
    first = tuple(x if o else x[:, :t] for x, o in zip(c.inputs, once, strict=True))
    return first, tuple(x if o else x[:, t:] for x, o in zip(c.inputs, once, strict=True))


def changed(c: Call, tokens: slice, only: int | None = None) -> tuple[Tensor, ...]:
    """The arguments with other inputs at some tokens, inside their domains still; only: the one input that changes."""
    inputs = list(c.inputs)
    for n, (i, x) in enumerate(zip(c.checked.recurrence.inputs, c.inputs, strict=True)):
        if i.scope != "sequence" and only in (None, n):
            inputs[n] = x.clone()
            inputs[n][:, tokens] = x[:, tokens].flip(1) * 0.5
    return (*inputs, *c.params, *c.states)


def interpreted(c: Call) -> tuple[np.ndarray, ...]:
    """Outputs and last states by the float64 interpreter, sequence by sequence and head by head."""
    rec, heads, groups = c.checked.recurrence, c.sizes["heads"], c.sizes["groups"]
    tokens = {i.name: x.detach().double().numpy() for i, x in zip(rec.inputs, c.inputs, strict=True)}
    T = next(x.shape[1] for i, x in zip(rec.inputs, c.inputs, strict=True) if i.scope != "sequence")
    rows = [(b, 0, T) for b in range(c.inputs[0].shape[0])]
    if c.cu_seqlens is not None:
        ends = c.cu_seqlens.tolist()
        rows = [(0, a, b) for a, b in pairwise(ends)]
    outputs: dict[str, list[list[np.ndarray]]] = {o.name: [] for o in rec.outputs}
    last: dict[str, list[list[np.ndarray]]] = {s.name: [] for s in rec.states}
    for n, (b, start, stop) in enumerate(rows):
        for target in (*outputs.values(), *last.values()):
            target.append([])
        for h in range(heads):
            at = {"head": h, "group": h * groups // heads}
            given = {}
            for i in rec.inputs:
                x = tokens[i.name]
                tokens_of_row = x[b, start:stop]
                given[i.name] = x[n, h] if i.scope == "sequence" else tokens_of_row if i.scope == "layer" else tokens_of_row[:, at[i.scope]]
            own = (x if p.scope == "layer" else x[at[p.scope]] for p, x in zip(rec.params, c.params, strict=True))
            params = {p.name: x.detach().double().numpy() for p, x in zip(rec.params, own, strict=True)}
            place = {"head": (n, h), "group": (n, h * groups // heads), "layer": (n,)}
            states = {s.name: _wide(x[place[s.scope]]) for s, x in zip(rec.states, c.states, strict=True)} if c.states else None
            out, final = interp.run(rec, given, params, {"depth": 2, "depths": 5, **c.sizes}, states=states, head=h)
            for o in rec.outputs:
                outputs[o.name][-1].append(out[o.name])
            for s in rec.states:
                last[s.name][-1].append(final[s.name])
    packed = c.cu_seqlens is not None
    results = []
    for o in rec.outputs:
        per_row = [np.stack(heads_, 1) for heads_ in outputs[o.name]]
        results.append(np.concatenate(per_row)[None] if packed else np.stack(per_row))
    first = {"head": lambda x: x, "group": lambda x: x[:, :: heads // groups], "layer": lambda x: x[:, 0]}
    return (*results, *(first[s.scope](np.stack([np.stack(x) for x in last[s.name]])) for s in rec.states))


def _wide(x: Tensor) -> np.ndarray:
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64).numpy()


def gradients(
    results: tuple[Tensor, ...], arguments: tuple[Tensor, ...], seed: int = 1, create_graph: bool = False
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of a random linear functional of the results."""
    g = torch.Generator().manual_seed(seed)
    total = sum((r * torch.randn(r.shape, generator=g, dtype=torch.float64).to(r.dtype)).sum().real for r in results)
    arguments = tuple(x for x in arguments if x.requires_grad)
    found = torch.autograd.grad(total, arguments, allow_unused=True, retain_graph=True, create_graph=create_graph)  # type: ignore[arg-type]
    return tuple(torch.zeros_like(x) if d is None else d for d, x in zip(found, arguments, strict=True))


def second_gradients(package: ModuleType, form: str, c: Call) -> tuple[torch.Tensor, ...]:
    """The gradients of a functional of all gradients, in the arguments and in the adjoints that the first backward is given."""
    moved = tuple(x for x in c.arguments if x.requires_grad)
    results = tuple(x for x in c.run(package, form) if x.requires_grad)
    g = torch.Generator().manual_seed(1)
    seeds = tuple(torch.randn(x.shape, generator=g, dtype=x.dtype).requires_grad_() for x in results)
    first = torch.autograd.grad(results, moved, seeds, create_graph=True, materialize_grads=True)
    return gradients(first, (*moved, *seeds), seed=2)


def distance(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """The largest difference relative to the largest value (or to 1, if that is smaller than a thousandth)."""
    a, b = (torch.as_tensor(v).detach() for v in (x, y))
    a, b = (torch.view_as_real(v.to(torch.complex128)) if a.is_complex() or b.is_complex() else v.double() for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.isfinite(a).all()
    if a.numel() == 0:
        return 0.0
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
