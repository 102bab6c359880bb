"""What a module is expected to do in PyTorch's hands, for every shipped spec that has one."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from layers import checked, distance
from modules import FEW, MODEL, Package, ahead, build, cut, each, inputs, kinds, small_sizes, some
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.slow  # not part of `make check`


# Their results hold the module's own input, or an op's that is given it, without a map between; or a norm, which is computed in float32.
BESIDE = ("ema", "fernn", "s5", "slstm", "sru", "sru1")
# Their steps jump where an error's norm passes a bound: rounding may fall on either side of it.
JUMPS = ("yaad",)


def gradients(layer: Any, loss: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (*layer.parameters(), *more))


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bound: float = 1e-11) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < bound


def leaves(state: dict[str, object]) -> tuple[Tensor, ...]:
    """The tensors of a state, in order."""
    return tuple(x for v in state.values() for x in (v if isinstance(v, tuple) else (v,)) if isinstance(x, Tensor))


def on_meta(package: Package, name: str) -> Any:
    with torch.device("meta"):
        return package(name).Layer(MODEL, **small_sizes(checked(name).model))


@each
def test_steps_are_the_forward_for_every_prefix(package: Package, name: str) -> None:
    """After any number of tokens, one more step gives the next output, and states are those of the forward over the prefix."""
    layer = build(package, name).requires_grad_(False)
    x, least = inputs(layer, name), ahead(name, layer)
    whole, _ = layer(*x)
    walked = layer.init_state(2)
    if least:
        with pytest.raises(ValueError, match=f"^the first call needs {least} tokens of each sequence, not 1$"):
            layer.step(*cut(name, x, 0), walked)
        _, walked = layer(*cut(name, x, slice(0, least)))
    for t in range(least, x[0].shape[1]):
        if t:
            _, state = layer(*cut(name, x, slice(0, t)))
            close(leaves(state), leaves(walked), 1e-10)
            y, _ = layer.step(*cut(name, x, t), state)
            assert distance(y, whole[:, t]) < 1e-10, t
        y, walked = layer.step(*cut(name, x, t), walked)
        assert distance(y, whole[:, t]) < 1e-10, t


@each
def test_every_weight_learns(package: Package, name: str) -> None:
    layer = build(package, name)
    x = inputs(layer, name)
    y, _ = layer(*x)
    assert y.shape == (2, x[0].shape[1], MODEL) and y.std() > 1e-3
    y.square().sum().backward()
    for n, w in layer.named_parameters():
        assert w.grad is not None and torch.isfinite(w.grad).all() and w.grad.any(), n


@each
def test_state_dict_holds_everything(package: Package, name: str) -> None:
    """Saved, loaded without pickles into a layer of other weights, and loaded with assign=True into one without any: the same outputs."""
    layer, other = build(package, name), build(package, name, seed=1)
    x, file = inputs(layer, name), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert set(saved) == {n for n, _ in layer.named_parameters()}
    assert not torch.equal(other(*x)[0], layer(*x)[0])
    other.load_state_dict(saved)
    assert torch.equal(other(*x)[0], layer(*x)[0])
    bare = on_meta(package, name)
    bare.load_state_dict(saved, assign=True)
    assert torch.equal(bare(*x)[0], layer(*x)[0])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(dict(list(saved.items())[1:]))


def drawn(package: Package, name: str) -> Any:
    """A layer whose weights are drawn after the seed is set: torch's own maps draw once before, where they are not on meta."""
    layer = build(package, name, dtype=torch.float32)
    torch.manual_seed(0)
    layer.reset_parameters()
    return layer


@each
def test_materialised_weights_are_those_of_a_new_layer(package: Package, name: str) -> None:
    wanted = drawn(package, name)
    for way in (lambda m: m.materialize("cpu"), lambda m: m.to_empty(device="cpu").reset_parameters()):
        layer = on_meta(package, name)
        assert all(w.is_meta for w in layer.parameters())
        torch.manual_seed(0)
        way(layer)
        for (n, w), v in zip(layer.named_parameters(), wanted.parameters(), strict=True):
            assert torch.equal(w, v) and torch.isfinite(w).all() and w.requires_grad, n


