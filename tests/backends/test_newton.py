"""The newton form in PyTorch: equal to the recurrence or reported as given up, in values, gradients and second gradients; where it
applies, and which structure it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT
from layers import Call, call, distance, gradients, interpreted, split
from torch import Tensor

from seqc.analysis.cost import ITERATIONS
from seqc.compiler import check_file, check_source, judge
from seqc.forms import Applies, Refuses
from seqc.source import Source

FOLDER = ROOT / "tests/backends/specs"
CELLS = ("cell_channels", "cell_peepholes", "cell_dense", "cell_between")
SPECS = {name: check_file(FOLDER / f"{name}.seq") for name in CELLS}
CHUNK = 8


def loaded(package: Any, name: str, chunk: int = CHUNK) -> Any:
    return package(str(FOLDER / f"{name}.seq"), chunk)


def called(name: str, T: int, scale: float = 0.5, **more: Any) -> Call:
    """A call whose weights are `scale` times random ones, an entry of a matrix over the root of its rows."""
    c = call(name, T, spec=SPECS[name], **more)
    params = [p.detach() * scale / (p.shape[-1] ** 0.5 if p.dim() > 2 else 1) for p in c.params]
    return replace(c, params=tuple(p.requires_grad_() for p in params))


def solved(p: Any, c: Call, form: str = "newton") -> tuple[Tensor, Any]:
    """The first output, and what the call says of itself."""
    state = c.states if len(c.states) > 1 else c.states[0]
    y, _, info = getattr(p, c.checked.recurrence.name)(
        *c.inputs, *c.params, initial_state=state, cu_seqlens=c.cu_seqlens, form=form, return_info=True
    )
    return (y[0] if isinstance(y, tuple) else y), info


# --- Equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [None, (0, 0, 37, 38, 70)])
@pytest.mark.parametrize("name", [*CELLS[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in CELLS[2:])])
def test_equals_the_recurrence(package: Any, name: str, ends: tuple[int, ...] | None) -> None:
    """Over more tokens than iterations, so that the iteration has to come to its end and not to that of the tokens."""
    p, c = loaded(package, name), called(name, 70, ends=ends)
    _, info = solved(p, c)
    assert info.form == "newton" and not info.fallback and 2 < info.iterations < 10 and info.residual < 2e-11 and info.error < 2e-11
    found, wanted = c.run(p, "newton"), c.run(p, "reference")
    for x, y, z in zip(found, interpreted(c), wanted, strict=True):
        assert distance(x, y) < 1e-10 and distance(z, y) < 1e-10
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CELLS[::2], *(pytest.param(n, marks=pytest.mark.slow) for n in CELLS[1::2])])
def test_gradcheck(package: Any, name: str) -> None:
    p, c = loaded(package, name), called(name, 9, lengths=(2,), B=1, heads=1)
    arguments = tuple(x.detach().requires_grad_() for x in c.arguments)
    assert torch.autograd.gradcheck(lambda *a: c.run(p, "newton", a), arguments)
    assert torch.autograd.gradgradcheck(lambda *a: c.run(p, "newton", a), arguments, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_second_gradients_over_many_tokens(package: Any, name: str) -> None:
    p, c = loaded(package, name), called(name, 45, B=1)
    seconds = []
    for form in ("newton", "reference"):
        first = gradients(c.run(p, form), c.arguments, create_graph=True)
        seconds.append(gradients(first, c.arguments, seed=2))
    for x, y in zip(*seconds, strict=True):
        assert distance(x, y) < 1e-8


@pytest.mark.parametrize("name", CELLS)
def test_hand_off(package: Any, name: str) -> None:
    """Split anywhere: the states that one call ends with are those that the next begins with."""
    p, c = loaded(package, name), called(name, 40, grad=False)
    whole = c.run(p, "newton")
    k = len(c.checked.recurrence.outputs)
    for t in (1, CHUNK, 21):
        first, rest = (replace(c, inputs=part) for part in split(c, t))
        before = first.run(p, "newton")
        after = replace(rest, states=before[k:]).run(p, "newton")
        for x, y, z in zip(whole[:k], before[:k], after[:k], strict=True):
            assert distance(torch.cat((y, z), 1), x) < 1e-9
        assert all(distance(x, y) < 1e-9 for x, y in zip(whole[k:], after[k:], strict=True))


def test_slabs_start_from_each_other(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long sequence is solved slab by slab; the backward starts each from the state that was kept."""
    p, c = loaded(package, "cell_channels"), called("cell_channels", 75, B=1)
    sequence = __import__(f"{p.__name__}.sequence", fromlist=["WRITTEN"])
    monkeypatch.setattr(sequence, "WRITTEN", CHUNK * c.sizes["N"] * 4)
    assert sequence.slab_tokens(p.ops.signature(CHUNK, written=True), {"@B": 1, "@H": 2, "N": c.sizes["N"]}) < 40
    found, wanted = c.run(p, "newton"), c.run(p, "reference")
    assert all(distance(x, y) < 1e-10 for x, y in zip(found, wanted, strict=True))
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-9


