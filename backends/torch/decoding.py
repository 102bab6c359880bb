"""One token of each sequence, the states overwritten in place: what a server runs for every token that it generates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .signature import Kernels, Signature, compute_dtype, output_dtype, shape, sizes_of

Tensors = tuple[Tensor, ...]


def decoder(name: str, signature: Signature, kernels: Kernels, walks: Any) -> Any:
    """A torch operator of inputs [B, H, ...], params and states, which are overwritten, that gives the outputs [B, H, ...].

    walks: the module whose `in_place` takes one token to the kernels.
    """
    k = len(signature.outputs)
    values = signature.arguments
    first = len(values) - len(signature.states)
    names = [f"a{i}" for i in range(len(values))]
    marks = [f"Tensor(s{i}!)" if i >= first else "Tensor" for i in range(len(values))]
    schema = f"({', '.join(f'{m} {x}' for m, x in zip(marks, names, strict=True))}) -> ({', '.join(['Tensor'] * k)})"

    def run(*tensors: Tensor) -> Any:
        with torch.autocast(tensors[0].device.type, enabled=False):
            outputs = walks.in_place(kernels, signature, _at_one_token(signature, tensors))
        dtype = output_dtype(signature, tensors)
        found = tuple(y[:, 0].to(dtype) for y in outputs)
        return found if k > 1 else found[0]

    def fake(*tensors: Tensor) -> Any:
        sizes, dtype = sizes_of(signature, _at_one_token(signature, tensors), None), output_dtype(signature, tensors)
        found = tuple(tensors[0].new_empty(shape(v, sizes), dtype=dtype)[:, 0] for v in signature.outputs)
        return found if k > 1 else found[0]

    op = torch.library.custom_op(name, run, mutates_args=names[first:], schema=schema)
    op.register_fake(fake)
    return op


def _at_one_token(signature: Signature, tensors: Tensors) -> Tensors:
    return tuple(x[:, None] if "T" in v.lead else x for v, x in zip(signature.arguments, tensors, strict=True))


def checked(signature: Signature, inputs: Tensors, params: Tensors, given: Tensor | Tensors) -> Tensors:
    """The states. Raises ValueError where their number is another, TypeError where one is not contiguous or of another type than the
    kernels compute in, RuntimeError where a gradient would be lost."""
    states = (given,) if isinstance(given, Tensor) else tuple(given)
    if len(states) != len(signature.states):
        raise ValueError(f"state has {len(states)} tensors; the layer has {len(signature.states)} states")
    dtype = compute_dtype((*inputs, *params))
    for v, s in zip(signature.states, states, strict=True):
        wanted = torch.int64 if v.whole else dtype
        if not isinstance(s, Tensor) or s.dtype != wanted or not s.is_contiguous():
            kind = f"{s.dtype}" if isinstance(s, Tensor) else f"a {type(s).__name__}"
            raise TypeError(f"the state `{v.name}` is overwritten in place: a contiguous {wanted} is needed, it is {kind}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *params, *states)):
        raise RuntimeError("`decode` overwrites the states and has no gradient; call it under torch.no_grad()")
    return states