@each
def test_loaded_weights_are_never_overwritten(package: Package, name: str) -> None:
    """`materialize` fills what is on meta and nothing else; `reset_parameters` leaves what a loader has marked."""
    saved = {n: w.detach() + 1 for n, w in build(package, name, dtype=torch.float32).named_parameters()}
    for half in (0, 1):
        some = {n: w.clone() for i, (n, w) in enumerate(saved.items()) if i % 2 == half}
        layer = on_meta(package, name)
        layer.load_state_dict(some, assign=True, strict=False)
        torch.manual_seed(0)
        layer.materialize("cpu")
        fresh = dict(drawn(package, name).named_parameters())
        for n, w in layer.named_parameters():
            assert torch.equal(w, saved[n] if n in some else fresh[n]), n
            assert w.data_ptr() == some[n].data_ptr() if n in some else not w.is_meta
            assert not hasattr(w, "_is_hf_initialized")
            w._is_hf_initialized = n in some
            w.data.fill_(7)
        layer.reset_parameters()
        for n, w in layer.named_parameters():
            assert bool((w == 7).all()) == (n in some), n


@each
def test_autocast(package: Package, name: str) -> None:
    """Maps run in bfloat16, the op's states stay in float32, and results are near those without.

    The result's type is what torch's rules make of the text: bfloat16, or float32 where the module's own input is beside the maps.
    Gradients are as near as those of a layer whose weights and inputs are rounded as bfloat16 rounds: a few times what that changes,
    since in between more is rounded. A norm of something small, or a sum that cancels, enlarges both.
    """
    layer = build(package, name, dtype=torch.float32)
    x, t = inputs(layer, name), 10
    wanted, _ = layer(*x)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    slopes = gradients(layer, (wanted * weights).sum())
    with torch.autocast("cpu", torch.bfloat16):
        found, state = layer(*x)
        last, _ = layer.step(*cut(name, x, t), layer(*cut(name, x, slice(0, t)))[1])
    mapped = any(isinstance(m, torch.nn.Linear) or type(m).__name__ == "Headwise" for m in layer.modules())
    assert found.dtype == last.dtype
    assert found.dtype == torch.bfloat16 or (found.dtype == torch.float32 and name in BESIDE)
    own = leaves({"op": state["op"]})
    assert all(s.dtype == torch.float32 or s.dtype == torch.int64 for s in own)
    if name in JUMPS:
        return
    assert distance(found, wanted) < 0.05 and distance(last, wanted[:, t]) < 0.05
    assert bool(distance(found, wanted)) == mapped
    rounded = [gradients(near, (near(*z)[0] * weights).sum()) for near, z in (jittered(layer, x, seed) for seed in range(3))]
    for g, s, *others in zip(gradients(layer, (found.float() * weights).sum()), slopes, *rounded, strict=True):
        assert g.dtype == torch.float32
        assert (g - s).abs().max() < 3 * max((o - s).abs().max() for o in others) + 0.02 * s.abs().max()


def jittered(layer: Any, x: tuple[Tensor, ...], seed: int) -> tuple[Any, tuple[Tensor, ...]]:
    """A copy of the layer, and inputs, with every number moved by up to bfloat16's distance between neighbours."""
    near, g = copy.deepcopy(layer), torch.Generator().manual_seed(seed)
    for w in near.parameters():
        w.data *= 1 + (2 * torch.rand(w.shape, generator=g) - 1) / 128
    return near, tuple(z * (1 + (2 * torch.rand(z.shape, generator=g) - 1) / 128) for z in x)


@pytest.mark.slow
@some
def test_exports_for_any_number_of_tokens(package: Package, name: str) -> None:
    """One example of 11 tokens; the program then runs on fewer, more, and more than a slab of them."""
    layer = build(package, name)
    least = max(2, 1 + ahead(name, layer))  # where the first tokens are all of them, a slice is no copy: another program to torch
    tokens = torch.export.Dim("tokens", min=least, max=1024)
    shapes = tuple({1: tokens} if when == "token" else {} for when, _ in kinds(name))
    program = torch.export.export(layer, inputs(layer, name), dynamic_shapes=shapes)
    for n in (least, 11, 300):
        x = inputs(layer, name, tokens=n)
        (found, state), (wanted, expected) = program.module()(*x), layer(*x)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)  # an exported program may have chosen another form
        close(leaves(state), leaves(expected), 1e-12)


