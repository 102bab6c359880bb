"""Model -> Recurrence: the steps substituted one after the other, until everything is in terms of the start of the token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from seqc.ir import model, ops, recurrence
from seqc.ir.expr import Expr, substitute
from seqc.source import Span


@dataclass
class Token:
    """What every leaf of the steps stands for at the line at hand, and what has been made so far."""

    meaning: dict[Expr, Expr] = field(default_factory=dict)
    current: dict[str, Expr] = field(default_factory=dict)  # states: their value at this line
    outputs: list[recurrence.Output] = field(default_factory=list)
    folds: list[recurrence.Fold] = field(default_factory=list)
    lines: list[recurrence.Line] = field(default_factory=list)
    after: dict[str, Expr] = field(default_factory=dict)  # states with a `next` of their own: folded along a tree


def derive(layer: model.Model) -> recurrence.Recurrence:
    """One step of the layer: each state's next value, and each output, over its values before the token."""
    token = Token()
    leaves = {s.name: ops.var(s.name, s.axes, s.dtype) for s in layer.states}
    token.current.update(leaves)
    for s in layer.states:
        token.meaning[leaves[s.name]] = leaves[s.name]
        token.meaning[ops.var(f"{s.name}@start", s.axes, s.dtype)] = leaves[s.name]
    for h in layer.hidden:
        token.meaning[hidden_leaf(h)] = _earlier(h, leaves)
    # A window ends in this token's value, so its meaning waits for the line that makes that value.
    for step in layer.steps:
        _settle_windows(layer.hidden, token)
        _take(step, token, {s.name: s for s in layer.states})
    _settle_windows(layer.hidden, token)
    states = (*(_declared(s, token, layer) for s in layer.states), *(_hidden(h, token, layer) for h in _in_order(layer.hidden)))
    return recurrence.Recurrence(
        layer.name, layer.doc, layer.sizes, layer.values, layer.inputs, layer.params, states, tuple(token.outputs), tuple(token.folds),
        tuple(token.lines), layer.span,
    )  # fmt: skip


def _in_order(hidden: Iterable[model.Hidden]) -> list[model.Hidden]:
    """Positions, windows, shifts, then values before a block."""
    order = ("position", "window", "shift", "start")
    return sorted(hidden, key=lambda h: order.index(h.kind))


def hidden_leaf(h: model.Hidden) -> Expr:
    """The leaf that the steps use for a hidden value."""
    return ops.var(h.name, h.axes, h.dtype)


def _earlier(h: model.Hidden, leaves: dict[str, Expr]) -> Expr:
    """What a hidden value is, over what the token starts with. A window's leaf is completed once its newest entry is known."""
    own = hidden_leaf(h)
    if h.kind == "start" and h.length is not None:
        assert h.state is not None
        first = ops.compare("eq", ops.modulo(ops.var("position"), ops.number(h.length)), ops.number(0))
        return ops.where(first, leaves[h.state], own)
    return own


def _settle_windows(hidden: Sequence[model.Hidden], token: Token) -> None:
    """Completes each window whose newest value has a meaning by now."""
    for h in hidden:
        own = hidden_leaf(h)
        if h.kind != "window" or token.meaning[own] is not own:
            continue
        assert h.value is not None and h.axis is not None
        if all(known(leaf, token, hidden) for leaf in _variables(h.value)):
            newest = _now(h.value, token)
            token.meaning[own] = ops.add(ops.shift(own, h.axis, -1), ops.place(_full(newest, h.axes[1:]), h.axis, -1))


def _variables(e: Expr) -> tuple[Expr, ...]:
    from seqc.ir.expr import variables

    return variables(e)


def known(leaf: Expr, token: Token, hidden: Sequence[model.Hidden]) -> bool:
    """Whether a leaf has its meaning at this line: inputs and params always, a let from its line on."""
    name = leaf.name
    if leaf in token.meaning:
        window = next((h for h in hidden if h.name == name and h.kind == "window"), None)
        return window is None or token.meaning[leaf] is not leaf
    return "@" not in name or not name.startswith("held@")


