"""Recurrent cells and memories that are networks, beside what PyTorch has for them: its cells (cuDNN's on a GPU), and torch.compile of the
loop over tokens. `compare_kernels.py` times both sides."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import seqc
from seqc.bench import Run, draw

Call = Callable[..., Tensor]
Shape = tuple[int, int, int, int]  # batch, tokens, heads, and the length of a head

SEGMENT = 16  # tokens that torch.compile sees at once: it unrolls a loop
INNER = 64  # of a memory, at most
FEW = 2  # sequences or heads whose errors are measured
RATES = ("theta", "lr")


@dataclass(frozen=True)
class Sides:
    """arguments: of all calls. few: a part of them, whose errors are measured. other: peers whose layer is of the same shape but has other
    equations, so that errors are none."""

    arguments: tuple[Tensor, ...]
    few: tuple[Tensor, ...]
    ours: Call
    exact: Call
    peers: dict[str, Call] = field(default_factory=dict)
    other: tuple[str, ...] = ()


# --- Cells ---------------------------------------------------------------------------------------------------------------

# PyTorch's function, the places of its gates in the order of ours, and whether the recurrent product of the last gate has a bias.
CELLS: dict[str, tuple[str, tuple[int, ...], bool]] = {
    "lstm": ("lstm", (0, 1, 3, 2), False),
    "gru": ("gru", (1, 0, 2), True),
    "elman": ("rnn_tanh", (0,), False),
}


def cell(name: str, shape: Shape, device: str, dtype: torch.dtype) -> Sides:
    """One head of N units, of as many sequences as a batch has heads, with the product that makes its inputs: (x, W, R, b)."""
    B, T, H, N = shape
    called, order, biased = CELLS[name]
    package = seqc.load(name, sizes={"N": N}, backend="triton")
    function, count = getattr(package, package.MANIFEST["name"]), len(order)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1).to(device, dtype)

    arguments = (drawn(B * H, T, N), *(drawn(count * N, N) / N**0.5 for _ in range(2)), *([drawn(N)] if biased else []))

    def seqcs(backend: str) -> Call:
        def call(x: Tensor, W: Tensor, R: Tensor, *b: Tensor) -> Tensor:
            z, weights = (x @ W.mT).unsqueeze(2).chunk(count, -1), R.chunk(count)
            inputs = [z[i] for i in order]
            params = [*(weights[i].mT[None] for i in order), *(y[None] for y in b)]
            out: Tensor = function(*inputs, *params, form="recurrent", backend=backend)[0]
            return out.squeeze(2)

        return call

    def torchs(x: Tensor, W: Tensor, R: Tensor, *b: Tensor) -> Tensor:
        zeros = x.new_zeros(1, x.shape[0], N)
        biases = [x.new_zeros(count * N), torch.cat([x.new_zeros((count - 1) * N), *b])] if biased else []
        states = (zeros, zeros) if called == "lstm" else zeros
        # Biases, layers, dropout, training, bidirectional, batch first.
        out: Tensor = getattr(torch, called)(x, states, [W, R, *biases], biased, 1, 0.0, True, False, True)[0]
        return out

    few = (arguments[0][:FEW], *arguments[1:])
    return Sides(arguments, few, seqcs("triton"), seqcs("torch"), {called: torchs})


# --- Loops ---------------------------------------------------------------------------------------------------------------

LOOPS = ("titans", "ttt_linear", "ttt_mlp", "slstm")


def compiled(package: Any, inputs: int, backend: str = "inductor") -> Call:
    """The loop over tokens by torch.compile, a segment at a time. inputs: how many of the arguments have tokens."""

    def segment(state: Any, *a: Tensor) -> Any:
        return package.reference(*a, initial_state=state, output_final_state=True)

    step = torch.compile(segment, backend=backend, dynamic=False)

    def call(*a: Tensor) -> Tensor:
        state, found = None, []
        for at in range(0, a[0].shape[1], SEGMENT):
            out, state = step(state, *(x[:, at : at + SEGMENT] for x in a[:inputs]), *a[inputs:])
            found.append(out)
        return torch.cat(found, 1)

    return call


def loop(name: str, shape: Shape, device: str, dtype: torch.dtype) -> Sides:
    """A layer in the form that is its fastest with kernels, and its loop. Rates and weights are small, as they are when a model begins."""
    B, T, H, D = shape_of(name, shape)
    lengths = {"N": D} if name == "slstm" else {"D": D, **({} if name == "ttt_linear" else {"E": INNER})}
    package = seqc.load(name, sizes=lengths, backend="triton")
    function, form = getattr(package, package.MANIFEST["name"]), package.MANIFEST["triton"]["forms"][0]
    signature = package.ops.signature(0)
    values = (*signature.inputs, *signature.params)
    drawn = draw(package, lengths, Run(tokens=T, batch=B, dtype=str(dtype).removeprefix("torch.")), H)
    small = [D if v.name in RATES else D**0.5 if len(v.axes) > 1 else 1 for v in values]
    arguments = tuple((x / by).to(device) for x, by in zip(drawn, small, strict=True))
    n = len(signature.inputs)

    def seqcs(backend: str) -> Call:
        return lambda *a: function(*a, form=form, backend=backend)[0]

    few = (*(x[:1, :, :FEW] for x in arguments[:n]), *(x[:FEW] for x in arguments[n:]))
    peers = {"torch.compile": compiled(package, n)}
    if name != "ttt_linear":
        return Sides(arguments, few, seqcs("triton"), seqcs("torch"), peers)
    peers["chunk_ttt_linear"] = theirs
    return Sides(arguments, few, seqcs("triton"), seqcs("torch"), peers, other=("chunk_ttt_linear",))


def theirs(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, scale: Tensor, bias: Tensor, nu: Tensor, W: Tensor, *_: Tensor) -> Tensor:
    """flash-linear-attention's TTT-Linear, which weighs a token by its rate alone and has no nu."""
    first = W.float().expand(q.shape[0], *W.shape).contiguous()
    call = importlib.import_module("fla.ops.ttt").chunk_ttt_linear
    out: Tensor = call(q, k, v, scale, bias, lr[..., None], chunk_size=SEGMENT, initial_state=first)[0]
    return out


def shape_of(name: str, shape: Shape) -> Shape:
    """Memories that are networks have at most INNER units."""
    return (*shape[:3], min(shape[3], INNER)) if name in LOOPS and name != "slstm" else shape


def peers_of(name: str) -> tuple[str, ...]:
    if name in CELLS:
        return (CELLS[name][0],)
    return ("torch.compile", "chunk_ttt_linear") if name == "ttt_linear" else ("torch.compile",)


def sides(name: str, shape: Shape, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Sides:
    return (cell if name in CELLS else loop)(name, shape, device, dtype)
