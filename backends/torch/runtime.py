"""What generated kernels call: triangular and decayed operations, and the account of an iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import isfinite

import torch
from torch import Tensor

ITERATIONS = 16  # of Newton's method, before it is given up
LOST = 0.5  # the error, relative to the states, with which half of them is enough
SOLVED = 32  # rows of a triangular solve that are found at once
SMALL = 512  # entries of a row, of all sequences and heads, up to which that is faster than one row after the other
BLOCK = 16  # rows of a block whose decays are taken relative to its first row


def scalar(value: float, like: Tensor) -> Tensor:
    """A number as a tensor."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) at any x."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def trailing_zeros(x: Tensor) -> Tensor:
    n = x.to(torch.int64)
    return torch.where(n == 0, 1024, torch.log2((n & -n).clamp(min=1).double()).long()).to(x.dtype)


def shift(x: Tensor, dim: int, by: int) -> Tensor:
    """y[i] = x[i - by] along a dimension, zero where there is none."""
    n = x.shape[dim]
    zeros = torch.zeros_like(x.narrow(dim, 0, min(abs(by), n)))
    kept = x.narrow(dim, min(max(-by, 0), n), max(n - abs(by), 0))
    return torch.cat((zeros, kept) if by > 0 else (kept, zeros), dim)


def place(x: Tensor, dim: int, index: int, length: int) -> Tensor:
    """x at one index of a new dimension, zero elsewhere."""
    shape = list(x.shape)
    shape.insert(len(shape) + 1 + dim, length)
    out = x.new_zeros(shape)
    out.select(dim, index).copy_(x)
    return out


def convolve(x: Tensor, y: Tensor, dim: int, gone: tuple[int, ...] = ()) -> Tensor:
    """z[t] = sum over s <= t of x[t - s] y[s] along a dimension, and over the dimensions that go, by Fourier transforms."""
    return _by_fourier(x, y, dim, gone, False)


def correlate(x: Tensor, y: Tensor, dim: int, gone: tuple[int, ...] = ()) -> Tensor:
    """z[s] = sum over t >= s of x[t] y[t - s] along a dimension, and over the dimensions that go, by Fourier transforms."""
    return _by_fourier(x, y, dim, gone, True)


def _by_fourier(x: Tensor, y: Tensor, dim: int, gone: tuple[int, ...], conj: bool) -> Tensor:
    n = x.shape[dim]
    if not x.numel() or not y.numel():  # of which there are no transforms
        z = x * y
        return z.sum(gone) if gone else z
    a, b = (torch.fft.rfft(v, 2 * n, dim) for v in (x, y))
    z = a * (b.conj() if conj else b)
    if gone:
        z, dim = z.sum(gone), dim + sum(g > dim for g in gone)
    whole: Tensor = torch.fft.irfft(z, 2 * n, dim)
    return whole.narrow(dim, 0, n)


def mask(rows: int, columns: int, per_row: int, step: int, offset: int, per_column: int, like: Tensor) -> Tensor:
    """Entry (i, j) says whether column j was written before row i reads."""
    return _mask(rows, columns, per_row, step, offset, per_column, like.device)


@lru_cache(maxsize=64)
def _mask(rows: int, columns: int, per_row: int, step: int, offset: int, per_column: int, device: torch.device) -> Tensor:
    i = torch.arange(rows, device=device)[:, None]
    j = torch.arange(columns, device=device)
    return j // per_column < (i // per_row) * step + offset


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 for strictly lower triangular a."""
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    inverse: Tensor = torch.linalg.solve_triangular(a, one, upper=False, unitriangular=True)
    return inverse


def spread(x: Tensor, each: int, dim: int) -> Tensor:
    """Every group's value for each of its heads; dim counts from the end. Of a single group it is a view."""
    wide = x.unsqueeze(dim)
    return wide.expand(*wide.shape[:dim], each, *wide.shape[dim:][1:]).flatten(dim - 1, dim)


def _floor(x: Tensor) -> float:
    """Smaller exponents are raised to this one: exp of it is far below rounding, and a normal number still."""
    return {torch.float64: -700.0}.get(x.dtype, -80.0)


def decay(upper: Tensor, lower: Tensor, mask: Tensor) -> Tensor:
    """exp(upper_i - lower_j) where the mask allows, zero elsewhere. The exponent is formed first and is at most zero."""
    x = upper[..., :, None] - lower[..., None, :]
    return x.clamp_(_floor(x), 0.0).exp_().mul_(mask)


def decayed_gram(x: Tensor, y: Tensor, upper: Tensor, lower: Tensor, mask: Tensor) -> Tensor:
    """[.., i, j]: sum over k of x_ik y_jk exp(upper_ik - lower_jk) where the mask allows."""
    out = []
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], upper.shape[:-2], lower.shape[:-2])
    for start in range(0, x.shape[-2], BLOCK):
        rows = slice(start, start + BLOCK)
        near, split = _near(mask, rows)
        parts = []
        if split:
            anchor = upper[..., start : start + 1, :]
            left = x[..., rows, :] * (upper[..., rows, :] - anchor).exp()
            parts.append(left @ (y[..., :split, :] * _exp(anchor - lower[..., :split, :])).mT)
        if near.stop > split:
            e = _pairs(upper[..., rows, :], lower[..., near, :], mask[rows, near])
            parts.append(torch.einsum("...ik,...jk,...ijk->...ij", x[..., rows, :], y[..., near, :], e))
        parts.append(x.new_zeros(()).expand(*batch, x[..., rows, :].shape[-2], y.shape[-2] - near.stop))
        out.append(torch.cat(parts, -1))
    return torch.cat(out, -2)


