"""Model -> Recurrence: the steps substituted one after the other, until everything is in terms of the start of the token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from seqc.ir import model, ops, recurrence
from seqc.ir.expr import Expr, substitute, variables
from seqc.source import Span


@dataclass
class Token:
    """What every leaf of the steps stands for at the line at hand, and what has been made so far."""

    meaning: dict[Expr, Expr] = field(default_factory=dict)
    current: dict[str, Expr] = field(default_factory=dict)  # states: their value at this line
    outputs: list[recurrence.Output] = field(default_factory=list)
    folds: list[recurrence.Fold] = field(default_factory=list)
    operators: dict[Expr, Expr] = field(default_factory=dict)  # folded states and operands, as the folds below see them
    entered: set[str] = field(default_factory=set)  # states, and the lets that a state enters
    lines: list[recurrence.Line] = field(default_factory=list)
    after: dict[str, Expr] = field(default_factory=dict)  # states with a `next` of their own: folded along a tree
    windows: list[model.Hidden] = field(default_factory=list)  # those whose newest value has no meaning yet


def derive(layer: model.Model) -> recurrence.Recurrence:
    """One step of the layer: each state's next value, and each output, over its values before the token."""
    token = Token()
    leaves = {s.name: ops.var(s.name, s.axes, s.dtype) for s in layer.states}
    token.current.update(leaves)
    for s in layer.states:
        before = ops.var(f"{s.name}@start", s.axes, s.dtype)
        token.meaning |= dict.fromkeys((leaves[s.name], before), leaves[s.name])
        token.operators[before] = leaves[s.name]
        token.entered |= {s.name, before.name}
    for h in layer.hidden:
        token.meaning[hidden_leaf(h)] = _earlier(h, leaves)
    token.windows = [h for h in layer.hidden if h.kind == "window"]
    later = {s.name for s in layer.steps if isinstance(s, model.Let)} | {h.name for h in token.windows}
    for step in layer.steps:
        _settle_windows(token, later)
        _take(step, token, {s.name: s for s in layer.states})
        if isinstance(step, model.Let):
            later.discard(step.name)
    _settle_windows(token, later)
    states = (*(_declared(s, token, layer) for s in layer.states), *(_hidden(h, token, layer) for h in _in_order(layer.hidden)))
    found = recurrence.Recurrence(
        layer.name, layer.doc, layer.sizes, layer.values, layer.inputs, layer.params, states, tuple(token.outputs), tuple(token.folds),
        tuple(token.lines), layer.span,
    )  # fmt: skip
    return _numbered(found)


def _numbered(rec: recurrence.Recurrence) -> recurrence.Recurrence:
    """A size that is compiled in is a number: no tensor need show it."""
    table = {ops.size(name): ops.number(n) for name, n in rec.values}

    def of(e: Expr) -> Expr:
        return substitute((e,), table)[0]

    return replace(
        rec,
        states=tuple(replace(s, init=of(s.init), next=of(s.next)) for s in rec.states),
        outputs=tuple(replace(o, value=of(o.value)) for o in rec.outputs),
        folds=tuple(replace(f, operand=of(f.operand), operator=of(f.operator)) for f in rec.folds),
        lines=tuple(replace(line, value=of(line.value)) for line in rec.lines),
    )


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


def _settle_windows(token: Token, later: set[str]) -> None:
    """Gives each window its meaning once its newest value has one: `later` are the leaves that have none yet."""
    for h in list(token.windows):
        assert h.value is not None and h.axis is not None
        if any(leaf.name in later for leaf in variables(h.value)):
            continue
        own, newest = hidden_leaf(h), _full(_now(h.value, token), h.axes[1:])
        token.meaning[own] = ops.add(ops.shift(own, h.axis, -1), ops.place(newest, h.axis, -1))
        token.windows.remove(h)
        later.discard(h.name)


def _full(e: Expr, axes: tuple[str, ...]) -> Expr:
    return e if e.axes == axes else ops.broadcast(e, axes)


def _now(e: Expr, token: Token) -> Expr:
    (value,) = substitute((e,), token.meaning)
    return value


def _take(step: model.Step, token: Token, states: dict[str, model.State]) -> None:
    """One line: what it reads is what its leaves mean now; what it changes is what they mean below."""
    if isinstance(step, model.Let):
        value, leaf = _now(step.value, token), ops.var(step.name, step.value.axes, step.value.type.dtype)
        token.meaning[leaf] = value
        if token.entered & {v.name for v in variables(step.value)}:
            token.entered.add(step.name)
            (token.operators[leaf],) = substitute((step.value,), token.operators)
        if "@" not in step.name:
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
    s, value = states[step.state], _now(step.value, token)
    own = ops.var(f"{s.name}@operand", step.operand.axes, step.operand.type.dtype)
    (operator,) = substitute((step.value,), {**token.operators, step.operand: own})
    lets = (v for v in variables(operator) if v in token.meaning and v.name not in token.entered)
    (operator,) = substitute((operator,), {v: token.meaning[v] for v in lets})
    token.folds.append(recurrence.Fold(step.state, _now(step.operand, token), own, operator, step.order, step.span))
    token.operators |= {ops.var(s.name, s.axes, s.dtype): operator, step.operand: token.operators.get(step.operand, own)}
    if step.order != "tree":
        _set(token, states, [(step.state, value)], step.span)
        return
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


def _expressions(step: model.Step) -> tuple[Expr, ...]:
    """What a line computes."""
    if isinstance(step, (model.Let, model.Update, model.Output)):
        return (step.value,)
    if isinstance(step, (model.Retain, model.Learn)):
        return tuple(u.value for u in step.updates)
    if isinstance(step, model.Append):
        return tuple(e for _, e in step.items)
    return step.operand, step.value


def _mentions(e: Expr | None, name: str) -> bool:
    return e is not None and any(leaf.name == name for leaf in variables(e))


def _needed_at(h: model.Hidden, layer: model.Model) -> Span:
    """The first line that needs a hidden value, itself or for another hidden value."""
    for step in layer.steps:
        if any(_mentions(e, h.name) for e in _expressions(step)):
            return step.span
    for other in layer.hidden:
        counts = h.kind == "position" and other.kind == "start" and other.length is not None
        if other is not h and (counts or _mentions(other.value, h.name)):
            return _needed_at(other, layer)
    return layer.span


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
    result = recurrence.State(h.name, h.axes, h.scope, h.dtype, init, next_, "hidden", _needed_at(h, layer), clock)
    return replace(result, integer=h.kind == "position")
