"""From kernels to registered torch operators with derived gradients, and the call that chooses among a layer's forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .sequence import (
    Kernels,
    Signature,
    Value,
    backward,
    compute_dtype,
    double_backward,
    forward,
    kept_states,
    output_dtype,
    partial_sizes,
    reference,
    shape,
    sizes_of,
)

Tensors = tuple[Tensor, ...]
Domain = tuple[float, float, bool]  # lowest, highest, whether vectors have norm 1 at most

# --- Registration ------------------------------------------------------------------------------------------------


def register(namespace: str, form: str, signature: Signature, kernels: Kernels) -> Any:
    """The form as a torch operator with its fake version and its gradient, and the gradient's gradient.

    Called with all arguments and cu_seqlens; returns outputs, last states and kept states.
    """
    n, k, m = len(signature.arguments), len(signature.outputs), len(signature.states)
    name = f"{namespace}::{form}"
    op = _forward_operator(name, signature, kernels)
    back = _backward_operator(f"{name}_backward", signature, kernels)
    double = _double_operator(f"{name}_double_backward", signature, kernels)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[:n], *output[k + m :], *([inputs[n]] if inputs[n] is not None else []))
        ctx.packed = inputs[n] is not None

    def op_backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept, cu = saved[:n], saved[n : n + m], saved[n + m] if ctx.packed else None
        return (*back(*(x.contiguous() for x in d[: k + m]), *tensors, *kept, cu), None)

    def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[: k + m + n], *([inputs[-1]] if inputs[-1] is not None else []))
        ctx.packed = inputs[-1] is not None

    def back_backward(ctx: Any, *dd: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        seeds, tensors, cu = saved[: k + m], saved[k + m : k + m + n], saved[-1] if ctx.packed else None
        grads = double(*(x.contiguous() for x in dd), *seeds, *tensors, cu)
        return (*grads[n:], *grads[:n], *([None] * (m + 1)))

    op.register_autograd(op_backward, setup_context=keep)
    back.register_autograd(back_backward, setup_context=keep_backward)
    return op


def _forward_operator(name: str, signature: Signature, kernels: Kernels) -> Any:
    """Arguments -> outputs, last states, kept states."""
    states, n = signature.states, len(signature.arguments)

    def run(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        outputs, last, kept = forward(kernels, signature, tensors, cu)
        dtype = output_dtype(signature, tensors)
        return (*(y.to(dtype) for y in outputs), *last, *kept)

    def fake(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        sizes = sizes_of(signature, tensors, cu)
        dtype, wide = output_dtype(signature, tensors), compute_dtype(tensors)
        kept = kept_states(signature, sizes, cu is not None)
        outputs = [tensors[0].new_empty(shape(v, sizes), dtype=dtype) for v in signature.outputs]
        last = [tensors[0].new_empty(shape(v, sizes), dtype=wide) for v in states]
        return (*outputs, *last, *(tensors[0].new_empty((kept, *shape(v, sizes)), dtype=wide) for v in states))

    return _operator(name, run, fake, _names(signature.arguments), len(signature.outputs) + 2 * len(states))


def _backward_operator(name: str, signature: Signature, kernels: Kernels) -> Any:
    """Adjoints of outputs and last states, arguments, kept states -> adjoints of the arguments."""
    n, seeds = len(signature.arguments), len(signature.outputs) + len(signature.states)

    def run(*a: Any) -> Tensors:
        tensors = a[seeds : seeds + n]
        return _like(backward(kernels, signature, tensors, a[:seeds], a[seeds + n : -1], a[-1]), tensors)

    def fake(*a: Any) -> Tensors:
        return _empty(a[seeds : seeds + n])

    takes = [*_seed_names(signature), *_names(signature.arguments), *_names(signature.states, "kept_")]
    return _operator(name, run, fake, takes, n)


def _double_operator(name: str, signature: Signature, kernels: Kernels) -> Any:
    """Adjoints of the backward's results, its seeds, arguments -> adjoints of the arguments and of the seeds."""
    n, k = len(signature.arguments), len(signature.outputs) + len(signature.states)

    def run(*a: Any) -> Tensors:
        seconds, seeds, tensors = a[:n], a[n : n + k], a[n + k : -1]
        return _like(double_backward(kernels, signature, tensors, seeds, seconds, a[-1]), (*tensors, *seeds))

    def fake(*a: Any) -> Tensors:
        return _empty((*a[n + k : -1], *a[n : n + k]))

    takes = [*_names(signature.arguments, "dd_"), *_seed_names(signature), *_names(signature.arguments)]
    return _operator(name, run, fake, takes, n + k)


