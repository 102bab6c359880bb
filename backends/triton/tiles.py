"""What generated kernels call: functions of tiles, and the launch. A tile's lengths are powers of two, what is beyond an axis is anything.

Products and sums are in float32 throughout.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

FLOOR = tl.constexpr(-80.0)  # smaller exponents are raised to this one: exp of it is far below rounding, and a normal number still
BAND = tl.constexpr(16)  # rows of a block in products with decays
SMALLEST = tl.constexpr(1e-30)  # of a positive input: smaller decays forget as much


# --- Rows ----------------------------------------------------------------------------------------------------------------
# A row is a sequence, a place one of its chunks (or tokens, in forms without chunks), counted through all rows. Even rows have equal
# lengths and are counted off; others have a table: starts of n_rows + 1 rows, first places of as many, origins, the row of each place.


@triton.jit
def start(i, p_rows, n_rows, n_T, EVEN: tl.constexpr):
    """The token, counted through all rows, with which row i begins."""
    if EVEN:
        found = i * n_T
    else:
        found = tl.load(p_rows + i)
    return found


@triton.jit
def origin(i, p_rows, n_rows, n_T, EVEN: tl.constexpr):
    """Where the first place of row i begins: before its first token, if a block of the text begins before."""
    if EVEN:
        found = i * n_T
    else:
        found = tl.load(p_rows + 2 * (n_rows + 1) + i)
    return found


@triton.jit
def first(i, p_rows, n_rows, n_places, EVEN: tl.constexpr):
    """The first place of row i."""
    if EVEN:
        found = i * n_places
    else:
        found = tl.load(p_rows + n_rows + 1 + i)
    return found


@triton.jit
def count(i, p_rows, n_rows, n_places, EVEN: tl.constexpr):
    """How many places row i has."""
    if EVEN:
        found = n_places
    else:
        found = tl.load(p_rows + n_rows + 2 + i) - tl.load(p_rows + n_rows + 1 + i)
    return found


@triton.jit
def row(place, p_rows, n_rows, n_places, EVEN: tl.constexpr):
    """The row of a place; n_rows behind the last."""
    if EVEN:
        found = place // n_places
    else:
        found = tl.load(p_rows + 3 * n_rows + 2 + place)
    return found


@triton.jit
def kept(x, inside, n: tl.constexpr, b: tl.constexpr, other: tl.constexpr):
    """x inside of an axis of n, `other` in the rest of its tile of b."""
    if n % b == 0:
        return x
    return tl.where(inside, x, other)


@triton.jit
def dot(x, y, DOT: tl.constexpr):
    """[m, k] @ [k, n], of factors in 16 bits or of all bits of float32, added up in float32."""
    if x.shape[0] >= 16 and x.shape[1] >= 16 and y.shape[1] >= 16:
        found = matrices(x, y, DOT)
    else:  # not compiled where it is not taken: a tile of three axes may have more numbers than Triton allows
        found = tl.sum(x[:, :, None] * y[None, :, :], 1)
    return found


@triton.jit
def turned_dot(x, y, DOT: tl.constexpr):
    """The transposed product. That of the transposed factors, unless only this one has the 64 rows that large tensor cores take: a tile
    that is turned in registers lies unlike all others."""
    if x.shape[0] >= 64 and y.shape[1] < 64:
        found = tl.trans(dot(x, y, DOT))
    else:
        found = dot(tl.trans(y), tl.trans(x), DOT)
    return found


@triton.jit
def dots(x, y, DOT: tl.constexpr):
    """[b, m, k] @ [b, k, n]."""
    if x.shape[1] >= 16 and x.shape[2] >= 16 and y.shape[2] >= 16:
        found = matrices(x, y, DOT)
    else:
        found = tl.sum(x[:, :, :, None] * y[:, None, :, :], 2)
    return found


@triton.jit
def matrices(x, y, DOT: tl.constexpr):
    """A product on tensor cores. DOT: the type of the factors, or how products of float32 are composed."""
    if DOT == "bf16":
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    elif DOT == "fp16":
        return tl.dot(x.to(tl.float16), y.to(tl.float16))
    else:
        return tl.dot(x, y, input_precision=DOT)


@triton.jit
def decay(exponent):
    """exp of what is at most zero."""
    return tl.exp(tl.minimum(tl.maximum(exponent, FLOOR), 0.0))


# Products with a decay exp(upper[i, k] - lower[j, k]) in every term, wherever row i sees column j; the exponent is at most zero there, and
# rows see as many columns as the rows before them or more. Rows go in blocks of BAND. What all rows of a block see goes through the
# largest of their exponents, `top`: exp(upper - top) and exp(top - lower) are at most one, and factors of matrix products. The few columns
# that only some rows of a block see are taken one by one.


@triton.jit
def visible(i, PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr):
    """How many columns row i sees: the first ones."""
    return ((i // PER_ROW) * STEP + OFFSET) * PER_COLUMN


@triton.jit
def before(i, PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr):
    """How many columns the last row before the block of row i sees."""
    first = (i // BAND) * BAND
    return tl.where(first > 0, visible(first - 1, PER_ROW, PER_COLUMN, STEP, OFFSET), 0)


@triton.jit
def top(upper, b, n: tl.constexpr):
    """The largest exponents [k] of block b of rows."""
    i = tl.arange(0, upper.shape[0])
    return tl.max(tl.where(((i // BAND == b) & (i < n))[:, None], upper, float("-inf")), 0)


@triton.jit
def below_top(upper, n: tl.constexpr):
    """exp(upper - top) of each row's own block, [i, k]."""
    i = tl.arange(0, upper.shape[0])
    tops = tl.zeros(upper.shape, tl.float32)
    for b in range(0, (upper.shape[0] + BAND - 1) // BAND):
        tops = tl.where((i // BAND == b)[:, None], top(upper, b, n)[None, :], tops)
    return tl.where((i < n)[:, None], decay(upper - tops), 0.0)


@triton.jit
def from_top(y, tops, lower, seen):
    """y exp(top - lower) of the first columns, as many as a block's rows all see, and zero of the others."""
    j = tl.arange(0, y.shape[0])
    return tl.where((j < seen)[:, None], y * decay(tops[None, :] - lower), 0.0)


@triton.jit
def taken(x, at):
    """The rows `at` of x [n, k]."""
    index = tl.minimum(tl.maximum(at, 0), x.shape[0] - 1)
    return tl.gather(x, tl.broadcast_to(index[:, None], (at.shape[0], x.shape[1])), 0)


@triton.jit
def decayed_gram(
    x, y, upper, lower, n_i: tl.constexpr, n_j: tl.constexpr,
    PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """[i, j]: the sum over k of x[i, k] y[j, k] exp(upper[i, k] - lower[j, k])."""
    i, j = tl.arange(0, x.shape[0]), tl.arange(0, y.shape[0])
    found = tl.zeros((x.shape[0], y.shape[0]), tl.float32)
    if x.shape[0] > BAND:
        near = x * below_top(upper, n_i)
        for b in range(1, x.shape[0] // BAND):
            seen = visible(b * BAND - 1, PER_ROW, PER_COLUMN, STEP, OFFSET)
            far = from_top(y, top(upper, b, n_i), lower, tl.minimum(seen, n_j))
            found = tl.where((i // BAND == b)[:, None], dot(near, tl.trans(far), DOT), found)
    start, end = before(i, PER_ROW, PER_COLUMN, STEP, OFFSET), visible(i, PER_ROW, PER_COLUMN, STEP, OFFSET)
    for d in range(0, ((BAND - 1) // PER_ROW + 1) * STEP * PER_COLUMN + max(OFFSET - STEP, 0) * PER_COLUMN):
        at = start + d
        total = tl.sum(x * taken(y, at) * decay(upper - taken(lower, at)), 1)
        found = tl.where((j[None, :] == at[:, None]) & (at < end)[:, None], total[:, None], found)
    return found


@triton.jit
def decayed_rows(
    p, y, upper, lower, n_i: tl.constexpr, n_j: tl.constexpr,
    PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """[i, k]: the sum over j of p[i, j] y[j, k] exp(upper[i, k] - lower[j, k])."""
    i, j = tl.arange(0, p.shape[0]), tl.arange(0, p.shape[1])
    found = tl.zeros(upper.shape, tl.float32)
    if p.shape[0] > BAND:
        for b in range(1, p.shape[0] // BAND):
            seen = visible(b * BAND - 1, PER_ROW, PER_COLUMN, STEP, OFFSET)
            far = from_top(y, top(upper, b, n_i), lower, tl.minimum(seen, n_j))
            found = tl.where((i // BAND == b)[:, None], dot(p, far, DOT), found)
        found = found * below_top(upper, n_i)
    start, end = before(i, PER_ROW, PER_COLUMN, STEP, OFFSET), visible(i, PER_ROW, PER_COLUMN, STEP, OFFSET)
    for d in range(0, ((BAND - 1) // PER_ROW + 1) * STEP * PER_COLUMN + max(OFFSET - STEP, 0) * PER_COLUMN):
        at = start + d
        weight = tl.sum(tl.where(j[None, :] == at[:, None], p, 0.0), 1)
        one = weight[:, None] * taken(y, at) * decay(upper - taken(lower, at))
        found += tl.where(((at < end) & (at < n_j))[:, None], one, 0.0)
    return found


@triton.jit
def decayed_columns(
    p, x, upper, lower, n_i: tl.constexpr, n_j: tl.constexpr,
    PER_ROW: tl.constexpr, PER_COLUMN: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """[j, k]: the sum over i of p[i, j] x[i, k] exp(upper[i, k] - lower[j, k])."""
    i, j = tl.arange(0, p.shape[0]), tl.arange(0, p.shape[1])
    found, own = tl.zeros(lower.shape, tl.float32), tl.zeros(j.shape, tl.int32)
    if p.shape[0] > BAND:
        near = tl.where((i < n_i)[:, None], x * below_top(upper, n_i), 0.0)
        for b in range(1, p.shape[0] // BAND):
            seen = j < visible(b * BAND - 1, PER_ROW, PER_COLUMN, STEP, OFFSET)
            here = (i // BAND == b) & (i < n_i)
            far = decay(top(upper, b, n_i)[None, :] - lower)
            found += tl.where(seen[:, None], dot(tl.trans(tl.where(here[:, None], p, 0.0)), near, DOT) * far, 0.0)
            own += tl.where(seen, 0, 1)
    for d in range(0, BAND):
        at = own * BAND + d
        weight = tl.sum(tl.where(i[:, None] == at[None, :], p, 0.0), 0)
        one = weight[:, None] * taken(x, at) * decay(taken(upper, at) - lower)
        found += tl.where(((j < visible(at, PER_ROW, PER_COLUMN, STEP, OFFSET)) & (at < n_i))[:, None], one, 0.0)
    return found


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
    """a^-1 x for a [b, n, n] and x [b, n, m], by elimination with the largest pivot of each column; rows stay where they are."""
    i = tl.arange(0, a.shape[1])
    one = tl.where(i[None, :, None] == i[None, None, :], 1.0, 0.0)
    inside = (i < n)[None, :, None] & (i < n)[None, None, :]
    a = tl.where(inside, a, tl.broadcast_to(one, a.shape))
    x = tl.where((i < n)[None, :, None], x, 0.0)
    unknown = tl.full((a.shape[0], a.shape[1]), -1, tl.int32)  # which one a row gives
    for k in range(0, n):
        column = tl.sum(tl.where(i[None, None, :] == k, a, 0.0), 2)
        size = tl.where(unknown < 0, tl.abs(column), -1.0)
        pivot = tl.min(tl.where(size == tl.max(size, 1)[:, None], i[None, :], a.shape[1] - 1), 1)
        here = i[None, :] == pivot[:, None]
        scale = tl.sum(tl.where(here, column, 0.0), 1)[:, None]
        found = tl.sum(tl.where(here[:, :, None], a, 0.0), 1) / scale
        x_found = tl.sum(tl.where(here[:, :, None], x, 0.0), 1) / scale
        a = tl.where(here[:, :, None], found[:, None, :], a - column[:, :, None] * found[:, None, :])
        x = tl.where(here[:, :, None], x_found[:, None, :], x - column[:, :, None] * x_found[:, None, :])
        unknown = tl.where(here, k, unknown)
    y = x
    for k in range(0, n):
        row = tl.sum(tl.where((unknown == k)[:, :, None], x, 0.0), 1)
        y = tl.where((i == k)[None, :, None], row[:, None, :], y)
    return y


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

LARGEST, SMALLEST_BLOCK, MOST = 4096, 16, 128  # numbers of a tile, of a block along an axis: least and most


class Cut(NamedTuple):
    """How a kernel's tiles lie: the axes of each, and the axes that go in blocks, those whose blocks are programs first. lacking: for each
    of those the places of the tensors that do not have it, which the programs of all blocks read."""

    shapes: tuple[tuple[str, ...], ...]
    split: tuple[str, ...] = ()
    walked: tuple[str, ...] = ()
    lacking: tuple[tuple[int, ...], ...] = ()


# How a kernel is tried: the stages of its loops (0: as many as Triton takes), how often LARGEST is halved, the least warps. The first of
# WAYS that fits is taken; if its threads have too few registers, of it and INSTEAD the one that keeps the fewest bytes in memory.
Way = tuple[int, int, int]
WAYS = ((0, 0, 4), (2, 0, 4), (1, 0, 4), (1, 1, 4), (1, 2, 4))
INSTEAD = ((0, 0, 8), (0, 1, 4), (0, 1, 8), (1, 2, 4))
TUNED = ".tuned.json"  # in place of this file's suffix: ways that were found by trying
TENSOR_MEMORY = 512  # columns, on GPUs that have it


@cache
def plan(cut: Cut, sizes: tuple[tuple[str, int], ...], halved: int = 0) -> tuple[dict[str, int], int, int]:
    """The tiles' lengths, how many programs an index of the grid has, and the warps of a program."""
    n = dict(sizes)
    b = {a: triton.next_power_of_2(max(x, 1)) for a, x in sizes}
    free = [*cut.split, *cut.walked]
    for a in free:
        b[a] = min(b[a], MOST)

    def numbers(shape: tuple[str, ...]) -> int:
        return prod(b[a] for a in shape)

    most = LARGEST >> halved >> bool(cut.walked)  # a walk has what it adds up to in registers, too
    for shape in sorted(cut.shapes, key=numbers, reverse=True):
        while numbers(shape) > most and (long := [a for a in shape if a in free and b[a] > SMALLEST_BLOCK]):
            b[max(long, key=b.__getitem__)] //= 2
        while numbers(shape) > 4 * LARGEST and len(long := [a for a in shape if a in free and b[a] > 1]) > 1:  # a product has one of 16
            b[long[-1]] //= 2
    largest = max(map(numbers, cut.shapes), default=1)
    blocks = prod(-(-n[a] // b[a]) for a in cut.split)
    return {f"b_{a}": x for a, x in b.items()}, blocks, 8 if largest >= LARGEST else 4


def launch(kernel: Any, cut: Cut, programs: int, tensors: tuple[torch.Tensor, ...], rows: Any, **sizes: int) -> None:
    """The kernel over a grid of one axis. b_x is the length of a tile that holds n_x or a block of it."""
    if not programs:
        return
    at = device()
    if tensors[0].is_cuda and tensors[0].get_device() != at:
        with torch.cuda.device_of(tensors[0]):
            launch(kernel, cut, programs, tensors, rows, **sizes)
        return
    known = KNOWN.get(id(kernel)) or facts(kernel, cut, len(tensors), tuple(sizes))
    counts = [*([rows.tokens] if known.n_T else ()), *[sizes[n] for n in known.counts]]
    key = id(kernel), at, rows.dtype, rows.even, *[sizes[n] for n in known.fixed], *[x.dtype for x in tensors]
    compiled, blocks, constants = COMPILED.get(key, NOTHING)
    # Triton compiles a kernel again where an address, a memory or a count is of another kind.
    plain = max([programs * blocks, *counts]) < INT32
    for x in tensors:
        plain = plain and not x.data_ptr() % 16 and x.nbytes < INT32
    if plain and compiled is not None:
        compiled[programs * blocks, 1, 1](*tensors, *([rows.table] if known.p_rows else ()), *counts, *constants)
        return
    asked = asked_for(kernel, cut, programs, tensors, rows, sizes)
    if asked.key not in CHOSEN:
        CHOSEN[asked.key] = chosen(asked)
    compiled = asked.run(CHOSEN[asked.key])
    blocks, options = asked.blocks_and_options(*CHOSEN[asked.key])
    if plain and compiled is not None and programs * blocks < INT32:
        COMPILED[key] = compiled, blocks, [options[n] if n in options else asked.given[n] for n in known.constants]


class Facts(NamedTuple):
    """Of a kernel: the lengths on which its tiles depend, those for which it is compiled and others; whether it takes the table of rows,
    the tokens of a row, and whether rows are even; the arguments that are compiled in, the last ones; and itself: or another could have
    its id."""

    tiled: tuple[str, ...]
    fixed: tuple[str, ...]
    counts: tuple[str, ...]
    p_rows: bool
    n_T: bool
    even: bool
    constants: tuple[str, ...]
    kernel: Any


KNOWN = dict[int, Facts]()
CHOSEN = dict[Any, Way]()  # of a kernel and lengths
NOTHING = (None, 1, list[Any]())
COMPILED = dict[Any, tuple[Any, int, list[Any]]]()  # the compiled kernel, its blocks and constants: Triton looks at every argument for it
INT32 = 2**31


def facts(kernel: Any, cut: Cut, tensors: int, sizes: tuple[str, ...]) -> Facts:
    inside, names = {a for shape in cut.shapes for a in shape}, tuple(kernel.arg_names)
    fixed = {p.name for p in getattr(kernel, "params", ()) if p.is_constexpr or not p.do_not_specialize}
    counts = tuple(n for n in names if n in sizes and n not in fixed)
    p_rows, n_T = "p_rows" in names, "n_T" in names
    known = Facts(
        tuple(n for n in sizes if n[2:] in inside), tuple(n for n in sizes if n in fixed), counts, p_rows, n_T, "EVEN" in names,
        names[tensors + p_rows + n_T + len(counts) :], kernel,
    )  # fmt: skip
    KNOWN[id(kernel)] = known
    return known


class Asked(NamedTuple):
    """A launch of a kernel before it is known how: of programs without blocks, with what it is given; lengths: those of its tiles."""

    kernel: Any
    cut: Cut
    programs: int
    tensors: tuple[torch.Tensor, ...]
    lengths: tuple[tuple[str, int], ...]
    dtype: torch.dtype
    given: dict[str, Any]

    def blocks_and_options(self, stages: int, halved: int, least: int) -> tuple[int, dict[str, Any]]:
        """What one of WAYS or INSTEAD says."""
        found, blocks, warps = plan(self.cut, self.lengths, halved)
        names = {name: x for name, x in (*found.items(), ("DOT", SHORT.get(self.dtype) or exact())) if name in self.kernel.arg_names}
        options = {**names, "num_warps": min(max(warps, least), most_warps(target(), TRITON))}
        return blocks, {**options, **({"num_stages": stages} if stages else {})}

    @property
    def key(self) -> tuple[Any, ...]:
        """By which its way is kept."""
        return id(self.kernel), device(), self.dtype, self.lengths

    def again(self, way: Way) -> int:
        """The bytes that programs of other blocks read again, if a tensor without an axis is read by those of all of its blocks."""
        (b, _, _), n = plan(self.cut, self.lengths, way[1]), dict(self.lengths)
        blocks = [-(-n[axis] // b[f"b_{axis}"]) for axis in self.cut.split]
        reads = [prod(n for n, lacking in zip(blocks, self.cut.lacking, strict=False) if i in lacking) for i in range(len(self.tensors))]
        return sum((count - 1) * x.nbytes for count, x in zip(reads, self.tensors, strict=True))

    def compiled(self, way: Way) -> Any:
        blocks, options = self.blocks_and_options(*way)
        return self.kernel.warmup(*self.tensors, **self.given, **options, grid=(self.programs * blocks,))

    def run(self, way: Way) -> Any:
        blocks, options = self.blocks_and_options(*way)
        return self.kernel[(self.programs * blocks,)](*self.tensors, **self.given, **options)

    @property
    def name(self) -> str:
        """The GPU, the kernel and its text, and what the blocks depend on."""
        kernel, text = self.kernel.fn.__name__, sha256(inspect.getsource(self.kernel.fn).encode()).hexdigest()[:16]
        lengths = " ".join(f"{axis}={n}" for axis, n in self.lengths)
        return f"{':'.join(map(str, target()))} {kernel} {text} {str(self.dtype).removeprefix('torch.')} {lengths}".rstrip()


def asked_for(kernel: Any, cut: Cut, programs: int, tensors: tuple[torch.Tensor, ...], rows: Any, sizes: dict[str, int]) -> Asked:
    """What `launch` is called with."""
    known = KNOWN.get(id(kernel)) or facts(kernel, cut, len(tensors), tuple(sizes))
    there = {"EVEN": (known.even, rows.even), "p_rows": (known.p_rows, rows.table), "n_T": (known.n_T, rows.tokens)}
    given = {**sizes, **{name: x for name, (takes, x) in there.items() if takes}}
    return Asked(kernel, cut, programs, tensors, tuple((n[2:], sizes[n]) for n in known.tiled), rows.dtype, given)


def chosen(asked: Asked) -> Way:
    """The first of WAYS that needs no more memory than the GPU has, the last if none does; one of INSTEAD if that spills less. What
    `seqc tune` has written beside this file comes first, if it fits."""
    if device() < 0 or not isinstance(asked.kernel, triton.JITFunction):
        return WAYS[0]
    if (known := tuned()) and (way := known.get(asked.name)) is not None and fits(asked.compiled(way)):
        return way
    for best in WAYS:
        if fits(found := asked.compiled(best)):
            break
    else:
        return WAYS[-1]
    least = spilled(found)
    for way in INSTEAD:
        if least and fits(found := asked.compiled(way)) and (spills := spilled(found)) < least:
            least, best = spills, way
    return best


@cache
def tuned() -> dict[str, Way]:
    """The ways of launches by their names. Raises ValueError for a file that is none of `seqc tune`."""
    path = Path(__file__).with_suffix(TUNED)
    if not path.exists():
        return {}
    try:
        return {str(name): (int(way[0]), int(way[1]), int(way[2])) for name, way in json.loads(path.read_text("utf-8"))["ways"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} holds no ways of kernels: write it again by `seqc tune`, or remove it") from error


def spilled(kernel: Any) -> int:
    """How many registers a thread of a compiled kernel lacks. They are known when it is loaded, which `run` sees to."""
    return int(kernel.n_spills) if kernel.run else 0


def fits(kernel: Any) -> bool:
    """Whether a block of the GPU at hand has the memory that a compiled kernel needs."""
    driver, needs = triton.runtime.driver.active, kernel.metadata
    has = driver.utils.get_device_properties(driver.get_current_device())["max_shared_mem"]
    return bool(needs.shared <= has) and (getattr(needs, "tmem_size", None) or 0) <= TENSOR_MEMORY


FULL = torch.float32
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def target() -> tuple[str, int | str]:
    """Of the GPU, Triton's names of its kind and architecture; of none, the interpreter."""
    try:
        found = triton.runtime.driver.active.get_current_target()
    except RuntimeError:
        return "interpreter", 0
    return found.backend, found.arch


def device() -> int:
    """The GPU that Triton is at; of none, the interpreter."""
    try:
        return int(triton.runtime.driver.active.get_current_device())
    except RuntimeError:
        return -1


def exact() -> str:
    """How products of float32 that lose no bits are composed: AMD's GPUs multiply them as they are."""
    return "ieee" if target()[0] == "hip" else "tf32x3"


# NVIDIA's GPUs by major compute capability; the version of Triton before which kernels like these were known to be miscompiled there, and
# the most warps that were not.
MISCOMPILED = ((9, (3, 7, 1), 4), (10, (3, 8, 0), 2))
TRITON = tuple(int(x) for x in re.findall(r"\d+", triton.__version__)[:3])


def most_warps(target: tuple[str, int | str], version: tuple[int, ...]) -> int:
    """How many warps a program may have."""
    kind, architecture = target
    known = [most for major, before, most in MISCOMPILED if kind == "cuda" and int(architecture) // 10 == major and version < before]
    return min(known, default=8)


def made(rows: Any, shape: tuple[int, ...], dtype: torch.dtype = FULL) -> torch.Tensor:
    """A tensor that a kernel fills."""
    return torch.empty(shape, dtype=dtype, device=rows.device)


def contiguous(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)
