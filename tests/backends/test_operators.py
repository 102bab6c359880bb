"""The generated operators as PyTorch sees them: registration, compilation, layouts, dtypes, bad calls."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch
from conftest import every, sampled
from layers import Call, call, distance, gradients, steady
from torch.autograd import forward_ad

import seqc
from seqc.emit.write import write_package

CHUNK = 8


def overloads(package, name: str) -> dict[str, object]:
    """The registered operators of a package, by name."""
    namespace = getattr(torch.ops, package.ops.NAMESPACE)
    forms = package.FORMS
    return {f"{f}{suffix}": getattr(namespace, f"{f}{suffix}").default for f in forms for suffix in ("", "_backward", "_double_backward")}


def arguments(package, c: Call, form: str) -> tuple[torch.Tensor | None, ...]:
    """What the registered operator is given in a call: complex states as pairs, states with their stabilisers, and sizes as axes."""
    seen: list[tuple[torch.Tensor | None, ...]] = []
    signature, registered = package.ops.OPERATOR.forms[form]

    def spy(*a: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        seen.append(a)
        return registered.op(*a)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(package.ops.OPERATOR.forms, form, (signature, registered._replace(op=spy, plain=spy)))
        c.run(package, form)
    return tuple(x if x is None or x.dtype == torch.int64 else x.detach().requires_grad_(x.requires_grad) for x in seen[0])


@sampled
def test_opcheck(package, name: str) -> None:
    p = package(name)
    for form in p.FORMS:
        torch.library.opcheck(overloads(p, name)[form], arguments(p, call(name, CHUNK + 3), form))


@every
def test_schema_and_fake_results(package, name: str) -> None:
    p = package(name)
    for form in p.FORMS:
        given = arguments(p, call(name, CHUNK + 3, ends=(0, 4, 4, CHUNK + 3), grad=False), form)
        torch.library.opcheck(overloads(p, name)[form], given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["gated_deltanet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linear_attention", "rwkv7"))])
def test_compiles_without_graph_breaks(package, name: str) -> None:
    p = package(name)
    c = call(name, 2 * CHUNK + 3, dtype=torch.float32)
    n = len(c.arguments)

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        results = c.run(p, "chunkwise", arguments)
        return sum((r.tanh().sum() for r in results), torch.zeros(()))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    wanted, found = step(*c.arguments), compiled(*c.arguments)
    assert distance(found, wanted) < 1e-5
    for x, y in zip(torch.autograd.grad(found, c.arguments), torch.autograd.grad(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-4
    assert n == len(c.arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated_deltanet"])
def test_compiles_with_the_default_backend(package, name: str) -> None:
    p = package(name)
    c = call(name, 2 * CHUNK + 3, dtype=torch.float32)
    compiled = torch.compile(lambda *a: c.run(p, "auto", a)[0].square().sum(), fullgraph=True)
    wanted = c.run(p, "auto")[0].square().sum()
    found = compiled(*c.arguments)
    assert distance(found, wanted) < 1e-5
    for x, y in zip(torch.autograd.grad(found, c.arguments), torch.autograd.grad(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-4


@every
def test_the_backward_calls_no_autograd(package, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every differentiable matrix product patched to raise in its gradient, gradients still come out."""

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return plain(x, y)

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("the gradient of a matrix product was asked of autograd")

    plain = torch.Tensor.__matmul__
    p, c = package(name), call(name, CHUNK + 3)
    wanted = gradients(c.run(p, "reference"), c.arguments)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda x, y: Refusing.apply(x, y))
    monkeypatch.setattr(torch.Tensor, "backward", None)
    for form in p.FORMS:
        results = c.run(p, form)
        for x, y in zip(gradients(results, c.arguments), wanted, strict=True):
            assert distance(x, y) < 1e-9, form
    with pytest.raises(AssertionError, match="asked of autograd"):
        x = torch.ones(2, 2, requires_grad=True)
        torch.autograd.grad((x @ x).sum(), x)