# --- Honesty ---------------------------------------------------------------------------------------------------------


def honest(package: Any, name: str, T: int, scale: float, dtype: torch.dtype) -> Any:
    """A result is that of the loop to 1e-4 of the states' size, or the call says that it was given up, and is exactly the other form's."""
    p = loaded(package, name)
    c = called(name, T, scale, B=1, lengths=(8,), dtype=dtype, grad=False)
    (y, info), (z, _) = solved(p, c), solved(p, c, "recurrent")
    assert torch.equal(y, z) if info.fallback else distance(y, z) <= 1e-4, info
    assert info.iterations <= ITERATIONS
    return info


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [64, 512, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CELLS[:3])
def test_honest_at_every_scale(package: Any, name: str, T: int, dtype: torch.dtype) -> None:
    """Weights of 1 to 8 times those at which it converges: where the step expands, a small residual would bound nothing."""
    infos = [honest(package, name, T, scale, dtype) for scale in (0.3, 1, 2, 4, 8)]
    assert not infos[0].fallback and infos[-1].fallback
    assert all(not x.residual < 1e-4 or not x.error < 1e-4 for x in infos if x.fallback)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS[:3])
def test_honest_on_random_calls(package: Any, name: str) -> None:
    """Weights and inputs of all sizes around those at which it stops converging; most calls come to their end, some do not."""
    p, given_up = loaded(package, name), 0
    for seed in range(48):
        u = torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
        c = called(name, (64, 200, 500)[seed % 3], 0.3 + 2.2 * u[0], B=1, lengths=(3,), dtype=torch.float32, seed=seed, grad=False)
        c = replace(c, inputs=tuple(x * 10 ** (3 * u[1] - 2) for x in c.inputs))
        (y, info), (z, _) = solved(p, c), solved(p, c, "recurrent")
        given_up += info.fallback
        assert distance(y, z) <= (0 if info.fallback else 1e-5), (seed, info)
    assert 0 < given_up < 30


def test_a_small_residual_is_not_enough(package: Any) -> None:
    """Where a step doubles what is there, what is left may be rounding alone, and the error still everything."""
    p = loaded(package, "cell_channels")
    newton = __import__(f"{p.__name__}.runtime", fromlist=["Newton"]).Newton
    x, tiny = torch.ones(4, 2), torch.full((4, 2), 1e-9)

    def ended(residual: Tensor, step: Tensor) -> tuple[bool, Any]:
        solver = newton()
        assert solver.goes_on()
        solver.added(x, residual, step, (0,))
        return not solver.goes_on(), solver

    assert ended(tiny, tiny)[0] and not ended(tiny, tiny)[1].failed
    assert not ended(tiny, torch.full((4, 2), 1e-2))[0] and not ended(torch.full((4, 2), 1e-2), tiny)[0]
    for bad in (float("nan"), float("inf")):
        over, solver = ended(torch.full((4, 2), bad), tiny)
        assert over and solver.failed
    alone = tiny.clone()
    alone[:, 1] = 1e-2  # one sequence that is not there yet, beside one of values a million times as large
    assert not ended(tiny, alone)[0]
    x = torch.tensor([[1e6, 1e-3]]).expand(4, 2)
    assert not ended(tiny, torch.tensor([[1e-9, 1e-5]]).expand(4, 2))[0]


@pytest.mark.parametrize("name", ["cell_channels", "cell_dense"])
def test_gradients_where_it_is_given_up(package: Any, name: str) -> None:
    """First and second, packed too: those of the form that was taken instead."""
    p = loaded(package, name)
    for ends in (None, (0, 40, 70)):
        c = called(name, 70, 8.0, ends=ends, B=1)
        assert solved(p, c)[1].fallback
        firsts = [gradients(c.run(p, form), c.arguments, create_graph=True) for form in ("newton", "recurrent")]
        seconds = [gradients(first, c.arguments, seed=2) for first in firsts]
        for x, y in (*zip(*firsts, strict=True), *zip(*seconds, strict=True)):
            assert distance(x, y) < 1e-9


