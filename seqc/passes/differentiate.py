"""Program -> Program: reverse-mode differentiation, stage by stage.

The result runs the forward stages again, with the states at the start of each step kept, and then every stage reversed:
a Map's adjoint is a Map, a Carry's is a Carry in the other direction. The result is a Program like any other, so it can
be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.adjoint import adjoints, fit
from seqc.ir.expr import Expr, substitute, variables
from seqc.ir.program import (
    Carried,
    Carry,
    Equation,
    Map,
    Program,
    Solve,
    Stage,
    body_roots,
    carried_by,
    change_leaves,
    changed,
    defined,
    inside,
    iterate,
    outer_of,
    scope,
    within,
)
from seqc.ir.program import names as every_name

Hints = MutableMapping[Expr, str] | None


class _Names:
    """Names that no value of the program has yet."""

    def __init__(self, taken: Iterable[str]):
        self.taken = set(taken)

    def fresh(self, wanted: str) -> str:
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}_{n}", n + 1
        self.taken.add(name)
        return name


class _Adjoints:
    """The adjoint of every named value, summed as its users are met."""

    def __init__(self) -> None:
        self.of: dict[str, Expr] = {}

    def add(self, leaf: Expr, share: Expr) -> None:
        share = fit(share, leaf.axes)
        self.of[leaf.name] = ops.add(self.of[leaf.name], share) if leaf.name in self.of else share

    def get(self, name: str) -> Expr | None:
        found = self.of.get(name)
        return None if found is None or ops.is_zero(found) else found


def differentiate(program: Program, wrt: Iterable[str], hints: MutableMapping[Expr, str] | None = None) -> Program:
    """The program that maps inputs and output adjoints (`d_NAME`) to the adjoints of the inputs in `wrt`, named `d_NAME`.

    hints: names for nodes; the adjoints of named nodes get names there.
    """
    leaves = scope(program)
    names = _Names(every_name(program))
    stages: list[Stage] = []
    starts: dict[str, Expr] = {}
    for stage in program.stages:
        stages.append(_with_starts(stage, starts, names) if isinstance(stage, Carry) else stage)
    seeds, total = [], _Adjoints()
    for e in program.outputs:
        seed = ops.var(names.fresh(f"d_{e.name}"), e.value.axes, e.value.type.dtype)
        seeds.append(seed)
        _pull(total, ((e.value, seed),), leaves, hints)
    for stage in reversed(program.stages):
        stages.extend(_reversed(stage, total, starts, names, leaves, hints))
    zero = ops.number(0)
    results = tuple(
        Equation(f"d_{n}", total.of.get(n, ops.broadcast(zero, leaves[n].axes)), f"the gradient of {n}") for n in wrt
    )
    return replace(program, name=f"{program.name}_backward", inputs=(*program.inputs, *seeds), stages=tuple(stages), outputs=results)


def _reversed(
    stage: Stage, total: _Adjoints, starts: Mapping[str, Expr], names: _Names, leaves: Mapping[str, Expr], hints: Hints
) -> list[Stage]:
    """The stages that pull the adjoints of what a stage names back to what it read."""
    if isinstance(stage, Carry):
        return _reverse(stage, total, starts, names, leaves, hints)
    if isinstance(stage, Solve):
        return _reverse_solve(stage, total, names, leaves, hints)
    pairs = tuple((e.value, g) for e in stage.equations if (g := total.get(e.name)) is not None)
    _pull(total, pairs, leaves, hints)
    return []


def _pull(total: _Adjoints, pairs: Iterable[tuple[Expr, Expr]], leaves: Mapping[str, Expr], hints: Hints) -> None:
    """Adds what the values' adjoints contribute to the leaves that they are made of."""
    pairs = tuple(pairs)
    wrt = [v for v in variables(*(value for value, _ in pairs)) if v.type.dtype != "bool"]
    for leaf, share in zip(wrt, adjoints(pairs, wrt, hints), strict=True):
        total.add(leaf, share)


def _with_starts(stage: Carry, starts: dict[str, Expr], names: _Names) -> Carry:
    """The Carry with each state at the start of the step as one more equation."""
    kept = []
    for k in stage.carried:
        e = Equation(names.fresh(f"{k.name}_start"), ops.var(k.name, k.init.axes, k.next.type.dtype), f"{k.name} at the start of each step")
        starts[k.name] = outer_of(e, stage.axis)
        kept.append(e)
    return replace(stage, equations=(*stage.equations, *kept))


