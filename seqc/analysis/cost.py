"""What a Program costs: operations, bytes and calls counted from it, and from those the time that it should take. Estimates, not
measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import (
    BATCH,
    CHUNKS,
    GROUPS,
    HEADS,
    TOKENS,
    Carry,
    Equation,
    Map,
    Program,
    Solve,
    Stage,
    all_sizes,
    body_roots,
    carried_by,
    iterate,
)
from seqc.ir.recurrence import Recurrence
from seqc.ir.rules import union

ITERATIONS = 16  # of Newton's method: an estimate takes as many as a printed Solve may, so that it is taken where it is faster even then


@dataclass(frozen=True)
class Cost:
    """Per token and head: floating-point operations, and bytes of inputs, outputs and states carried between steps (4 per number)."""

    flops: float
    bytes: float


def cost(program: Program, sizes: Mapping[str, int], chunk: int) -> Cost:
    """Of a program at a chunk length (1 for a program along tokens): one batch entry, one head, one step of its Carry."""
    known = _known(program, sizes, chunk)
    flops = sum(n * node.op.flops(node, known) for stage, n in _counted(program.stages) for node in walk(*_roots(stage)))
    flops += sum(node.op.flops(node, known) for node in walk(*(e.value for e in program.outputs)))
    moved = sum(_numbers(leaf, known) for leaf in program.inputs) + sum(_numbers(e.value, known) for e in program.outputs)
    moved += sum(2 * _numbers(k.init, known) * n for s, n in _counted(program.stages) for k in carried_by(s))
    return Cost(flops / chunk, 4 * moved / chunk)


def _known(program: Program, sizes: Mapping[str, int], chunk: int) -> dict[str, int]:
    return all_sizes(program, {**sizes, BATCH: 1, HEADS: 1, GROUPS: 1, CHUNKS: 1, TOKENS: chunk})


def _counted(stages: Iterable[Stage], times: int = 1) -> list[tuple[Map | Carry, int]]:
    """The Maps and Carries, each with how often it runs; an iteration as a Map names its guess and what is added."""
    found: list[tuple[Map | Carry, int]] = []
    for s in stages:
        if isinstance(s, Solve):
            found.append((Map(tuple(Equation(u.name, u.guess) for u in s.unknowns)), times))
            added = Map(tuple(Equation(u.name, ops.add(iterate(u), u.step)) for u in s.unknowns))
            found += _counted((*s.stages, added), times * ITERATIONS)
        else:
            found.append((s, times))
    return found


def _roots(stage: Map | Carry) -> tuple[Expr, ...]:
    return tuple(e.value for e in stage.equations) if isinstance(stage, Map) else body_roots(stage)


def _numbers(e: Expr, sizes: Mapping[str, int]) -> int:
    return ops.numel(e.axes, sizes)


def state_size(rec: Recurrence, sizes: Mapping[str, int]) -> int | None:
    """Numbers that one head hands from token to token; None for a state that grows."""
    if any(s.growing for s in rec.states):
        return None
    return sum(ops.numel(s.axes, sizes) * (2 if s.dtype == "complex" else 1) for s in rec.states)


# --- Time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """One processor core under PyTorch: seconds of a call, operations per second of matrix products, bytes per second of the rest."""

    call: float
    rate: float
    bandwidth: float


CORE = Machine(call=3e-6, rate=55e9, bandwidth=40e9)  # examples/measure_machine.py, on a core with AVX-512: 2.9 us, 56e9, 43e9

# Nodes that are views, or stand inside the call of their reader.
VIEWS = ("var", "const", "constant", "size", "iota", "rename", "broadcast", "select", "flatten", "unflatten", "piece", "neg")
# Ops that a kernel computes in several calls: how many (per 16 tokens where it is blocked), and how often they pass over the entries.
SEVERAL = {"decay": (4, 4), "unit_lower_inverse": (3, 1), "decayed": (40, 8), "decayed_solve": (128, 8)}
BLOCKED = ("decayed", "decayed_solve")
BLOCK = 16
ROUNDS = 12  # how often a `strict_solve` of few entries applies its rule, to all rows at once; one of many does it row by row
ARGUMENT = 4  # calls that bring an input or output from its place in the sequence to the kernel, or back


@dataclass(frozen=True)
class Duration:
    """The time of a program: of every slab, of every step (a chunk, or a token for a form without chunks), of a token of one head.

    A slab is what a kernel takes at once, so its part is calls that serve all of its tokens.
    """

    slab: float
    step: float
    token: float

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.slab + other.slab, self.step + other.step, self.token + other.token)

    def of(self, slabs: int, steps: int, rows: int) -> float:
        """The time of a call. rows: tokens of all heads and sequences, those of the padding among them."""
        return self.slab * slabs + self.step * steps + self.token * rows


def duration(program: Program, sizes: Mapping[str, int], chunk: int, machine: Machine = CORE) -> Duration:
    """The seconds of a program whose contractions are of two tensors, at a chunk length (0 for a program along tokens)."""
    known = _known(program, sizes, chunk or 1)
    walked = CHUNKS if chunk else TOKENS
    slab, step, busy = float(ARGUMENT * (len(program.inputs) + len(program.outputs))), 0.0, 0.0
    for stage, times in _counted(program.stages):
        nodes = [n for n in walk(*_roots(stage)) if n.op.name not in VIEWS]
        calls = times * sum(_calls(n, known) for n in nodes)
        busy += times * sum(_seconds(n, known, machine) for n in nodes)
        if isinstance(stage, Map):
            slab += calls
        elif stage.axis == walked:
            step += calls
        else:
            slab += calls * known[stage.axis]
    return Duration(slab * machine.call, step * machine.call, busy / (chunk or 1))


def _calls(node: Expr, sizes: Mapping[str, int]) -> float:
    if node.op.name in BLOCKED:
        return SEVERAL[node.op.name][0] * -(-sizes[TOKENS] // BLOCK)
    if node.op.name == "strict_solve":
        return ROUNDS * (2 + sum(n.op.name not in VIEWS for n in walk(node.attr[2])))
    return SEVERAL.get(node.op.name, (1, 1))[0]


def _seconds(node: Expr, sizes: Mapping[str, int], machine: Machine) -> float:
    """Of the work itself: what takes longer, the operations of a product or the bytes that it reads and writes."""
    axes: Iterable[str] = union((*(a.type for a in node.args), node.type))
    if node.op.name in SEVERAL:
        return 4 * SEVERAL[node.op.name][1] * ops.numel(axes, sizes) / machine.bandwidth
    if node.op.name == "strict_solve":
        inner = (n for n in walk(node.attr[2]) if n.op.name not in VIEWS)
        passes = 4 * _numbers(node, sizes) * (2 + sum(1 + len(n.args) for n in inner)) / machine.bandwidth
        return passes + 2 * ops.numel(axes, sizes) / machine.rate
    moved = 4 * (_numbers(node, sizes) + sum(_numbers(a, sizes) for a in node.args)) / machine.bandwidth
    return max(moved, node.op.flops(node, sizes) / machine.rate) if set(axes) != set(node.axes) else moved


__all__ = ["CORE", "ITERATIONS", "Cost", "Duration", "Machine", "cost", "duration", "state_size"]