@pytest.mark.parametrize("name", ["deltaproduct", "gla"])
def test_kernels_run_without_grad_mode(package, name: str) -> None:
    """The registered functions never build a graph: autograd is off inside them."""
    p, c = package(name), call(name, CHUNK + 3)
    seen: list[bool] = []
    plain = p.chunkwise.forward

    def spy(*a):
        seen.append(torch.is_grad_enabled() and any(x.requires_grad for x in a))
        return plain(*a)

    kernels = p.ops.OPERATOR.forms["chunkwise"]
    assert kernels is not None
    out = spy(*_kernel_arguments(p, c))
    assert seen == [False] and out


def _kernel_arguments(p, c):
    signature = p.ops.signature(p.ops.CHUNK_SIZE)
    with torch.no_grad():
        T = c.inputs[0].shape[1]
        laid = p.sequence._laid(signature.inputs, [x.detach() for x in c.inputs])
        parts = [p.sequence._load(x, 0, T, torch.float64) for x in laid(signature.chunk)]
        valid = p.sequence._valid(None, c.inputs[0].shape[0], 0, T, signature.chunk, parts[0])
        return (*parts, *(x.detach() for x in (*c.params, *c.states)), valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every
def test_narrow_types_compute_in_float32(package, name: str, dtype: torch.dtype) -> None:
    """The state is float32 and the only loss is that of the arguments and results."""
    p = package(name)
    c = steady(call(name, 2 * CHUNK + 3, dtype=dtype, grad=False))
    wide = tuple(x.to(torch.promote_types(x.dtype, torch.float64)) if x.dtype != torch.int64 else x for x in c.arguments)
    k = len(c.checked.recurrence.outputs)
    for form in p.FORMS:
        found, wanted = c.run(p, form), c.run(p, form, wide)
        for x, y in zip(found, wanted, strict=True):
            assert distance(x, y) < {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype], form
        assert all(x.dtype == dtype for x in found[:k])
        for s, x in zip(c.checked.recurrence.states, found[k:], strict=True):
            assert x.dtype == (torch.int64 if s.integer else torch.complex64 if s.dtype == "complex" else torch.float32)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("name", ["gated_deltaproduct", "mamba2"])
def test_strides_do_not_matter(package, name: str, form: str) -> None:
    """Arguments and incoming gradients may be transposed or expanded."""
    p, c = package(name), call(name, CHUNK + 3)
    odd = tuple(x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in c.arguments)
    assert any(not x.is_contiguous() for x in odd)
    for x, y in zip(c.run(p, form, odd), c.run(p, form), strict=True):
        assert distance(x, y) < 1e-12
    expanded = torch.autograd.grad(sum(r.sum() for r in c.run(p, form, odd)), odd)
    full = torch.autograd.grad(sum((r * torch.ones_like(r)).sum() for r in c.run(p, form)), c.arguments)
    for x, y in zip(expanded, full, strict=True):
        assert distance(x, y) < 1e-12


def test_uninitialised_memory_is_never_read(package, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN in every fresh tensor, results do not change."""
    plain = {n: getattr(torch, n) for n in ("empty", "empty_like")}
    fresh = torch.Tensor.new_empty
    p, c = package("gated_deltaproduct"), call("gated_deltaproduct", CHUNK + 3, ends=(0, 0, 4, CHUNK + 3))
    wanted = c.run(p, "chunkwise")
    grads = gradients(wanted, c.arguments)
    for n, f in plain.items():
        monkeypatch.setattr(torch, n, lambda *a, f=f, **k: _nan(f(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: _nan(fresh(*a, **k)))
    found = c.run(p, "chunkwise")
    for x, y in zip((*found, *gradients(found, c.arguments)), (*wanted, *grads), strict=True):
        assert torch.equal(x, y)


def _nan(x: torch.Tensor) -> torch.Tensor:
    return x.fill_(float("nan")) if x.is_floating_point() else x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "v": a["v"][:, :-1]}, r"`v` has T = 10, but `q` has T = 11"),
        (lambda a: {**a, "k": a["k"][..., :-1]}, r"`k` has K"),
        (lambda a: {**a, "beta": a["beta"][..., None]}, r"`beta` has shape"),
        (lambda a: {**a, "q": a["q"].long()}, r"`q` is torch.int64"),
        (lambda a: {**a, "form": "scan"}, r"form `scan` is not in this package"),
        (lambda a: {**a, "backend": "triton"}, r"backend `triton` is not in this package"),
        (lambda a: {**a, "initial_state": a["q"]}, r"`S` has"),
        (lambda a: {**a, "initial_state": torch.zeros(2, 2, 5, 3, dtype=torch.int64)}, r"state `S` is torch.int64"),
        (lambda a: {**a, "initial_state": [[0.0]]}, r"state `S` is a list"),
        (lambda a: {**a, "q": a["q"].tolist()}, r"`q` is a list; a floating-point tensor"),
        (lambda a: {**a, "cu_seqlens": torch.tensor([0, 11])}, r"B must be 1"),
        (lambda a: {**a, "cu_seqlens": [0, 11]}, r"cu_seqlens is a list; a tensor \[N \+ 1\] of int32 or int64"),
        (lambda a: {**a, "cu_seqlens": torch.tensor([0.0, 11.0])}, r"cu_seqlens is torch.float32"),
    ],
)
def test_bad_calls_say_what_is_wrong(package, change, message: str) -> None:
    c = call("gated_deltanet", 11, grad=False)
    arguments = change({i.name: x for i, x in zip(c.checked.recurrence.inputs, c.inputs, strict=True)})
    with pytest.raises((ValueError, TypeError), match=message):
        package("gated_deltanet").gated_deltanet(**arguments)


@pytest.mark.parametrize("ends", [(0, 5, 3, 11), (1, 11), (0, 10), (0, 12), ()])
def test_bad_packing_is_refused(package, ends: tuple[int, ...]) -> None:
    c = call("gated_deltanet", 11, B=1, grad=False)
    with pytest.raises(ValueError, match=r"cu_seqlens|sequences"):
        package("gated_deltanet").gated_deltanet(*c.inputs, cu_seqlens=torch.tensor(ends, dtype=torch.int64))


def test_check_tests_declared_domains(package) -> None:
    c = call("gated_deltanet", 11, grad=False)
    f = package("gated_deltanet").gated_deltanet
    q, k, v, beta, g = c.inputs
    f(q, k, v, beta, g, check=True)
    with pytest.raises(ValueError, match="`beta` is declared in"):
        f(q, k, v, beta + 1, g, check=True)
    with pytest.raises(ValueError, match="`k` is declared `unit`"):
        f(q, 3 * k, v, beta, g, check=True)
    with pytest.raises(ValueError, match="not finite"):
        f(q, k, v * torch.nan, beta, g, check=True)


def test_return_info_and_final_state(package) -> None:
    c = call("gated_deltanet", 11, grad=False)
    f = package("gated_deltanet").gated_deltanet
    o, last = f(*c.inputs)
    assert last is None and o.shape == c.inputs[2].shape
    _, _, info = f(*c.inputs, return_info=True)
    assert info.form == "chunkwise" and not info.fallback
    assert f(*(x[:, :1] for x in c.inputs), return_info=True)[2].form == "recurrent"


def test_what_a_call_s_arguments_decide_is_found_once(package, monkeypatch: pytest.MonkeyPatch) -> None:
    """For calls alike. Another form, length, type or use of gradients is another call, and a wrong one is wrong every time."""
    p, c = package("gated_deltanet"), call("gated_deltanet", 11, grad=False)
    operator, looked = p.ops.OPERATOR, []
    real = type(operator)._chosen
    monkeypatch.setattr(operator, "calls", {})
    monkeypatch.setattr(type(operator), "_chosen", lambda self, *a: looked.append(a[0]) or real(self, *a))

    def new(*inputs: object, **named: object) -> int:
        """How often a call had to be looked at, of two alike."""
        del looked[:]
        found = [p.gated_deltanet(*inputs, return_info=True, **named)[2].form for _ in range(2)]
        assert found[0] == found[1] == named.get("form", found[0])
        return len(looked)

    short, single = [x[:, :1] for x in c.inputs], [x.float() for x in c.inputs]
    assert [new(*x) for x in (c.inputs, c.inputs, short, single)] == [1, 0, 1, 1]
    assert new(*c.inputs, form="recurrent") == 1
    learning = [x.clone().requires_grad_() for x in c.inputs]
    assert new(*learning) == 1 and new(*learning) == 0
    with torch.no_grad():
        assert new(*learning) == 1
    assert new(*(x[:1] for x in c.inputs), cu_seqlens=torch.tensor([0, 5, 11])) == 2  # its number of rows is no axis of an input
    for _ in range(2):
        with pytest.raises(ValueError, match="`v` has T = 10"):
            p.gated_deltanet(*c.inputs[:2], c.inputs[2][:, :-1], *c.inputs[3:])


def test_first_states_read_what_they_are_made_of_and_nothing_else(package, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their own type: a param that is no part of them is not cast."""
    cast: list[torch.Tensor] = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: cast.append(self) or real(self, *a, **k))
    like, bonus = torch.empty(1, 2), torch.ones(2, 4, dtype=torch.bfloat16)
    (state,) = package("rwkv7").ops.OPERATOR.initial_states(like, bonus, K=4, V=4)
    assert not cast and state.shape == (1, 2, 4, 4)
    ke, ve = (torch.randn(1, 2, 6, n, dtype=torch.bfloat16) for n in (3, 4))
    found = package("jrt").ops.OPERATOR.initial_states(like, None, ke, ve, F=13, V=4)
    exact = package("jrt").ops.OPERATOR.initial_states(like, None, ke.float(), ve.float(), F=13, V=4)
    assert cast and all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(found, exact, strict=True))


