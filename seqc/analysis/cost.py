"""Floating-point operations and bytes per token and head of a Program, and the size of the state: estimates, not measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS, Carry, Map, Program, all_sizes, body_roots
from seqc.ir.recurrence import Recurrence


@dataclass(frozen=True)
class Cost:
    """Per token and head: floating-point operations, and bytes of inputs, outputs and states carried between steps (4 per number)."""

    flops: float
    bytes: float


def cost(program: Program, sizes: Mapping[str, int], chunk: int) -> Cost:
    """Of a program at a chunk length (1 for a program along tokens): one batch entry, one head, one step of its Carry."""
    known = all_sizes(program, {**sizes, BATCH: 1, HEADS: 1, GROUPS: 1, CHUNKS: 1, TOKENS: chunk})
    flops = 0
    for stage in program.stages:
        roots = tuple(e.value for e in stage.equations) if isinstance(stage, Map) else body_roots(stage)
        flops += sum(node.op.flops(node, known) for node in walk(*roots))
    flops += sum(node.op.flops(node, known) for node in walk(*(e.value for e in program.outputs)))
    moved = sum(_numbers(leaf, known) for leaf in program.inputs) + sum(_numbers(e.value, known) for e in program.outputs)
    moved += sum(2 * _numbers(k.init, known) for s in program.stages if isinstance(s, Carry) for k in s.carried)
    return Cost(flops / chunk, 4 * moved / chunk)


def _numbers(e: Expr, sizes: Mapping[str, int]) -> int:
    return ops.numel(e.axes, sizes)


def state_size(rec: Recurrence, sizes: Mapping[str, int]) -> int | None:
    """Numbers that one head hands from token to token; None for a state that grows."""
    if any(s.growing for s in rec.states):
        return None
    return sum(ops.numel(s.axes, sizes) for s in rec.states)
