"""What generated Triton kernels launch, move and spill beside those of flash-linear-attention, compiled for a GPU that is not there.

    python examples/compare_launches.py            every layer, for sm_90
    python examples/compare_launches.py gla kda    some of them

No GPU is needed, and no kernel's time is measured: host code runs on CPU tensors, forward and backward, and every kernel is compiled by the
real compiler. B = 1, T = 2048, D = 128, chunks of 64 tokens, bfloat16. A launch is a Triton kernel or an operation of PyTorch; bytes are
per token and head, as `seqc inspect` counts them; stack is the sum over the kernels of the bytes that a thread spills. The peer's kernels
are autotuned: the first configurations are compiled (`--configurations`), and the one with the least stack is taken. Host is the
processor's microseconds of a call forward and backward of two chunks whose kernels are not launched, the least of many.

Both compute the same function of tensors of the same sizes, but for rwkv7, where ours has a second output. Needs Triton; without
flash-linear-attention 0.6.0 its half of the table is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import seqc
from seqc.backends.triton.targets import TARGETS, Target
from seqc.bench import Run as Sizes
from seqc.bench import draw

PEER = ("flash-linear-attention", "0.6.0")
CHUNK = 64  # tokens: the peer's, too
ROUNDS, CALLS = 40, 10  # that are timed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
STEPS = 2  # of the delta rule per token, in gated_deltaproduct
SCALE = {"scale": 1.0}  # of queries: the spec's inputs are scaled already


def same(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


def gate_before_rate(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return q, k, v, g, beta


def as_tokens(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """The steps of a token, [B, T, H, n, ...], as n tokens."""
    k, v, beta = (x.movedim(3, 2).flatten(1, 2).contiguous() for x in (k, v, beta))
    return q, k, v, g, beta


def as_low_rank(r: Tensor, k: Tensor, v: Tensor, g: Tensor, e: Tensor, a: Tensor, bonus: Tensor) -> tuple[Tensor, ...]:
    return r, g, k, v, -e, a * e


@dataclass(frozen=True)
class Case:
    """A layer's spec; the peer's function, what it takes of the spec's arguments, and by keyword."""

    spec: str
    peer: str
    given: Callable[..., tuple[Tensor, ...]] = same
    keywords: dict[str, Any] = field(default_factory=lambda: SCALE)


CASES = {
    "linear_attention": Case("linear_attention", "linear_attn.chunk_linear_attn"),
    "scalar_decay": Case(str(Path(__file__).with_name("scalar_decay.seq")), "simple_gla.chunk_simple_gla"),
    "gla": Case("gla", "gla.chunk_gla"),
    "deltanet": Case("deltanet", "delta_rule.chunk_delta_rule"),
    "gated_deltanet": Case("gated_deltanet", "gated_delta_rule.chunk_gated_delta_rule", gate_before_rate),
    "kda": Case("kda", "kda.chunk_kda", gate_before_rate),
    "rwkv7": Case("rwkv7", "rwkv7.chunk_rwkv7", as_low_rank),
    "gated_deltaproduct": Case(
        "gated_deltaproduct", "gated_delta_product.chunk_gated_delta_product", as_tokens, {**SCALE, "num_householder": STEPS}
    ),
}