def test_two_packages_of_one_name_do_not_share_an_operator(package) -> None:
    """Operators are named by content: chunk sizes differ, so the namespaces do."""
    assert package("gla", 8).ops.NAMESPACE != package("gla", 16).ops.NAMESPACE


def test_operators_stay_and_copies_of_a_package_share_them(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that no caller holds, of Triton's forms the one for calls without gradients; a copy works when the first is gone."""
    files = seqc.compile("gla", backend="triton").files
    monkeypatch.syspath_prepend(str(tmp_path))
    for copy in ("one_gla", "other_gla"):
        write_package(files, tmp_path / copy)
    first = importlib.import_module("one_gla")
    names = [f"{first.ops.NAMESPACE}::{form}_triton{suffix}" for form in first.MANIFEST["triton"]["forms"] for suffix in ("", "_backward")]
    names.append(f"{first.ops.NAMESPACE}::chunkwise_triton_plain")
    other = importlib.import_module("other_gla")
    tensors = (*(torch.randn(1, 5, 2, 4) for _ in range(3)), -torch.rand(1, 5, 2, 4))
    wanted = first.gla(*tensors)[0]
    for n in [n for n in sys.modules if n.split(".")[0] == "one_gla"]:
        del sys.modules[n]
    del first
    gc.collect()
    assert all(torch._C._dispatch_has_kernel(n) for n in names)
    leaves = [x.requires_grad_() for x in tensors]
    found = other.gla(*leaves)[0]
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in leaves)
    assert type(found.grad_fn).__name__.startswith(("chunkwise", "scan", "recurrent"))
    again = importlib.import_module("one_gla")
    assert torch.equal(again.gla(*tensors)[0], wanted)


