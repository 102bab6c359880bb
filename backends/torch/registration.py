"""From kernels to registered torch operators with derived gradients."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from . import sequence
from .signature import Kernels, Signature, Value, compute_dtype, output_dtype, shape, sizes_of

Tensors = tuple[Tensor, ...]
MOST = 64  # arguments that PyTorch lets an operator have
NO_FORWARD_MODE = "the operator has no forward-mode derivative; `reference` has one. A Hessian is `jacrev` of `jacrev`"


class Registered(NamedTuple):
    """A form as PyTorch knows it. All are called with all arguments and cu_seqlens, and return outputs, last states and what is kept.

    op: the registered operator. function: the same inside torch.func's transforms, where a registered operator has no gradient.
    plain: the operator where no gradient will be asked for, which keeps nothing. iterates: a Report's numbers are the last result.
    kernels: what they call, which is the first copy's where a package has copies.
    """

    op: Any
    function: Callable[..., Tensors]
    plain: Any
    iterates: bool
    kernels: Kernels


def register(namespace: str, form: str, signature: Signature, kernels: Kernels, walks: Any = sequence) -> Registered:
    """The form as a torch operator with its fake version, its gradient and that one's gradient, and its rule under vmap.

    walks: the module whose functions take whole sequences to the kernels.
    """
    name = f"{namespace}::{form}"
    op = _forward_operator(name, signature, kernels, walks)
    plain = op if kernels.keeping is None else _forward_operator(f"{name}_plain", signature, replace(kernels, keeping=None), walks)
    back = _backward_operator(f"{name}_backward", signature, kernels, walks)
    double = _double_operator(f"{name}_double_backward", signature, kernels, walks)
    count = walks.kept_count(kernels, signature)
    _register_gradients(signature, count, lambda o, keep, rule: o.register_gradient(keep, rule), op, back, double)
    functions = [_function(o) for o in (op, back, double)]
    _register_gradients(signature, count, _set_gradient, *functions)
    return Registered(op.call, functions[0].apply, plain.call, kernels.instead is not None, op.kernels)


def _register_gradients(signature: Signature, count: int, gradient: Callable[..., None], op: Any, back: Any, double: Any) -> None:
    """Tells `gradient` each one's gradient, by way of the next one: what to keep, and the rule. count: of tensors kept."""
    n, k, m = len(signature.arguments), len(signature.outputs), len(signature.states)
    call_back, call_double = (getattr(x, "call", None) or x.apply for x in (back, double))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[:n], *output[k + m : k + m + count], *([inputs[n]] if inputs[n] is not None else []))
        ctx.packed = inputs[n] is not None
        ctx.set_materialize_grads(False)  # what is kept is large, and has no adjoint

    def op_backward(ctx: Any, *d: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept, cu = saved[:n], saved[n : n + count], saved[n + count] if ctx.packed else None
        seeds = _seeds(signature, tensors, cu, d[: k + m])
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
            return (*call_back(*seeds, *tensors, *kept, cu), None)
        with torch._C._AutoDispatchBelowAutograd():  # nothing is recorded: the way through the rule of gradients is spared
            return (*call_back(*seeds, *tensors, *kept, cu), None)

    def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[: k + m + n], *([inputs[-1]] if inputs[-1] is not None else []))
        ctx.packed = inputs[-1] is not None

    def back_backward(ctx: Any, *dd: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        seeds, tensors, cu = saved[: k + m], saved[k + m : k + m + n], saved[-1] if ctx.packed else None
        grads = call_double(*(x.contiguous() for x in dd), *seeds, *tensors, cu)
        return (*grads[n:], *grads[:n], *([None] * (count + 1)))

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        pass

    def no_third(ctx: Any, *ddd: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("the operator has a first and a second derivative, and no third; `reference` has them all")

    gradient(op, keep, op_backward)
    gradient(back, keep_backward, back_backward)
    gradient(double, keep_nothing, no_third)


def _seeds(signature: Signature, tensors: Tensors, cu: Tensor | None, d: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The adjoints of outputs and last states, zero where the caller made nothing of one."""
    return [_zero(signature, tensors, cu, i) if x is None else x.contiguous() for i, x in enumerate(d)]


def _zero(signature: Signature, tensors: Tensors, cu: Tensor | None, i: int) -> Tensor:
    """The adjoint of a result without a reader. A last state is like the first one, which is an argument."""
    k, first = len(signature.outputs), tensors[len(tensors) - len(signature.states) :]
    if i >= k:
        return first[i - k].new_zeros(first[i - k].shape, dtype=compute_dtype(tensors))
    sizes = sizes_of(signature, tensors, cu)
    return tensors[0].new_zeros(shape(signature.outputs[i], sizes), dtype=output_dtype(signature, tensors))


def _function(op: _Operator) -> Any:
    """An operator as a differentiable function that torch.func can transform; its gradient is set later."""

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*a: Any) -> Tensors:
            found: Tensors = op.call(*a)
            return found

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(NO_FORWARD_MODE)

    return Function


def _set_gradient(function: Any, keep: Callable[..., None], rule: Callable[..., tuple[Tensor | None, ...]]) -> None:
    function.setup_context, function.backward = staticmethod(keep), staticmethod(rule)


def has_tangents(tensors: Iterable[Tensor]) -> bool:
    """Whether forward-mode derivatives are asked for: there are none outside of a level of them, and to look at a tensor costs time."""
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def transformed() -> bool:
    """Whether a transform of torch.func is being applied, outside torch.compile."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _forward_operator(name: str, signature: Signature, kernels: Kernels, walks: Any) -> _Operator:
    """Arguments -> outputs, last states, what is kept, each tensor of that as one row of numbers: no axis of unknown length beside others;
    of kernels that iterate a Report's numbers behind them."""
    states, n, iterates = signature.states, len(signature.arguments), kernels.instead is not None

    def run(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        outputs, last, kept, report = walks.forward(kernels, signature, tensors, cu)
        dtype = output_dtype(signature, tensors)
        found = [torch.tensor(report.numbers, dtype=torch.float64, device=tensors[0].device)] if iterates else []
        return (*_typed(outputs, [dtype] * len(outputs)), *last, *kept, *found)

    def fake(*a: Any) -> Tensors:
        tensors, cu = a[:n], a[n]
        sizes = sizes_of(signature, tensors, cu)
        dtype, wide = output_dtype(signature, tensors), compute_dtype(tensors)
        outputs = [tensors[0].new_empty(shape(v, sizes), dtype=dtype) for v in signature.outputs]
        last = [tensors[0].new_empty(shape(v, sizes), dtype=wide) for v in states]
        kept = walks.kept_shapes(kernels, signature, tensors, cu)
        return (*outputs, *last, *kept, *([tensors[0].new_empty(4, dtype=torch.float64)] if iterates else []))

    gives = len(signature.outputs) + len(states) + walks.kept_count(kernels, signature) + iterates
    return _operator(name, kernels, run, fake, _names(signature.arguments), gives)


def _backward_operator(name: str, signature: Signature, kernels: Kernels, walks: Any) -> _Operator:
    """Adjoints of outputs and last states, arguments, what is kept -> adjoints of the arguments."""
    n, seeds = len(signature.arguments), len(signature.outputs) + len(signature.states)

    def run(*a: Any) -> Tensors:
        tensors = a[seeds : seeds + n]
        return _like(walks.backward(kernels, signature, tensors, a[:seeds], a[seeds + n : -1], a[-1]), tensors)

    def fake(*a: Any) -> Tensors:
        return _empty(a[seeds : seeds + n])

    kept = [f"kept_{i}" for i in range(walks.kept_count(kernels, signature))]
    takes = [*_seed_names(signature), *_names(signature.arguments), *kept]
    return _operator(name, kernels, run, fake, takes, n)


def _double_operator(name: str, signature: Signature, kernels: Kernels, walks: Any) -> _Operator:
    """Adjoints of the backward's results, its seeds, arguments -> adjoints of the arguments and of the seeds."""
    n, k = len(signature.arguments), len(signature.outputs) + len(signature.states)

    def run(*a: Any) -> Tensors:
        seconds, seeds, tensors = a[:n], a[n : n + k], a[n + k : -1]
        return _like(walks.double_backward(kernels, signature, tensors, seeds, seconds, a[-1]), (*tensors, *seeds))

    def fake(*a: Any) -> Tensors:
        return _empty((*a[n + k : -1], *a[n : n + k]))

    takes = [*_names(signature.arguments, "dd_"), *_seed_names(signature), *_names(signature.arguments)]
    return _operator(name, kernels, run, fake, takes, n + k)


class _Operator:
    """A torch operator that takes tensors and cu_seqlens and gives tensors; of more tensors than PyTorch takes one by one, as one list.

    torch.library.custom_op would do, but that its gradients pass through more of Python: a forward and backward of an operator that does
    nothing take 220 us of the processor there and 80 us here. Results must share no memory with arguments, as there; it is not checked.
    """

    def __init__(
        self, name: str, kernels: Kernels, run: Callable[..., Tensors], fake: Callable[..., Tensors], takes: list[str], gives: int
    ) -> None:
        namespace, self.name = name.split("::")
        self.kernels = kernels
        self.learns = False
        listed = len(takes) >= MOST
        tensors = "Tensor[] tensors" if listed else ", ".join(f"Tensor {n}" for n in _spelled(takes))
        schema = f"{self.name}({tensors}, Tensor? cu_seqlens) -> ({', '.join(['Tensor'] * gives)})"
        self.library = torch.library.Library(namespace, "FRAGMENT")
        self.library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(getattr(torch.ops, namespace), self.name).default
        self.call: Callable[..., Tensors] = (lambda *a: op(list(a[:-1]), a[-1])) if listed else op
        self.taken = (lambda f: lambda tensors, cu: f(*tensors, cu)) if listed else (lambda f: f)  # a function as the dispatcher calls it
        # torch.compiler.disable would import all of the compiler here.
        self.library.impl(self.name, self.taken(_disable_dynamo(partial(_exact, run))), "CompositeExplicitAutograd")
        torch.library.register_fake(name, self.taken(fake), lib=self.library)
        rule = partial(_one_by_one, self.call)
        listed_rule = lambda info, dims, tensors, cu: rule(info, (*dims[0], dims[1]), *tensors, cu)  # noqa: E731
        torch.library.register_vmap(name, listed_rule if listed else rule, lib=self.library)

    def register_gradient(self, keep: Callable[..., None], rule: Callable[..., tuple[Tensor | None, ...]]) -> None:
        """keep: notes in a context what the rule needs, of the arguments and the results. Once: another copy of a package has the same."""
        if self.learns:
            return
        self.learns = True
        call, below = self.call, torch._C._AutoDispatchBelowAutograd

        def forward(ctx: Any, *a: Any) -> Tensors:
            with below():
                found = call(*a)
            keep(ctx, a, found)
            return found

        methods = {"forward": staticmethod(forward), "backward": staticmethod(rule)}
        # Profiles show the name of the class, with `Backward` behind it.
        apply: Callable[..., Tensors] = type(self.name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]

        def recorded(*a: Any) -> Tensors:
            if has_tangents(x for x in a if x is not None):
                raise NotImplementedError(NO_FORWARD_MODE)
            if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in a):
                return apply(*a)
            with below():
                return call(*a)

        self.library.impl(self.name, self.taken(recorded), "Autograd")


def _operator(name: str, *a: Any) -> _Operator:
    """An operator, of which there is one in a process: what is registered stays, and copies of a package, which are alike, share it."""
    known = vars(sys.modules.setdefault("_seqc_operators", ModuleType("_seqc_operators")))
    if name not in known:
        known[name] = _Operator(name, *a)
    found: _Operator = known[name]
    return found


def _exact(run: Callable[..., Tensors], *a: Any) -> Tensors:
    """Autocast is off: the type that a kernel computes in is a promise, and autocast sees into an operator."""
    device = next(x for x in a if x is not None).device.type
    if not torch.is_autocast_enabled(device):
        return run(*a)
    with torch.autocast(device, enabled=False):
        return run(*a)


def _one_by_one(call: Callable[..., Tensors], info: Any, in_dims: tuple[int | None, ...], *a: Any) -> tuple[Tensors, tuple[int, ...]]:
    """vmap: a call for each index, and the results stacked. Raises ValueError where there is no index."""
    if not info.batch_size:
        raise ValueError("vmap over a dimension of length 0: there is nothing to call the operator on")
    calls = [call(*(x if d is None else x.select(d, i) for x, d in zip(a, in_dims, strict=True))) for i in range(info.batch_size)]
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
    return _typed(grads, [x.dtype for x in tensors])


def _typed(values: Sequence[Tensor], types: Sequence[torch.dtype]) -> Tensors:
    """The values in other types. To ask for a tensor's own costs as much as to make one."""
    return tuple(x if x.dtype == dtype else x.to(dtype) for x, dtype in zip(values, types, strict=True))


def _empty(tensors: Sequence[Tensor]) -> Tensors:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
