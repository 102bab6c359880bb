"""From kernels to registered torch operators with derived gradients, and the call that chooses among a layer's forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import prod
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
    slab_tokens,
)

Tensors = tuple[Tensor, ...]
Domain = tuple[float, float, bool]  # lowest, highest, whether vectors have norm 1 at most
Duration = tuple[float, float, float]  # microseconds per slab, per step, per token of one head
MOST = 64  # arguments that PyTorch lets an operator have
LONG = 2048  # tokens for which an exported program chooses its form
NONE: dict[str, tuple[Signature, Kernels]] = {}
NO_FORWARD_MODE = "the operator has no forward-mode derivative; `reference` has one. A Hessian is `jacrev` of `jacrev`"

# --- Registration ------------------------------------------------------------------------------------------------


class Registered(NamedTuple):
    """A form as PyTorch knows it. Both are called with all arguments and cu_seqlens, and return outputs, last states and kept states.

    op: the registered operator. function: the same inside torch.func's transforms, where a registered operator has no gradient.
    """

    op: Any
    function: Callable[..., Tensors]


def register(namespace: str, form: str, signature: Signature, kernels: Kernels) -> Registered:
    """The form as a torch operator with its fake version, its gradient and that one's gradient, and its rule under vmap."""
    name = f"{namespace}::{form}"
    op = _forward_operator(name, signature, kernels)
    back = _backward_operator(f"{name}_backward", signature, kernels)
    double = _double_operator(f"{name}_double_backward", signature, kernels)
    _register_gradients(signature, lambda o, keep, rule: o.register_autograd(rule, setup_context=keep), op, back, double)
    functions = [_function(o) for o in (op, back, double)]
    _register_gradients(signature, _set_gradient, *functions)
    return Registered(op, functions[0].apply)


