"""What a forward hands to its backward, which would compute it again: states between chunks, and values of their tokens.

They are those that a backward's kernels make from the arguments alone and that its other kernels read. Forward and backward spell them
alike, so a forward that gives them has only to write what it computes anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from seqc.backends.triton.launches import flat, launches
from seqc.ir.expr import Expr, walk
from seqc.ir.program import Carry, Equation, Map, Program, Solve, Stage, defined, roots, scope

TILE = 2  # axes of what is kept, of one chunk: a matrix, as a state is; no state of every token

Kept = tuple[Expr, ...]


def keeping(forward: Program, backward: Program, lead: tuple[str, ...]) -> tuple[Program, Program, Kept]:
    """A forward that gives values behind its results, the backward that takes them behind its inputs, and their leaves. None are kept where
    what the backward needs of the forward is larger than a matrix for each chunk, or is not what the forward computes, or iterates."""
    if any(isinstance(s, Solve) for s in (*forward.stages, *backward.stages)):
        return forward, backward, ()
    names = _crossing(forward, backward, lead)
    own, again, leaves = _definitions(forward), _definitions(backward), scope(backward)
    kept = tuple(leaves[n] for n in names)
    results = {e.value.name for e in forward.outputs if e.value.op.name == "var"}
    if any(n in results for n in names):  # a result lies as the caller wants it, and is not given twice
        return forward, backward, ()
    small = all(sum(a not in lead for a in leaf.axes) <= TILE and leaf.type.dtype == "real" for leaf in kept)
    if not small or not all(_same(n, own, again, {}) for n in names):
        return forward, backward, ()
    given = replace(forward, outputs=(*forward.outputs, *(Equation(leaf.name, leaf) for leaf in kept)))
    rest = _without(backward.stages, {leaf.name for leaf in kept}, backward.outputs)
    return given, replace(backward, inputs=(*backward.inputs, *kept), stages=rest), kept


def _crossing(forward: Program, backward: Program, lead: tuple[str, ...]) -> list[str]:
    """What kernels that see the arguments alone write for those that see an adjoint."""
    known = {leaf.name for leaf in forward.inputs}
    found, made = dict[str, None](), set[str]()
    for launch in flat(launches(backward, lead)[1]):
        nodes = list(walk(*launch.values))
        carried = {k.name for k in launch.loop.carried} if launch.loop else set()
        read = {n.name for n in nodes if n.op.name == "var" and n.name not in launch.folded and n.name not in carried}
        finals = [k.final for k in launch.loop.carried] if launch.loop else []
        if read <= known:
            own = [*finals, *(e.name for e in (*launch.equations, *launch.behind) if e.name not in launch.held)]
            made |= {*own}
            known |= {*own}
        else:
            found |= dict.fromkeys(n for n in scope(backward) if n in read & made)
    return list(found)


def _definitions(program: Program) -> dict[str, Expr | Carry]:
    """What names each value outside of loops: its expression, or the loop."""
    found: dict[str, Expr | Carry] = {}
    for s in program.stages:
        if isinstance(s, Map):
            found |= {e.name: e.value for e in s.equations}
        elif isinstance(s, Carry):
            found |= {leaf.name: s for leaf in defined(s)}
    return found


def _same(name: str, one: Mapping[str, Expr | Carry], other: Mapping[str, Expr | Carry], known: dict[str, bool]) -> bool:
    """Whether a name means the same in two programs of the same inputs."""
    if name not in known:
        known[name] = one.get(name) == other.get(name)
        if known[name] and name in one:
            definition = one[name]
            values = roots(definition) if isinstance(definition, Carry) else (definition,)
            inside = {k.name for k in definition.carried} if isinstance(definition, Carry) else set()
            read = {n.name for n in walk(*values) if n.op.name == "var"} - inside
            known[name] = all(_same(n, one, other, known) for n in read)
    return known[name]


def _without(stages: tuple[Stage, ...], given: set[str], outputs: tuple[Equation, ...]) -> tuple[Stage, ...]:
    """The stages without those equations and loops of which nothing is needed any more."""
    needed = {n.name for n in walk(*(e.value for e in outputs)) if n.op.name == "var"} - given
    found: list[Stage] = []
    for s in reversed(stages):
        if isinstance(s, Map):
            s = Map(tuple(e for e in s.equations if e.name in needed))
            if not s.equations:
                continue
        elif not needed & {leaf.name for leaf in defined(s)}:
            continue
        elif isinstance(s, Carry):
            s = replace(s, equations=tuple(e for e in s.equations if e.name in needed))
        found.append(s)
        needed |= {n.name for n in walk(*roots(s)) if n.op.name == "var"} - given
    return tuple(reversed(found))
