"""The zero-order hold of the library against the integral that it is, for rates and steps of all sizes, 0 and complex ones included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from seqc.compiler import check_file
from seqc.ir import interp

pytestmark = pytest.mark.slow  # not part of `make check`

PATH = ROOT / "tests" / "backends" / "specs" / "held_input.seq"
NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(40))
# Rates: none at all, far below rounding, on both sides of where the library's sum gives way, large.
RE = [0.0, 1e-30, -1e-9, -0.5, -0.5000001, -3.0, 0.0, 2.0]
IM = [0.0, 0.0, 1e-12, 0.0, 0.3, -8.0, 1e-20, 1.0]
STEPS = [1e-12, 1e-3, 1 / 32, 0.25, 1.0, 2.0]


def held(A: Tensor, dt: Tensor) -> Tensor:
    """The integral of e^(A s) over s from 0 to dt, by Gauss's rule: no quotient in it."""
    s = (NODES + 1) / 2 * dt
    return (torch.exp(A[:, None] * s) * WEIGHTS / 2 * dt).sum(-1)


def held_in(A: Tensor, u: Tensor, dt: Tensor) -> Tensor:
    h, out = torch.zeros_like(A), []
    for t in range(len(u)):
        h = torch.exp(A * dt[t]) * h + held(A, dt[t]) * u[t]
        out.append(h)
    return torch.stack(out)


def test_one_step_keeps_all_digits() -> None:
    """Relative to its own size, however small the step."""
    rec = check_file(PATH).recurrence
    given = {"u": np.array([1.0]), "dt": np.ones(1)}
    params = {"a_re": np.array(RE), "a_im": np.array(IM)}
    for dt in STEPS:
        out, _ = interp.run(rec, {**given, "dt": np.array([dt])}, params, {"N": len(RE)})
        A = torch.complex(torch.tensor(RE, dtype=torch.float64), torch.tensor(IM, dtype=torch.float64))
        wanted = held(A, torch.tensor(dt, dtype=torch.float64)).numpy()
        assert np.abs((out["re_h"] + 1j * out["im_h"])[0] / wanted - 1).max() < 1e-13
        assert np.abs(out["real"][0] / held(A.real, torch.tensor(dt, dtype=torch.float64)).numpy() - 1).max() < 1e-13


@pytest.mark.parametrize("form", ["scan", "recurrent"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients(package, form: str, dtype: torch.dtype, tolerance: float) -> None:
    """At a rate of 0 too, where (e^z - 1) / z is written as 0 / 0."""
    p = package(str(PATH))
    dt = torch.tensor(STEPS, dtype=dtype).repeat(2)[None, :, None].requires_grad_()
    u = torch.linspace(-1, 1, dt.shape[1], dtype=dtype)[None, :, None].requires_grad_()
    a_re, a_im = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (RE, IM))
    found, _ = p.held_input(u, dt, a_re, a_im, form=form)
    double = [x.detach().double().requires_grad_() for x in (u, dt, a_re, a_im)]
    h = held_in(torch.complex(double[2][0], double[3][0]), double[0][0, :, 0], double[1][0, :, 0])
    r = held_in(double[2][0], double[0][0, :, 0], double[1][0, :, 0])
    wanted = (h.real, h.imag, r)
    for x, y in zip(found, wanted, strict=True):
        assert (x[0, :, 0].double() - y).abs().max() < tolerance * y.abs().max()
    w = torch.sin(torch.arange(h.numel(), dtype=torch.float64)).reshape(h.shape)
    grads = torch.autograd.grad(sum((x[0, :, 0] * w.to(dtype)).sum() for x in found), (u, dt, a_re, a_im))
    true = torch.autograd.grad(sum((y * w).sum() for y in wanted), double)
    for x, y in zip(grads, true, strict=True):
        assert (x.double() - y).abs().max() < tolerance * y.abs().max()
