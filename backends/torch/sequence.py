"""From whole sequences to kernels over slabs: shapes, packed rows, and the walks forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .packing import Span, packed_rows
from .signature import Kernels, Signature, Value, boundaries, compute_dtype, output_dtype, shape, sizes_of

FLOOR = 1e-30  # a decay given as a number: smaller ones forget as much
ROWS = 64  # batch x heads x chunks of one slab: what stays in a processor's cache
WRITTEN = 2**18  # numbers of a state that is written out at every token of a slab


class Report:
    """What became of the iterations of a call: the most iterations, the largest residual and error, and whether a slab fell back."""

    def __init__(self) -> None:
        self.numbers = [0.0, 0.0, 0.0, 0.0]

    def add(self, solver: Any) -> None:
        new = (solver.iterations, solver.residual, solver.error, solver.failed)
        self.numbers = [float(b) if b != b else max(a, float(b)) for a, b in zip(self.numbers, new, strict=True)]


def computed(
    kernels: Kernels, which: str, chunk: int, arguments: Callable[[int], list[Tensor]], report: Report | None = None
) -> tuple[list[Tensor], int]:
    """A slab's results and how they lie: in chunks of that many tokens, or along tokens (0) where the form without chunks was taken.

    arguments: what a kernel takes, by tokens per chunk.
    """
    results = list(getattr(kernels, which)(*arguments(chunk)))
    if kernels.instead is None:
        return results, chunk
    solver = results.pop()
    if report is not None:
        report.add(solver)
    return (list(getattr(kernels.instead, which)(*arguments(0))), 0) if solver.failed else (results, chunk)


def later(package: str, module: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function of a module that is imported when the function is first called."""
    return partial(called, partial(import_module, f"{package}.{module}"), name)


