"""What a `fold` combines its state with.

The operand is an input, or a `let` that no state enters. Folds that read each other's states are one operator on all of them: in
such a line the operands of the folds above stay theirs, and where no other value differs from token to token, the operand may be
a `let` that does not.
"""

from __future__ import annotations

from seqc.frontend.check_problems import listed
from seqc.frontend.check_scope import Build
from seqc.frontend.check_values import shown
from seqc.ir import model
from seqc.ir.expr import Expr, variables
from seqc.source import Span


def fold_operand(build: Build, state: model.State, value: Expr, order: str, span: Span) -> Expr:
    """The leaf of the operand. Refuses a value that is no operator on the state and one operand of its kind."""
    leaves = _leaves(build, value)
    above = {x.state: x.operand for x in build.steps if isinstance(x, model.Fold) and x.order == order and x.state != state.name}
    folded = {name for n in (*above, state.name) for name in (n, f"{n}@start")}
    others = folded - {state.name, f"{state.name}@start"}
    free = [v for v in leaves if v.name in build.varying and v.name not in folded]
    lent = {above[n.removesuffix("@start")].name for n in others & {v.name for v in leaves}}
    if lent and any(v.name in lent for v in free):
        lets = [v for v in leaves if v in build.fixed]
        free = [v for v in free if v.name not in lent] or lets or free
    if not any(v.name in (state.name, f"{state.name}@start") for v in leaves):
        raise build.problems.refuse("fold-operands", f"this does not use `{state.name}`", span, "a fold combines a state with one input")
    names = ", ".join(f"`{v.name}`" for v in free) or "none"
    if len(free) != 1 or not _may_be_operand(build, free[0]):
        raise build.problems.refuse("fold-operands", f"a fold combines `{state.name}` with one input", span, f"this uses {names}")
    operand = free[0]
    if order != "left" and (set(operand.axes), operand.type.dtype) != (set(state.axes), state.dtype):
        have, want = (f"[{', '.join(shown(axes))}]" if axes else "a number" for axes in (operand.axes, state.axes))
        raise build.problems.refuse(
            "fold-operands",
            f"`{operand.name}` is not of the kind of `{state.name}`: an operator combines two of one kind",
            span,
            f"{have} against {want}" if have != want else listed((operand.type.dtype, state.dtype)),
            helps=("write `by left` to fold in order",) if order == "claimed" else (),
        )
    return operand


def _may_be_operand(build: Build, leaf: Expr) -> bool:
    return leaf.name in {i.name for i in build.inputs} or leaf.name in _lets(build)


def _lets(build: Build) -> dict[str, Expr]:
    return {x.name: x.value for x in build.steps if isinstance(x, model.Let)}


def _leaves(build: Build, value: Expr) -> list[Expr]:
    """The leaves of a value; a `let` that a state enters counts as what it is made of."""
    lets = _lets(build)
    states = {name for n in build.states for name in (n, f"{n}@start")}
    found: dict[Expr, None] = {}
    stack = list(reversed(variables(value)))
    while stack:
        leaf = stack.pop()
        if leaf.name in lets and _reached(leaf, lets) & states:
            stack += reversed(variables(lets[leaf.name]))
        else:
            found[leaf] = None
    return list(found)


def _reached(leaf: Expr, lets: dict[str, Expr]) -> set[str]:
    """The names below a `let`."""
    found: set[str] = set()
    stack = [leaf]
    while stack:
        name = stack.pop().name
        if name not in found:
            found.add(name)
            stack += variables(lets[name]) if name in lets else ()
    return found