def _register_gradients(signature: Signature, gradient: Callable[..., None], op: Any, back: Any, double: Any) -> None:
    """Tells `gradient` each one's gradient, by way of the next one: what to keep, and the rule."""
    n, k, m = len(signature.arguments), len(signature.outputs), len(signature.states)
    call_back, call_double = getattr(back, "apply", back), getattr(double, "apply", double)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[:n], *output[k + m : k + 2 * m], *([inputs[n]] if inputs[n] is not None else []))
        ctx.packed = inputs[n] is not None

    def op_backward(ctx: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept, cu = saved[:n], saved[n : n + m], saved[n + m] if ctx.packed else None
        return (*call_back(*(x.contiguous() for x in d[: k + m]), *tensors, *kept, cu), None)

    def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[: k + m + n], *([inputs[-1]] if inputs[-1] is not None else []))
        ctx.packed = inputs[-1] is not None

    def back_backward(ctx: Any, *dd: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        seeds, tensors, cu = saved[: k + m], saved[k + m : k + m + n], saved[-1] if ctx.packed else None
        grads = call_double(*(x.contiguous() for x in dd), *seeds, *tensors, cu)
        return (*grads[n:], *grads[:n], *([None] * (m + 1)))

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        pass

    def no_third(ctx: Any, *ddd: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("the operator has a first and a second derivative, and no third; `reference` has them all")

    gradient(op, keep, op_backward)
    gradient(back, keep_backward, back_backward)
    gradient(double, keep_nothing, no_third)


def _function(op: Any) -> Any:
    """An operator as a differentiable function that torch.func can transform; its gradient is set later."""

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*a: Any) -> Tensors:
            found: Tensors = op(*a)
            return found

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(NO_FORWARD_MODE)

    return Function


def _set_gradient(function: Any, keep: Callable[..., None], rule: Callable[..., tuple[Tensor | None, ...]]) -> None:
    function.setup_context, function.backward = staticmethod(keep), staticmethod(rule)


def transformed() -> bool:
    """Whether a transform of torch.func is being applied, outside torch.compile."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _forward_operator(name: str, signature: Signature, kernels: Kernels) -> Any:
    """Arguments -> outputs, last states, kept states, each of these as one row of numbers: no axis of unknown length beside others;
    of kernels that iterate a Report's numbers behind them."""
    states, n, iterates = signature.states, len(signature.arguments), kernels.instead is not None

    def run(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        outputs, last, kept, report = forward(kernels, signature, tensors, cu)
        dtype = output_dtype(signature, tensors)
        found = [torch.tensor(report.numbers, dtype=torch.float64, device=tensors[0].device)] if iterates else []
        return (*(y.to(dtype) for y in outputs), *last, *(x.flatten() for x in kept), *found)

    def fake(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        sizes = sizes_of(signature, tensors, cu)
        dtype, wide = output_dtype(signature, tensors), compute_dtype(tensors)
        kept = kept_states(signature, sizes, cu is not None)
        outputs = [tensors[0].new_empty(shape(v, sizes), dtype=dtype) for v in signature.outputs]
        last = [tensors[0].new_empty(shape(v, sizes), dtype=wide) for v in states]
        rows = [tensors[0].new_empty(kept * prod(shape(v, sizes)), dtype=wide) for v in states]
        return (*outputs, *last, *rows, *([tensors[0].new_empty(4, dtype=torch.float64)] if iterates else []))

    return _operator(name, run, fake, _names(signature.arguments), len(signature.outputs) + 2 * len(states) + iterates)


def _backward_operator(name: str, signature: Signature, kernels: Kernels) -> Any:
    """Adjoints of outputs and last states, arguments, kept states -> adjoints of the arguments."""
    n, seeds = len(signature.arguments), len(signature.outputs) + len(signature.states)

    def run(*a: Any) -> Tensors:
        tensors = a[seeds : seeds + n]
        rows = kept_states(signature, sizes_of(signature, tensors, a[-1]), a[-1] is not None)
        kept = tuple(x.view(rows, *s.shape) for x, s in zip(a[seeds + n : -1], tensors[n - len(signature.states) :], strict=True))
        return _like(backward(kernels, signature, tensors, a[:seeds], kept, a[-1]), tensors)

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

    results = f"({', '.join(['Tensor'] * gives)})"
    op: Any
    if len(takes) < MOST:
        schema = f"({', '.join(f'Tensor {n}' for n in _spelled(takes))}, Tensor? cu_seqlens) -> {results}"
        op = torch.library.custom_op(name, exact, mutates_args=(), schema=schema)
    else:
        op = _Listed(name, exact, f"(Tensor[] tensors, Tensor? cu_seqlens) -> {results}")
    op.register_fake(fake)
    op.register_vmap(partial(_one_by_one, op))
    return op


class _Listed:
    """An operator of more tensors than PyTorch takes one by one: it has them as one list, and is called like any other."""

    def __init__(self, name: str, run: Callable[..., Tensors], schema: str) -> None:
        self.op = torch.library.custom_op(name, lambda tensors, cu: run(*tensors, cu), mutates_args=(), schema=schema)

    def __call__(self, *a: Any) -> Tensors:
        found: Tensors = self.op(list(a[:-1]), a[-1])
        return found

    def register_fake(self, fake: Callable[..., Tensors]) -> None:
        self.op.register_fake(lambda tensors, cu: fake(*tensors, cu))

    def register_vmap(self, rule: Callable[..., Any]) -> None:
        self.op.register_vmap(lambda info, dims, tensors, cu: rule(info, (*dims[0], dims[1]), *tensors, cu))

    def register_autograd(self, rule: Callable[..., tuple[Tensor | None, ...]], setup_context: Callable[..., None]) -> None:
        def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            setup_context(ctx, (*inputs[0], inputs[1]), output)

        def pull(ctx: Any, *d: Tensor) -> tuple[Any, None]:
            return list(rule(ctx, *d)[:-1]), None

        self.op.register_autograd(pull, setup_context=keep)


def _one_by_one(op: Any, info: Any, in_dims: tuple[int | None, ...], *a: Any) -> tuple[Tensors, tuple[int, ...]]:
    """vmap: a call for each index, and the results stacked. Raises ValueError where there is no index."""
    if not info.batch_size:
        raise ValueError("vmap over a dimension of length 0: there is nothing to call the operator on")
    calls = [op(*(x if d is None else x.select(d, i) for x, d in zip(a, in_dims, strict=True))) for i in range(info.batch_size)]
    found = tuple(torch.stack(column) for column in zip(*calls, strict=True))
    return found, (0,) * len(found)


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
    """How a call was computed.

    form: the form taken. Of one that iterates: the most iterations of a slab of the sequence; the largest residual and first-order error
    when they ended, relative to the states; whether a slab did not come to an end and was computed token by token instead.
    Tensors under torch.compile and inside transforms, where no number is known yet.
    """

    form: str
    iterations: int | Tensor = 0
    residual: float | Tensor = 0.0
    error: float | Tensor = 0.0
    fallback: bool | Tensor = False


class Operator:
    """A layer's forms behind one call."""

    def __init__(
        self,
        namespace: str,
        forms: dict[str, tuple[Signature, Kernels]],
        initial_states: Callable[..., Tensors],
        domains: dict[str, Domain],
        steps: Callable[..., Tensors],
        costs: dict[str, tuple[Duration, Duration]],
        triton: dict[str, tuple[Signature, Kernels]] = NONE,
    ) -> None:
        """triton: the forms that have kernels in Triton as well, which is imported when one of them is called."""
        self.forms = {name: (signature, register(namespace, name, signature, kernels)) for name, (signature, kernels) in forms.items()}
        self.triton = {name: (s, register(namespace, f"{name}_triton", s, kernels)) for name, (s, kernels) in triton.items()}
        self.initial_states, self.domains, self.steps, self.costs = initial_states, domains, steps, costs

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
        names = ("torch", "triton") if self.triton else ("torch",)
        if backend not in ("auto", *names):
            raise ValueError(f"backend `{backend}` is not in this package; it has {', '.join(f'`{n}`' for n in names)}")
        signature = next(iter(self.forms.values()))[0]
        check_tensors(signature, inputs, params, cu_seqlens)
        exact = compute_dtype((*inputs, *params)) == torch.float64
        if backend == "triton" and exact:
            raise ValueError("the Triton kernels compute in float32; float64 has the backend `torch`")
        on_gpu = backend == "auto" and self.triton and not exact and inputs[0].is_cuda and find_spec("triton") is not None
        here = self.triton if backend == "triton" or on_gpu else self.forms
        if form == "auto":
            form = self.fastest(inputs, params, cu_seqlens, tuple(here))
        if not isinstance(form, str) or form not in self.forms:
            raise ValueError(f"form `{form}` is not in this package; it has {', '.join(f'`{f}`' for f in self.forms)}")
        if backend == "triton" and form not in self.triton:
            raise ValueError(f"form `{form}` has no Triton kernels in this package; {', '.join(f'`{f}`' for f in self.triton)} have")
        if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in (*inputs, *params)):
            raise NotImplementedError(NO_FORWARD_MODE)
        signature, (op, function) = (here if form in here else self.forms)[form]
        states = self._states(signature, inputs, params, initial_state, cu_seqlens, check)
        results = (function if transformed() else op)(*inputs, *params, *states, cu_seqlens)
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
        check_tensors(signature, inputs, params, cu_seqlens)
        states = self._states(signature, inputs, params, initial_state, cu_seqlens, check)
        results = reference(self.steps, signature, (*inputs, *params, *states), cu_seqlens)
        return self._results(signature, results, output_final_state, return_info, "reference")

    def fastest(self, inputs: Tensors, params: Tensors, cu_seqlens: Tensor | None, forms: tuple[str, ...] = ()) -> str:
        """The form, of these or of all, that should take least time for this call. Packed rows count as rows of one length."""
        forms = forms or tuple(self.forms)
        if len(forms) == 1:
            return forms[0]
        gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *params))
        sizes = partial_sizes(self.forms[forms[0]][0], (*inputs, *params), cu_seqlens)
        if cu_seqlens is not None:
            rows = max(1, sizes["@N"])
            sizes = {**sizes, "@B": rows, "@T": -(-sizes["@T"] // rows)}
        if torch.compiler.is_exporting():
            sizes = {**sizes, "@B": 1, "@T": LONG}  # an exported program serves all lengths: it must not depend on the example's
        best, least = forms[0], float("inf")
        for form in forms:
            time = duration(self.costs[form][gradient], self.forms[form][0], sizes)
            if time < least:
                best, least = form, time
        return best

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
            if not isinstance(given, (Tensor, tuple, list)):
                raise TypeError(f"initial_state is {_kind(given)}; a tensor for each state is needed")
            states = (given,) if isinstance(given, Tensor) else tuple(given)
            if len(states) != len(signature.states):
                raise ValueError(f"initial_state has {len(states)} tensors; the layer has {len(signature.states)} states")
            for v, s in zip(signature.states, states, strict=True):
                if not isinstance(s, Tensor) or s.is_complex() or not (s.is_floating_point() or v.whole):
                    raise TypeError(f"the state `{v.name}` is {_kind(s)}; a floating-point tensor is needed")
                check_kind(f"the state `{v.name}`", s)
                if s.device != inputs[0].device:
                    raise ValueError(f"the state `{v.name}` is on {s.device}, but the inputs are on {inputs[0].device}")
            return tuple(s.to(torch.promote_types(s.dtype, dtype)) for s in states)
        like = inputs[0].new_empty((sizes["@N"], sizes["@H"]), dtype=dtype)
        once = [x.to(dtype) for v, x in zip(signature.inputs, inputs, strict=True) if v.lead.startswith("N")]
        axes = {a: sizes[a] for v in signature.states for a in v.axes}
        return tuple(s.contiguous() for s in self.initial_states(like, *(p.to(dtype) for p in params), *once, **axes))

    @staticmethod
    def _results(signature: Signature, results: Tensors, output_final_state: bool, return_info: bool, form: str) -> tuple[Any, ...]:
        k, m = len(signature.outputs), len(signature.states)
        outputs = tuple(results[:k])
        states = tuple(x.round().long() if v.whole else x for v, x in zip(signature.states, results[k : k + m], strict=True))
        out = outputs[0] if k == 1 else outputs
        last = None if not output_final_state else states[0] if m == 1 else states
        if not return_info:
            return out, last
        if len(results) == k + 2 * m or form == "reference":
            return out, last, Info(form)
        numbers = results[-1]
        if torch.compiler.is_compiling() or transformed():
            return out, last, Info(form, *numbers.unbind())
        iterations, residual, error, fallback = numbers.tolist()
        return out, last, Info(form, int(iterations), residual, error, bool(fallback))


def duration(cost: Duration, signature: Signature, sizes: dict[str, int]) -> float:
    """The microseconds that a form should take for a call of these sizes."""
    step = signature.chunk or 1
    steps = -(-sizes["@T"] // step)
    slabs = -(-sizes["@T"] // slab_tokens(signature, sizes))
    return cost[0] * slabs + cost[1] * steps + cost[2] * (steps * step * sizes["@B"] * sizes["@H"])


def check_tensors(signature: Signature, inputs: Tensors, params: Tensors, cu_seqlens: Tensor | None) -> None:
    """Raises TypeError where an argument is no tensor (a list of numbers, say) or one of a kind that has no plain entries, ValueError
    where devices differ."""
    first, *_ = values = (*signature.inputs, *signature.params)
    given = (*inputs, *params)
    for v, x in zip(values, given, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"`{v.name}` is {_kind(x)}; a floating-point tensor is needed")
        check_kind(f"`{v.name}`", x)
        if x.device != given[0].device:
            raise ValueError(f"`{v.name}` is on {x.device}, but `{first.name}` is on {given[0].device}")
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens is {_kind(cu_seqlens)}; a tensor [N + 1] of int32 or int64 is needed")
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


def _kind(x: object) -> str:
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
