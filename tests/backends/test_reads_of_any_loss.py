"""Memories that write any function of what they read, in the chunkwise form: the recurrence, its gradients, and loops by autograd."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import Call, call, distance, gradients, interpreted
from torch import Tensor

from seqc.compiler import check_file, check_source, compile_checked, judge
from seqc.forms import Applies
from seqc.source import Source

pytestmark = pytest.mark.slow  # not part of `make check`

CHUNK = 8
TOLERANCE = 1e-9
SPECS = ("huber_reads", "shifted_values", "cubes_in_turn", "mixtures_at_once", "rate_per_value", "square_reads")

lengths = st.sampled_from([0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 23])
extremes = st.sampled_from([0.0, 0.1, 1.0, 20.0])
several = pytest.mark.parametrize("name", SPECS)
# Rows of few entries are solved together, rows of many one after the other.
both = pytest.mark.parametrize("small", (0, 10**9), ids=("row by row", "at once"))


def path(name: str) -> str:
    return str(ROOT / "tests/backends/specs" / f"{name}.seq")


def made(name: str, T: int, *, sizes: tuple[int, ...] = (3, 2, 4, 2, 3), **more: object) -> Call:
    return call(name, T, spec=check_file(ROOT / "tests/backends/specs" / f"{name}.seq"), lengths=sizes, **more)  # type: ignore[arg-type]


def check(p: ModuleType, c: Call) -> None:
    """Values against the interpreter, gradients against autograd through the reference loop."""
    found = c.run(p, "chunkwise")
    for x, y in zip(found, interpreted(c), strict=True):
        assert distance(x, y) < TOLERANCE
    wanted = gradients(c.run(p, "reference"), c.arguments)
    for x, y in zip(gradients(found, c.arguments), wanted, strict=True):
        assert distance(x, y) < TOLERANCE


@several
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(T=lengths, extreme=extremes, heads=st.sampled_from([1, 3]), small=st.sampled_from([0, 10**9]), seed=st.integers(0, 99))
def test_lengths_and_decays(package, name: str, T: int, extreme: float, heads: int, small: int, seed: int) -> None:
    p = package(path(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p.chunkwise.runtime, "SMALL", small)
        check(p, made(name, T, extreme=extreme, heads=heads, seed=seed))


@several
@both
def test_packed_rows(package, name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = package(path(name))
    monkeypatch.setattr(p.chunkwise.runtime, "SMALL", small)
    check(p, made(name, 3 * CHUNK + 4, ends=(0, 0, 5, 6, CHUNK + 3, 3 * CHUNK + 4)))


@several
def test_more_tokens_than_a_slab(package, name: str) -> None:
    check(package(path(name)), made(name, 16 * CHUNK * 3 + 5, B=1, heads=2))


@several
def test_chunks_of_more_rows_than_are_solved_at_once(package, name: str) -> None:
    p, c = package(path(name), 64), made(name, 150, B=1, heads=1)
    assert p.chunkwise.runtime.SOLVED < 64
    check(p, c)


@several
def test_double_backward(package, name: str) -> None:
    c = made(name, CHUNK + 2, B=1, heads=2)
    assert torch.autograd.gradcheck(lambda *a: c.run(package(path(name)), "chunkwise", a), c.arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: c.run(package(path(name)), "chunkwise", a), c.arguments, fast_mode=True)
    c = made(name, 2 * CHUNK, ends=(0, 0, 3, CHUNK + 4, 2 * CHUNK))
    assert torch.autograd.gradgradcheck(lambda *a: c.run(package(path(name)), "chunkwise", a), c.arguments, fast_mode=True)


@several
def test_hand_off_at_every_split(package, name: str) -> None:
    T, p = CHUNK + 3, package(path(name))
    c = made(name, T, grad=False)
    k, whole = len(c.checked.recurrence.outputs), c.run(p, "chunkwise")
    for t in range(T + 1):
        first = c.run(p, "chunkwise", (*(x[:, :t] for x in c.inputs), *c.params, *c.states))
        second = c.run(p, "chunkwise", (*(x[:, t:] for x in c.inputs), *c.params, *first[k:]))
        joined = (*(torch.cat((a, b), 1) for a, b in zip(first[:k], second[:k], strict=True)), *second[k:])
        for x, y in zip(joined, whole, strict=True):
            assert distance(x, y) < TOLERANCE


@several
@both
def test_causality(package, name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change at token t changes nothing before it, to the last bit: rows are solved until nothing changes. Nor does what is no number."""
    c, p, t = made(name, 2 * CHUNK + 3, grad=False), package(path(name)), CHUNK + 2
    monkeypatch.setattr(p.chunkwise.runtime, "SMALL", small)
    changed = tuple(torch.cat((x[:, :t], x[:, t:].flip(1) * 0.5), 1) for x in c.inputs)
    k = len(c.checked.recurrence.outputs)
    before, after = c.run(p, "chunkwise")[:k], c.run(p, "chunkwise", (*changed, *c.params, *c.states))[:k]
    assert all(torch.equal(x[:, :t], y[:, :t]) for x, y in zip(before, after, strict=True))
    assert any(not torch.equal(x[:, t:], y[:, t:]) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ("huber_reads", "shifted_values", "rate_per_value"))
