"""What every generated module shares: what is said about its sizes and inputs, and how its weights get their first values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HEADWISE = "Headwise"  # the class of `module.py` that maps inside each head
# Set on a weight: it has values that `reset_parameters` leaves alone. The mark that transformers sets on what it has loaded.
LOADED = "_is_hf_initialized"

# --- Weights -----------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    """A module with first values for its weights in `reset_parameters`.

    - `reset_parameters()` draws every weight anew, but for those marked as loaded. Of a sharded weight the first process draws all.
    - `materialize(device)` gives storage and first values to the weights on the meta device, and touches no other.
    """

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def materialize(self, device: torch.device | str) -> None:
        """Storage on the device, and first values, for every weight on the meta device. One that has values, loaded ones say, keeps them.

        Raises NotImplementedError for a sharded module of which a part has values.
        """
        bare = [(module, name, w) for module in self.modules() for name, w in module.named_parameters(recurse=False) if w.is_meta]
        held = [w for w in self.parameters() if not w.is_meta and not getattr(w, LOADED, False)]
        if not held and len(bare) == sum(1 for _ in self.parameters()):
            self.to_empty(device=torch.device(device))
        elif any(is_sharded(w) for _, _, w in bare):
            raise NotImplementedError("a part of a sharded module has values: give the rest theirs before it is sharded")
        else:
            for module, name, w in bare:
                setattr(module, name, nn.Parameter(torch.empty_like(w, device=device), requires_grad=w.requires_grad))
        for w in held:
            setattr(w, LOADED, True)
        try:
            self.reset_parameters()
        finally:
            for w in held:
                delattr(w, LOADED)


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is a DTensor, of which this process holds a part."""
    return hasattr(weight, "full_tensor")


def full(weight: Tensor) -> Tensor:
    """The weight as a plain tensor: a sharded one is gathered."""
    gather = getattr(weight, "full_tensor", lambda: weight)
    found: Tensor = gather()
    return found


def blank(layer: nn.Module) -> Tensor:
    """A plain tensor without entries, of the weights' type and device."""
    weight = next(layer.parameters())
    return torch.empty(0, dtype=weight.dtype, device=weight.device)


@torch.no_grad()
def give(weight: Tensor | None, value: Tensor | float) -> None:
    """First values for a weight, unless it is marked as loaded. Of a sharded one every process takes its part of the first process's."""
    if weight is None or getattr(weight, LOADED, False):
        return
    if isinstance(value, Tensor) and is_sharded(weight) and not weight.is_meta:
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = weight
        value = distribute_tensor(value.to(weight.dtype), sharded.device_mesh, sharded.placements)
    weight.copy_(value) if isinstance(value, Tensor) else weight.fill_(value)


# --- Sizes and inputs --------------------------------------------------------------------------------------------------


def check_sizes(optional: tuple[str, ...] = (), /, **sizes: object) -> None:
    """Raises TypeError for a size that is no whole number, ValueError for one below 1 (`depth`: below 0). An optional one may be None."""
    for name, n in sizes.items():
        lowest = 0 if name == "depth" else 1
        if n is None and name in optional:
            continue
        if not hasattr(n, "__index__") or isinstance(n, bool):
            raise TypeError(f"{name} is a whole number, {lowest} or more, not {n!r}")
        if n.__index__() < lowest:
            raise ValueError(f"{name} is {lowest} or more, not {n}")


def check_inputs(layer: nn.Module, cu_seqlens: Tensor | None, *inputs: tuple[str, Tensor, str, tuple[int, ...]]) -> None:
    """Raises TypeError and ValueError where an input is not of its declared shape.

    inputs: name, tensor, axes such as "B, T, model", and the lengths of the last of them; B, T and N are the same in all inputs.
    """
    found: dict[str, tuple[int, str]] = {}
    if cu_seqlens is not None:
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"cu_seqlens is {kind(cu_seqlens)}; a tensor [N + 1] of int32 or int64 is needed")
        if cu_seqlens.dim() != 1 or not cu_seqlens.shape[0]:
            raise ValueError(f"cu_seqlens has shape {list(cu_seqlens.shape)}; [N + 1] is needed: where N sequences end, after a 0")
        found = {"N": (cu_seqlens.shape[0] - 1, "`cu_seqlens`")}
    for name, x, text, lengths in inputs:
        axes = text.split(", ")
        lead = axes[: len(axes) - len(lengths)]
        shown = f"[{', '.join([*lead, *(f'{a} = {n}' if a != str(n) else a for a, n in zip(axes[len(lead) :], lengths, strict=True))])}]"
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"`{name}` is {kind(x)}; a floating-point tensor {shown} is needed")
        if x.dim() != len(axes) or any(a != b for a, b in zip(x.shape[len(lead) :], lengths, strict=True)):
            raise ValueError(f"`{name}` has shape {list(x.shape)}; {shown} is needed")
        for axis, n in zip(lead, x.shape, strict=False):
            if axis == "B" and cu_seqlens is not None and n != 1:
                raise ValueError(f"`{name}` has B = {n}; packed sequences stand in one row: {shown} with B = 1 is needed")
            counted = "N" if axis == "B" and cu_seqlens is None else axis  # each row is a sequence
            other, owner = found.setdefault(counted, (n, f"`{name}`"))
            if other != n:
                raise ValueError(f"`{name}` has {axis} = {n}, but {owner} has {other}")
    check_dtype(layer, *inputs[0][:2])


def check_dtype(layer: nn.Module, name: str, x: Tensor) -> None:
    """Raises TypeError where an input is of another type than the layer's first linear map, and autocast does not make them one."""
    maps: Any = (m for m in layer.modules() if type(m) is nn.Linear or type(m).__name__ == HEADWISE)
    weight = next((m.weight for m in maps), None)
    if weight is None or weight.dtype == x.dtype or is_sharded(weight) or torch.is_autocast_enabled(x.device.type):
        return
    raise TypeError(f"`{name}` is {x.dtype}, but the weights are {weight.dtype}: convert one of them, or use torch.autocast")


def kind(x: object) -> str:
    """What a wrong argument is."""
    return str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"