def _operator(name: str, run: Callable[..., Tensors], fake: Callable[..., Tensors], takes: list[str], gives: int) -> Any:
    """A torch operator that takes tensors and cu_seqlens and gives tensors."""

    def exact(*a: Any) -> Tensors:
        """Autocast is off: the type that a kernel computes in is a promise, and autocast sees into an operator."""
        device = next(x for x in a if x is not None).device.type
        with torch.autocast(device, enabled=False):
            return run(*a)

    schema = f"({', '.join(f'Tensor {n}' for n in _spelled(takes))}, Tensor? cu_seqlens) -> ({', '.join(['Tensor'] * gives)})"
    op = torch.library.custom_op(name, exact, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op


def _names(values: tuple[Value, ...], prefix: str = "") -> list[str]:
    return [f"{prefix}{v.name}" for v in values]


def _spelled(names: list[str]) -> list[str]:
    """Argument names that a schema can spell, each once: a state of an algorithm is named `S.m` in the text."""
    out: list[str] = []
    for name in names:
        stem = re.sub(r"^(?=\d)", "n", re.sub(r"\W", "_", name))
        out.append(next(n for n in (stem, *(f"{stem}_{i}" for i in range(2, len(names) + 2))) if n not in (*out, "cu_seqlens")))
    return out


def _seed_names(signature: Signature) -> list[str]:
    return [*_names(signature.outputs, "d_out_"), *_names(signature.states, "d_last_")]


def _like(grads: list[Tensor], tensors: Tensors) -> Tensors:
    return tuple(g.to(x.dtype) for g, x in zip(grads, tensors, strict=True))


def _empty(tensors: Sequence[Tensor]) -> Tensors:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


# --- Calls -------------------------------------------------------------------------------------------------------


class Info(NamedTuple):
    """How a call was computed: the form taken, a solver's iterations and residual, and whether it fell back to another form."""

    form: str
    iterations: int = 0
    residual: float = 0.0
    fallback: bool = False


class Operator:
    """A layer's forms behind one call."""

    def __init__(
        self,
        namespace: str,
        forms: dict[str, tuple[Signature, Kernels]],
        initial_states: Callable[..., Tensors],
        domains: dict[str, Domain],
        steps: Callable[..., Tensors],
    ) -> None:
        self.forms = {name: (signature, register(namespace, name, signature, kernels)) for name, (signature, kernels) in forms.items()}
        self.initial_states, self.domains, self.steps = initial_states, domains, steps

    def __call__(
        self,
        form: str,
        backend: str,
        inputs: Tensors,
        params: Tensors,
        initial_state: Tensor | Tensors | None,
        output_final_state: bool,
        cu_seqlens: Tensor | None,
        check: bool,
        return_info: bool,
    ) -> tuple[Any, ...]:
        """The outputs and the last states, or None for those; Info behind them where it is asked for."""
        if backend not in ("auto", "torch"):
            raise ValueError(f"backend `{backend}` is not in this package; it has `torch`")
        if form == "auto":
            form = "recurrent" if "chunkwise" not in self.forms or inputs[0].shape[1] == 1 else "chunkwise"
        if form not in self.forms:
            raise ValueError(f"form `{form}` is not in this package; it has {', '.join(f'`{f}`' for f in self.forms)}")
        if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in (*inputs, *params)):
            raise NotImplementedError("the operator has no forward-mode derivative; `reference` has one")
        signature, op = self.forms[form]
        states = self._states(signature, inputs, params, initial_state, cu_seqlens, check)
        results = op(*inputs, *params, *states, cu_seqlens)
        return self._results(signature, results, output_final_state, return_info, form)

    def reference(
        self,
        form: str,
        backend: str,
        inputs: Tensors,
        params: Tensors,
        initial_state: Tensor | Tensors | None,
        output_final_state: bool,
        cu_seqlens: Tensor | None,
        check: bool,
        return_info: bool,
    ) -> tuple[Any, ...]:
        """The same by the token loop."""
        signature = next(iter(self.forms.values()))[0]
        signature = replace(signature, chunk=0)
        states = self._states(signature, inputs, params, initial_state, cu_seqlens, check)
        results = reference(self.steps, signature, (*inputs, *params, *states), cu_seqlens)
        return self._results(signature, results, output_final_state, return_info, "reference")

    def _states(
        self,
        signature: Signature,
        inputs: Tensors,
        params: Tensors,
        given: Tensor | Tensors | None,
        cu_seqlens: Tensor | None,
        check: bool,
    ) -> Tensors:
        sizes = partial_sizes(signature, (*inputs, *params), cu_seqlens)
        if check:
            check_domains(signature, inputs, self.domains)
        dtype = compute_dtype((*inputs, *params))
        if given is not None:
            states = (given,) if isinstance(given, Tensor) else tuple(given)
            if len(states) != len(signature.states):
                raise ValueError(f"initial_state has {len(states)} tensors; the layer has {len(signature.states)} states")
            return tuple(s.to(torch.promote_types(s.dtype, dtype)) for s in states)
        like = inputs[0].new_empty((sizes["@N"], sizes["@H"]), dtype=dtype)
        once = [x.to(dtype) for v, x in zip(signature.inputs, inputs, strict=True) if v.lead.startswith("N")]
        axes = {a: sizes[a] for v in signature.states for a in v.axes}
        return tuple(s.contiguous() for s in self.initial_states(like, *(p.to(dtype) for p in params), *once, **axes))

    @staticmethod
    def _results(signature: Signature, results: Tensors, output_final_state: bool, return_info: bool, form: str) -> tuple[Any, ...]:
        k, m = len(signature.outputs), len(signature.states)
        outputs, states = tuple(results[:k]), tuple(results[k : k + m])
        out = outputs[0] if k == 1 else outputs
        last = None if not output_final_state else states[0] if m == 1 else states
        return (out, last, Info(form)) if return_info else (out, last)


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
