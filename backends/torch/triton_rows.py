"""Whole sequences for Triton kernels: which chunks there are, and what kernels give for rows without tokens.

Kernels read what the caller gives as it lies, in its own type, and find their row by counting or in a table that is made on the device:
nothing here waits for the device, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .runtime import Newton
from .sequence import Report, double_backward
from .signature import Kernels, Signature, boundaries, output_dtype, sizes_of

__all__ = ["backward", "double_backward", "forward", "in_place", "kept_count", "kept_shapes"]


@dataclass(frozen=True)
class Rows:
    """The sequences of a call. count: how many; places: chunks (or tokens) in all, most: of one row, each at least.

    tokens: of an even row. shape: [B, T] of what has tokens. dtype: of factors of matrix products, 16 bits if an input of vectors has
    them; result: of outputs. Of uneven rows table: starts, first places, origins, the row of each place; length: tokens of each row.
    """

    table: Tensor
    even: bool
    count: int
    places: int
    most: int
    tokens: int
    shape: tuple[int, int]
    dtype: torch.dtype
    result: torch.dtype
    device: torch.device
    length: Tensor | None = None

    def solver(self) -> Newton:
        """Raises RuntimeError inside a CUDA graph: how often an iteration is repeated is not known before."""
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a form that iterates cannot be captured in a CUDA graph; the form `recurrent` can")
        return Newton()

    def largest(self, x: Tensor) -> Tensor:
        """The largest number of each row and head of x [places, heads, ...]."""
        most = x.abs().flatten(2).amax(2)
        if self.length is None:
            even: Tensor = most.unflatten(0, (self.count, -1))
            return even.amax(1)
        row = self.table[-self.places :]
        found: Tensor = most.new_zeros((self.count + 1, most.shape[1])).scatter_reduce_(0, row[:, None].expand_as(most), most, "amax")
        return found[:-1]


def kept_count(kernels: Kernels, signature: Signature) -> int:
    """How many tensors a forward keeps for its backward, each as one row of numbers; without any, the backward runs its kernels."""
    return 0 if kernels.keeping is None else kernels.keeping.count


def kept_shapes(kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> list[Tensor]:
    """Tensors like those that are kept, not filled. Reads no number of cu_seqlens."""
    if kernels.keeping is None:
        return []
    rows = _even(signature, tensors, sizes_of(signature, tensors, cu_seqlens))
    if cu_seqlens is not None or signature.blocks:
        rows = replace(rows, places=_places(signature, rows, cu_seqlens is not None))
    return [x.flatten() for x in kernels.keeping.shapes(*tensors, rows)]


def _even(signature: Signature, tensors: tuple[Tensor, ...], sizes: dict[str, int]) -> Rows:
    """Rows of equal lengths that begin with a chunk."""
    n, T, device = sizes["@N"], sizes["@T"], tensors[0].device
    short = [x.dtype for v, x in zip(signature.inputs, tensors, strict=False) if v.axes and x.element_size() == 2]
    most, table = -(-T // (signature.chunk or 1)), torch.empty(0, dtype=torch.int64, device=device)
    result = output_dtype(signature, tensors)
    return Rows(table, True, n, n * most, most, T, (sizes["@B"], T), (*short, torch.float32)[0], result, device)


def _places(signature: Signature, even: Rows, packed: bool) -> int:
    """Places for rows of any lengths: each row's last chunk may be partly filled, and its first one where a block begins before it."""
    chunk = signature.chunk or 1
    padded = even.count * (1 + signature.blocks) if chunk > 1 else 0
    return even.tokens // chunk + padded if packed else even.count * (even.most + 1)


