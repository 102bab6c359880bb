"""What is said of arguments that no operator takes."""

from __future__ import annotations

import torch
from torch import Tensor

from .signature import Signature

Tensors = tuple[Tensor, ...]
Domain = tuple[float, float, bool]  # lowest, highest, whether vectors have norm 1 at most


def check_tensors(signature: Signature, inputs: Tensors, params: Tensors, cu_seqlens: Tensor | None) -> None:
    """Raises TypeError where an argument is no tensor (a list of numbers, say) or one of a kind that has no plain entries, ValueError
    where devices differ."""
    first, *_ = values = (*signature.inputs, *signature.params)
    given = (*inputs, *params)
    for v, x in zip(values, given, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"`{v.name}` is {kind(x)}; a floating-point tensor is needed")
        check_kind(f"`{v.name}`", x)
        if x.device != given[0].device:
            raise ValueError(f"`{v.name}` is on {x.device}, but `{first.name}` is on {given[0].device}")
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens is {kind(cu_seqlens)}; a tensor [N + 1] of int32 or int64 is needed")
    check_kind("cu_seqlens", cu_seqlens)
    if cu_seqlens.device != given[0].device and cu_seqlens.device.type != "cpu":
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, but `{first.name}` is on {given[0].device}")


def check_kind(name: str, x: Tensor) -> None:
    """Raises TypeError where a tensor is sparse or nested, or has numbers of 8 bits, with which PyTorch does not compute."""
    if x.layout is not torch.strided or x.is_nested:
        layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.").removeprefix("_")
        raise TypeError(f"{name} has the layout {layout}; a strided tensor is needed")
    if x.is_floating_point() and x.element_size() < 2:
        raise TypeError(f"{name} is {x.dtype}; numbers of 16 bits or more are needed")


def kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"


def check_domains(signature: Signature, inputs: Tensors, domains: dict[str, Domain]) -> None:
    """Raises ValueError where an input lies outside the closure of its declared domain."""
    for v, x in zip(signature.inputs, inputs, strict=True):
        low, high, unit = domains[v.name]
        if not torch.isfinite(x).all():
            raise ValueError(f"`{v.name}` holds a value that is not finite")
        if bool((x < low).any()) or bool((x > high).any()):
            raise ValueError(f"`{v.name}` is declared in [{low}, {high}] and reaches from {x.min().item():.6g} to {x.max().item():.6g}")
        if unit and bool((x.float().norm(dim=-1) > 1 + 1e-3).any()):
            raise ValueError(f"`{v.name}` is declared `unit` and has a norm of {x.float().norm(dim=-1).max().item():.6g}")