def called(home: Callable[[], ModuleType], name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """home: gives the module that has the function."""
    found: tuple[Tensor, ...] = getattr(home(), name)(*tensors)
    return found


def slab_tokens(signature: Signature, sizes: dict[str, int]) -> int:
    """Tokens that a kernel takes at once."""
    rows = ROWS
    if signature.written:
        numbers = sum(prod([sizes[a] for a in v.axes]) for v in signature.states)  # torch.compile follows no generator into prod
        rows = max(1, WRITTEN // max(1, signature.chunk * numbers))
    chunks = max(1, rows // max(1, sizes["@B"] * sizes["@H"]))
    return signature.chunk * chunks if signature.chunk else ROWS


def kept_count(kernels: Kernels, signature: Signature) -> int:
    """How many tensors a forward keeps for its backward: those of every state at the start of slabs, each as one row of numbers."""
    return len(signature.states)


def kept_shapes(kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> list[Tensor]:
    """Tensors like those that are kept, not filled."""
    sizes = sizes_of(signature, tensors, cu_seqlens)
    rows, dtype = kept_states(signature, sizes, cu_seqlens is not None), compute_dtype(tensors)
    return [tensors[0].new_empty(rows * prod(shape(v, sizes)), dtype=dtype) for v in signature.states]


def kept_states(signature: Signature, sizes: dict[str, int], packed: bool) -> int:
    """States kept for the backward, at the start of each slab but the first; of one slab a row of zeros, as an exported length is not 0."""
    return 0 if packed or sizes["@T"] <= 1 else torch.sym_max(1, -(-sizes["@T"] // slab_tokens(signature, sizes)) - 1)


# --- Slabs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Laid:
    """A tensor, and the view of it that slabs are slices of: [tokens, B, H, ...], or its whole chunks as [chunks, B, H, tokens, ...]."""

    value: Value
    tensor: Tensor
    chunk: int
    view: Tensor


def _lay(value: Value, x: Tensor, chunk: int) -> Laid:
    if "T" not in value.lead:
        return Laid(value, x, chunk, x)
    view = x
    if chunk:
        view = x.narrow(1, 0, x.shape[1] // chunk * chunk).unflatten(1, (x.shape[1] // chunk, chunk))
    view = view.transpose(0, 1)
    return Laid(value, x, chunk, view.transpose(2, 3) if chunk and value.lead != "BT" else view)


def _slab(laid: Laid, start: int, stop: int) -> Tensor:
    """A view of tokens start to stop, which are whole chunks."""
    step = laid.chunk or 1
    return laid.view.narrow(0, start // step, (stop - start) // step)


def _load(laid: Laid, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Tokens start to stop as a kernel wants them, padded to whole chunks."""
    value, x = laid.value, laid.tensor
    if "T" not in value.lead:
        return x.to(dtype)
    if laid.chunk and (rest := -(stop - start) % laid.chunk):
        x = x[:, start:stop]
        behind = x[:, -1:] if value.repeat else x.new_zeros((x.shape[0], 1, *x.shape[2:]))
        x = _lay(value, torch.cat((x, behind.expand(-1, rest, *x.shape[2:])), 1), laid.chunk).view
    else:
        x = _slab(laid, start, stop)
    x = x.to(dtype)
    return (x.clamp(min=FLOOR) if value.positive else x).contiguous()


def _store(y: Tensor, out: Laid, start: int, stop: int) -> None:
    """Writes a slab's result to its tokens."""
    if out.chunk and (stop - start) % out.chunk:
        y = y if out.value.lead == "BT" else y.transpose(2, 3)
        out.tensor[:, start:stop].copy_(y.transpose(0, 1).flatten(1, 2)[:, : stop - start])
    else:
        _slab(out, start, stop).copy_(y)


def _laid(values: tuple[Value, ...], tensors: list[Tensor]) -> Callable[[int], list[Laid]]:
    """The tensors as slabs are taken of them, by tokens per chunk."""
    return cache(lambda chunk: [_lay(v, x, chunk) for v, x in zip(values, tensors, strict=True)])


def _valid(span: Span | None, rows: int, start: int, stop: int, chunk: int, like: Tensor) -> Tensor:
    """1 for tokens, 0 before the first and behind the last of the sequence: [tokens, B] or [chunks, B, tokens]."""
    n = stop - start
    padded = n + (-n % chunk if chunk else 0)
    if span is None and padded == n:
        return like.new_ones((n // chunk, rows, chunk) if chunk else (n, rows))
    position = torch.arange(start, start + padded, device=like.device)
    if span is None:
        valid = (position < stop).expand(rows, -1).to(like.dtype)
    else:
        begin, end = span
        valid = ((position >= begin[:, None]) & (position < end.clamp(max=stop)[:, None])).to(like.dtype)
    return (valid.unflatten(1, (-1, chunk)) if chunk else valid).transpose(0, 1)


def _walk(T: int, slab: int) -> list[tuple[int, int]]:
    return [(start, min(start + slab, T)) for start in range(0, T, slab)]


def _forward_rows(
    kernels: Kernels, signature: Signature, tensors: list[Tensor], sizes: dict[str, int], span: Span | None, keep: bool, report: Report
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Sequences of one batch: outputs, last states, and the states at the start of every slab but the first."""
    n = len(signature.inputs)
    inputs, params, states = tensors[:n], tensors[n : len(tensors) - len(signature.states)], tensors[len(tensors) - len(signature.states) :]
    dtype = compute_dtype(tuple(tensors))
    params, states = [p.to(dtype) for p in params], [s.to(dtype) for s in states]
    outputs = [inputs[0].new_empty(shape(v, sizes), dtype=dtype) for v in signature.outputs]
    given, results_of = _laid(signature.inputs, inputs), _laid(signature.outputs, outputs)
    kept: list[list[Tensor]] = []
    for start, stop in _walk(sizes["@T"], slab_tokens(signature, sizes)):
        if keep and start:
            kept.append(states)

        def arguments(chunk: int, start: int = start, stop: int = stop, states: list[Tensor] = states) -> list[Tensor]:
            parts = [_load(x, start, stop, dtype) for x in given(chunk)]
            return [*parts, *params, *states, _valid(span, sizes["@B"], start, stop, chunk, outputs[0])]

        results, chunk = computed(kernels, "forward", signature.chunk, arguments, report)
        for y, out in zip(results, results_of(chunk), strict=False):
            _store(y, out, start, stop)
        states = results[len(outputs) :]
    return outputs, states, kept


def _backward_rows(
    kernels: Kernels, signature: Signature, tensors: list[Tensor], d_outputs: list[Tensor], d_states: list[Tensor],
    kept: list[list[Tensor]], sizes: dict[str, int], span: Span | None,
) -> list[Tensor]:  # fmt: skip
    """The adjoints of a batch's arguments, slab by slab from the end; each slab runs its forward again from its first state."""
    n, m = len(signature.inputs), len(signature.params)
    dtype = compute_dtype(tuple(tensors))
    params = [p.to(dtype) for p in tensors[n : n + m]]
    first = [s.to(dtype) for s in tensors[n + m :]]
    each = list(zip(signature.arguments[: n + m], tensors[: n + m], strict=True))
    grads = [(torch.empty if "T" in v.lead else torch.zeros)(x.shape, dtype=dtype, device=x.device) for v, x in each]
    given, adjoints = _laid(signature.inputs, tensors[:n]), _laid(signature.outputs, d_outputs)
    results_of = _laid(signature.arguments[: n + m], grads)
    seeds_of_states, d_states = tuple(d_states), [d.to(dtype) for d in d_states]
    slabs = _walk(sizes["@T"], slab_tokens(signature, sizes))
    for (start, stop), states in zip(reversed(slabs), reversed([first, *kept]), strict=False):

        def arguments(
            chunk: int, start: int = start, stop: int = stop, states: list[Tensor] = states, d_states: list[Tensor] = d_states
        ) -> list[Tensor]:
            parts = [_load(x, start, stop, dtype) for x in given(chunk)]
            seeds = [_load(d, start, stop, dtype) for d in adjoints(chunk)]
            return [*parts, *params, *states, _valid(span, sizes["@B"], start, stop, chunk, grads[0]), *seeds, *d_states]

        results, chunk = computed(kernels, "backward", signature.chunk, arguments)
        for y, out in zip(results, results_of(chunk), strict=False):
            if "T" in out.value.lead:
                _store(y, out, start, stop)
            else:
                out.tensor.add_(y)
        d_states = results[n + m :]
    return grads + _apart(d_states, seeds_of_states)


# --- Whole sequences -------------------------------------------------------------------------------------------------


def _apart(last: list[Tensor], first: tuple[Tensor, ...]) -> list[Tensor]:
    """Last states (or adjoints of first ones), contiguous, none of which is a given one or another: an operator's results are its own."""
    found, taken = [], {x.untyped_storage().data_ptr() for x in first}
    for x in last:
        y = (x.clone() if x.untyped_storage().data_ptr() in taken else x).contiguous()
        taken.add(y.untyped_storage().data_ptr())
        found.append(y)
    return found


def _packed(values: tuple[Value, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The rows of a batch behind each other in one."""
    return [x.flatten(0, 1)[None] if "T" in v.lead else x for v, x in zip(values, tensors, strict=True)]


def _unpacked(values: tuple[Value, ...], tensors: list[Tensor], sizes: dict[str, int]) -> list[Tensor]:
    return [x[0].unflatten(0, (sizes["@B"], sizes["@T"])) if "T" in v.lead else x for v, x in zip(values, tensors, strict=True)]


def forward(
    kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Report]:
    """Outputs [B, T, H, ...], last states [N, H, ...], per state those at the start of later slabs, and how iterations went."""
    report = Report()
    sizes = sizes_of(signature, tensors, cu_seqlens)
    dtype = compute_dtype(tensors)
    states = tensors[len(tensors) - len(signature.states) :]
    rows_of = packed_rows(signature, tensors, cu_seqlens, sizes)
    none = kept_states(signature, sizes, cu_seqlens is not None)
    if rows_of is None:
        outputs, last, kept = _forward_rows(kernels, signature, list(tensors), sizes, None, True, report)
        starts = [torch.stack([k[i] for k in kept]) if kept else s.new_zeros((none, *s.shape), dtype=dtype) for i, s in enumerate(states)]
        return outputs, _apart(last, states), [x.flatten() for x in starts], report
    given = list(tensors) if cu_seqlens is not None else _packed(signature.arguments, tensors)
    wide = sizes if cu_seqlens is not None else {**sizes, "@B": 1, "@T": sizes["@B"] * sizes["@T"]}
    outputs = [tensors[0].new_zeros(shape(v, wide), dtype=dtype) for v in signature.outputs]
    last = [s.to(dtype, copy=True, memory_format=torch.contiguous_format) for s in states]
    for rows in rows_of.batches():
        part = [rows_of.gather(v, x, rows) for v, x in zip(signature.arguments, given, strict=True)]
        span = rows_of.span(rows, tensors[0].device)
        ys, ss, _ = _forward_rows(kernels, signature, part, rows_of.sizes(sizes, rows), span, False, report)
        for v, y, out in zip((*signature.outputs, *signature.states), (*ys, *ss), (*outputs, *last), strict=True):
            rows_of.scatter(v, y, out, rows)
    if cu_seqlens is None:
        outputs = _unpacked(signature.outputs, outputs, sizes)
    return outputs, last, [s.new_zeros(none * s.numel(), dtype=dtype) for s in states], report


def backward(
    kernels: Kernels,
    signature: Signature,
    tensors: tuple[Tensor, ...],
    seeds: tuple[Tensor, ...],
    kept: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """The adjoints of all arguments, given those of the outputs and last states."""
    sizes = sizes_of(signature, tensors, cu_seqlens)
    k = len(signature.outputs)
    rows_of = packed_rows(signature, tensors, cu_seqlens, sizes)
    if rows_of is None:
        later = len(_walk(sizes["@T"], slab_tokens(signature, sizes))[1:])
        states = tensors[len(tensors) - len(signature.states) :]
        stacked = [x.view(kept_states(signature, sizes, packed=False), *s.shape) for x, s in zip(kept, states, strict=True)]
        starts = [list(x) for x in zip(*(s.unbind(0)[:later] for s in stacked), strict=True)] if kept else []
        return _backward_rows(kernels, signature, list(tensors), list(seeds[:k]), list(seeds[k:]), starts, sizes, None)
    results = (*signature.outputs, *signature.states)
    given, adjoints = list(tensors), list(seeds)
    if cu_seqlens is None:
        given, adjoints = _packed(signature.arguments, tensors), _packed(results, seeds)
    dtype = compute_dtype(tensors)
    grads = [torch.zeros(x.shape, dtype=dtype, device=x.device) for x in given]
    for g, d in zip(grads[len(grads) - len(signature.states) :], seeds[k:], strict=True):
        g.copy_(d)  # a row without tokens hands its state through
    for rows in rows_of.batches():
        few, span = rows_of.sizes(sizes, rows), rows_of.span(rows, tensors[0].device)
        part = [rows_of.gather(v, x, rows) for v, x in zip(signature.arguments, given, strict=True)]
        more = [rows_of.gather(v, d, rows) for v, d in zip(results, adjoints, strict=True)]
        _, _, starts = _forward_rows(kernels, signature, part, few, span, True, Report())
        found = _backward_rows(kernels, signature, part, more[:k], more[k:], starts, few, span)
        for v, y, out in zip(signature.arguments, found, grads, strict=True):
            rows_of.scatter(v, y, out, rows)
    return grads if cu_seqlens is not None else _unpacked(signature.arguments, grads, sizes)


def in_place(kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs of a few tokens; the states are overwritten with the last ones."""
    outputs, last, _, _ = forward(kernels, signature, tensors, None)
    for s, new in zip(tensors[len(tensors) - len(last) :], last, strict=True):
        s.copy_(new)
    return outputs


def double_backward(
    kernels: Kernels,
    signature: Signature,
    tensors: tuple[Tensor, ...],
    seeds: tuple[Tensor, ...],
    seconds: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """The adjoints of arguments and seeds, given those of `backward`'s results. The whole sequence is one slab."""
    sizes = sizes_of(signature, tensors, cu_seqlens)
    given = (*signature.arguments, *signature.outputs, *signature.states)
    adjoints = tuple(replace(v, repeat=False, positive=False) for v in signature.arguments)
    rows_of = packed_rows(signature, tensors, cu_seqlens, sizes)
    values, seconds_ = [*tensors, *seeds], list(seconds)
    if rows_of is not None and cu_seqlens is None:
        values, seconds_ = _packed(given, (*tensors, *seeds)), _packed(signature.arguments, seconds)
    dtype = compute_dtype(tensors)
    grads = [torch.zeros(x.shape, dtype=dtype, device=x.device) for x in values]
    batches = [list(range(sizes["@N"]))] if rows_of is None else rows_of.batches()
    for rows in batches if sizes["@T"] else []:
        few, span, part, more = sizes, None, values, seconds_
        if rows_of is not None:
            few, span = rows_of.sizes(sizes, rows), rows_of.span(rows, tensors[0].device)
            part = [rows_of.gather(v, x, rows) for v, x in zip(given, values, strict=True)]
            more = [rows_of.gather(v, x, rows) for v, x in zip(adjoints, seconds_, strict=True)]
        T = few["@T"]

        def arguments(
            chunk: int, few: dict[str, int] = few, span: Span | None = span, part: list[Tensor] = part, more: list[Tensor] = more
        ) -> list[Tensor]:
            load = [_load(x, 0, few["@T"], dtype) for x in _laid(given, part)(chunk)]
            dd = [_load(x, 0, few["@T"], dtype) for x in _laid(adjoints, more)(chunk)]
            n = len(signature.arguments)
            return [*load[:n], _valid(span, few["@B"], 0, few["@T"], chunk, grads[0]), *load[n:], *dd]

        found, chunk = computed(kernels, "double_backward", signature.chunk, arguments)
        for v, y, out in zip(given, found, grads, strict=True):
            if rows_of is None:
                _store(y, _lay(v, out, chunk), 0, T) if "T" in v.lead else out.add_(y)
            else:
                if "T" in v.lead:
                    wide = y.new_empty((few["@B"], T, *out.shape[2:]))
                    _store(y, _lay(v, wide, chunk), 0, T)
                    y = wide
                rows_of.scatter(v, y, out, rows)
    if rows_of is not None or not sizes["@T"]:
        _hand_through(signature, grads, seconds, rows_of.ends if rows_of is not None and sizes["@T"] else [0] * (sizes["@N"] + 1))
    return grads if rows_of is None or cu_seqlens is not None else _unpacked(given, grads, sizes)


def _hand_through(signature: Signature, grads: list[Tensor], seconds: tuple[Tensor, ...], ends: list[int]) -> None:
    """A sequence without tokens hands the adjoint of its last state on to its first: so does the adjoint of that."""
    empty = [r for r, (a, b) in enumerate(pairwise(ends)) if a == b]
    for g, d in zip(grads[len(grads) - len(signature.states) :], seconds[len(seconds) - len(signature.states) :], strict=True):
        g[empty] = d[empty].to(g.dtype)


def reference(
    steps: Callable[..., tuple[Tensor, ...]], signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    """Outputs and last states by the token loop, sequence by sequence; differentiable by autograd."""
    sizes = sizes_of(signature, tensors, cu_seqlens)
    ends = [0, sizes["@T"]] if cu_seqlens is None else boundaries(cu_seqlens, sizes["@T"])
    dtype, parts = compute_dtype(tensors), []
    for row, (start, stop) in enumerate(pairwise(ends)):
        args = []
        for v, x in zip(signature.arguments, tensors, strict=True):
            if cu_seqlens is not None and v.lead.startswith("N"):
                x = x[row : row + 1]
            args.append(_load(_lay(v, x, 0), start, stop, dtype))
        few = sizes["@B"]
        if stop == start:
            states = args[len(args) - len(signature.states) :]
            empty = [tensors[0].new_zeros(shape(v, {**sizes, "@T": 0}), dtype=dtype) for v in signature.outputs]
            parts.append((*empty, *states))
            continue
        results = steps(*args, _valid(None, few, start, stop, 0, args[0]))
        k = len(signature.outputs)
        parts.append((*(y.transpose(0, 1) for y in results[:k]), *results[k:]))
    joined = [torch.cat(column, 1 if i < len(signature.outputs) else 0) for i, column in enumerate(zip(*parts, strict=True))]
    out = output_dtype(signature, tensors)
    return tuple(y.to(out) if i < len(signature.outputs) else y for i, y in enumerate(joined))
