"""What generated kernels call: functions of tiles. A tile's lengths are powers of two, what is beyond an axis is anything.

Products and sums are in float32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-80.0)  # smaller exponents are raised to this one: exp of it is far below rounding, and a normal number still
BAND = tl.constexpr(16)  # rows of a block in products with decays
SMALLEST = tl.constexpr(1e-30)  # of a positive input: smaller decays forget as much
LARGE = tl.constexpr(8192)  # numbers of a tile: more are not turned into factors where products go line by line


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
    """[m, k] @ [k, n], of factors in 16 bits or of all bits of float32 (those in "lines" also), added up in float32."""
    if DOT == "lines":
        found = lines(x, y)
    elif x.shape[0] >= 16 and x.shape[1] >= 16 and y.shape[1] >= 16:
        found = matrices(x, y, DOT)
    else:  # not compiled where it is not taken: a tile of three axes may have more numbers than Triton allows
        found = tl.sum(x[:, :, None] * y[None, :, :], 1)
    return found


@triton.jit
def turned_dot(x, y, DOT: tl.constexpr):
    """The transposed product. That of the transposed factors, unless only this one has the 64 rows that large tensor cores take: a tile
    that is turned in registers lies unlike all others."""
    if x.shape[0] >= 64 and y.shape[1] < 64 and DOT != "lines":
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
    """A product on tensor cores. DOT: the type of the factors, or how products of float32 are composed; what does not go line by line
    where others do is of all bits."""
    if DOT == "bf16":
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    elif DOT == "fp16":
        return tl.dot(x.to(tl.float16), y.to(tl.float16))
    elif DOT == "lines":
        return tl.dot(x, y, input_precision="ieee")
    else:
        return tl.dot(x, y, input_precision=DOT)


@triton.jit
def lines(x, y):
    """x [m, k] @ y [k, n] by the lines of what is small. Tensor cores take factors and give results that lie in their own way, and a large
    tile goes there and back through more memory than some GPUs have; here it stays where it is."""
    i, j, k = tl.arange(0, x.shape[0]), tl.arange(0, y.shape[1]), tl.arange(0, x.shape[1])
    found = tl.zeros((x.shape[0], y.shape[1]), tl.float32)
    if x.shape[0] * x.shape[1] > LARGE:
        for at in range(0, y.shape[1]):
            column = tl.sum(tl.where((j == at)[None, :], y, 0.0), 1)
            found = tl.where((j == at)[None, :], tl.sum(x * column[None, :], 1)[:, None], found)
    elif y.shape[0] * y.shape[1] > LARGE:
        for at in range(0, x.shape[0]):
            row = tl.sum(tl.where((i == at)[:, None], x, 0.0), 0)
            found = tl.where((i == at)[:, None], tl.sum(row[:, None] * y, 0)[None, :], found)
    else:
        for at in range(0, x.shape[1]):
            here = (k == at)[:, None]
            column, row = tl.sum(tl.where(here, tl.trans(x), 0.0), 0), tl.sum(tl.where(here, y, 0.0), 0)
            found += column[:, None] * row[None, :]
    return found


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
    """Near zero it is as small as x. Near one its derivative is what is missing to one, and every bit of that counts."""
    e, u = expm1(-2.0 * tl.abs(x)), tl.exp(-2.0 * tl.abs(x))
    return sign(x) * tl.where(tl.abs(x) < 0.25, -e / (e + 2.0), 1.0 - 2.0 * u / (1.0 + u))


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