@each
def test_transforms_of_torch_func(package: Package, name: str) -> None:
    """vmap over grad, by the operator's rule for vmap, and jacrev: the gradients that a loop gives. Forward mode is refused."""
    layer = build(package, name)
    x = inputs(layer, name, batch=3)
    weights = {n: w.detach() for n, w in layer.named_parameters()}
    when = [w for w, _ in kinds(name)]

    def loss(weights: dict[str, Tensor], *sample: Tensor) -> Tensor:
        rows = (s if w == "static" else s[None] for s, w in zip(sample, when, strict=True))
        y: Tensor = functional_call(layer, weights, tuple(rows))[0]
        return y.square().sum()

    along = tuple(None if w == "static" else 0 for w in when)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *along))(weights, *x)
    for i in range(3):
        y, _ = layer(*(s if w == "static" else s[i : i + 1] for s, w in zip(x, when, strict=True)))
        close(tuple(g[i] for g in found.values()), gradients(layer, y.square().sum()))
    first = tuple(s if w == "static" else s[0] for s, w in zip(x, when, strict=True))
    rows = torch.func.jacrev(lambda w: torch.stack((loss(w, *first), -2 * loss(w, *first))))(weights)
    for n, row in rows.items():
        close((row[0], row[1]), (found[n][0], -2 * found[n][0]))
    with pytest.raises(NotImplementedError, match="no forward-mode derivative; `reference` has one"):
        torch.func.jvp(lambda w: loss(w, *first), (weights,), (weights,))


@pytest.mark.parametrize("reentrant", [False, True])
@each
def test_activation_checkpoints(package: Package, name: str, reentrant: bool) -> None:
    """The forward runs again in the backward, and the gradients are the same, of the inputs too."""
    layer = build(package, name)
    x = tuple(z.requires_grad_() for z in inputs(layer, name))
    wanted = gradients(layer, layer(*x)[0].square().mean(), *x)
    runs: list[int] = []
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    y = checkpoint(lambda *z: layer(*z)[0], *x, use_reentrant=reentrant)
    assert len(runs) == 1
    y.square().mean().backward()
    assert len(runs) == 2
    close(tuple(p.grad for p in (*layer.parameters(), *x)), wanted, 1e-14)


@pytest.mark.slow
@some
def test_compiles_without_graph_breaks(package: Package, name: str) -> None:
    torch._dynamo.reset()
    layer = build(package, name)
    x = inputs(layer, name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (found, _), (wanted, _) = compiled(*x), layer(*x)
    assert distance(found, wanted) < 1e-12
    close(gradients(layer, found.square().mean()), gradients(layer, wanted.square().mean()))


@each
def test_copies_are_their_own(package: Package, name: str) -> None:
    layer = build(package, name)
    x, twin = inputs(layer, name), copy.deepcopy(layer)
    assert torch.equal(twin(*x)[0], layer(*x)[0])
    for w in twin.parameters():
        w.data.add_(1)
    assert not torch.equal(twin(*x)[0], layer(*x)[0])


@pytest.mark.slow
def test_two_processes_train_as_one(package: Package, tmp_path: Path) -> None:
    """DDP and fully_shard, each rank with a half of the batch: see the worker, which asserts."""
    specs = {}
    for n in FEW:
        folder, sizes = str(Path(package(n).__file__).parent), small_sizes(checked(n).model)
        specs[n] = {"folder": folder, "sizes": sizes, "kinds": kinds(n), "ahead": ahead(n, build(package, n))}
    (tmp_path / "specs.json").write_text(json.dumps(specs))
    worker = [sys.executable, str(ROOT / "tests/backends/distributed_worker.py"), str(tmp_path)]
    ranks = [subprocess.Popen([*worker, str(r)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in range(2)]
    said = [p.communicate(timeout=600) for p in ranks]
    for p, (out, err) in zip(ranks, said, strict=True):
        assert p.returncode == 0, err[-4000:]
        assert out.split() == list(FEW)


@pytest.mark.slow  # transformers takes seconds to import
def test_transformers_keeps_what_it_loads(package: Package, tmp_path: Path) -> None:
    """from_pretrained with a checkpoint that lacks some weights: those are drawn, by reset_parameters, and the loaded ones stay."""
    transformers = pytest.importorskip("transformers")
    layer = build(package, "gated_deltanet", dtype=torch.float32)

    class Config(transformers.PretrainedConfig):  # type: ignore[misc]
        model_type = "one_layer"

    class Model(transformers.PreTrainedModel):  # type: ignore[misc]
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.mixer = type(layer)(MODEL, **small_sizes(checked("gated_deltanet").model))
            self.post_init()

        def _init_weights(self, module: torch.nn.Module) -> None:
            if isinstance(module, type(layer)):
                module.reset_parameters()

    model, lacking = Model(Config()), {"mixer.dt_bias", "mixer.q.linear.weight"}
    for w in model.parameters():
        w.data.add_(100)
    model.save_pretrained(tmp_path, state_dict={n: w for n, w in model.state_dict().items() if n not in lacking})
    for n, w in Model.from_pretrained(tmp_path).named_parameters():
        assert torch.equal(w, model.get_parameter(n)) == (n not in lacking), n
        assert torch.isfinite(w).all() and bool((w.abs() < 50).all()) == (n in lacking), n
