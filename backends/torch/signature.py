"""What kernels take and give, the sizes that tensors show, and the types that numbers have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """A tensor of the interface: its name, its leading axes (BTH, BTG, BT, NH, H, G or none) and the axes of the text."""

    name: str
    lead: str
    axes: tuple[str, ...] = ()
    repeat: bool = False  # behind the end stands the last token again, not zero: what is defined for it is defined there
    positive: bool = False  # declared above zero: kept off zero by FLOOR, so that its logarithm exists
    whole: bool = False  # whole numbers: handed over as int64
    names: tuple[str, ...] = field(init=False, repr=False)  # all axes; the leading ones with a mark that no text can spell

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", (*(f"@{a}" for a in self.lead), *self.axes))


@dataclass(frozen=True)
class Signature:
    """What one form's kernels take and give, in order. chunk: tokens per chunk, 0 for a form without chunks.

    blocks: chunks are blocks of the text: a sequence begins in its first chunk where the state `position` says, behind padding.
    sizes: the numbers that the kernels were compiled for, as (axis, number). written: the kernels write out states at every token.
    """

    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    states: tuple[Value, ...]
    outputs: tuple[Value, ...]
    chunk: int
    sizes: tuple[tuple[str, int], ...] = ()
    written: bool = False
    blocks: bool = False
    arguments: tuple[Value, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", (*self.inputs, *self.params, *self.states))


@dataclass(frozen=True)
class Keeping:
    """A forward that gives `count` tensors behind its results, which the backward takes behind the adjoints. shapes makes them unfilled."""

    forward: Callable[..., tuple[Any, ...]]
    shapes: Callable[..., tuple[Any, ...]]
    count: int


@dataclass(frozen=True)
class Kernels:
    """forward(arguments, valid) -> outputs, last states; backward(arguments, valid, their adjoints) -> adjoints of the arguments;
    double_backward is backward's own backward.

    instead: the kernels of a form without chunks, for slabs where these, which iterate, do not come to an end. Such kernels return the
    account of their iteration behind their results. keeping: the forward before a backward that takes more than adjoints.
    """

    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., tuple[Any, ...]]
    double_backward: Callable[..., tuple[Any, ...]]
    instead: Kernels | None = None
    keeping: Keeping | None = None


def sizes_of(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> dict[str, int]:
    """The length of every axis. Raises ValueError where two tensors disagree or a tensor has other axes than declared."""
    return _sizes(signature, signature.arguments, tensors, cu_seqlens)


def _sizes(signature: Signature, values: tuple[Value, ...], tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> dict[str, int]:
    sizes: dict[str, int] = dict(signature.sizes)
    for value, x in zip(values, tensors, strict=True):
        if x.dim() != len(value.names):
            raise ValueError(f"`{value.name}` has shape {list(x.shape)}; it is declared as [{', '.join(value.names).replace('@', '')}]")
        if not x.is_floating_point():
            raise TypeError(f"`{value.name}` is {x.dtype}; a floating-point tensor is needed")
        for axis, n in zip(value.names, x.shape):  # noqa: B905  # of one length
            if sizes.setdefault(axis, n) != n:
                owner = _owner(signature, values, axis)
                raise ValueError(f"`{value.name}` has {axis.strip('@')} = {n}, but {owner} has {axis.strip('@')} = {sizes[axis]}")
    sizes.setdefault("@H", sizes.get("@G", 1))
    sizes.setdefault("@G", sizes["@H"])
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0):
        raise ValueError("cu_seqlens is a vector of the N + 1 ends of N sequences")
    rows = sizes["@B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if sizes.setdefault("@N", rows) != rows:
        raise ValueError(f"{rows} sequences, but {_owner(signature, values, '@N')} has N = {sizes['@N']}")
    if cu_seqlens is not None and sizes["@B"] != 1:
        raise ValueError(f"packed sequences stand in one row: B must be 1, not {sizes['@B']}")
    if sizes["@G"] == 0 or sizes["@H"] % sizes["@G"]:
        raise ValueError(f"{sizes['@H']} heads are no multiple of {sizes['@G']} groups")
    return sizes


def partial_sizes(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> dict[str, int]:
    """The sizes from inputs and params alone."""
    return _sizes(signature, (*signature.inputs, *signature.params), tensors, cu_seqlens)


def _owner(signature: Signature, values: tuple[Value, ...], axis: str) -> str:
    """What has an axis first."""
    return "the compiled size" if axis in dict(signature.sizes) else next(f"`{v.name}`" for v in values if axis in v.names)


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
