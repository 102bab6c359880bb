"""Whether a layer learns in real time: which linear maps and params its states owe anything to, and why it does not where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from seqc.analysis.chain import Refusal
from seqc.analysis.local import local_states
from seqc.frontend import intervals
from seqc.frontend.project_types import Owner, Project, Value, walk
from seqc.ir.expr import variables
from seqc.ir.model import Model
from seqc.ir.recurrence import Recurrence

ELEMENTWISE = (*intervals.ELEMENTWISE, *intervals.COMBINED, "where", "lerp", "compare", "neg")
MAPS = ("linear", "headwise")
WEIGHTED = (*MAPS, "conv", "rmsnorm", "layernorm", "groupnorm")


@dataclass(frozen=True)
class Learning:
    """What `rtrl.Plan` says, as names."""

    maps: tuple[Owner, ...]
    params: tuple[tuple[str, tuple[int | None, ...] | None], ...]
    inputs: int
    states: tuple[int, ...]


def learning(model: Model, project: Project, rec: Recurrence) -> Learning | str:
    """The maps and params that reach the states, or why the layer cannot learn in real time."""
    try:
        return _learning(model, project, rec)
    except Refusal as r:
        return r.reason


def _learning(model: Model, project: Project, rec: Recurrence) -> Learning:
    section = _Section(project)
    felt = {v.name for s in rec.states for v in variables(s.next)}
    made = {a.name: a for a in project.assigns if a.role == "input"}
    names = [i.name for i in model.inputs if i.name in felt or any(f.startswith(f"{i.name}.") for f in felt)]
    weighted = [n for n in names if section.weighted(made[n].value)]
    states = local_states(rec, weighted)
    axes, owners = states[0].axes, {o.name: o for o in project.owners}
    maps = dict.fromkeys(f for n in weighted for f in section.maps(made[n].value, n, ("heads", *axes)))
    params = []
    for p in rec.params:
        feeds = p.name in felt
        params.append((p.name, tuple(axes.index(a) if a in axes else None for a in p.axes) if feeds else None))
    at = tuple(i for i, s in enumerate(rec.states) if not s.integer)
    return Learning(tuple(owners[m] for m in maps), tuple(params), len(rec.inputs), at)


@dataclass(frozen=True)
class _Section:
    project: Project

    def named(self, v: Value) -> Value | None:
        """What a name stands for, if a line of the section makes it."""
        return next((a.value for a in self.project.assigns if v.op == "name" and a.name == v.attr[0]), None)

    def weighted(self, value: Value) -> bool:
        """Whether weights enter a value."""
        params = {p.name for p in self.project.params}
        for v in walk(value):
            made = self.named(v)
            if v.op in WEIGHTED or (v.op == "name" and v.attr[0] in params) or (made is not None and self.weighted(made)):
                return True
        return False

    def maps(self, v: Value, target: str, axes: tuple[str, ...]) -> Iterator[str]:
        """The maps whose results a value is made of, entry by entry. Raises Refusal where it is made otherwise."""
        if not self.weighted(v):
            return
        if v.op == "name":
            made = self.named(v)
            if made is None:
                raise Refusal(f"`{v.attr[0]}` of the project section feeds a state; write it as a param of the layer")
            yield from self.maps(made, str(v.attr[0]), axes)
            return
        if v.axes != axes:
            raise Refusal(f"`{target}` has weights that feed many entries of a state at once")
        if v.op in MAPS and not any(self.weighted(a) for a in v.args):
            yield f"{target}.{v.attr[0]}"
        elif v.op in MAPS:
            raise Refusal(f"`{target}` is a map of a map: one entry of the first feeds many of a state")
        elif v.op in ELEMENTWISE:
            for a in v.args:
                yield from self.maps(a, target, axes)
        else:
            raise Refusal(f"`{target}` goes through `{v.op}`, which is not entry by entry at one token")
