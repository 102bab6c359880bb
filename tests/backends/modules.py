"""Small layers of shipped specs, and inputs for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import LAYERS, ROOT, SAMPLE, SHIPPED
from layers import checked
from torch import Tensor

from seqc.frontend.project_types import Project
from seqc.ir.model import Model

MODEL = 16
MODULES = tuple(n for n in SHIPPED if "\n  project " in (ROOT / "specs" / f"{n}.seq").read_text("utf-8"))
Package = Callable[..., ModuleType]

each = pytest.mark.parametrize("name", [n if n in LAYERS else pytest.param(n, marks=pytest.mark.slow) for n in MODULES])
FEW = tuple(n for n in SAMPLE if n in MODULES)
some = pytest.mark.parametrize("name", FEW)


def small_sizes(model: Model) -> dict[str, int]:
    """4 for every size that is a plain number and may be chosen."""
    kept = ("heads", "groups")
    return {s.name: 4 for s in model.sizes if not s.static and s.formula is not None and s.formula.isdigit() and s.name not in kept}


def build(package: Package, name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A layer with weights that the seed alone decides."""
    torch.manual_seed(seed)
    return package(name).Layer(MODEL, **small_sizes(checked(name).model)).to(dtype)


def kinds(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Of each of the module's inputs, `token`, `sequence` or `static`, and its axes."""
    project = checked(name).model.project
    assert isinstance(project, Project)
    return [(g.when, g.axes) for g in project.inputs]


def ahead(name: str, layer: Any) -> int:
    """How many tokens the first call has to hold: those that `first` looks at."""
    found = re.search(r"\bfirst\[(\w+)\]", checked(name).source.text)
    return int(getattr(layer, found[1])) if found else 0


def inputs(layer: Any, name: str, batch: int = 2, tokens: int | None = None, seed: int = 1) -> tuple[Tensor, ...]:
    """The module's inputs, of its dtype: x from a normal distribution, the others between 0 and 1. 11 tokens behind a block of the text."""
    tokens = 11 + max((s.clock.every or 0 for s in checked(name).recurrence.states), default=0) if tokens is None else tokens
    g = torch.Generator().manual_seed(seed)
    found = []
    for i, (when, axes) in enumerate(kinds(name)):
        lead = {"token": (batch, tokens), "sequence": (batch,), "static": ()}[when]
        shape = (*lead, *(int(a) if a.isdigit() else getattr(layer, a) for a in axes))
        draw = torch.rand if i else torch.randn
        found.append(draw(shape, generator=g, dtype=torch.float64).to(next(layer.parameters()).dtype))
    return tuple(found)


def cut(name: str, given: tuple[Tensor, ...], tokens: slice | int) -> tuple[Tensor, ...]:
    """Some tokens of the inputs, or one."""
    return tuple(x[:, tokens] if when == "token" else x for x, (when, _) in zip(given, kinds(name), strict=True))
