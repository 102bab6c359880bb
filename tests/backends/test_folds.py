"""States folded by associative operators: against other means, across chunks and calls, second gradients, infinite first states."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import ROOT
from layers import Call, call, distance, gradients
from torch import Tensor

from seqc.compiler import check_file, judge
from seqc.forms import Applies, Refuses

pytestmark = pytest.mark.slow  # not part of `make check`

FOLDER = ROOT / "tests" / "backends" / "specs"
NAMES = ("softmax_fold", "matrix_fold", "complex_fold", "log_sum_fold", "shared_folds", "clipped")
CHUNK = 8

each = pytest.mark.parametrize("name", NAMES)


def made(name: str, T: int, **more: object) -> Call:
    return call(name, T, spec=check_file(FOLDER / f"{name}.seq"), lengths=(3, 2, 4), **more)  # type: ignore[arg-type]


@each
def test_the_scan_takes_them_as_folds(name: str) -> None:
    checked = check_file(FOLDER / f"{name}.seq")
    verdict = judge(checked)["scan"]
    assert isinstance(verdict, Applies)
    assert any("folded by an associative operator" in e or "clipped affine" in e for e in verdict.evidence)


@each
@pytest.mark.parametrize("T", [1, CHUNK, 2 * CHUNK + 3, 16 * CHUNK * 3 + 5])
def test_forms_agree_for_short_and_long_sequences(package, name: str, T: int) -> None:
    p, c = package(str(FOLDER / f"{name}.seq")), made(name, T, extreme=0.1)
    found, wanted = c.run(p, "scan"), c.run(p, "recurrent")
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 1e-9
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-9


@each
def test_hand_off_at_every_split(package, name: str) -> None:
    T = 2 * CHUNK + 3
    p, c = package(str(FOLDER / f"{name}.seq")), made(name, T, grad=False)
    k = len(c.checked.recurrence.outputs)
    whole = c.run(p, "scan")
    for t in range(T + 1):
        first = c.run(p, "scan", (*(x[:, :t] for x in c.inputs), *c.params, *c.states))
        second = c.run(p, "scan", (*(x[:, t:] for x in c.inputs), *c.params, *first[k:]))
        joined = (*(torch.cat((a, b), 1) for a, b in zip(first[:k], second[:k], strict=True)), *second[k:])
        for x, y in zip(joined, whole, strict=True):
            assert distance(x, y) < 1e-9


@each
@pytest.mark.parametrize("ends", [None, (0, 0, 3, CHUNK + 4, 2 * CHUNK)])
def test_second_gradients(package, name: str, ends: tuple[int, ...] | None) -> None:
    p, c = package(str(FOLDER / f"{name}.seq")), made(name, 2 * CHUNK, B=1, heads=2, ends=ends)
    assert torch.autograd.gradcheck(lambda *a: c.run(p, "scan", a), c.arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: c.run(p, "scan", a), c.arguments, fast_mode=True)


def attention(k: Tensor, v: Tensor, query: Tensor) -> Tensor:
    """One query's attention over the past: no running maximum, no recurrence."""
    score = torch.einsum("hk,bthk->bht", query, k) / k.shape[-1] ** 0.5
    past = torch.ones(score.shape[-1], score.shape[-1], dtype=torch.bool).tril()
    weights = score[..., None, :].expand(*score.shape, -1).masked_fill(~past, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", weights, v)


@pytest.mark.parametrize("form", ["scan", "recurrent"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_softmax_from_the_text_s_own_first_states(package, form: str, scale: float) -> None:
    """The first maximum is -inf, and scores of any size overflow nowhere; packed rows begin anew."""
    p = package(str(FOLDER / "softmax_fold.seq"))
    g = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 3 * CHUNK + 2, 2, n, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 3))
    query = (scale * torch.randn(2, 4, generator=g, dtype=torch.float64)).requires_grad_()
    ends = (0, 0, CHUNK - 1, 2 * CHUNK, 3 * CHUNK + 2)
    found, _ = p.softmax_fold(k, v, query, cu_seqlens=torch.tensor(ends), form=form)
    wanted = torch.cat([attention(k[:, a:b], v[:, a:b], query) for a, b in pairwise(ends)], 1)
    assert distance(found, wanted) < 1e-12
    w = torch.randn(wanted.shape, generator=g, dtype=torch.float64)
    grads, true = (torch.autograd.grad((x * w).sum(), (k, v, query)) for x in (found, wanted))
    for x, y in zip(grads, true, strict=True):
        assert distance(x, y) < 1e-9


@pytest.mark.parametrize("form", ["scan", "recurrent"])
def test_log_sums_and_extremes_from_infinite_first_states(package, form: str) -> None:
    p = package(str(FOLDER / "log_sum_fold.seq"))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2 * CHUNK + 3, 2, 3, generator=g, dtype=torch.float64).requires_grad_()
    rate = torch.rand(2, 3, generator=g, dtype=torch.float64).requires_grad_()
    (o, width), _ = p.log_sum_fold(x, rate, form=form)
    e = rate * x
    wanted = (e.logcumsumexp(1), e.cummax(1).values - x.cummin(1).values)
    for a, b in zip((o, width), wanted, strict=True):
        assert distance(a, b) < 1e-12
    found, true = (torch.autograd.grad((a * a).sum() + (b * b * b).sum(), (x, rate)) for a, b in ((o, width), wanted))
    for a, b in zip(found, true, strict=True):
        assert distance(a, b) < 1e-9


def test_products_of_matrices_in_their_order(package) -> None:
    p = package(str(FOLDER / "matrix_fold.seq"))
    g = torch.Generator().manual_seed(0)
    x, q = torch.randn(1, CHUNK + 3, 1, 2, 2, generator=g).double(), torch.randn(1, CHUNK + 3, 1, 2, generator=g).double()
    found, _ = p.matrix_fold(x, q, form="scan")
    M = torch.eye(2, dtype=torch.float64)
    for t in range(CHUNK + 3):
        M = M @ x[0, t, 0]
        assert distance(found[0, t, 0], q[0, t, 0] @ M) < 1e-12


def test_a_fold_in_order_is_recurrent_alone(tmp_path) -> None:
    path = tmp_path / "ordered.seq"
    path.write_text("seqc 1\n\nlayer ordered(K = 3)\n  input x[K]\n  state s[K] = 0\n  fold s = s + x by left\n  output s\n")
    verdicts = judge(check_file(path))
    assert isinstance(verdicts["recurrent"], Applies)
    for form in ("chunkwise", "conv", "scan"):
        verdict = verdicts[form]
        assert isinstance(verdict, Refuses)
        assert (verdict.reason, verdict.span and verdict.span.line) == ("`s` is folded in order, token after token", 6)