def keep_memory() -> None:
    """The C library gives large blocks back to the system and asks for them again; on a GPU PyTorch keeps them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, most in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 2**25)) if mallopt else ():
        mallopt(parameter, most)


def host_time(target: Target, call: Callable[..., Any], arguments: tuple[Tensor, ...]) -> float:
    """Microseconds of a call forward and backward without its kernels."""
    from seqc.backends.triton.dry import idle

    leaves = tuple(x.detach().requires_grad_() for x in arguments)

    def once() -> None:
        found = [x for x in tree_leaves(call(*leaves)[0]) if isinstance(x, Tensor)]
        torch.autograd.grad(found, leaves, [torch.ones_like(x) for x in found], allow_unused=True)

    least = float("inf")
    with idle(target):
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(CALLS):
                once()
            least = min(least, (time.process_time() - began) / CALLS)
    return 1e6 * least


def row(
    who: str, target: Target, call: Callable[..., Any], arguments: tuple[Tensor, ...], short: tuple[Tensor, ...], rows: int,
    configurations: int,
) -> str:  # fmt: skip
    """One line of the table: forward, then backward, then the host's time of a short call."""
    from seqc.backends.triton.dry import NotCompiled, forward_and_backward

    leaves = tuple(x.detach().requires_grad_() for x in arguments)
    try:
        found = forward_and_backward(target, lambda: call(*leaves), leaves, configurations)
    except NotCompiled as error:
        return f"| {who} | `{error.kernel}` does not compile: {error.reason} |"
    cells = []
    for launches, ideal in ((found.forward, found.forward_ideal), (found.backward, found.backward_ideal)):
        kernels = [x for x in launches if x.binary is not None]
        moved, stacks = sum(x.bytes for x in launches), [x.binary.stack for x in kernels if x.binary is not None]
        cells += [f"{len(kernels)} + {len(launches) - len(kernels)}", f"{moved / rows:,.0f}", f"{moved / ideal:.1f}"]
        cells.append(f"{sum(stacks)}" + (f" ({sum(s > 0 for s in stacks)})" if any(stacks) else ""))
    return f"| {who} | {' | '.join(cells)} | {host_time(target, call, short):.0f} |"


def compared(name: str, target: Target, sizes: Sizes, heads: int, D: int, configurations: int, peer: bool) -> list[str]:
    """The lines of a layer."""
    case, rows = CASES[name], sizes.batch * sizes.tokens * heads
    lengths = {"K": D, "V": D, **({"n": STEPS} if name == "gated_deltaproduct" else {})}
    package = seqc.load(case.spec, sizes=lengths, chunk_size=CHUNK, backend="triton")
    every = [draw(package, lengths, some, heads) for some in (sizes, replace(sizes, tokens=2 * CHUNK))]
    function = getattr(package, package.MANIFEST["name"])
    found = [row(f"{name} | seqc", target, lambda *a: function(*a, form="chunkwise", backend="triton"), *every, rows, configurations)]
    if peer:
        module, _, called = case.peer.rpartition(".")
        theirs = getattr(importlib.import_module(f"fla.ops.{module}"), called)
        given = (case.given(*arguments) for arguments in every)
        found.append(row(f" | `{called}`", target, lambda *a: theirs(*a, **case.keywords), *given, rows, configurations))
    return found


def peer_is_there(target: Target) -> bool:
    """Imports the peer, which looks at the GPU when it is imported."""
    from seqc.backends.triton.dry import dry

    name, wanted = PEER
    try:
        found = version(name)
    except PackageNotFoundError:
        print(f"{name} is not installed: its half of the table is missing (pip install {name}=={wanted})", file=sys.stderr)
        return False
    if found != wanted:
        print(f"{name} is {found}; the table was made with {wanted}", file=sys.stderr)
    with dry(target):
        importlib.import_module("fla.ops")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=", ".join(CASES))
    parser.add_argument("--target", choices=[t for t in TARGETS if t.startswith("sm")], default="sm_90")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--size", type=int, default=128, help="of keys and values")
    parser.add_argument("--configurations", type=int, default=3, help="of an autotuned kernel")
    options = parser.parse_args()
    if unknown := [name for name in options.layers if name not in CASES]:
        parser.error(f"no such layer: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if find_spec("triton") is None:
        print("Triton is not installed, and its compiler is what compiles: pip install 'seqc[triton]'", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    keep_memory()
    target = TARGETS[options.target]
    peer = peer_is_there(target)
    phases = [f"{phase}: kernels + operations | bytes | x least | stack (kernels)" for phase in ("forward", "backward")]
    print(f"| layer | | {' | '.join(phases)} | host |\n|{'---|' * 11}")
    for name in options.layers or CASES:
        sizes = Sizes(tokens=options.tokens, dtype="bfloat16")
        for line in compared(name, target, sizes, options.heads, options.size, options.configurations, peer):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