def test_a_decay_of_20_per_step_stays_exact_in_float32(package, name: str) -> None:
    p, c = package(path(name), 64), made(name, 130, extreme=20.0)
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    single = tuple(x.detach().float().requires_grad_() for x in c.arguments)
    found = c.run(p, "chunkwise", single)
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 2e-4
    for x, y in zip(gradients(found, single), grads, strict=True):
        assert distance(x, y) < 2e-3


# --- The paper's equations: one step along the gradient that autograd finds of the objective in the memory ----------------------------

Loss = Callable[..., Tensor]


def huber(r: Tensor, delta: Tensor) -> Tensor:
    size = r.abs()
    return torch.where(size <= delta[..., None], r**2 / 2, delta[..., None] * (size - delta[..., None] / 2)).sum()


def worst_case(r: Tensor, radius: Tensor) -> Tensor:
    """The largest half square of |r + d| over |d| at most the radius: where d lies along r."""
    return ((r.norm(dim=-1) + radius) ** 2 / 2).sum()


def mixture(r: Tensor, delta: Tensor) -> Tensor:
    """The square inside the ball; outside delta times what has the smoothed sign tanh(10 r) for its slope."""
    smooth = torch.log(torch.cosh(10 * r)).sum(-1) / 10
    return torch.where(r.norm(dim=-1) <= delta, (r**2).sum(-1), delta * smooth).sum()


def slope(loss: Loss, S: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
    """The gradient of the loss of S^T k - v in S [.., K, V]."""
    with torch.enable_grad():
        here = S if S.requires_grad else S.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss((here * k[..., None]).sum(-2) - v, *more), here, create_graph=True)
    return found


def each(*inputs: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(x.unbind(1) for x in inputs), strict=True)


def read(S: Tensor, q: Tensor) -> Tensor:
    return (S * q[..., None]).sum(-2)


def huber_reads(*inputs: Tensor, S: Tensor) -> Tensor:
    out = []
    for q, k, v, p, w, eta, delta, g in each(*inputs):
        S = g.exp()[..., None, None] * S - eta[..., None, None] * slope(huber, S, k, v, delta) + p[..., None] * w[..., None, :]
        out.append(read(S, q))
    return torch.stack(out, 1)


def shifted_values(*inputs: Tensor, S: Tensor) -> Tensor:
    out = []
    for q, k, v, eta, radius, g in each(*inputs):
        S = g.exp()[..., None] * S
        S = S - eta[..., None, None] * slope(worst_case, S, k, v, radius)
        out.append(read(S, q))
    return torch.stack(out, 1)


def cubes_in_turn(*inputs: Tensor, S: Tensor) -> Tensor:
    """The smoothed slope 3 tanh(10 r) (r^2 + 1e-6) is the paper's; what it is the slope of stands here by its Taylor sum's primitive."""
    out = []
    for q, k, v, eta, alpha in each(*inputs):
        S = alpha[..., None, None] * S
        for i in range(k.shape[-2]):
            r = read(S, k[..., i, :]) - v[..., i, :]
            S = S - eta[..., i, None, None] * k[..., i, :, None] * (3 * torch.tanh(10 * r) * (r**2 + 1e-6))[..., None, :]
        out.append(read(S, q))
    return torch.stack(out, 1)


def mixtures_at_once(*inputs: Tensor, S: Tensor) -> Tensor:
    out = []
    for q, k, v, eta, delta, alpha in each(*inputs):
        total = sum(slope(mixture, S, k[..., i, :], v[..., i, :], delta) for i in range(k.shape[-2]))
        new = alpha[..., None, None] * S - eta[..., None, None] * total
        out.append(read(new, q) - read(S, q))
        S = new
    return torch.stack(out, 1)


