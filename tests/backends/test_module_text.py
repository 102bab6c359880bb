"""The text of a printed `module.py`: sizes, names, layout, and every section that there is, around an op that checks what it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS
from hand_made import DELTA, DELTA_OP, SHIFTED, SHIFTED_OP, model_of, package, printed
from torch import Tensor

from seqc.frontend.project_types import Project
from seqc.ir.model import Model, Output, Param

FILES = sorted([*Path("specs").glob("*.seq"), *Path("tests/language").glob("*.seq")])
SECTIONS = [p for p in FILES if "\n  project " in p.read_text()]
sections = pytest.mark.parametrize(
    "path", [p if p.stem in LAYERS else pytest.param(p, marks=pytest.mark.slow) for p in SECTIONS], ids=lambda p: p.stem
)


def test_static_sizes_are_fixed(tmp_path: Path) -> None:
    delta = package(tmp_path, DELTA, DELTA_OP)
    assert delta.Layer(5, n=2).n == 2
    with pytest.raises(ValueError, match="compiled for n = 2, not 3"):
        delta.Layer(5, n=3)


def test_sizes_chosen_at_compile_time_are_defaults(tmp_path: Path) -> None:
    text = printed(model_of(DELTA, K=6, heads=3))
    assert "heads: int = 3, K: int = 6, V: int = 3, n: int = 2" in text


def test_groups_divide_heads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="groups = 2 does not divide heads = 3"):
        package(tmp_path, SHIFTED, SHIFTED_OP).Layer(12, heads=3, groups=2)


def test_derived_sizes_are_exact(tmp_path: Path) -> None:
    text = """
layer tiny_sizes(heads = 2 * model / P, P = 4, R = ceil(model / 16), F = 1 + P + P^2)
  input x[P], a[R], b[F]
  state h[P] = 0
  update h = h + x * sum(a) * sum(b)
  output o[P] = h
  project u -> y
    x, a, b = linear(u)
    y = linear(o)
"""
    module = package(tmp_path, text, "def tiny_sizes(): ...")
    layer = module.Layer(20)
    assert (layer.heads, layer.R, layer.F) == (10, 2, 21)
    assert module.Layer(20, P=2, heads=3).F == 7
    with pytest.raises(ValueError, match="heads = 40 / 3 is not a whole number"):
        module.Layer(20, P=3)


def formatted(text: str, tmp_path: Path) -> bool:
    file = tmp_path / "module.py"
    file.write_text(text)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--config", "pyproject.toml", str(file)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_long_equations_and_names_of_the_file_itself(tmp_path: Path) -> None:
    name = "a_gate_with_quite_a_long_name"
    text = f"""
layer tiny_names(heads = 2, K = 4, half = 5, F = 2)
  input q[K, half], w per group, {name}[F]
  state S[K] = 0
  update S = S + sum[half](q) * w * sum({name}) * depth / depths
  output o[K] = S
  project x, new[K], to_all[half] per sequence -> out
    param train[half] = log(uniform(0, 1)), b[model] = 2^(-K)
    let u[half, heads, K] = linear(x) * new
    q = u * train * to_all
    w = 1
    {name} = sigmoid(linear(x * b)) * softplus(linear(x)) * tanh(linear(silu(linear[16](x)))) * max(min(linear(x), 2), linear(x)) + position
    out = linear(o)
"""
    op = """
def tiny_names(q, w, gate, *, depth, depths, **options):
    assert q.shape[2:] == (2, 4, 5) and w.shape[2:] == (2,) and gate.shape[2:] == (2, 2) and depths == 6
    return q.sum(-1) * gate.sum(-1)[..., None], q.new_zeros(len(q))
