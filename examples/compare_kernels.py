"""Times the generated Triton kernels beside flash-linear-attention's on a GPU, both in one run, with the error of each beside its time.

    python examples/compare_kernels.py                    every layer at every shape: an hour or two
    python examples/compare_kernels.py gla kda --shape 0  some of it; shapes are counted from 0
    python examples/compare_kernels.py --plan             what it would run, which needs no GPU

Inputs are in bfloat16. A row is a layer at a shape, eagerly and replayed from a CUDA graph, forward and forward with backward: milliseconds
of ours (the form chunkwise), and how many times as long the peer takes with its Triton kernels, and with its choice of backends. The peer's
functions that refuse a GPU or fail are shown as such. Floor is the share of our forward with backward that no schedule can be without: its
arguments, results and adjoints once by the GPU's bandwidth, or the products of the recurrence by its tensor cores, whichever takes longer.
Errors are the root of the mean squared error of outputs and gradients, relative to float64 on the same rounded inputs, of two heads.
Recurrent cells stand beside PyTorch's (cuDNN's), memories that are networks beside torch.compile of the loop over tokens, at the shapes
that a loop can have, and TTT-Linear beside the peer's, whose equations are others; these are not in the mean at the end. Every row is a
process of its own: what one compiles, allocates or breaks is nothing to another.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import exp, log
from typing import Any

import loops
import torch
from check_gpu import in_graph, milliseconds
from compare_launches import CASES, PEER, SCALE, Case
from loops import Sides
from torch import Tensor

import seqc
from seqc.bench import Run, draw

# Batch, tokens, heads, and the length of keys and values.
SHAPES = ((1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128), (8, 1024, 8, 64), (8, 2048, 32, 256))
SHORT = (2, 4)  # shapes at which a loop over tokens is compiled, and keeps what its backward needs
BACKENDS = ("triton", "chosen")  # the peer's kernels in Triton, and what it chooses
LIMIT = 1200  # seconds for a row
HEADS = 2  # whose errors are measured
TENSOR_CORES = {8: 312e12, 9: 989e12, 10: 2250e12}  # products and sums of 16 bits a second, by major compute capability: A100, H100, B200
Step = Callable[[], object]


def as_scalar_decay(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A_log: Tensor, D: Tensor) -> tuple[Tensor, ...]:
    """Mamba-2 as queries, keys, values and log decays; the peer has no D."""
    heads = x.shape[2]
    q, k = (y.expand(-1, -1, heads, -1).contiguous() for y in (C, B))
    return q, k, x * dt[..., None], -A_log.exp() * dt


ROWS = {
    **{name: case for name, case in CASES.items() if name != "gated_deltaproduct"},
    "gated_deltaproduct": CASES["gated_deltaproduct"],
    "gated_deltaproduct, n = 3": replace(CASES["gated_deltaproduct"], keywords={**SCALE, "num_householder": 3}),
    "mamba2": Case("mamba2", "simple_gla.chunk_simple_gla", as_scalar_decay, SCALE),
}
NAMES = (*ROWS, *loops.CELLS, *loops.LOOPS)


def lengths_of(name: str, D: int) -> dict[str, int]:
    if name == "mamba2":
        return {"N": D, "P": D}
    steps = ROWS[name].keywords.get("num_householder")
    return {"K": D, "V": D, **({"n": steps} if steps else {})}


def both(call: Callable[..., Any], arguments: tuple[Tensor, ...]) -> tuple[Step, Step]:
    """A call's forward, without gradients, and its forward with backward."""
    leaves = tuple(x.detach().requires_grad_() for x in arguments)

    def forward() -> object:
        with torch.no_grad():
            return call(*arguments)

    def backward() -> object:
        out = call(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    return forward, backward


def timed(call: Callable[..., Any], arguments: tuple[Tensor, ...]) -> dict[str, float | str]:
    """Milliseconds of both steps, eagerly and in a graph; what fails is said in place of a number."""
    found: dict[str, float | str] = {}
    for what, step in zip(("forward", "both"), both(call, arguments), strict=True):
        for how in ("eager", "graph"):
            try:
                found[f"{what} {how}"] = milliseconds(step if how == "eager" else in_graph(step), "cuda")
            except Exception as error:  # whatever the peer refuses
                found[f"{what} {how}"] = f"{type(error).__name__}: {error}".split("\n")[0][:160]
    return found


def few_heads(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first sequence and heads of inputs [B, T, H, ...], and of params [H, ...]; inputs of one group stay."""
    return tuple(x[:1, :, :HEADS] if x.dim() > 2 else x[:HEADS] for x in arguments)


def values(call: Callable[..., Any], arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradients of its sum."""
    leaves = tuple(x.detach().contiguous().requires_grad_() for x in arguments)
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative root of the mean squared error of some tensors."""
    pairs = [(f, e) for f, e in zip(found, exact, strict=True) if f is not None and e is not None]
    return max(float((f.double() - e).norm() / e.norm().clamp_min(1e-300)) for f, e in pairs)


def floor(arguments: tuple[Tensor, ...], out: Tensor, rows: int, D: int) -> float:
    """Milliseconds of a forward with backward that no schedule can be without."""
    about = torch.cuda.get_device_properties(0)
    moved = sum(2 * x.numel() * x.element_size() for x in arguments) + 2 * out.numel() * out.element_size()
    bandwidth = 2 * about.memory_clock_rate * 1e3 * about.memory_bus_width / 8
    products = 3 * 4 * D * D * rows  # a write and a read of the state, and twice as many in the backward
    return 1e3 * max(moved / bandwidth, products / TENSOR_CORES.get(about.major, 989e12))


def sides(name: str, shape: tuple[int, int, int, int]) -> Sides:
    """A layer at a shape, and its peers."""
    if name not in ROWS:
        return loops.sides(name, shape)
    (B, T, H, D), case = shape, ROWS[name]
    lengths = lengths_of(name, D)
    package = seqc.load(case.spec, sizes=lengths, chunk_size=64, backend="triton")
    arguments = tuple(x.cuda() for x in draw(package, lengths, Run(tokens=T, batch=B, dtype="bfloat16"), H))
    function = getattr(package, package.MANIFEST["name"])

    def ours(*a: Tensor) -> Tensor:
        out: Tensor = function(*a, form="chunkwise", backend="triton")[0]
        return out

    def exact(*a: Tensor) -> Tensor:
        out: Tensor = function(*a, form="chunkwise", backend="torch")[0]
        return out

    def peer(*a: Tensor) -> Tensor:
        module, _, called = case.peer.rpartition(".")
        theirs = getattr(importlib.import_module(f"fla.ops.{module}"), called)
        out: Tensor = theirs(*case.given(*a), **case.keywords)[0]
        return out + a[0] * a[-1][:, None] if name == "mamba2" else out

    return Sides(arguments, few_heads(arguments), ours, exact, dict.fromkeys(BACKENDS, peer))


def one(name: str, shape: tuple[int, int, int, int], who: str) -> dict[str, Any]:
    """A layer at a shape: ours, or a peer's."""
    row = sides(name, shape)
    call = row.ours if who == "ours" else row.peers[who]
    found: dict[str, Any] = timed(call, row.arguments)
    if who not in row.other:
        found["error"] = error(values(call, row.few), values(row.exact, tuple(x.double() for x in row.few)))
    if who == "ours" and name in ROWS:
        B, T, H, D = shape
        found["floor"] = floor(row.arguments, call(*row.arguments), B * T * H, D)
    return found


def process(name: str, index: int, who: str) -> dict[str, Any]:
    """One side of a row by a process of its own. who: ours or one of its peers."""
    environment = {**os.environ, **({"FLA_DISABLE_BACKEND_DISPATCH": "1"} if who == "triton" else {})}
    command = [sys.executable, __file__, name, "--shape", str(index), "--one", who]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip() or "?").splitlines()[-1][-200:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, shape: tuple[int, ...], found: dict[str, dict[str, Any]], ratios: list[float]) -> str:
    """A row of the table; of a layer that the peer has, the ratio of forward with backward is added to `ratios`, the smaller of two."""
    ours, cells = found["ours"], list[str]()
    for what in ("forward", "both"):
        for how in ("eager", "graph"):
            key, mine = f"{what} {how}", found["ours"].get(f"{what} {how}", found["ours"].get("failed", "?"))
            peers = [one.get(key, one.get("failed", "?")) for who, one in found.items() if who != "ours"]
            times = [p / mine if isinstance(p, float) and isinstance(mine, float) else p for p in peers]
            cells.append(f"{mine:.3g}" if isinstance(mine, float) else str(mine))
            cells.append(", ".join(f"{t:.2f}" if isinstance(t, float) else str(t) for t in times))
            known = [t for t in times if isinstance(t, float)]
            ratios += [min(known)] if key == "both eager" and known and name in ROWS else []
    both_ms, least = ours.get("both graph"), ours.get("floor")
    cells.append(f"{least / both_ms:.2f}" if isinstance(both_ms, float) and isinstance(least, float) else "")
    cells.append(", ".join(f"{found[who]['error']:.1e}" if "error" in found[who] else "-" for who in found))
    return f"| {name} | {' x '.join(map(str, shape))} | {' | '.join(cells)} |"


def planned(layers: list[str], shapes: list[int]) -> Iterator[tuple[str, int]]:
    for name in layers:
        for index in shapes:
            if name not in loops.LOOPS or index in SHORT:
                yield name, index


def peers_of(name: str) -> tuple[str, ...]:
    return BACKENDS if name in ROWS else loops.peers_of(name)


def shape_of(name: str, index: int) -> tuple[int, int, int, int]:
    return SHAPES[index] if name in ROWS else loops.shape_of(name, SHAPES[index])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=", ".join(NAMES))
    parser.add_argument("--shape", type=int, action="append", choices=range(len(SHAPES)))
    parser.add_argument("--plan", action="store_true", help="say what would run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.layers if name not in NAMES]:
        parser.error(f"no such layer: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    layers, shapes = options.layers or list(NAMES), options.shape or list(range(len(SHAPES)))
    if options.one:
        print(json.dumps(one(layers[0], shape_of(layers[0], shapes[0]), options.one)))
        return 0
    if options.plan or not torch.cuda.is_available():
        for name, index in planned(layers, shapes):
            beside = f"`{ROWS[name].peer}` of {' '.join(PEER)}" if name in ROWS else ", ".join(f"`{who}`" for who in peers_of(name))
            print(f"{name} at B x T x H x D = {' x '.join(map(str, shape_of(name, index)))} beside {beside}")
        if not options.plan:
            print("No GPU: nothing was timed.", file=sys.stderr)
        return 0 if options.plan else 1
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, {' '.join(PEER)}, bfloat16\n")
    heads = [f"{what}, {how} | peer" for what in ("forward ms", "forward + backward ms") for how in ("eager", "graph")]
    print(f"| layer | B x T x H x D | {' | '.join(heads)} | floor | errors |\n|{'---|' * 12}", flush=True)
    ratios = list[float]()
    for name, index in planned(layers, shapes):
        found = {who: process(name, index, who) for who in ("ours", *peers_of(name))}
        print(line(name, shape_of(name, index), found, ratios), flush=True)
    if ratios:
        mean = exp(sum(map(log, ratios)) / len(ratios))
        print(f"\nForward + backward, eager: the peer takes {mean:.2f} times as long, the geometric mean of {len(ratios)} rows;")
        print(f"{min(ratios):.2f} times where that is least.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
