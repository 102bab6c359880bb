"""From whole sequences to kernels over slabs: shapes, packed rows, and the walks forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

FLOOR = 1e-30  # a decay given as a number: smaller ones forget as much
ROWS = 64  # batch x heads x chunks of one slab: what stays in a processor's cache
WRITTEN = 2**18  # numbers of a state that is written out at every token of a slab


@dataclass(frozen=True)
class Value:
    """A tensor of the interface: its name, its leading axes (BTH, BTG, BT, NH, H, G or none) and the axes of the text."""

    name: str
    lead: str
    axes: tuple[str, ...] = ()
    repeat: bool = False  # behind the end stands the last token again, not zero: what is defined for it is defined there
    positive: bool = False  # declared above zero: kept off zero by FLOOR, so that its logarithm exists
    whole: bool = False  # whole numbers: handed over as int64

    @property
    def names(self) -> tuple[str, ...]:
        """All axes; the leading ones with a mark that no text can spell."""
        return (*(f"@{a}" for a in self.lead), *self.axes)


@dataclass(frozen=True)
class Signature:
    """What one form's kernels take and give, in order. chunk: tokens per chunk, 0 for a form without chunks.

    sizes: the numbers that the kernels were compiled for, as (axis, number). written: the kernels write out states at every token.
    """

    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    states: tuple[Value, ...]
    outputs: tuple[Value, ...]
    chunk: int
    sizes: tuple[tuple[str, int], ...] = ()
    written: bool = False

    @property
    def arguments(self) -> tuple[Value, ...]:
        return (*self.inputs, *self.params, *self.states)


@dataclass(frozen=True)
class Kernels:
    """forward(arguments, valid) -> outputs, last states; backward(arguments, valid, their adjoints) -> adjoints of the arguments;
    double_backward is backward's own backward."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    double_backward: Callable[..., tuple[Tensor, ...]]


# --- Shapes ------------------------------------------------------------------------------------------------------