def test_only_the_slab_that_fails_falls_back(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p, c = loaded(package, "cell_channels"), called("cell_channels", 128, 12.0, B=1)
    sequence = __import__(f"{p.__name__}.sequence", fromlist=["WRITTEN"])
    monkeypatch.setattr(sequence, "WRITTEN", CHUNK * c.sizes["N"] * 16)  # slabs of 64 tokens
    calm = [torch.cat((x[:, :64] + 60, x[:, 64:]), 1) for x in c.inputs]  # up to the middle, all functions are saturated
    c = replace(c, inputs=tuple(x.detach().requires_grad_() for x in calm))
    taken: list[tuple[str, int]] = []

    def computed(kernels: Any, which: str, *rest: Any) -> Any:
        found = plain(kernels, which, *rest)
        taken.append((which, found[1]))
        return found

    plain = sequence.computed
    monkeypatch.setattr(sequence, "computed", computed)
    assert solved(p, c)[1].fallback
    assert taken == [("forward", CHUNK), ("forward", 0)]
    found, wanted = c.run(p, "newton"), c.run(p, "reference")
    assert all(distance(x, y) < 1e-9 for x, y in zip(found, wanted, strict=True))
    taken.clear()
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-9
    assert taken == [("backward", 0), ("backward", CHUNK)]


# --- Where it applies, and what it sees ------------------------------------------------------------------------------


def verdict(text: str, sizes: str = "heads = 2, N = 8") -> Applies | Refuses:
    return judge(check_source(Source("cell.seq", f"seqc 1\n\nlayer cell({sizes})\n{text}\n")))["newton"]


STATE = "  input   x[N]\n  state   h[N] = 0\n"
STRUCTURES = {
    "tanh(x * h + x)": "elementwise",
    "h / (1 + h * h) + x": "elementwise",
    "x * h + sigmoid(x) * h * h": "elementwise",
    "tanh(roll[N](h, 1) + x)": "mixes N",
    "tanh(roll[N](roll[N](h, 1), -1) + x)": "mixes N",
    "tanh(h + sum(h) + x)": "mixes N",
    "h / (1 + norm(h)) + x": "mixes N",
    "softmax(h) + x": "mixes N",
    "tanh(h - mean(h) + x)": "mixes N",
    "tanh(x * max(h)) + x": "mixes N",
    "tanh(cumsum[N](h) + x)": "mixes N",
}


@pytest.mark.parametrize("value", STRUCTURES)
def test_structure_of_the_derivative(value: str) -> None:
    """Found in the expression: what only looks diagonal, by a permutation, a rotation or a sum over the axis, is not."""
    found = verdict(f"{STATE}  update  h = {value}\n  output  h")
    assert isinstance(found, Applies), found
    (said,) = found.evidence
    assert all(words in said for words in (STRUCTURES[value], "`h`: nonlinear", f"{ITERATIONS} iterations"))


@pytest.mark.slow
def test_structures_are_right(package: Any, tmp_path: Any) -> None:
    """Each of them against the loop, with gradients: a structure that is too small would show as no convergence or a wrong gradient."""
    for i, value in enumerate(STRUCTURES):
        spec = tmp_path / f"cell{i}.seq"
        line = value.replace(" + x", " + x / 4")
        spec.write_text(f"seqc 1\n\nlayer cell{i}(heads = 2, N = 8)\n{STATE}  update  h = {line}\n  output  h\n")
        p = package(str(spec), 4)
        torch.manual_seed(i)
        x = (0.3 * torch.randn(2, 25, 2, 4, dtype=torch.float64)).requires_grad_()
        first = torch.rand(2, 2, 4, dtype=torch.float64)  # a norm has no derivative at zero
        y, _, info = getattr(p, f"cell{i}")(x, initial_state=first, form="newton", return_info=True)
        z, _ = p.reference(x, initial_state=first)
        assert distance(y, z) < 1e-10, value
        assert not info.fallback and info.iterations < ITERATIONS, (value, info)
        assert distance(*(torch.autograd.grad(w.square().sum(), x)[0] for w in (y, z))) < 1e-9, value


NOTHING = ("no state is a nonlinear function of itself", "cell")
REFUSALS = {
    f"{STATE}  update  h = x * h + x\n  output  h": NOTHING,
    f"{STATE}  update  h = max(h, x)\n  output  h": NOTHING,
    "  input   x[N]\n  output  y[N] = tanh(x)": NOTHING,
    "  input   x[N]\n  memory  W[N, N] = 0\n  learn   W by descent(rate = 1) on l2(tanh(W(x)), x) at start(W, 4)\n  output  y[N] = W(x)": (
        "changes only every 4 tokens",
        "",
    ),
    f"{STATE}  fold    h = tanh(h + x) by left\n  output  h": ("`h` is folded in order", "fold h"),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_name_the_line(text: str) -> None:
    found, (reason, line) = verdict(text), REFUSALS[text]
    assert isinstance(found, Refuses) and reason in found.reason
    assert found.span is not None and " ".join(found.span.text.split()).startswith(line)


def test_large_derivatives_are_refused() -> None:
    matrix = "  input   x[N]\n  param   R[N, N] = 1\n  state   h[N] = 0\n  update  h = tanh(R @ h + x)\n  output  h"
    assert isinstance(verdict(matrix), Applies)
    for size in ("N = 65", "N = model"):
        found = verdict(matrix, size)
        assert isinstance(found, Refuses) and "mixes the entries of `h` along `N`" in found.reason
        assert found.span is not None and found.span.text == "update  h = tanh(R @ h + x)"
    rows = "  input   x[N, M]\n  param   R[M, M] = 1\n  state   h[N, M] = 0\n  update  h = tanh(h @ R + x)\n  output  h"
    assert isinstance(verdict(rows, "N = 3, M = 5"), Applies)
    found = verdict(rows, "N = 64, M = 64")
    assert isinstance(found, Refuses) and "more than 4,096 entries" in found.reason


# --- The operator ----------------------------------------------------------------------------------------------------


def test_auto_takes_it_where_it_is_clearly_faster(package: Any) -> None:
    p = loaded(package, "cell_channels", 64)
    given = {T: called("cell_channels", T, B=1, heads=1, lengths=(8,), dtype=torch.float32) for T in (1, 8, 2048)}
    taken = {T: p.ops.OPERATOR.fastest(c.inputs, c.params, None) for T, c in given.items()}
    assert taken == {1: "recurrent", 8: "recurrent", 2048: "newton"}
    runtime = __import__(f"{p.__name__}.runtime", fromlist=["ITERATIONS"])
    assert runtime.ITERATIONS == ITERATIONS  # an estimate takes as many as there can be


def test_other_forms_report_no_iteration(package: Any) -> None:
    p, c = loaded(package, "cell_channels"), called("cell_channels", 9)
    assert tuple(solved(p, c, "recurrent")[1]) == ("recurrent", 0, 0.0, 0.0, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_types(package: Any, dtype: torch.dtype) -> None:
    p = loaded(package, "cell_channels")
    c = called("cell_channels", 50, dtype=dtype, grad=False)
    (y, info), (z, _) = solved(p, c), solved(p, c, "recurrent")
    assert y.dtype == dtype and not info.fallback
    assert distance(y.double(), z.double()) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.slow
def test_transforms(package: Any) -> None:
    """vmap and grad of torch.func, torch.compile and the checks of a registered operator."""
    p = loaded(package, "cell_channels")
    c = called("cell_channels", 20, grad=False)
    run = p.cell_channels

    def loss(x: Tensor) -> Tensor:
        return run(x, *c.inputs[1:], *c.params, form="newton")[0].square().sum()

    def truth(x: Tensor) -> Tensor:
        return p.reference(x, *c.inputs[1:], *c.params)[0].square().sum()

    x = c.inputs[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(truth(x), x)
    assert distance(torch.func.grad(loss)(c.inputs[0]), wanted) < 1e-9
    several = torch.stack((c.inputs[0], 0.5 * c.inputs[0]))
    stacked = torch.func.vmap(loss)(several)
    assert all(distance(a, truth(b)) < 1e-9 for a, b in zip(stacked, several, strict=True))
    op = p.ops.OPERATOR.forms["newton"][1].op
    torch.library.opcheck(op, (*(a.detach().requires_grad_() for a in c.arguments), None))


@pytest.mark.slow
def test_compiled(package: Any) -> None:
    p = loaded(package, "cell_channels")
    c = called("cell_channels", 20, grad=False)

    def run(*a: Tensor) -> tuple[Tensor, Tensor]:
        y, _, info = p.cell_channels(*a, form="newton", return_info=True)
        return y * 2, info.iterations

    found, iterations = torch.compile(run, fullgraph=True, backend="aot_eager")(*c.inputs, *c.params)
    assert 2 < iterations < ITERATIONS
    assert distance(found, 2 * p.reference(*c.inputs, *c.params)[0]) < 1e-9