def _full(e: Expr, axes: tuple[str, ...]) -> Expr:
    return e if e.axes == axes else ops.broadcast(e, axes)


def _now(e: Expr, token: Token) -> Expr:
    (value,) = substitute((e,), token.meaning)
    return value


def _take(step: model.Step, token: Token, states: dict[str, model.State]) -> None:
    """One line: what it reads is what its leaves mean now; what it changes is what they mean below."""
    if isinstance(step, model.Let):
        value = _now(step.value, token)
        token.meaning[ops.var(step.name, step.value.axes, step.value.type.dtype)] = value
        token.lines.append(recurrence.Line(step.name, value, step.span))
    elif isinstance(step, model.Update):
        _set(token, states, [(step.state, _now(step.value, token))], step.span)
    elif isinstance(step, (model.Retain, model.Learn)):
        _set(token, states, [(u.state, _now(u.value, token)) for u in step.updates], step.span)
    elif isinstance(step, model.Append):
        made = [(n, ops.append(token.current[n], _now(e, token), str(states[n].growing))) for n, e in step.items]
        _set(token, states, made, step.span)
    elif isinstance(step, model.Fold):
        _fold(step, token, states)
    else:
        token.outputs.append(recurrence.Output(step.name, step.axes, _now(step.value, token), step.span))


def _set(token: Token, states: dict[str, model.State], values: Sequence[tuple[str, Expr]], span: Span) -> None:
    """All states of a statement change together."""
    for name, value in values:
        s = states[name]
        token.current[name] = value
        token.meaning[ops.var(name, s.axes, s.dtype)] = value
        token.lines.append(recurrence.Line(name, value, span))


def _fold(step: model.Fold, token: Token, states: dict[str, model.State]) -> None:
    """Left folds are plain updates; below a fold along a tree its state is a leaf of its own."""
    operand, value = _now(step.operand, token), _now(step.value, token)
    token.folds.append(recurrence.Fold(step.state, operand, step.order, step.span))
    if step.order != "tree":
        _set(token, states, [(step.state, value)], step.span)
        return
    s = states[step.state]
    token.after[step.state] = value
    _set(token, states, [(step.state, ops.var(f"{step.state}@next", s.axes, s.dtype))], step.span)


# --- States ----------------------------------------------------------------------------------------------------


def _declared(s: model.State, token: Token, layer: model.Model) -> recurrence.State:
    owned = s.memory is not None and s.name not in (s.memory,) and any(isinstance(x, model.Learn) and _owns(x, s.name) for x in layer.steps)
    role = "algorithm" if owned else "declared"
    next_ = token.after.get(s.name, token.current[s.name])
    return recurrence.State(s.name, s.axes, s.scope, s.dtype, s.init, next_, role, s.span, growing=s.growing)  # type: ignore[arg-type]


def _owns(step: model.Learn, name: str) -> bool:
    """Whether a state is one that the algorithm of a `learn` line keeps for a tensor: its name is the tensor's and its own."""
    return any(u.state == name for u in step.updates) and any(name.startswith(f"{u.state}.") for u in step.updates if u.state != name)


def _hidden(h: model.Hidden, token: Token, layer: model.Model) -> recurrence.State:
    own = hidden_leaf(h)
    init, every = ops.broadcast(ops.number(0), h.axes), None
    if h.kind == "position":
        next_ = ops.add(own, ops.number(1))
    elif h.kind == "start":
        source = next(s for s in layer.states if s.name == h.state)
        init, next_, every = source.init, token.meaning[own], h.length
    elif h.kind == "shift":
        assert h.value is not None
        next_ = _full(_now(h.value, token), h.axes)
    else:
        next_ = token.meaning[own]
    clock = recurrence.Clock(every)
    result = recurrence.State(h.name, h.axes, h.scope, h.dtype, init, next_, "hidden", layer.span, clock)
    return replace(result, integer=h.kind == "position")
