"""Calls that a caller should not make, or hardly ever does: a clear error, or the right answer."""

from __future__ import annotations

import itertools

import pytest
import torch
from layers import Call, call, distance

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")]

NAMES = ("gated_deltanet", "mamba2", "rg_lru", "mlstm", "s4d")
CHUNK = 8


def named(c: Call) -> dict[str, torch.Tensor]:
    rec = c.checked.recurrence
    return {x.name: v for x, v in zip((*rec.inputs, *rec.params), (*c.inputs, *c.params), strict=True)}


def needing(arguments: tuple[torch.Tensor, ...]) -> list[int]:
    return [i for i, x in enumerate(arguments) if x.requires_grad]


def gradients_of(results: tuple[torch.Tensor, ...], arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The gradients of the sum of all results; zero where none arrives."""
    wanted = [x for x in arguments if x.requires_grad]
    total = [(r.real.sum() + r.imag.sum() if r.is_complex() else r.sum()) for r in results if r.requires_grad]
    found = torch.autograd.grad(total, wanted, allow_unused=True) if total and wanted else [None] * len(wanted)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_any_arguments_may_need_gradients(package, name: str) -> None:
    """The gradients of some are those that they have when all are asked for."""
    p, c = package(name), call(name, CHUNK + 2)
    for form in p.FORMS:
        whole = dict(zip(needing(c.arguments), gradients_of(c.run(p, form), c.arguments), strict=True))
        for asked in itertools.islice(itertools.combinations(range(len(c.arguments)), 2), 0, None, 3):
            mixed = tuple(x.detach().requires_grad_(i in asked and i in whole) for i, x in enumerate(c.arguments))
            for i, x in zip(needing(mixed), gradients_of(c.run(p, form, mixed), mixed), strict=True):
                assert distance(x, whole[i]) < 1e-12, (form, i)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_needs_gradients(package, name: str) -> None:
    p, c = package(name), call(name, CHUNK + 2, grad=False)
    assert all(not r.requires_grad for form in p.FORMS for r in c.run(p, form))


@pytest.mark.parametrize("name", NAMES)
def test_expanded_arguments(package, name: str) -> None:
    """Tensors that repeat one entry without memory of their own, as arguments and as adjoints."""
    p, c = package(name), call(name, CHUNK + 2, grad=False)
    wide = tuple(x[:1].expand(x.shape) if x.shape[0] else x for x in c.inputs)
    copied = tuple(x.contiguous() for x in wide)
    for form in p.FORMS:
        one, two = (
            Call(c.checked, c.sizes, tuple(x.detach().requires_grad_() for x in xs), c.params, c.states, None) for xs in (wide, copied)
        )
        results = [x.run(p, form) for x in (one, two)]
        for x, y in zip(*results, strict=True):
            assert distance(x, y) < 1e-12
        grads = [gradients_of(r, x.inputs) for r, x in zip(results, (one, two), strict=True)]  # of a sum: adjoints that repeat a one
        assert all(distance(x, y) < 1e-12 for x, y in zip(*grads, strict=True))


LAYOUTS = {
    "one number for all": lambda x: torch.full((), 0.5, dtype=x.dtype).expand(x.shape),
    "one sequence for all": lambda x: x[:1].expand(x.shape),
    "turned": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a view that negates": lambda x: torch.complex(x, -x).conj().imag,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_adjoints_of_any_layout(package, name: str, layout: str) -> None:
    """First and second derivatives in a direction that is laid out oddly are those in a copy of it."""
    p, c = package(name), call(name, CHUNK + 2)
    g = torch.Generator().manual_seed(3)
    wanted = [x for x in c.arguments if x.requires_grad]

    def odd(like: torch.Tensor) -> torch.Tensor:
        parts = [LAYOUTS[layout](torch.randn(like.shape, generator=g, dtype=torch.float64)) for _ in range(1 + like.is_complex())]
        return torch.complex(*parts) if like.is_complex() else parts[0]

    for form in p.FORMS:
        results = [r for r in c.run(p, form) if r.requires_grad]
        seeds = [odd(r) for r in results]
        first = torch.autograd.grad(results, wanted, seeds, create_graph=True, allow_unused=True)
        copied = [s.clone(memory_format=torch.contiguous_format) for s in seeds]
        plain = torch.autograd.grad(results, wanted, copied, retain_graph=True, allow_unused=True)
        assert all((x is None) == (y is None) and (x is None or distance(x, y) < 1e-12) for x, y in zip(first, plain, strict=True)), form
        again = [x for x in first if x is not None and x.requires_grad]
        bends = [odd(x) for x in again]
        copies = [b.clone(memory_format=torch.contiguous_format) for b in bends]
        second = [torch.autograd.grad(again, wanted, b, retain_graph=True, allow_unused=True) for b in (bends, copies)]
        assert all(x is None or distance(x, y) < 1e-12 for x, y in zip(*second, strict=True)), form


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_no_number_stays_in_its_sequence_and_chunk(package, name: str) -> None:
    """Other sequences, and chunks before it, are what they were; token by token so are all tokens before it."""
    p, T, at = package(name), 3 * CHUNK, 2 * CHUNK - 3
    c = call(name, T, grad=False)
    spoilt = [x.clone() for x in c.inputs]
    per_token = [x for x, i in zip(spoilt, c.checked.recurrence.inputs, strict=True) if i.scope != "sequence"]
    per_token[0][0, at] = float("nan")
    bad = Call(c.checked, c.sizes, tuple(spoilt), c.params, c.states, None)
    outputs = len(c.checked.recurrence.outputs)
    for form in p.FORMS:
        before = at if form == "recurrent" else at // CHUNK * CHUNK
        for x, y in zip(bad.run(p, form)[:outputs], c.run(p, form)[:outputs], strict=True):
            assert torch.equal(x[1], y[1]) and torch.equal(x[0, :before], y[0, :before]), form
            assert torch.isnan(x[0, at]).any(), form


@pytest.mark.parametrize("none", ["sequences", "tokens"])
@pytest.mark.parametrize("name", [*NAMES, "paragru", "titans"])
def test_calls_without_sequences_or_without_tokens(package, name: str, none: str) -> None:
    """Outputs without entries; first states are last states; gradients of their shapes, and gradients of these."""
    p, c = package(name), call(name, CHUNK + 2)
    rec, k = c.checked.recurrence, len(c.checked.recurrence.outputs)
    dim = {"sequences": 0, "tokens": 1}[none]

    def shortened(x: torch.Tensor, scope: str) -> torch.Tensor:
        return x if dim == 1 and scope == "sequence" else x.detach().narrow(dim, 0, 0).requires_grad_(x.requires_grad)

    inputs = tuple(shortened(x, i.scope) for x, i in zip(c.inputs, rec.inputs, strict=True))
    states = tuple(x if dim == 1 else shortened(x, "") for x in c.states)
    short = Call(c.checked, c.sizes, inputs, c.params, states, None)
    for form in p.FORMS:
        results = short.run(p, form)
        assert all(not r.numel() for r in results[:k]), form
        assert all(x.shape == y.shape and distance(x, y) < 1e-12 for x, y in zip(results[k:], states, strict=True)), form
        wanted = [x for x in short.arguments if x.requires_grad]
        total = sum(r.abs().square().sum() for r in results if r.requires_grad)
        first = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        assert all(g is None or g.shape == x.shape for g, x in zip(first, wanted, strict=True))
        again = sum(g.abs().square().sum() for g in first if g is not None and g.requires_grad)
        if isinstance(again, torch.Tensor):
            second = torch.autograd.grad(again, wanted, allow_unused=True)
            assert all(g is None or g.shape == x.shape for g, x in zip(second, wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (torch.tensor([0, CHUNK], device="meta"), "cu_seqlens is on meta"),
        (torch.tensor([0, CHUNK]).to_sparse(), "cu_seqlens has the layout sparse_coo"),
        (torch.tensor([[0, CHUNK]]), "cu_seqlens is a vector"),
        (torch.tensor([0, CHUNK], dtype=torch.int16), "cu_seqlens is torch.int16"),
        (torch.tensor([0, -1, CHUNK]), "cu_seqlens must increase"),
        (torch.tensor([0, 5, 3, CHUNK]), "cu_seqlens must increase"),
        (torch.tensor([0, CHUNK - 1]), "cu_seqlens must increase"),
        (torch.tensor([0, 2**40]), "cu_seqlens must increase"),
        (torch.tensor([0]), "cu_seqlens must increase"),
    ],
    ids=["meta", "sparse", "matrix", "int16", "negative", "decreasing", "short", "long", "no row"],
)  # fmt: skip
def test_ends_of_the_wrong_kind(package, name: str, ends: torch.Tensor, error: str) -> None:
    p, c = package(name), call(name, CHUNK, B=1, grad=False)
    for form in p.FORMS:
        with pytest.raises((ValueError, TypeError), match=error):
            getattr(p, name)(*c.inputs, *c.params, cu_seqlens=ends, form=form)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x.to("meta"), "on meta, but"),
        (lambda x: x.to_sparse(), "layout sparse_coo"),
        (lambda x: torch.nested.nested_tensor(list(x)), "layout nested"),
        (lambda x: x.bool() if x.is_floating_point() else x.to(torch.complex64), "bool|complex64"),
        (lambda x: x.to(torch.complex128), "complex128"),
        (lambda x: x.float().to(torch.float8_e4m3fn), "float8_e4m3fn; numbers of 16 bits"),
        (lambda x: x.numpy(), "is a ndarray"),
        (lambda x: x[:1], "N = 1"),
        (lambda x: x[..., None], "shape"),
    ],
)
def test_first_states_of_the_wrong_kind(package, name: str, change, error: str) -> None:
    """Each state in turn; the message says which."""
    p, c = package(name), call(name, CHUNK, grad=False)
    given = c.in_units([part for x in c.states for part in ((x.real, x.imag) if x.is_complex() else (x,))])
    for i in range(len(given)):
        states = tuple(change(x) if i == n else x for n, x in enumerate(given))
        with pytest.raises((ValueError, TypeError), match=error):
            getattr(p, name)(*c.inputs, *c.params, initial_state=states if len(states) > 1 else (states[0],))
    for wrong in (3, "S", {"S": given[0]}, (), (*given, given[0])):
        with pytest.raises((ValueError, TypeError), match="initial_state"):
            getattr(p, name)(*c.inputs, *c.params, initial_state=wrong)


@pytest.mark.parametrize("form", [None, ["chunkwise"], "", 3])
def test_forms_of_the_wrong_kind(package, form: object) -> None:
    c = call("gated_deltanet", CHUNK, grad=False)
    with pytest.raises(ValueError, match="is not in this package"):
        package("gated_deltanet").gated_deltanet(*c.inputs, form=form)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x.to("meta"), "device|meta"),
        (lambda x: x.to_sparse(), "sparse|layout|strided"),
        (lambda x: torch.nested.nested_tensor([x, x]), "layout nested"),
        (lambda x: x.float().to(torch.float8_e4m3fn), "float8_e4m3fn; numbers of 16 bits"),
        (lambda x: x.to(torch.complex128), "complex"),
        (lambda x: x.bool(), "bool"),
        (lambda x: None, "None|required|tensor"),
        (lambda x: x.numpy(), "ndarray|tensor"),
        (lambda x: x[0], "has|shape"),
    ],
)
def test_arguments_of_the_wrong_kind(package, name: str, change, error: str) -> None:
    """Each argument in turn; the message says which."""
    p, c = package(name), call(name, CHUNK, grad=False)
    arguments = named(c)
    for wrong, x in arguments.items():
        if change.__code__.co_names == ("bool",) and x.dim() == 0:
            continue
        with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError), match=error) as raised:
            getattr(p, name)(**{**arguments, wrong: change(x)})
        assert len(str(raised.value)) < 600, str(raised.value)[:200]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_mixed_types(package, name: str) -> None:
    """One argument in float64 among float32: computed in the wider type, or refused by name."""
    p, c = package(name), call(name, CHUNK, grad=False, dtype=torch.float32)
    truth = getattr(p, name)(*c.inputs, *c.params)[0]
    for i in range(len(c.inputs)):
        mixed = [x.double() if n == i else x for n, x in enumerate(c.inputs)]
        try:
            found = getattr(p, name)(*mixed, *c.params)[0]
        except (TypeError, ValueError) as e:
            assert c.checked.recurrence.inputs[i].name in str(e) or "dtype" in str(e)
        else:
            assert distance(found.double(), truth.double()) < 1e-5