def decayed_rows(p: Tensor, y: Tensor, upper: Tensor, lower: Tensor, mask: Tensor) -> Tensor:
    """[.., i, k]: sum over j of p_ij y_jk exp(upper_ik - lower_jk) where the mask allows."""
    out = []
    batch = torch.broadcast_shapes(p.shape[:-2], y.shape[:-2], upper.shape[:-2], lower.shape[:-2])
    for start in range(0, p.shape[-2], BLOCK):
        rows = slice(start, start + BLOCK)
        near, split = _near(mask, rows)
        total = p.new_zeros(())
        if split:
            anchor = upper[..., start : start + 1, :]
            far = p[..., rows, :split] @ (y[..., :split, :] * _exp(anchor - lower[..., :split, :]))
            total = far * (upper[..., rows, :] - anchor).exp()
        if near.stop > split:
            e = _pairs(upper[..., rows, :], lower[..., near, :], mask[rows, near])
            total = total + torch.einsum("...ij,...jk,...ijk->...ik", p[..., rows, near], y[..., near, :], e)
        out.append(total.expand(*batch, p[..., rows, :].shape[-2], y.shape[-1]))
    return torch.cat(out, -2)


def decayed_columns(p: Tensor, x: Tensor, upper: Tensor, lower: Tensor, mask: Tensor) -> Tensor:
    """[.., j, k]: sum over i of p_ij x_ik exp(upper_ik - lower_jk) where the mask allows."""
    shape = torch.broadcast_shapes(p.shape[:-2], x.shape[:-2], upper.shape[:-2], lower.shape[:-2])
    total = x.new_zeros((*shape, p.shape[-1], x.shape[-1]))
    for start in range(0, p.shape[-2], BLOCK):
        rows = slice(start, start + BLOCK)
        near, split = _near(mask, rows)
        if split:
            anchor = upper[..., start : start + 1, :]
            far = p[..., rows, :split].mT @ (x[..., rows, :] * (upper[..., rows, :] - anchor).exp())
            total[..., :split, :] += far * _exp(anchor - lower[..., :split, :])
        if near.stop > split:
            e = _pairs(upper[..., rows, :], lower[..., near, :], mask[rows, near])
            total[..., near, :] += torch.einsum("...ij,...ik,...ijk->...jk", p[..., rows, near], x[..., rows, :], e)
    return total


def decayed_solve(p: Tensor, right: Tensor, upper: Tensor, lower: Tensor, mask: Tensor, transposed: bool) -> Tensor:
    """u_i = right_i - sum over j of p_ij u_jk exp(upper_ik - lower_jk) where the strict mask allows; or with i and j exchanged."""
    n = right.shape[-2]
    out: dict[int, Tensor] = {}
    batch = torch.broadcast_shapes(p.shape[:-2], right.shape[:-2], upper.shape[:-2], lower.shape[:-2])
    right = right.expand(*batch, *right.shape[-2:])
    for i in reversed(range(n)) if transposed else range(n):
        found = list(out)
        total = right[..., i, :]
        if found:
            u = torch.stack([out[j] for j in found], -2)
            if transposed:
                weight, seen, x = p[..., found, i], mask[found, i], upper[..., found, :] - lower[..., i, None, :]
            else:
                weight, seen, x = p[..., i, found], mask[i, found], upper[..., i, None, :] - lower[..., found, :]
            e = x.clamp(_floor(x), 0.0).exp() * (weight * seen)[..., None]
            total = total - (e * u).sum(-2)
        out[i] = total
    return torch.stack([out[i] for i in range(n)], -2)


def widened(x: Tensor, *sizes: int) -> Tensor:
    """x with these lengths of its last dimensions; -1 keeps one."""
    return x.expand(*x.shape[: max(x.dim() - len(sizes), 0)], *sizes)


