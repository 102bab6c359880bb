"""What generated kernels call: functions of tiles, and the launch. A tile's lengths are powers of two, what is beyond an axis is anything.

Products and sums are in float32 throughout.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

FLOOR = tl.constexpr(-80.0)  # smaller exponents are raised to this one: exp of it is far below rounding, and a normal number still


@triton.jit
def kept(x, inside, n: tl.constexpr, b: tl.constexpr, other: tl.constexpr):
    """x inside of an axis of n, `other` in the rest of its tile of b."""
    if n == b:
        return x
    return tl.where(inside, x, other)


@triton.jit
def dot(x, y):
    """[m, k] @ [k, n]."""
    if x.shape[0] >= 16 and x.shape[1] >= 16 and y.shape[1] >= 16:
        return tl.dot(x, y, input_precision="tf32x3")
    return tl.sum(x[:, :, None] * y[None, :, :], 1)


@triton.jit
def dots(x, y):
    """[b, m, k] @ [b, k, n]."""
    if x.shape[1] >= 16 and x.shape[2] >= 16 and y.shape[2] >= 16:
        return tl.dot(x, y, input_precision="tf32x3")
    return tl.sum(x[:, :, :, None] * y[:, None, :, :], 2)


@triton.jit
def decay(exponent):
    """exp of what is at most zero."""
    return tl.exp(tl.minimum(tl.maximum(exponent, FLOOR), 0.0))


@triton.jit
def unit_lower_inverse(a):
    """(I + a)^-1 for strictly lower triangular a [b, n, n], row by row."""
    i = tl.arange(0, a.shape[1])
    x = tl.broadcast_to(tl.where(i[None, :, None] == i[None, None, :], 1.0, 0.0), (a.shape[0], a.shape[1], a.shape[1]))
    for row in range(1, a.shape[1]):
        here = i[None, :, None] == row
        weights = tl.sum(tl.where(here, a, 0.0), 1)
        x = tl.where(here, x - tl.sum(weights[:, :, None] * x, 1)[:, None, :], x)
    return x


@triton.jit
def solve(a, x, n: tl.constexpr):
    """a^-1 x for a [b, n, n] and x [b, n, m], by elimination with the largest pivot of each column."""
    i = tl.arange(0, a.shape[1])
    one = tl.where(i[None, :, None] == i[None, None, :], 1.0, 0.0)
    inside = (i < n)[None, :, None] & (i < n)[None, None, :]
    a = tl.where(inside, a, tl.broadcast_to(one, a.shape))
    x = tl.where((i < n)[None, :, None], x, 0.0)
    for k in range(0, n):
        column = tl.sum(tl.where(i[None, None, :] == k, a, 0.0), 2)
        size = tl.where(i[None, :] >= k, tl.abs(column), -1.0)
        largest = tl.max(size, 1)
        pivot = tl.min(tl.where(size == largest[:, None], i[None, :], a.shape[1]), 1)
        is_k, is_pivot = (i == k)[None, :], i[None, :] == pivot[:, None]
        top, found = tl.sum(tl.where(is_k[:, :, None], a, 0.0), 1), tl.sum(tl.where(is_pivot[:, :, None], a, 0.0), 1)
        x_top, x_found = tl.sum(tl.where(is_k[:, :, None], x, 0.0), 1), tl.sum(tl.where(is_pivot[:, :, None], x, 0.0), 1)
        a = tl.where(is_pivot[:, :, None], top[:, None, :], a)
        x = tl.where(is_pivot[:, :, None], x_top[:, None, :], x)
        scale = tl.sum(tl.where((i == k)[None, :], found, 0.0), 1)
        found, x_found = found / scale[:, None], x_found / scale[:, None]
        factor = tl.where(is_k, 0.0, tl.sum(tl.where(i[None, None, :] == k, a, 0.0), 2))
        a = tl.where(is_k[:, :, None], found[:, None, :], a - factor[:, :, None] * found[:, None, :])
        x = tl.where(is_k[:, :, None], x_found[:, None, :], x - factor[:, :, None] * x_found[:, None, :])
    return x


# --- Functions of numbers that tl lacks ---------------------------------------------------------------------------------


@triton.jit
def sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def expm1(x):
    """exp(x) - 1, which loses nothing near zero: the error of u = exp(x) cancels in (u - 1) / log(u)."""
    u = tl.exp(x)
    near = (tl.abs(x) < 0.5) & (u != 1.0)
    return tl.where(near, (u - 1.0) * x / tl.where(near, tl.log(u), 1.0), tl.where(u == 1.0, x, u - 1.0))


@triton.jit
def log1p(x):
    """log(1 + x), which loses nothing near zero."""
    u = 1.0 + x
    near = (tl.abs(x) < 0.5) & (u != 1.0)
    return tl.where(near, tl.log(u) * x / tl.where(near, u - 1.0, 1.0), tl.where(u == 1.0, x, tl.log(u)))


@triton.jit
def tanh(x):
    e = expm1(-2.0 * tl.abs(x))
    return sign(x) * -e / (e + 2.0)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def power(x, y):
    """x ** y; a negative x has a power for whole y only."""
    whole, half = tl.floor(y) == y, tl.floor(0.5 * y) == 0.5 * y
    size = tl.exp(y * tl.log(tl.abs(x)))
    signed = tl.where(x < 0.0, tl.where(whole, tl.where(half, size, -size), float("nan")), size)
    return tl.where(y == 0.0, 1.0, signed)


@triton.jit
def modulo(x, n):
    return x - tl.floor(x / n) * n


@triton.jit
def trailing_zeros(x):
    n = tl.cast(x, tl.int64)
    low = tl.cast(n & -n, tl.float32)
    return tl.where(n == 0, 1024.0, tl.floor(tl.log2(tl.maximum(low, 1.0)) + 0.5))


# --- Launching ---------------------------------------------------------------------------------------------------------


def launch(kernel: Any, programs: int, tensors: tuple[torch.Tensor, ...], **sizes: int) -> None:
    """The kernel over a grid of one axis. b_x is the length of a tile that holds n_x."""
    if programs:
        tiles = {f"b_{name[2:]}": triton.next_power_of_2(max(n, 1)) for name, n in sizes.items() if f"b_{name[2:]}" in kernel.arg_names}
        with torch.cuda.device_of(tensors[0]):
            kernel[(programs,)](*tensors, **sizes, **tiles)


def contiguous(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)