"""
    model = model_of(text)
    assert formatted(printed(model), tmp_path)
    assert all(len(line) <= 140 or line.lstrip().startswith("#") for line in printed(model).splitlines())
    layer = package(tmp_path, text, op).Layer(3, depth=1, depths=6)
    assert layer.training and dict(layer.named_parameters())["train_"].shape == (2, 5)
    x, new, to_all = torch.randn(2, 7, 3), torch.randn(2, 7, 2, 4), torch.randn(2, 2, 5)
    y, state = layer(x, new, to_all)
    layer.step(x[:, 0], new[:, 0], to_all, state)
    packed, _ = layer(x.flatten(0, 1)[None], new.flatten(0, 1)[None], to_all, cu_seqlens=torch.tensor([0, 7, 14]))
    torch.testing.assert_close(packed[0], y.flatten(0, 1))


@sections
def test_text_is_formatted_deterministic_and_free_of_seqc(path: Path, tmp_path: Path) -> None:
    source = path.read_text()
    text = printed(model_of(source, path.name))
    assert text == printed(model_of(source, path.name))
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"__future__", "collections.abc", "math", "torch", "torch.nn", "typing", ".base", ".ops", ".rtrl"}
    assert formatted(text, tmp_path)


def stand_in(model: Model, layer: Any) -> Any:
    """An op that checks what it is given and gives back outputs of the right shape that depend on all of it."""

    def shape(x: Any, batch: int, length: int, rows: int) -> tuple[int, ...]:
        own = (
            x.axes
            if {"heads", "groups", "model"} & set(x.axes) or x.scope == "layer"
            else ("groups" if x.scope == "group" else "heads", *x.axes)
        )
        lead = () if isinstance(x, Param) else (rows,) if x.scope == "sequence" else (batch, length)
        return (*lead, *(getattr(layer, a.rstrip("'")) for a in own))

    def op(*values: Tensor, initial_state: Any, output_final_state: bool, cu_seqlens: Any, form: str, **sizes: int) -> Any:
        tokens = next(v for v, i in zip(values, model.inputs, strict=False) if i.scope != "sequence")
        batch, length = tokens.shape[:2]
        rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
        for value, x in zip(values, (*model.inputs, *model.params), strict=True):
            assert tuple(value.shape) == shape(x, batch, length, rows), x.name
            assert value.dtype == torch.float64
        for value, i in zip(values, model.inputs, strict=False):
            assert bool((value >= i.domain.low).all()) and bool((value <= i.domain.high).all())
            assert not i.domain.unit or bool((value.norm(dim=-1) <= 1).all())
        used = sum(v.sum() for v in values)
        sizes_of = [tuple(getattr(layer, a) for a in ("heads", *s.axes)) for s in model.steps if isinstance(s, Output)]
        outputs = tuple(used * torch.ones(batch, length, *s, dtype=torch.float64) for s in sizes_of)
        return outputs[0] if len(outputs) == 1 else outputs, torch.zeros(rows)

    return op


@sections
def test_runs_and_keeps_every_domain(path: Path, tmp_path: Path) -> None:
    model = model_of(path.read_text(), path.name)
    module = package(tmp_path, path.read_text(), f"def {model.name}(): ...", path.name)
    sizes = {
        s.name: 4
        for s in model.sizes
        if not s.static and s.formula is not None and s.formula.isdigit() and s.name not in ("heads", "groups")
    }
    torch.manual_seed(0)
    layer = module.Layer(16, **sizes).double()
    setattr(module, model.name, stand_in(model, layer))
    project = model.project
    assert isinstance(project, Project)
    more = [
        torch.rand(2, *([9] if g.when == "token" else []), *(getattr(layer, a) for a in g.axes), dtype=torch.float64)
        for g in project.inputs[1:]
    ]
    y, state = layer(torch.randn(2, 9, 16, dtype=torch.float64), *more)
    assert y.shape == (2, 9, 16)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    tokens = [m[:, 0] if g.when == "token" else m for m, g in zip(more, project.inputs[1:], strict=True)]
    y, state = layer.step(torch.randn(2, 16, dtype=torch.float64), *tokens, state)
    assert y.shape == (2, 16)
    more = [m.flatten(0, 1)[None] if g.when == "token" else m for m, g in zip(more, project.inputs[1:], strict=True)]
    y, _ = layer(torch.randn(1, 18, 16, dtype=torch.float64), *more, cu_seqlens=torch.tensor([0, 5, 18]))
    assert y.shape == (1, 18, 16)
