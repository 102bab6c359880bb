"""One of two processes that train every layer together. Called with a folder, which holds specs.json, and its rank."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

WORLD, MODEL, BATCH, TOKENS, STEPS = 2, 16, 4, 11, 3


def imported(folder: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py", submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def data(layer: Any, kinds: list[tuple[str, list[str]]]) -> list[Tensor]:
    """Inputs of the whole batch, the same in both processes."""
    g = torch.Generator().manual_seed(1)
    lead = {"token": (BATCH, TOKENS), "sequence": (BATCH,), "static": ()}
    shapes = [(*lead[when], *(getattr(layer, a) for a in axes)) for when, axes in kinds]
    return [(torch.rand if i else torch.randn)(s, generator=g, dtype=torch.float64) for i, s in enumerate(shapes)]


def part(x: list[Tensor], kinds: list[tuple[str, list[str]]], rank: int) -> list[Tensor]:
    return [z if when == "static" else z.chunk(WORLD)[rank] for z, (when, _) in zip(x, kinds, strict=True)]


def whole(x: Tensor | None) -> Tensor:
    """A gradient or weight, gathered."""
    assert x is not None
    found: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return found.detach().clone()


def train(layer: nn.Module, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """The first step's gradients, the weights after the last step, and the losses of this process's data."""
    optimizer, losses, first = torch.optim.SGD(layer.parameters(), 0.01), [], []
    for step in range(STEPS):
        loss = (layer(*x)[0] - 1).square().mean()
        loss.backward()
        if not step:
            first = [whole(p.grad) for p in layer.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return first, [whole(p) for p in layer.parameters()], losses


def equal(found: list[Tensor], wanted: list[Tensor], what: str) -> None:
    """Within rounding, and the same to the last bit in both processes."""
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, i=i: f"{what} {i}: {m}")
        others = [torch.empty_like(a) for _ in range(WORLD)]
        dist.all_gather(others, a.contiguous())
        assert torch.equal(others[0], others[1]), f"{what} {i} differs between processes"


def check(name: str, spec: dict[str, Any], rank: int) -> None:
    package, kinds = imported(spec["folder"], f"{name}_of_rank"), spec["kinds"]
    torch.manual_seed(0)
    plain = package.Layer(MODEL, **spec["sizes"])
    torch.manual_seed(0)
    plain.reset_parameters()
    drawn = [whole(p) for p in plain.parameters()]
    plain.double()
    x = data(plain, kinds)
    mine = part(x, kinds, rank)
    grads, weights, losses = train(copy.deepcopy(plain), x)
    assert losses[-1] < losses[0], (name, losses)

    shared = DistributedDataParallel(copy.deepcopy(plain))
    first, last, _ = train(shared, mine)
    equal(first, grads, f"{name}: DDP gradient")
    equal(last, weights, f"{name}: DDP weight")

    mesh = init_device_mesh("cpu", (WORLD,))
    sharded = fully_shard(copy.deepcopy(plain), mesh=mesh)
    first, last, _ = train(sharded, mine)
    equal(first, grads, f"{name}: FSDP gradient")
    equal(last, weights, f"{name}: FSDP weight")

    with torch.no_grad():  # a state made outside of the forward, and decoding
        trained = copy.deepcopy(plain)
        for p, w in zip(trained.parameters(), last, strict=True):
            p.copy_(w)
        least = spec["ahead"]
        ys = []
        for m in (sharded, trained):
            state = m(*(z[:, :least] if when == "token" else z for z, (when, _) in zip(mine, kinds, strict=True)))[1] if least else None
            token = [z[:, least] if when == "token" else z for z, (when, _) in zip(mine, kinds, strict=True)]
            ys.append(m.step(*token, state or m.init_state(BATCH // WORLD))[0])
        torch.testing.assert_close(*ys, rtol=1e-9, atol=1e-11)

    with torch.device("meta"):
        bare = package.Layer(MODEL, **spec["sizes"])
    fully_shard(bare, mesh=mesh)
    torch.manual_seed(rank)  # the first process draws for all
    bare.materialize("cpu")
    for p, w in zip(bare.parameters(), drawn, strict=True):
        assert torch.equal(whole(p), w), f"{name}: a sharded layer's first values"


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    for name, spec in json.loads((folder / "specs.json").read_text()).items():
        check(name, spec, rank)
        print(name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
