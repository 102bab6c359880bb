"""Real-time recurrent learning: how the states change with the weights goes forward with the tokens, and nothing is kept of earlier calls.

Every entry of a state changes alone here. The derivative of the last states by anything that feeds one entry each, the results of the
linear maps and a copy of the params for each sequence, is then the operator's adjoint of ones. A sensitivity has the shape of its weight,
for each sequence, and a call adds the earlier ones times the derivative of the last state by the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = dict[str, Any]
Pattern = tuple[int | None, ...]


class Plan(NamedTuple):
    """maps: linear maps that feed states, by path. params: those of the operator in its order, and which axis of a state each of their axes
    is; None where it feeds no state. inputs: how many the operator has. states: which of its states have a gradient."""

    maps: tuple[str, ...]
    params: tuple[tuple[str, Pattern | None], ...]
    inputs: int
    states: tuple[int, ...]


def real_time(
    layer: nn.Module, plan: Plan, op: Callable[..., Any], state: State, cu_seqlens: Tensor | None,
    tokens: Callable[[Callable[..., Any], State], tuple[Tensor, State]],
) -> tuple[Tensor, State]:  # fmt: skip
    """The layer's result and next state, for `tokens(op, state)`: its gradients reach the weights through all earlier calls.

    Without gradients, no sensitivities are handed on: what comes later starts from that state as given.
    """
    if cu_seqlens is not None:
        raise ValueError("with rtrl=True each row is one sequence: cu_seqlens is not taken")
    past = state.get("rtrl")
    state = {name: _detached(x) for name, x in state.items() if name != "rtrl"}
    call = _Call(layer, plan, op)
    if not torch.is_grad_enabled() or not call.weights:
        return tokens(op, state)
    if past is not None:
        state["op"] = call.attached(state["op"], past)
    handles = [layer.get_submodule(m).register_forward_hook(call.taken(m)) for m in plan.maps]
    try:
        y, new = tokens(call, state)
    finally:
        for h in handles:
            h.remove()
    new = {name: _detached(x) for name, x in new.items()}
    new["rtrl"] = call.sensitivities(past)
    return y, new


def _detached(x: Any) -> Any:
    return tuple(map(_detached, x)) if isinstance(x, tuple) else x.detach() if isinstance(x, Tensor) else x


class _Call:
    """One call of a layer: its operator with sequences as heads, so that each has params of its own, and what went through its maps."""

    def __init__(self, layer: nn.Module, plan: Plan, op: Callable[..., Any]) -> None:
        self.plan, self.op = plan, op
        self.weights: dict[str, nn.Parameter] = {}
        self.place: dict[str, Callable[[Tensor], Tensor]] = {}
        for m in plan.maps:
            shared = 1 if layer.get_submodule(m).weight.dim() == 2 else 2  # type: ignore[operator]
            for name, w in layer.get_submodule(m).named_parameters():
                self.weights[f"{m}.{name}"] = w
                self.place[f"{m}.{name}"] = _of_map(shared, name == "weight")
        for name, pattern in plan.params:
            if pattern is not None:
                self.weights[name] = layer.get_parameter(name)
                self.place[name] = _of_param(pattern)
        self.weights = {n: w for n, w in self.weights.items() if w.requires_grad}
        self.through: dict[str, tuple[Tensor, Tensor]] = {}

    def attached(self, states: Any, past: dict[str, tuple[Tensor, ...]]) -> Any:
        """First states that hand their gradients on to the weights."""
        whole = list(states) if isinstance(states, tuple) else [states]
        moved = [whole[i] for i in self.plan.states]
        known = [n for n in self.weights if n in past]
        apply: Callable[..., tuple[Tensor, ...]] = _Attached.apply
        found = apply([(self.place[n], past[n]) for n in known], len(moved), *moved, *(self.weights[n] for n in known))
        for i, x in zip(self.plan.states, found, strict=True):
            whole[i] = x
        return tuple(whole) if isinstance(states, tuple) else whole[0]

    def taken(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            self.through[name] = (args[0], result)

        return hook

    def __call__(self, *args: Tensor, initial_state: Any = None, **options: Any) -> tuple[Any, Any]:
        n = self.plan.inputs
        batch, heads = args[0].shape[0], args[0].shape[2]
        inputs = [x.transpose(0, 1).flatten(1, 2)[None] for x in args[:n]]
        self.params = [p.expand(batch, *p.shape).flatten(0, 1) for p in args[n:]]
        states = initial_state if isinstance(initial_state, tuple) or initial_state is None else (initial_state,)
        self.first = None if states is None else tuple(s.flatten(0, 1)[None] for s in states)
        given = self.first if self.first is None or len(self.first) > 1 else self.first[0]
        out, last = self.op(*inputs, *self.params, initial_state=given, **options)
        self.last = last if isinstance(last, tuple) else (last,)
        self.lead = (batch, heads)
        results = [o[0].unflatten(1, self.lead).transpose(0, 1) for o in (out if isinstance(out, tuple) else (out,))]
        ends = tuple(s[0].unflatten(0, self.lead) for s in self.last)
        return tuple(results) if len(results) > 1 else results[0], ends if isinstance(last, tuple) else ends[0]

    def sensitivities(self, past: dict[str, tuple[Tensor, ...]] | None) -> dict[str, tuple[Tensor, ...]]:
        """For every weight, the derivative of each last state by it: [sequences, *its shape]."""
        first = [self.first[i] for i in self.plan.states] if self.first is not None and past is not None else []
        used = [(name, p) for (name, _), p in zip(self.plan.params, self.params, strict=True) if name in self.weights]
        wrt = [*first, *(a for _, a in self.through.values()), *(p for _, p in used)]
        wrt = [x if x.requires_grad else x.detach().requires_grad_() for x in wrt]  # of frozen weights: a zero
        found: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        for i in self.plan.states:
            slopes = torch.autograd.grad(self.last[i].sum(), wrt, retain_graph=True, allow_unused=True, materialize_grads=True)
            by_first = [d[0].unflatten(0, self.lead) for d in slopes[: len(first)]]
            by_map = dict(zip(self.through, slopes[len(first) :], strict=False))
            by_param = dict(zip((n for n, _ in used), slopes[len(first) + len(self.through) :], strict=True))
            for name in self.weights:
                new = by_param[name].unflatten(0, self.lead) if name in by_param else self._of_tokens(name, by_map)
                for d, before in zip(by_first, (past or {}).get(name, ()), strict=False):
                    new = new + self.place[name](d) * before
                found[name].append(new.detach())
        return {name: tuple(x) for name, x in found.items()}

    def _of_tokens(self, name: str, slopes: dict[str, Tensor]) -> Tensor:
        """By a map's weight or bias, from what the last state owes to its results at the tokens of this call."""
        path, kind = name.rsplit(".", 1)
        d, z = slopes[path], self.through[path][0]
        return torch.einsum("bt...o,bt...i->b...oi", d, z.to(d.dtype)) if kind == "weight" else d.sum(1)


class _Attached(torch.autograd.Function):
    """The states as they are; their gradients times the sensitivities are the weights'."""

    @staticmethod
    def forward(ctx: Any, known: Any, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.known, ctx.n, ctx.dtypes = known, n, [w.dtype for w in tensors[n:]]
        return tuple(s.clone() for s in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        shares = [sum((place(x) * s).sum(0) for x, s in zip(d, past, strict=True)) for place, past in ctx.known]
        return None, None, *[None] * ctx.n, *(s.to(t) for s, t in zip(shares, ctx.dtypes, strict=True))


def _of_map(shared: int, weight: bool) -> Callable[[Tensor], Tensor]:
    """A value for each entry of a state [B, H, ...] beside a map's weight or bias; the rows of a map are the entries."""
    return lambda d: d.flatten(shared)[..., None] if weight else d.flatten(shared)


def _of_param(pattern: Pattern) -> Callable[[Tensor], Tensor]:
    """The same beside a param, whose axes are those of the state in some order, and others."""
    kept = [2 + a for a in pattern if a is not None]
    index = (slice(None), slice(None), *(None if a is None else slice(None) for a in pattern))
    return lambda d: d.permute(0, 1, *kept)[index]
