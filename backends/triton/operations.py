"""The operations of PyTorch between kernels: which of them a GPU would launch, and what they move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATE = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_", "set_")  # nothing is launched
OVERWRITE = ("copy_", "fill_", "zero_")  # what they change is not read
OWN = (DispatchKey.CPU, DispatchKey.CompositeExplicitAutograd)  # where a registered operator's code is found


class Operations(TorchDispatchMode):
    """Notes the name and the bytes of every operation that would be a kernel, those inside registered operators among them."""

    def __init__(self, note: Callable[[str, int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        with self:  # a mode is off in its own rule, but what an operation is made of is to be noted, not the whole
            found = func.decompose(*args, **kwargs)
            if found is NotImplemented and func.namespace not in ("aten", "prim", "prims"):
                key = next(k for k in OWN if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), k))
                found = func._op_dk(key, *args, **kwargs)
        if found is NotImplemented:
            found = func(*args, **kwargs)
            if moved := bytes_moved(func._schema, args, kwargs, found):
                self.note(_name(func._schema), moved)
        return found


def bytes_moved(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> int:
    """What an operation reads and writes; 0 for a view, for memory that is only set aside, and for results without entries."""
    name, declared = _name(schema), schema.arguments
    given = {**{a.name: x for a, x in zip(declared, args, strict=False)}, **kwargs}
    changed, read = [], list[Tensor]()
    for a in declared:
        tensors = _tensors(given.get(a.name))
        if a.alias_info is not None and a.alias_info.is_write:
            changed += tensors
            tensors = [] if name in OVERWRITE or a.is_out else tensors
        read += tensors
    if name.startswith("new_") or name.endswith("_like"):
        read = []  # a pattern for a type and a shape
    held = {x.untyped_storage().data_ptr() for x in _tensors(given)}
    written = [*changed, *(x for x in _tensors(found) if x.untyped_storage().data_ptr() not in held)]
    if name in ALLOCATE or not sum(map(size, written)):
        return 0
    return distinct(read) + sum(map(size, written))


def distinct(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors, of those that begin at the same place the largest."""
    found: dict[int, int] = {}
    for x in tensors:
        found[x.data_ptr()] = max(size(x), found.get(x.data_ptr(), 0))
    return sum(found.values())


def size(x: Tensor) -> int:
    """The bytes of a tensor's entries; what is repeated along an axis counts once."""
    n = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        n *= length if stride or not length else 1
    return n


def _name(schema: Any) -> str:
    return str(schema.name.partition("::")[2])


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
