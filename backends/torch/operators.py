"""The call that chooses among a layer's forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import sequence
from .checks import Domain, check_domains, check_kind, check_tensors, kind
from .decoding import checked, decoder
from .registration import NO_FORWARD_MODE, has_tangents, register, transformed
from .sequence import reference, slab_tokens
from .signature import Kernels, Signature, compute_dtype, partial_sizes

Tensors = tuple[Tensor, ...]
Duration = tuple[float, float, float]  # microseconds per slab, per step, per token of one head
LONG = 2048  # tokens for which an exported program chooses its form
MOST = 1000  # calls of which is known what they decide
NONE: dict[str, tuple[Signature, Kernels]] = {}


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


class Chosen(NamedTuple):
    """What a call's arguments decide: the form, whether in Triton, and the lengths of axes. Shared, and not to be changed."""

    form: str
    triton: bool
    sizes: dict[str, int]


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
        walks: Any = None,
    ) -> None:
        """triton: the forms that have kernels in Triton as well, which is imported when one of them is called; walks: what takes whole
        sequences to those."""
        self.forms = {name: (signature, register(namespace, name, signature, kernels)) for name, (signature, kernels) in forms.items()}
        self.triton = {name: (s, register(namespace, f"{name}_triton", s, kernels, walks)) for name, (s, kernels) in triton.items()}
        self.initial_states, self.domains, self.steps, self.costs = initial_states, domains, steps, costs
        self.calls = dict[Any, Chosen]()
        walk_of = {"torch": (forms, sequence), "triton": (triton, walks)}
        self.decoders = {name: (f["recurrent"][0], decoder(f"{namespace}::decode_{name}", *f["recurrent"], w))
                         for name, (f, w) in walk_of.items() if "recurrent" in f}  # fmt: skip

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
        chosen = self._known(form, backend, inputs, params, cu_seqlens)
        if not torch.compiler.is_compiling() and has_tangents((*inputs, *params)):
            raise NotImplementedError(NO_FORWARD_MODE)
        signature, found = (self.triton if chosen.triton else self.forms)[chosen.form]
        states = self._states(signature, inputs, params, initial_state, check, chosen.sizes)
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *params, *states))
        call = found.function if transformed() else found.op if learns else found.plain
        results = call(*inputs, *params, *states, cu_seqlens)
        return self._results(signature, results, output_final_state, return_info, chosen.form, found.iterates)

    def _known(self, form: str, backend: str, inputs: Tensors, params: Tensors, cu_seqlens: Tensor | None) -> Chosen:
        """What `_chosen` finds, once for all calls alike. A compiler traces it."""
        if cu_seqlens is not None or torch.compiler.is_compiling():
            return self._chosen(form, backend, inputs, params, cu_seqlens)
        try:
            about = [(x.shape, x.dtype, x.device, x.layout, x.requires_grad) for x in (*inputs, *params)]
            key = form, backend, torch.is_grad_enabled(), *about
            known = self.calls.get(key)
        except (AttributeError, RuntimeError, TypeError):  # no tensors, or of no shape, or one of symbols: it is said what is wrong
            return self._chosen(form, backend, inputs, params, cu_seqlens)
        if known is None:
            if len(self.calls) >= MOST:
                self.calls.clear()
            known = self.calls[key] = self._chosen(form, backend, inputs, params, cu_seqlens)
        return known

    def _chosen(self, form: str, backend: str, inputs: Tensors, params: Tensors, cu_seqlens: Tensor | None) -> Chosen:
        """Raises ValueError for a form or backend that is not there and for arguments that do not fit, TypeError for what is no tensor."""
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
        here = here if form in here else self.forms
        return Chosen(form, here is self.triton, partial_sizes(here[form][0], (*inputs, *params), cu_seqlens))

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
        sizes = partial_sizes(signature, (*inputs, *params), cu_seqlens)
        states = self._states(signature, inputs, params, initial_state, check, sizes)
        results = reference(self.steps, signature, (*inputs, *params, *states), cu_seqlens)
        return self._results(signature, results, output_final_state, return_info, "reference", iterates=False)

    def decode(self, backend: str, inputs: Tensors, params: Tensors, state: Tensor | Tensors) -> Tensor | Tensors:
        """The outputs [B, H, ...] of one token of each sequence; the states are overwritten."""
        if backend not in ("auto", *self.decoders):
            raise ValueError(f"backend `{backend}` is not in this package; it has {', '.join(f'`{n}`' for n in self.decoders)}")
        signature, _ = self.decoders["torch"]
        check_tensors(signature, inputs, params, None)
        states = checked(signature, inputs, params, state)
        if backend == "auto":
            exact = compute_dtype((*inputs, *params)) == torch.float64
            on_gpu = "triton" in self.decoders and not exact and inputs[0].is_cuda and find_spec("triton") is not None
            backend = "triton" if on_gpu else "torch"
        numbers = [s.to(compute_dtype((*inputs, *params))) if v.whole else s for v, s in zip(signature.states, states, strict=True)]
        found: Tensor | Tensors = self.decoders[backend][1](*inputs, *params, *numbers)
        for v, s, x in zip(signature.states, states, numbers, strict=True):
            if v.whole:
                s.copy_(x.round())
        return found

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
        check: bool,
        sizes: dict[str, int],
    ) -> Tensors:
        if check:
            check_domains(signature, inputs, self.domains)
        dtype = compute_dtype((*inputs, *params))
        if given is not None:
            if not isinstance(given, (Tensor, tuple, list)):
                raise TypeError(f"initial_state is {kind(given)}; a tensor for each state is needed")
            states = (given,) if isinstance(given, Tensor) else tuple(given)
            if len(states) != len(signature.states):
                raise ValueError(f"initial_state has {len(states)} tensors; the layer has {len(signature.states)} states")
            for v, s in zip(signature.states, states, strict=True):
                if not isinstance(s, Tensor) or s.is_complex() or not (s.is_floating_point() or v.whole):
                    raise TypeError(f"the state `{v.name}` is {kind(s)}; a floating-point tensor is needed")
                check_kind(f"the state `{v.name}`", s)
                if s.device != inputs[0].device:
                    raise ValueError(f"the state `{v.name}` is on {s.device}, but the inputs are on {inputs[0].device}")
            return tuple(s.to(torch.promote_types(s.dtype, dtype)) for s in states)
        like = inputs[0].new_empty((sizes["@N"], sizes["@H"]), dtype=dtype)
        once = [x for v, x in zip(signature.inputs, inputs, strict=True) if v.lead.startswith("N")]
        axes = {a: sizes[a] for v in signature.states for a in v.axes}
        return tuple(s.contiguous() for s in self.initial_states(like, *params, *once, **axes))

    @staticmethod
    def _results(
        signature: Signature, results: Tensors, output_final_state: bool, return_info: bool, form: str, iterates: bool
    ) -> tuple[Any, ...]:  # fmt: skip
        k, m = len(signature.outputs), len(signature.states)
        outputs = tuple(results[:k])
        states = tuple(x.round().long() if v.whole else x for v, x in zip(signature.states, results[k : k + m], strict=True))
        out = outputs[0] if k == 1 else outputs
        last = None if not output_final_state else states[0] if m == 1 else states
        if not return_info:
            return out, last
        if not iterates:
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