def _reverse(
    stage: Carry, total: _Adjoints, starts: Mapping[str, Expr], names: _Names, leaves: Mapping[str, Expr], hints: Hints
) -> list[Stage]:
    """The stages that pull the adjoints of a Carry's results back to what it read."""
    axis = stage.axis
    emitted = [(e, g) for e in stage.equations if (g := total.get(e.name)) is not None]
    before = tuple(Equation(names.fresh(f"d_{e.name}"), g) for e, g in emitted)
    state = {k.name: ops.var(k.name, k.init.axes, k.next.type.dtype) for k in stage.carried}
    later = {k.name: ops.var(names.fresh(f"d_{k.name}"), k.init.axes, k.next.type.dtype) for k in stage.carried}
    seeds = [(k.next, later[k.name]) for k in stage.carried]
    seeds += [(e.value, ops.var(b.name, e.value.axes, e.value.type.dtype)) for (e, _), b in zip(emitted, before, strict=True)]
    read = [v for v in variables(*body_roots(stage)) if v.name not in state and v.type.dtype != "bool"]
    shares = adjoints(seeds, [*state.values(), *read], hints)
    known = {e.value: inside(outer_of(e, axis), axis) for e in stage.equations}  # what the forward keeps is not computed again
    at_start = known | {leaf: inside(starts[n], axis) for n, leaf in state.items()}
    shares = substitute(shares, at_start)
    carried, finals = [], {}
    for k, share in zip(stage.carried, shares, strict=False):
        finals[k.name] = ops.var(names.fresh(f"d_{k.name}_first"), k.init.axes, k.next.type.dtype)
        init = total.of.get(k.final, ops.broadcast(ops.number(0), k.init.axes))
        carried.append(Carried(later[k.name].name, fit(init, k.init.axes), share, finals[k.name].name))
    equations = []
    for leaf, share in zip(read, shares[len(state) :], strict=True):
        if not ops.is_zero(share):
            e = Equation(names.fresh(f"d_{leaf.name}_part"), share)
            equations.append(e)
            total.add(leaves[leaf.name], outer_of(e, axis))
    _pull(total, ((k.init, finals[k.name]) for k in stage.carried), leaves, hints)
    reverse = Carry(axis, not stage.reverse, tuple(carried), tuple(equations))
    return [Map(before), reverse] if before else [reverse]


def _reverse_solve(stage: Solve, total: _Adjoints, names: _Names, leaves: Mapping[str, Expr], hints: Hints) -> list[Stage]:
    """The stages that pull the adjoint of a solution back, by the linearised equations at the solution.

    With residual(x, y) = 0 and A the steps' linear map from residuals to steps there, the adjoint of y is that of the residual
    under A^T dx: one pass of the steps' own adjoint, whatever the number of iterations. How A depends on x and y counts only where
    it meets a residual, which is zero; in the next derivative A is an expression like any other, and so is x. The guess has no part.
    """
    if all(total.get(u.name) is None for u in stage.unknowns):
        return []
    copy, starts = _copied(stage, names), dict[str, Expr]()
    inner = {**leaves, **within(copy)}
    steps = [_with_starts(s, starts, names) if isinstance(s, Carry) else s for s in copy.steps]
    seeds = _named_adjoints(total, [iterate(u) for u in stage.unknowns], names)
    back, first = _Adjoints(), _Adjoints()
    _pull(back, ((u.step, seeds[u.name]) for u in copy.unknowns if u.name in seeds), inner, hints)
    stages: list[Stage] = [*copy.residuals, *steps, _naming(seeds, total)]
    for s in reversed(steps):
        stages.extend(_reversed(s, back, starts, names, inner, hints))
    found = _named_adjoints(back, [inner[u.residual] for u in copy.unknowns], names)
    stages.append(_naming(found, back))
    first.of.update(found)
    for m in reversed(copy.residuals):
        _reversed(m, first, starts, names, inner, hints)
    for name, share in first.of.items():
        if name in leaves and all(name != u.name for u in stage.unknowns):
            total.add(leaves[name], share)
    return stages


def _copied(stage: Solve, names: _Names) -> Solve:
    """One iteration under names of its own; what was found keeps its name."""
    new = {n: names.fresh(n) for s in stage.stages for n in (*(leaf.name for leaf in defined(s)), *(k.name for k in carried_by(s)))}
    found = changed(stage, change_leaves(new), lambda n: new.get(n, n))
    assert isinstance(found, Solve)
    return found


def _named_adjoints(total: _Adjoints, of: Iterable[Expr], names: _Names) -> dict[str, Expr]:
    """Leaves that are to name the adjoints of some leaves, where there are any."""
    return {x.name: ops.var(names.fresh(f"d_{x.name}"), x.axes) for x in of if total.get(x.name) is not None}


def _naming(leaves: Mapping[str, Expr], total: _Adjoints) -> Map:
    """The Map that names them."""
    return Map(tuple(Equation(leaf.name, fit(total.of[n], leaf.axes), f"the adjoint of {n}") for n, leaf in leaves.items()))