def rows_of(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None, sizes: dict[str, int]) -> Rows:
    """Raises ValueError where cu_seqlens are not increasing to the number of tokens (on a GPU an assertion of the device)."""
    even = _even(signature, tensors, sizes)
    n, T, chunk, device = even.count, even.tokens, signature.chunk or 1, even.device
    if cu_seqlens is None and not signature.blocks:
        return even
    if cu_seqlens is None:
        start = torch.arange(n + 1, device=device) * T
    else:
        _check(cu_seqlens, T)
        start = cu_seqlens.long()
    length = start.diff()
    before = torch.zeros_like(length)
    if signature.blocks:
        at = next(i for i, v in enumerate(signature.arguments) if v.name == "position" and v.whole)
        before = tensors[at].detach().round().long() % chunk
    counts = torch.where(length > 0, (length + before + chunk - 1) // chunk, 0)
    first = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    places = _places(signature, even, cu_seqlens is not None)
    row = torch.searchsorted(first[1:], torch.arange(places, device=device), right=True)
    table = torch.cat((start, first, start[:-1] - before, row))
    return replace(even, table=table, even=False, places=places, most=places, length=length)


def _call(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> tuple[dict[str, int], Rows]:
    """The lengths of a call's axes, and its rows. Calls alike share them; where rows have other lengths, those are numbers of the call."""
    if cu_seqlens is not None or signature.blocks:
        sizes = sizes_of(signature, tensors, cu_seqlens)
        return sizes, rows_of(signature, tensors, cu_seqlens, sizes)
    key = id(signature), tensors[0].device, *[x.shape for x in tensors], *[x.dtype for x in tensors]
    known = CALLS.get(key)  # once: another thread may clear them
    if known is None:
        if len(CALLS) >= MOST:
            CALLS.clear()
        sizes = sizes_of(signature, tensors, cu_seqlens)
        known = CALLS[key] = sizes, rows_of(signature, tensors, cu_seqlens, sizes), signature
    return known[:2]


MOST = 1000  # calls with even rows that are known
CALLS = dict[Any, tuple[dict[str, int], Rows, Signature]]()  # a signature lives as long as its id stands here


def _check(cu_seqlens: Tensor, tokens: int) -> None:
    if not cu_seqlens.is_cuda:
        boundaries(cu_seqlens, tokens)
        return
    right = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == tokens) & (cu_seqlens.diff() >= 0).all()
    torch._assert_async(right, f"cu_seqlens must increase from 0 to {tokens}")


def forward(
    kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Report]:
    """Outputs [B, T, H, ...], last states [N, H, ...], and what is kept, each as one row of numbers."""
    (sizes, rows), k = _call(signature, tensors, cu_seqlens), len(signature.outputs)
    states = tensors[len(tensors) - len(signature.states) :]
    if not rows.places:
        outputs = [tensors[0].new_empty([sizes[a] for a in v.names], dtype=rows.result) for v in signature.outputs]
        return outputs, [s.float().clone() for s in states], kept_shapes(kernels, signature, tensors, cu_seqlens), Report()
    if kernels.keeping is not None:
        found, m = kernels.keeping.forward(*tensors, rows), k + len(states)
        return list(found[:k]), _handed(rows, states, list(found[k:m])), [x.flatten() for x in found[m:]], Report()
    report = Report()
    results, rows = _computed(kernels, "forward", rows, _without(signature, tensors, cu_seqlens, sizes), tensors, (), report)
    return results[:k], _handed(rows, states, results[k:]), [], report


def in_place(kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs of a few tokens; the states are overwritten with the last ones, by the kernel that reads them where one does."""
    _, rows = _call(signature, tensors, None)
    states = tensors[len(tensors) - len(signature.states) :]
    return list(kernels.forward(*tensors, rows, states))[: len(signature.outputs)]


def backward(
    kernels: Kernels, signature: Signature, tensors: tuple[Tensor, ...], seeds: tuple[Tensor, ...], kept: tuple[Tensor, ...],
    cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """The adjoints of all arguments, given those of the outputs and last states."""
    (sizes, rows), m = _call(signature, tensors, cu_seqlens), len(signature.states)
    given = len(tensors) - m
    last = seeds[len(signature.outputs) :]
    if not rows.places:
        return [*(torch.zeros_like(x) for x in tensors[:given]), *(d.float().clone() for d in last)]
    grads, rows = _computed(kernels, "backward", rows, _without(signature, tensors, cu_seqlens, sizes), tensors, (*seeds, *kept))
    return [*grads[:given], *_handed(rows, last, grads[given:])]


def _without(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None, sizes: dict[str, int]) -> Callable[[], Rows]:
    return lambda: rows_of(replace(signature, chunk=0), tensors, cu_seqlens, sizes)


def _computed(
    kernels: Kernels, which: str, rows: Rows, without: Callable[[], Rows], tensors: tuple[Tensor, ...], seeds: tuple[Tensor, ...],
    report: Report | None = None,
) -> tuple[list[Tensor], Rows]:  # fmt: skip
    """What the kernels give; where they iterate and do not come to an end, what those of the form without chunks give."""
    results = list(getattr(kernels, which)(*tensors, rows, *seeds))
    if kernels.instead is None:
        return results, rows
    solver = results.pop()
    if report is not None:
        report.add(solver)
    if not solver.failed:
        return results, rows
    rows = without()
    return list(getattr(kernels.instead, which)(*tensors, rows, *seeds)), rows


def _handed(rows: Rows, given: Any, made: list[Tensor]) -> list[Tensor]:
    """A row without tokens hands its state on as it is, and the adjoint of it."""
    if rows.length is None:
        return made
    return [torch.where((rows.length == 0).view(-1, *[1] * (y.dim() - 1)), x.to(y.dtype), y) for x, y in zip(given, made, strict=True)]
