"""Run by test_peer_kernels.py in a process of its own: a layer's Triton kernels beside those of an independent library, all in
Triton's interpreter, in float32.

Prints a line of JSON for every output, last state and gradient of every call and form: how far the layer's kernels are from float64,
how far the library's are, and how far one is from the other.

Test-only dependency: flash-linear-attention 0.6.0.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from triton_worker import chosen, in_float32, in_float64, package  # first: it turns the interpreter on

# isort: split
import torch
from layers import Call, call, gradients
from torch import Tensor
from triton import language as tl
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import FunctionRewriter, interpreter_semantic

CHUNK = 32  # the default; the library's chunks are of 64 tokens, and of 16 for rwkv7
SIZE = 16  # of every axis: the least that the library's kernels take
CALLS = {
    "ragged": {"T": 77, "heads": 2},  # with every form, the others with the chunkwise one
    "even": {"T": 128, "heads": 1},
    "packed": {"T": 70, "heads": 2, "ends": (0, 5, 5, 70)},
}
warnings.simplefilter("ignore")


# --- The library's kernels in the interpreter ------------------------------------------------------------------------


class Loops(ast.NodeTransformer):
    """Loop variables become tensors, as in a compiled kernel; the interpreter leaves them integers, which have no methods."""

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        if ast.unparse(node.iter).startswith("range("):
            name = ast.unparse(node.target)
            node.body[:0] = ast.parse(f"{name} = interpreter_semantic.to_tensor({name}, False)").body
        return node


def interpret_the_library() -> None:
    """Three things that its kernels need and the interpreter lacks."""
    Autotuner.prune_configs = lambda self, _: self.configs[:1]  # to choose by time, it would ask for a GPU
    rewritten = FunctionRewriter._transform_ast

    def with_loops(self: FunctionRewriter, text: str) -> ast.AST:
        tree = rewritten(self, text)
        return ast.fix_missing_locations(Loops().visit(tree)) if self.fn.__module__.startswith("fla.") else tree

    FunctionRewriter._transform_ast = with_loops
    # The interpreter replaces functions of tl while a kernel runs; the library keeps this one under a name of its own.
    replaced, tl.gather = tl.gather, partial(tl.gather, _semantic=interpreter_semantic)
    importlib.import_module("fla.ops")
    tl.gather = replaced


# --- Its functions, called as the specs mean them --------------------------------------------------------------------
# Two public functions refuse float32, which their authors do not support on a GPU; the autograd functions behind them take it.


def gated_deltanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, **more: Tensor | None) -> tuple[Tensor, ...]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0, output_final_state=True, **more)


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, **more: Tensor | None) -> tuple[Tensor, ...]:
    from fla.ops.kda import chunk_kda

    return chunk_kda(q, k, v, g, beta, scale=1.0, output_final_state=True, **more)


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **more: Tensor | None) -> tuple[Tensor, ...]:
    from fla.ops.gla import chunk_gla

    return chunk_gla(q, k, v, g, scale=1.0, output_final_state=True, **more)


def deltanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    from fla.ops.delta_rule.chunk import ChunkDeltaRuleFunction

    return ChunkDeltaRuleFunction.apply(q, k, v, beta, 1.0, initial_state, True, False, cu_seqlens)


def rwkv7(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor, e: Tensor, a: Tensor, bonus: Tensor, **more: Tensor | None
) -> tuple[Tensor, ...]:  # fmt: skip
    from fla.ops.rwkv7 import chunk_rwkv7

    return chunk_rwkv7(r, g, k, v, -e, a * e, output_final_state=True, **more)


def gated_deltaproduct(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, initial_state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    from fla.ops.gated_delta_product.chunk import ChunkGatedDeltaProductFunction

    n = k.shape[3]
    k, v, beta = (x.movedim(3, 2).flatten(1, 2) for x in (k, v, beta))  # [B, T, H, n, ..] -> [B, T n, H, ..]
    return ChunkGatedDeltaProductFunction.apply(q, k, v, g, beta, 1.0, n, initial_state, True, False, cu_seqlens)


PEERS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    f.__name__: f for f in (gated_deltanet, kda, gla, deltanet, rwkv7, gated_deltaproduct)
}


# --- The comparison --------------------------------------------------------------------------------------------------


def apart(x: Tensor, y: Tensor) -> float:
    """The largest difference in a row, relative to the row's largest value. A row is a vector or a row of a matrix; of a number for
    each token, where one may be zero by chance, the tokens of one head."""
    a, b = (t.detach().double() if t.shape[-1] >= SIZE else t.detach().double().movedim(1, -1) for t in (x, y))
    assert a.shape == b.shape and torch.isfinite(a).all()
    return ((a - b).abs().amax(-1) / b.abs().amax(-1).clamp(min=1e-3)).max().item()


def run(c: Call, results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The output, the last state and their gradients by name. What a layer adds to them is no kernel's in the library."""
    rec, results = c.checked.recurrence, (results[0], results[-1])
    moved = (*rec.inputs, *rec.states)
    slopes = gradients(results, (*c.inputs, *c.states))
    return dict(zip(("output", "last state", *(f"gradient of {x.name}" for x in moved)), (*results, *slopes), strict=True))


def main(name: str, folder: Path) -> None:
    interpret_the_library()
    p = package(name, folder, CHUNK)
    for what, arguments in CALLS.items():
        c = in_float32(call(name, B=1, lengths=(SIZE,), **arguments))  # type: ignore[arg-type]
        exact, (start,) = in_float64(c), c.states
        truth = run(exact, exact.run(p, "reference"))
        theirs = run(c, PEERS[name](*c.inputs, *c.params, initial_state=start, cu_seqlens=c.cu_seqlens))
        for form in p.MANIFEST["triton"]["forms"] if what == "ragged" else ["chunkwise"]:
            ours = run(c, c.run(chosen(p, "triton"), form))
            for value, z in truth.items():
                x, y = ours[value], theirs[value]
                found = {"ours": apart(x, z), "theirs": apart(y, z), "between": apart(x, y)}
                print(json.dumps({"call": what, "form": form, "value": value, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