def test_empty_batch(package) -> None:
    c = call("gated_deltanet", 11, B=1, grad=False)
    o, last = package("gated_deltanet").gated_deltanet(*(x[:0] for x in c.inputs), output_final_state=True)
    assert o.shape[0] == 0 and last.shape[0] == 0


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_autocast_does_not_reach_into_the_operator(package, form: str) -> None:
    """float32 arguments are computed in float32, inside autocast as outside, forward and backward."""
    p, c = package("deltaproduct"), call("deltaproduct", 2 * CHUNK + 3, dtype=torch.float32)
    wanted = c.run(p, form)
    grads = gradients(wanted, c.arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = c.run(p, form)
        for x, y in zip((*found, *gradients(found, c.arguments)), (*wanted, *grads), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("ends", [None, (0, 3, 3, CHUNK + 3)])
def test_transforms_of_torch_func(package, form: str, ends: tuple[int, ...] | None) -> None:
    """vmap calls the operator once for each index; grad, its own grad and jacrev take the derived backward."""
    p, c = package("gated_deltaproduct"), call("gated_deltaproduct", CHUNK + 3, ends=ends)

    def value(q: torch.Tensor) -> torch.Tensor:
        return sum(r.square().sum() for r in c.run(p, form, (q, *c.arguments[1:])))

    q = c.arguments[0]
    wanted = torch.autograd.grad(value(q), q, create_graph=True)[0]
    assert distance(torch.func.grad(value)(q), wanted) < 1e-12
    many = torch.stack((q, q + 1, -q))
    rows = torch.stack([torch.func.grad(value)(x) for x in many])
    assert distance(torch.func.vmap(value)(many), torch.stack([value(x) for x in many])) < 1e-12
    assert distance(torch.func.vmap(torch.func.grad(value))(many), rows) < 1e-12
    assert distance(torch.func.jacrev(lambda x: torch.stack((value(x), 2 * value(x))))(q), torch.stack((wanted, 2 * wanted))) < 1e-12
    second = torch.func.grad(lambda x: (torch.func.grad(value)(x) * x.detach()).sum())(q)
    assert distance(second, torch.autograd.grad((wanted * q.detach()).sum(), q)[0]) < 1e-11


def test_what_torch_func_cannot_do_is_said(package) -> None:
    p, c = package("gated_deltanet"), call("gated_deltanet", CHUNK + 3)
    q = c.arguments[0]

    def value(x: torch.Tensor) -> torch.Tensor:
        return c.run(p, "chunkwise", (x, *c.arguments[1:]))[0].square().sum()

    for forward_mode in (lambda x: torch.func.jvp(value, (x,), (x,)), torch.func.jacfwd(value), torch.func.hessian(value)):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative; `reference` has one"):
            forward_mode(q)
    with pytest.raises(ValueError, match="vmap over a dimension of length 0"):
        torch.func.vmap(value)(q[None][:0])
    for grad in (torch.func.grad, lambda f: lambda x: torch.autograd.grad(f(x), x, create_graph=True)[0].sum()):
        first = grad(value)
        second = grad(lambda x, first=first: first(x).sum())
        with pytest.raises(NotImplementedError, match="a first and a second derivative, and no third"):
            grad(lambda x, second=second: second(x).sum())(q)


def test_forward_mode_of_first_states_and_adjoints_is_refused(package) -> None:
    p, c = package("gated_deltanet"), call("gated_deltanet", CHUNK + 3)
    *others, state = c.arguments
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: c.run(p, "chunkwise", (*others, x)), (state,), (state,))
    with forward_ad.dual_level():
        out = c.run(p, "chunkwise")[0]
        seed = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.autograd.grad(out, c.arguments[0], seed)


def test_a_second_derivative_of_a_compiled_call_is_refused(package) -> None:
    """torch.compile has none, of anything: it says so instead of leaving a part out."""
    p, c = package("gated_deltanet"), call("gated_deltanet", CHUNK + 3)
    compiled = torch.compile(lambda *a: c.run(p, "chunkwise", a)[0].square().sum(), fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(*c.arguments), c.arguments[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


@pytest.mark.slow
def test_a_compiled_backward_has_no_graph_breaks(package) -> None:
    """PyTorch's compiler records the backward, too, if it is asked to: what spares it the dispatcher cannot be recorded."""
    p, c = package("gla"), call("gla", 11)
    wanted = gradients(c.run(p, "chunkwise"), c.arguments)
    results = c.run(p, "chunkwise")
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        found = gradients(results, c.arguments)
    assert all(distance(x, y) < 1e-12 for x, y in zip(found, wanted, strict=True))
