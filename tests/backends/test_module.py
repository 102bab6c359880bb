"""The printed `module.py`, run around a plain token loop that stands for the generated op."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqc.backends.torch.module import print_module
from seqc.forms.base import unseen
from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse
from seqc.frontend.project_types import Project
from seqc.ir.model import Model, Output, Param
from seqc.source import Source

FILES = sorted([*Path("specs").glob("*.seq"), *Path("tests/language").glob("*.seq")])
SECTIONS = [p for p in FILES if "\n  project " in p.read_text()]

DELTA = """
layer tiny_delta(heads = 2, K = 4, V = 3, n = 2)
  "A tiny layer."
  input   q[K], k[n, K] in unit, v[n, V], beta[n] in (0, 2)
  input   g in (-inf, 0)
  memory  S[K, V] = 0
  retain  S by decay(exp(g))
  for i in n
    learn   S by descent(rate = beta[i]) on l2(S(k[i]), v[i])
  end
  output  o[V] = S(q)
  project x -> y
    param   A_log = log(uniform(0, 16)), dt_bias = softplus_inverse(log_uniform(1e-3, 0.1))
    q = l2norm(silu(conv(linear(x), 4))) / sqrt(K)
    k = l2norm[K](silu(conv(linear(x), 4)))
    v = silu(conv(linear(x), 4, bias = true))
    beta = 2 * sigmoid(linear(x))
    g = -exp(A_log) * softplus(linear(x) + dt_bias)
    y = linear(rmsnorm(o) * silu(linear(x)))
"""

# The op of DELTA, as the package has it: [B, T, H, ...] in, (o, state) out.
DELTA_OP = """
import torch

def rows(q, cu_seqlens):
    cuts = cu_seqlens.tolist()
    return [(0, slice(a, b)) for a, b in zip(cuts, cuts[1:])]

def tiny_delta(q, k, v, beta, g, *, initial_state=None, output_final_state=False, cu_seqlens=None, form="auto"):
    B, T, H, K = q.shape
    parts = [(b, slice(0, T)) for b in range(B)] if cu_seqlens is None else rows(q, cu_seqlens)
    o = [[None] * T for _ in range(B)]
    states = []
    for i, (b, where) in enumerate(parts):
        S = q.new_zeros(H, K, v.shape[-1]) if initial_state is None else initial_state[i]
        for t in range(where.start, where.stop):
            S = g[b, t].exp()[:, None, None] * S
            for j in range(k.shape[3]):
                error = v[b, t, :, j] - torch.einsum("hk,hkv->hv", k[b, t, :, j], S)
                S = S + torch.einsum("h,hk,hv->hkv", beta[b, t, :, j], k[b, t, :, j], error)
            o[b][t] = torch.einsum("hk,hkv->hv", q[b, t], S)
        states.append(S)
    return torch.stack([torch.stack(r) for r in o]), torch.stack(states)
""".replace("k.shape[3]", "k.shape[-2]")

SHIFTED = """
layer tiny_shift(heads = 2, K = 4)
  input   q[K], k[K] per group, v[K], w[K] in (0, 1), level per sequence
  state   z[K] = 0
  update  z = z + q * w * v + k * level
  output  o[K] = z
  project x, low[K] in (0, 1) per sequence -> y
    param   m[model] = 0.5, f_bias = 3 + 3 * head / 2
    let     d[model] = shift(x) - x
    q = rope(linear(x + d * m)) + f_bias
    k = rope(linear(x))
    let     c[heads, K] = rope(linear(shift(shift(d))))
    v = headwise(c, bias = true)
    w = lerp(sigmoid(linear(linear[3](x))), 1, low)
    level = sum[K](low)
    y = linear(groupnorm(o) * layernorm(q)) + reshape(q) * m
"""

# Reads everything: o_t = sum_{s <= t} q_s w_s v_s + k_s level.
SHIFTED_OP = """
import torch

def tiny_shift(q, k, v, w, level, *, initial_state=None, output_final_state=False, cu_seqlens=None, form="auto"):
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    cuts = None if cu_seqlens is None else cu_seqlens.tolist()
    parts = [(b, slice(0, q.shape[1])) for b in range(q.shape[0])] if cuts is None else [(0, slice(*c)) for c in zip(cuts, cuts[1:])]
    o, states = torch.zeros_like(q), []
    for i, (b, t) in enumerate(parts):
        start = 0 if initial_state is None else initial_state[i]
        sums = start + (q * w * v + k * level[i][..., None])[b, t].cumsum(0) if cuts is None else None
        if sums is None:
            sums = start + (q[b, t] * w[b, t] * v[b, t] + k[b, t] * level[i][:, None]).cumsum(0)
        o[b, t] = sums
        states.append(sums[-1])
    return o, torch.stack(states)
"""


def printed(model: Model) -> str:
    return print_module(model, unseen(derive(model)))


def model_of(text: str, name: str = "<string>", **sizes: int) -> Model:
    text = text if text.startswith("seqc") else "seqc 1\n" + text
    return check(parse(Source(name, text)), sizes=sizes, beside=None)[0]


def package(tmp_path: Path, text: str, op: str, name: str = "<string>") -> ModuleType:
    """The printed module beside a hand-written op, imported as a package."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "ops.py").write_text(op)
    (folder / "module.py").write_text(printed(model_of(text, name)))
    for name in [n for n in sys.modules if n.split(".")[0] == "made"]:
        del sys.modules[name]
    for name in ("made", "made.module"):
        file = folder / ("__init__.py" if name == "made" else "module.py")
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)] if name == "made" else None)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["made.module"]


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


def test_meta_device(delta: ModuleType) -> None:
    with torch.device("meta"):
        layer = delta.Layer(5)
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    again = delta.Layer(5)
    again.reset_parameters()
    torch.manual_seed(0)
    again.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True))
    with torch.device("meta"):
        loaded = delta.Layer(5)
    loaded.load_state_dict(again.state_dict(), assign=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_autocast(delta: ModuleType) -> None:
    torch.manual_seed(0)
    layer, x = delta.Layer(5), torch.randn(1, 6, 5)
    y, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half, state = layer(x)
        layer.step(x[:, 0], state)
    torch.testing.assert_close(half.float(), y, rtol=0.02, atol=0.02)


def test_static_sizes_are_fixed(delta: ModuleType) -> None:
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


@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.stem)
def test_text_is_formatted_deterministic_and_free_of_seqc(path: Path, tmp_path: Path) -> None:
    source = path.read_text()
    text = printed(model_of(source, path.name))
    assert text == printed(model_of(source, path.name))
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"__future__", "math", "torch", "torch.nn", ".ops"}
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


@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.stem)
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