def rate_per_value(*inputs: Tensor, S: Tensor) -> Tensor:
    out = []
    for q, k, v, eta, g in each(*inputs):
        S = g.exp()[..., None, None] * S
        S = S - eta[..., None, :] * slope(lambda r: (r**2).sum() / 2, S, k, v)
        out.append(read(S, q))
    return torch.stack(out, 1)


ORACLES = (huber_reads, shifted_values, cubes_in_turn, mixtures_at_once, rate_per_value)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda f: f.__name__)
def test_the_step_is_one_along_the_gradient(package, oracle: Callable[..., Tensor]) -> None:
    c = made(oracle.__name__, 37)
    wanted = oracle(*c.inputs, S=c.states[0])
    assert distance(interpreted(c)[0], wanted) < TOLERANCE
    slopes = gradients((wanted,), c.arguments)
    for form in ("reference", "chunkwise", "recurrent"):
        found = c.run(package(path(oracle.__name__)), form)[:1]
        assert distance(found[0], wanted) < TOLERANCE
        for x, y in zip(gradients(found, c.arguments), slopes, strict=True):
            assert distance(x, y) < TOLERANCE


# --- Where rows overflow, and what is refused -----------------------------------------------------------------------------------------


def solved(p: Tensor, right: Tensor) -> Tensor:
    """u_i = r_i^2 for r = right - p u, by substitution."""
    u: list[Tensor] = []
    for i in range(len(p)):
        r = right[i] - sum((p[i, j] * u[j] for j in range(i)), torch.zeros_like(right[i]))
        u.append(r**2)
    return torch.stack(u)


def test_what_overflows_on_the_way_is_found_row_by_row(package) -> None:
    """All rows at once square the right side again and again; the rows themselves stay small."""
    runtime = package(path("huber_reads")).chunkwise.runtime
    g = torch.Generator().manual_seed(0)
    p = torch.randn(24, 24, generator=g, dtype=torch.float64).tril(-1)
    right = torch.randn(24, 2, generator=g, dtype=torch.float64) * 1e3
    for i in range(1, 24):  # such that every row finds about one
        right[i] = 1 + p[i, :i] @ solved(p[:i, :i], right[:i])
    wanted = solved(p, right)
    assert runtime._at_once(p, lambda r: r**2, right) is None
    found = runtime.strict_solve(p, lambda r: r**2, right)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_what_is_no_number_reaches_no_earlier_row(package) -> None:
    runtime = package(path("huber_reads")).chunkwise.runtime
    p, right = torch.randn(12, 12, dtype=torch.float64).tril(-1) / 8, torch.randn(12, 3, dtype=torch.float64)
    whole = runtime.strict_solve(p, torch.tanh, right)
    right[7] = torch.nan
    found = runtime.strict_solve(p, torch.tanh, right)
    torch.testing.assert_close(found[:7], whole[:7], rtol=0, atol=1e-15)
    assert found[7:].isnan().all()


def test_an_affine_loss_takes_the_products(package) -> None:
    """Half the squared error is no rule: its form is a triangular inverse, made for all chunks at once."""
    text = (ROOT / "tests/backends/specs/rate_per_value.seq").read_text("utf-8")
    plain = text.replace("eta[V]", "eta").replace("layer rate_per_value", "layer plain_rate")
    files = {f.name: f.text for f in compile_checked(check_source(Source("plain_rate.seq", plain))).files}
    assert "unit_lower_inverse" in files["chunkwise.py"] and "strict_solve" not in files["chunkwise.py"]
    ruled = {f.name: f.text for f in compile_checked(check_source(Source("rate_per_value.seq", text))).files}
    assert "strict_solve" in ruled["chunkwise.py"]


def test_an_exponential_of_a_read_is_left_to_other_forms() -> None:
    """The proof follows exponentials as deep as a text nests them, not through a state at every token."""
    text = (ROOT / "tests/backends/specs/rate_per_value.seq").read_text("utf-8")
    step = "  update  S = exp(g) * S + outer(k, eta * exp(-(S(k) - v)^2))"
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("retain")]
    lines = [step if line.lstrip().startswith("learn") else line for line in lines]
    verdicts = judge(check_source(Source("rate_per_value.seq", "\n".join(lines) + "\n")))
    assert not isinstance(verdicts["chunkwise"], Applies) and isinstance(verdicts["recurrent"], Applies)