def strict_solve(
    p: Tensor, rule: Callable[..., Tensor], right: Tensor, *given: Tensor, behind: tuple[int, ...] = (), back: bool = False
) -> Tensor:
    """u_i = rule(right_i - sum over j of p_ij u_j, given_i) for strictly lower triangular p; back: for p transposed, from the last row.

    behind: how many dimensions stand behind the rows' in `right` and in each of `given`; one where it is not said.
    Rows of many entries go one by one. Others cost a call rather than work, so a block of them is found at once, again and again:
    row i is right after i + 1 times, and nothing changes any more after that, mostly much earlier.
    """
    n, p = p.shape[-1], p.mT if back else p
    behind = behind or (1,) * (1 + len(given))
    entries = right.shape[right.dim() - behind[0] :]
    flat = right if len(entries) == 1 else right.flatten(-behind[0]) if entries else right[..., None]
    leads = (x.shape[: x.dim() - d - 1] for x, d in zip(given, behind[1:], strict=True))
    flat = flat.expand(*torch.broadcast_shapes(p.shape[:-2], flat.shape[:-2], *leads), *flat.shape[-2:])
    out = torch.empty(flat.shape, dtype=flat.dtype, device=flat.device)

    def ruled(rows: slice, found: Tensor) -> Tensor:
        few = [x.narrow(-1 - d, rows.start, rows.stop - rows.start) for x, d in zip(given, behind[1:], strict=True)]
        if len(entries) == 1:
            return rule(found, *few)
        return rule(found.reshape(*found.shape[:-1], *entries), *few).reshape(found.shape)

    def less(found: Tensor, rows: slice, seen: slice) -> Tensor:
        return _less(found, p[..., rows, seen], out[..., seen, :]) if seen.start < seen.stop else found

    small = flat.numel() <= SMALL * n
    blocks = [slice(i, min(i + (SOLVED if small else BLOCK), n)) for i in range(0, n, SOLVED if small else BLOCK)]
    for block in reversed(blocks) if back else blocks:
        found = less(flat[..., block, :], block, slice(block.stop, n) if back else slice(0, block.start))
        u = _at_once(p[..., block, block], partial(ruled, block), found) if small else None
        if u is not None:
            out[..., block, :] = u
            continue
        rows = range(block.start, block.stop)
        for i in reversed(rows) if back else rows:
            row, near = slice(i, i + 1), slice(i + 1, block.stop) if back else slice(block.start, i)
            out[..., row, :] = ruled(row, less(found[..., i - block.start : i - block.start + 1, :], row, near))
    return out if len(entries) == 1 else out.reshape(*out.shape[:-1], *entries)


def _less(right: Tensor, p: Tensor, u: Tensor) -> Tensor:
    return torch.baddbmm(right, p, u, alpha=-1) if right.dim() == p.dim() == u.dim() == 3 else right - p @ u


def _at_once(p: Tensor, rule: Callable[[Tensor], Tensor], right: Tensor) -> Tensor | None:
    """The rows of a block: all of them until nothing changes. None where numbers overflow, since zero times infinity is no zero."""
    u = rule(right)
    for _ in range(right.shape[-2]):
        last, u = u, rule(_less(right, p, u))
        if torch.equal(last, u):
            return u
    return None


def _near(mask: Tensor, rows: slice) -> tuple[slice, int]:
    """The columns that only some rows of a block see, and how many columns all of them see."""
    counts = mask[rows].sum(-1)
    split, stop = int(counts.min()), int(counts.max())
    return slice(split, stop), split


def _exp(x: Tensor) -> Tensor:
    return x.clamp(min=_floor(x)).exp()


def _pairs(upper: Tensor, lower: Tensor, mask: Tensor) -> Tensor:
    """exp(upper_ik - lower_jk) where the mask allows, as [.., i, j, k]."""
    x = upper[..., :, None, :] - lower[..., None, :, :]
    return x.clamp_(_floor(x), 0.0).exp_().mul_(mask[..., None])


class Newton:
    """How far a kernel's iterations have come.

    residual: what is left of the equations; error: what the last iteration added, which to first order is the error of the iterate
    that it was added to. Both are relative to the largest value of the same sequence and head, and the worst of them counts. The end
    is where both are at most eps^0.7, 1.4e-5 in float32 and 1.1e-11 in float64: ten times below what float32 results are used to,
    far above rounding. Rounding is in them: a step that expands shows it enlarged, and then there is no end.
    """

    def __init__(self) -> None:
        self.iterations, self.residual, self.error, self.failed = 0, 0.0, 0.0, False
        self._count, self._tolerance = 0, 0.0
        self._seen: list[Tensor] = []

    def goes_on(self) -> bool:
        """Whether another iteration is needed; asked before each one."""
        if self._count:
            residual, error = torch.stack(self._seen).amax(0).tolist()
            done = residual <= self._tolerance and error <= self._tolerance
            lost = not isfinite(residual + error) or (self._count >= ITERATIONS // 2 and error > LOST)
            if done or lost or self._count >= ITERATIONS:
                self.iterations = max(self.iterations, self._count)
                self.residual, self.error = max(residual, self.residual), max(error, self.error)
                self.failed, self._count = self.failed or not done, 0
                return False
        self._count += 1
        self._seen = []
        return True

    def added(self, x: Tensor, residual: Tensor, step: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The next iterate. dims: all but those of sequences and heads."""
        found = x + step
        self._tolerance = torch.finfo(x.dtype).eps ** 0.7
        if x.numel():
            scale = found.abs().amax(dims).clamp(min=torch.finfo(x.dtype).tiny)
            self._seen.append(torch.stack([(y.abs().amax(dims) / scale).amax() for y in (residual, step)]))
        else:
            self._seen.append(x.new_zeros(2))
        return found