def sizes_of(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> dict[str, int]:
    """The length of every axis. Raises ValueError where two tensors disagree or a tensor has other axes than declared."""
    sizes: dict[str, int] = dict(signature.sizes)
    owner = dict.fromkeys(sizes, "the compiled size")
    for value, x in zip(signature.arguments, tensors, strict=True):
        names = value.names
        if x.dim() != len(names):
            raise ValueError(f"`{value.name}` has shape {list(x.shape)}; it is declared as [{', '.join(names).replace('@', '')}]")
        if not x.is_floating_point():
            raise TypeError(f"`{value.name}` is {x.dtype}; a floating-point tensor is needed")
        for axis, n in zip(names, x.shape, strict=True):
            if sizes.setdefault(axis, n) != n:
                raise ValueError(f"`{value.name}` has {axis.strip('@')} = {n}, but {owner[axis]} has {axis.strip('@')} = {sizes[axis]}")
            owner.setdefault(axis, f"`{value.name}`")
    sizes.setdefault("@H", sizes.get("@G", 1))
    sizes.setdefault("@G", sizes["@H"])
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0):
        raise ValueError("cu_seqlens is a vector of the N + 1 ends of N sequences")
    rows = sizes["@B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if sizes.setdefault("@N", rows) != rows:
        raise ValueError(f"{rows} sequences, but {owner['@N']} has N = {sizes['@N']}")
    if cu_seqlens is not None and sizes["@B"] != 1:
        raise ValueError(f"packed sequences stand in one row: B must be 1, not {sizes['@B']}")
    if sizes["@G"] == 0 or sizes["@H"] % sizes["@G"]:
        raise ValueError(f"{sizes['@H']} heads are no multiple of {sizes['@G']} groups")
    return sizes


def partial_sizes(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> dict[str, int]:
    """The sizes from inputs and params alone."""
    return sizes_of(replace(signature, states=()), tensors, cu_seqlens)


def boundaries(cu_seqlens: Tensor, tokens: int) -> list[int]:
    """The packed rows' ends as numbers. Raises ValueError if they are not increasing from 0 to the number of tokens."""
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError("cu_seqlens is a vector of int32 or int64")
    ends = cu_seqlens.tolist()
    if not ends or ends[0] != 0 or ends[-1] != tokens or any(a > b for a, b in pairwise(ends)):
        raise ValueError(f"cu_seqlens must increase from 0 to {tokens}; it is {ends[:8]}{'...' if len(ends) > 8 else ''}")
    return ends


def compute_dtype(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """float64 if any argument is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def output_dtype(signature: Signature, tensors: tuple[Tensor, ...]) -> torch.dtype:
    """The widest type among the inputs given at every token that have axes of their own."""
    given = [x.dtype for v, x in zip(signature.inputs, tensors, strict=False) if "T" in v.lead and v.axes]
    given = given or [x.dtype for x in tensors[: len(signature.inputs)]] or [torch.float32]
    dtype = given[0]
    for other in given[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def shape(value: Value, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[a] for a in value.names)


def slab_tokens(signature: Signature, sizes: dict[str, int]) -> int:
    """Tokens that a kernel takes at once."""
    rows = ROWS
    if signature.written:
        numbers = sum(prod([sizes[a] for a in v.axes]) for v in signature.states)  # torch.compile follows no generator into prod
        rows = max(1, WRITTEN // max(1, signature.chunk * numbers))
    chunks = max(1, rows // max(1, sizes["@B"] * sizes["@H"]))
    return signature.chunk * chunks if signature.chunk else ROWS


def kept_states(signature: Signature, sizes: dict[str, int], packed: bool) -> int:
    """States kept for the backward, at the start of each slab but the first; of one slab a row of zeros, as an exported length is not 0."""
    return 0 if packed or sizes["@T"] <= 1 else torch.sym_max(1, -(-sizes["@T"] // slab_tokens(signature, sizes)) - 1)


# --- Slabs ---------------------------------------------------------------------------------------------------------


def _load(value: Value, x: Tensor, start: int, stop: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """Tokens start to stop as a kernel wants them: [tokens, B, H, ...], or [chunks, B, H, tokens, ...], padded to whole chunks."""
    if "T" not in value.lead:
        return x.to(dtype)
    x = x[:, start:stop]
    if chunk and (rest := -(stop - start) % chunk):
        behind = x[:, -1:] if value.repeat else x.new_zeros((x.shape[0], 1, *x.shape[2:]))
        x = torch.cat((x, behind.expand(-1, rest, *x.shape[2:])), 1)
    if chunk:
        x = x.unflatten(1, (-1, chunk))
    x = x.transpose(0, 1)
    if chunk and value.lead != "BT":
        x = x.transpose(2, 3)
    x = x.to(dtype)
    return (x.clamp(min=FLOOR) if value.positive else x).contiguous()


def _store(value: Value, y: Tensor, out: Tensor, start: int, stop: int, chunk: int) -> None:
    if chunk and value.lead != "BT":
        y = y.transpose(2, 3)
    y = y.transpose(0, 1)
    out = out[:, start:stop]
    if chunk and (stop - start) % chunk:
        y = y.flatten(1, 2)[:, : stop - start]
    elif chunk:
        out = out.unflatten(1, (-1, chunk))
    out.copy_(y)


def _valid(length: Tensor | None, rows: int, start: int, stop: int, chunk: int, like: Tensor) -> Tensor:
    """1 for tokens, 0 behind the end of the sequence: [tokens, B] or [chunks, B, tokens]."""
    n = stop - start
    padded = n + (-n % chunk if chunk else 0)
    if length is None and padded == n:
        return like.new_ones((n // chunk, rows, chunk) if chunk else (n, rows))
    position = torch.arange(start, start + padded, device=like.device)
    end = torch.full((rows,), stop, device=like.device) if length is None else length.clamp(max=stop)
    valid = (position < end[:, None]).to(like.dtype)
    return (valid.unflatten(1, (-1, chunk)) if chunk else valid).transpose(0, 1)


def _walk(T: int, slab: int) -> list[tuple[int, int]]:
    return [(start, min(start + slab, T)) for start in range(0, T, slab)]


def _forward_rows(
    kernels: Kernels, signature: Signature, tensors: list[Tensor], sizes: dict[str, int], length: Tensor | None, keep: bool
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Sequences of one batch: outputs, last states, and the states at the start of every slab but the first."""
    n = len(signature.inputs)
    inputs, params, states = tensors[:n], tensors[n : len(tensors) - len(signature.states)], tensors[len(tensors) - len(signature.states) :]
    dtype = compute_dtype(tuple(tensors))
    params, states = [p.to(dtype) for p in params], [s.to(dtype) for s in states]
    outputs = [inputs[0].new_empty(shape(v, sizes), dtype=dtype) for v in signature.outputs]
    kept: list[list[Tensor]] = []
    for start, stop in _walk(sizes["@T"], slab_tokens(signature, sizes)):
        if keep and start:
            kept.append(states)
        parts = [_load(v, x, start, stop, signature.chunk, dtype) for v, x in zip(signature.inputs, inputs, strict=True)]
        valid = _valid(length, sizes["@B"], start, stop, signature.chunk, outputs[0])
        results = kernels.forward(*parts, *params, *states, valid)
        for v, y, out in zip(signature.outputs, results, outputs, strict=False):
            _store(v, y, out, start, stop, signature.chunk)
        states = list(results[len(outputs) :])
    return outputs, states, kept


def _backward_rows(
    kernels: Kernels, signature: Signature, tensors: list[Tensor], d_outputs: list[Tensor], d_states: list[Tensor],
    kept: list[list[Tensor]], sizes: dict[str, int], length: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """The adjoints of a batch's arguments, slab by slab from the end; each slab runs its forward again from its first state."""
    n, m = len(signature.inputs), len(signature.params)
    dtype = compute_dtype(tuple(tensors))
    params = [p.to(dtype) for p in tensors[n : n + m]]
    first = [s.to(dtype) for s in tensors[n + m :]]
    given = zip(signature.arguments, tensors[: n + m], strict=False)
    grads = [(torch.empty if "T" in v.lead else torch.zeros)(x.shape, dtype=dtype, device=x.device) for v, x in given]
    d_states = [d.to(dtype) for d in d_states]
    slabs = _walk(sizes["@T"], slab_tokens(signature, sizes))
    for (start, stop), states in zip(reversed(slabs), reversed([first, *kept]), strict=False):
        parts = [_load(v, x, start, stop, signature.chunk, dtype) for v, x in zip(signature.inputs, tensors[:n], strict=True)]
        seeds = [_load(v, d, start, stop, signature.chunk, dtype) for v, d in zip(signature.outputs, d_outputs, strict=True)]
        valid = _valid(length, sizes["@B"], start, stop, signature.chunk, grads[0])
        results = kernels.backward(*parts, *params, *states, valid, *seeds, *d_states)
        for v, y, out in zip(signature.arguments, results, grads, strict=False):
            if "T" in v.lead:
                _store(v, y, out, start, stop, signature.chunk)
            else:
                out += y
        d_states = list(results[n + m :])
    return grads + [d.contiguous() if slabs else d.clone(memory_format=torch.contiguous_format) for d in d_states]


# --- Packed sequences ------------------------------------------------------------------------------------------------


def _batches(ends: list[int]) -> list[list[int]]:
    """Rows of a packed sequence in batches of similar length, so that padding at most doubles the work."""
    found: dict[int, list[int]] = {}
    for row, (a, b) in enumerate(pairwise(ends)):
        if b > a:
            found.setdefault((b - a - 1).bit_length(), []).append(row)
    return [found[k] for k in sorted(found)]


def _gather(value: Value, x: Tensor, rows: list[int], ends: list[int]) -> Tensor:
    """A batch of rows, padded behind each one's end."""
    if value.lead.startswith("N"):
        return x[rows]
    if "T" not in value.lead:
        return x
    if value.repeat:
        longest = torch.arange(max(ends[r + 1] - ends[r] for r in rows), device=x.device)
        return x[0, torch.stack([ends[r] + longest.clamp(max=ends[r + 1] - ends[r] - 1) for r in rows])]
    return torch.nn.utils.rnn.pad_sequence([x[0, ends[r] : ends[r + 1]] for r in rows], batch_first=True)


def _scatter(value: Value, y: Tensor, out: Tensor, rows: list[int], ends: list[int]) -> None:
    if value.lead.startswith("N"):
        out[rows] = y
    elif "T" not in value.lead:
        out += y
    else:
        for i, r in enumerate(rows):
            out[0, ends[r] : ends[r + 1]] = y[i, : ends[r + 1] - ends[r]]


def _batch_sizes(sizes: dict[str, int], rows: list[int], ends: list[int]) -> tuple[dict[str, int], list[int]]:
    lengths = [ends[r + 1] - ends[r] for r in rows]
    return {**sizes, "@B": len(rows), "@N": len(rows), "@T": max(lengths)}, lengths


def forward(
    kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs [B, T, H, ...], last states [N, H, ...], and per state those at the start of later slabs, stacked."""
    sizes = sizes_of(signature, tensors, cu_seqlens)
    dtype = compute_dtype(tensors)
    states = tensors[len(tensors) - len(signature.states) :]
    if cu_seqlens is None:
        outputs, last, kept = _forward_rows(kernels, signature, list(tensors), sizes, None, True)
        none = (kept_states(signature, sizes, False),)
        stacked = [torch.stack([k[i] for k in kept]) if kept else s.new_zeros(none + s.shape, dtype=dtype) for i, s in enumerate(states)]
        return outputs, [(a.clone() if a is b else a).contiguous() for a, b in zip(last, states, strict=True)], stacked
    ends = boundaries(cu_seqlens, sizes["@T"])
    outputs = [tensors[0].new_zeros(shape(v, sizes), dtype=dtype) for v in signature.outputs]
    last = [s.to(dtype, copy=True, memory_format=torch.contiguous_format) for s in states]
    for rows in _batches(ends):
        few, lengths = _batch_sizes(sizes, rows, ends)
        part = [_gather(v, x, rows, ends) for v, x in zip(signature.arguments, tensors, strict=True)]
        ys, ss, _ = _forward_rows(kernels, signature, part, few, torch.tensor(lengths, device=tensors[0].device), False)
        for v, y, out in zip((*signature.outputs, *signature.states), (*ys, *ss), (*outputs, *last), strict=True):
            _scatter(v, y, out, rows, ends)
    return outputs, last, [s.new_zeros((0, *s.shape), dtype=dtype) for s in states]


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
    if cu_seqlens is None:
        later = len(_walk(sizes["@T"], slab_tokens(signature, sizes))[1:])
        starts = [list(x) for x in zip(*(s.unbind(0)[:later] for s in kept), strict=True)] if kept else []
        return _backward_rows(kernels, signature, list(tensors), list(seeds[:k]), list(seeds[k:]), starts, sizes, None)
    ends = boundaries(cu_seqlens, sizes["@T"])
    dtype = compute_dtype(tensors)
    grads = [torch.zeros(x.shape, dtype=dtype, device=x.device) for x in tensors]
    for g, d in zip(grads[len(grads) - len(signature.states) :], seeds[k:], strict=True):
        g.copy_(d)  # a row without tokens hands its state through
    for rows in _batches(ends):
        few, lengths = _batch_sizes(sizes, rows, ends)
        length = torch.tensor(lengths, device=tensors[0].device)
        part = [_gather(v, x, rows, ends) for v, x in zip(signature.arguments, tensors, strict=True)]
        more = [_gather(v, d, rows, ends) for v, d in zip((*signature.outputs, *signature.states), seeds, strict=True)]
        _, _, starts = _forward_rows(kernels, signature, part, few, length, True)
        found = _backward_rows(kernels, signature, part, more[:k], more[k:], starts, few, length)
        for v, y, out in zip(signature.arguments, found, grads, strict=True):
            _scatter(v, y, out, rows, ends)
    return grads


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
    values = (*tensors, *seeds)
    dtype = compute_dtype(tensors)
    grads = [torch.zeros(x.shape, dtype=dtype, device=x.device) for x in values]
    ends = [0, sizes["@T"]] if cu_seqlens is None else boundaries(cu_seqlens, sizes["@T"])
    batches = [list(range(sizes["@N"]))] if cu_seqlens is None else _batches(ends)
    adjoints = tuple(replace(v, repeat=False, positive=False) for v in signature.arguments)
    for rows in batches if sizes["@T"] else []:
        if cu_seqlens is None:
            few, length, part, more = sizes, None, list(values), list(seconds)
        else:
            few, lengths = _batch_sizes(sizes, rows, ends)
            length = torch.tensor(lengths, device=tensors[0].device)
            part = [_gather(v, x, rows, ends) for v, x in zip(given, values, strict=True)]
            more = [_gather(v, x, rows, ends) for v, x in zip(adjoints, seconds, strict=True)]
        T, chunk = few["@T"], signature.chunk
        load = [_load(v, x, 0, T, chunk, dtype) for v, x in zip(given, part, strict=True)]
        n = len(signature.arguments)
        valid = _valid(length, few["@B"], 0, T, chunk, grads[0])
        dd = [_load(v, x, 0, T, chunk, dtype) for v, x in zip(adjoints, more, strict=True)]
        found = kernels.double_backward(*load[:n], valid, *load[n:], *dd)
        for v, y, out in zip(given, found, grads, strict=True):
            if cu_seqlens is None:
                _store(v, y, out, 0, T, chunk) if "T" in v.lead else out.add_(y)
            else:
                if "T" in v.lead:
                    wide = y.new_empty((few["@B"], T, *out.shape[2:]))
                    _store(v, y, wide, 0, T, chunk)
                    y = wide
                _scatter(v, y, out, rows, ends)
    if cu_seqlens is not None or not sizes["@T"]:
        _hand_through(signature, grads, seconds, ends if sizes["@T"] else [0] * (sizes["@N"] + 1))
    return grads


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
            args.append(_load(v, x, start, stop, 0, dtype))
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
