"""States that change entry by entry: an entry of the next state sees the same entry of the states, and nothing beside it.

Their Jacobian is diagonal, or one small block per entry where several states see each other. An adjoint of ones then holds the
derivative of every entry, since no two of them share what they are derived by; real-time recurrent learning stands on that.
"""

from __future__ import annotations

from collections.abc import Iterable

from seqc.analysis.chain import Refusal
from seqc.ir import rules
from seqc.ir.expr import variables, walk
from seqc.ir.recurrence import Recurrence, State

# Ops whose result has at each entry what their arguments have there. A product that keeps the axes of the states is one too.
POINTWISE = (rules.same, rules.elementwise, rules.real, rules.boolean, rules.where, rules.widen, rules.keep)


def local_states(rec: Recurrence, inputs: Iterable[str]) -> tuple[State, ...]:
    """The states, if each entry changes alone with the states, the params and the named inputs. Raises Refusal if one does not."""
    states = tuple(s for s in rec.states if not s.integer)
    if not states:
        raise Refusal("it has no state with a gradient")
    for s in states:
        _plain(rec, s, states[0])
    watched = {s.name for s in states} | {p.name for p in rec.params} | set(inputs)
    for s in states:
        _pointwise(s, s.axes, watched)
    return states


def _plain(rec: Recurrence, s: State, first: State) -> None:
    if s.role == "stabiliser" or s.stabiliser is not None:
        raise Refusal(f"`{s.name}` is kept in units of e^m", s.next)
    if s.dtype != "real" or s.growing is not None or s.clock.every is not None:
        raise Refusal(f"`{s.name}` is no plain state", s.next)
    if s.scope != "head" or any(i.scope != "head" for i in rec.inputs) or any(p.scope != "head" for p in rec.params):
        raise Refusal("heads share values", s.next)
    if s.axes != first.axes:
        raise Refusal(f"`{first.name}` and `{s.name}` have unlike axes, so an entry of one sees many of the other", s.next)
    if {v.name for v in variables(s.init)} & {p.name for p in rec.params}:
        raise Refusal(f"`{s.name}` starts from a param", s.next)
    if {v.name for v in variables(s.next)} & {"head", "heads"}:
        raise Refusal(f"`{s.name}` changes by the head's number", s.next)


def _pointwise(s: State, axes: tuple[str, ...], watched: set[str]) -> None:
    """Every node between a watched leaf and the next state keeps the state's axes, entry by entry."""
    sees: dict[int, str] = {}
    for node in walk(s.next):
        if node.op.name == "var":
            if node.name not in watched:
                continue
            sees[id(node)] = node.name
        found = next((sees[id(a)] for a in node.args if id(a) in sees), sees.get(id(node)))
        if found is None:
            continue
        sees[id(node)] = found
        missing = [a for a in axes if a not in node.axes]
        if node.op.name == "var" and missing:
            raise Refusal(f"`{found}` is shared by the entries of `{s.name}` along `{missing[0]}`", node)
        if missing or (node.args and node.op.infer not in POINTWISE):
            raise Refusal(f"an entry of `{s.name}` sees other entries of `{found}`, so the Jacobian is dense", node)

