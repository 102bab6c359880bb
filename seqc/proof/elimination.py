"""Sums of products, and linear systems by exact elimination, over residues whose first dimension holds points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from seqc.proof.field import LONGEST, Modulus, Residues

POINT = "\0"  # the dimension of points, in front of a value's axes
MANY = 4096  # products from which matrices of limbs are sooner multiplied than residues


def aligned(x: Residues, have: Sequence[str], want: Sequence[str]) -> Residues:
    """The array with its dimensions in the order of `want`; those that it lacks have length 1."""
    if tuple(have) == tuple(want):
        return x
    moved = x.transpose([have.index(a) for a in want if a in have])
    lengths = iter(moved.shape)
    return moved.reshape([next(lengths) if a in have else 1 for a in want])


def einsum(modulus: Any, values: Sequence[Residues], axes: Sequence[Sequence[str]], out: Sequence[str]) -> Residues:
    """The product of the values, summed over every axis that is not in `out`: each as soon as nothing later needs it."""
    first, *steps = _plan(tuple(map(tuple, axes)), tuple(out))
    total = modulus.sum(values[0], first.alone) if first.alone else values[0]
    for value, step in zip(values[1:], steps, strict=True):
        value = modulus.sum(value, step.alone) if step.alone else value
        x, y = _moved(total, step.left), _moved(value, step.right)
        if not step.after:
            total = modulus.mul(x, y)
        elif isinstance(modulus, Modulus):
            many = prod([max(n, m) for n, m in zip(x.shape, y.shape, strict=True)]) >= MANY
            total = _by_matrices(modulus, x, y, step) if many else modulus.dot(x, y, step.after)
        else:
            total = modulus.sum(modulus.mul(x, y), step.after)
    return _moved(total, steps[-1].last if steps else first.last)


def _by_matrices(modulus: Modulus, x: Residues, y: Residues, step: _Step) -> Residues:
    """The product, summed: x and y with dimensions that both have, that x has, that are summed over and that y has."""
    low, high = step.after[0], step.after[-1] + 1
    both, lengths = low - step.own, np.broadcast_shapes(x.shape[low:high], y.shape[low:high])
    rows, columns, n = x.shape[both:low], y.shape[high:], prod(lengths)
    left = np.broadcast_to(x.reshape(x.shape[:high]), (*x.shape[:low], *lengths)).reshape((*x.shape[:both], prod(rows), n))
    right = y.reshape((*y.shape[:both], *y.shape[low:]))
    right = np.broadcast_to(right, (*y.shape[:both], *lengths, *columns)).reshape((*y.shape[:both], n, prod(columns)))
    found = matmul(modulus, left, right)
    return found.reshape((*found.shape[:both], *rows, *columns))


Move = tuple[tuple[int, ...], tuple[Any, ...]] | None  # an order of dimensions and an index that adds others; None: as it is


def _moved(x: Residues, move: Move) -> Residues:
    return x if move is None else x.transpose(move[0])[move[1]]


def _move(have: Sequence[str], want: Sequence[str]) -> Move:
    """How `aligned` rearranges."""
    if tuple(have) == tuple(want):
        return None
    return tuple(have.index(a) for a in want if a in have), tuple(slice(None) if a in have else None for a in want)


class _Step(NamedTuple):
    """How a value joins the product of those before it.

    alone: its dimensions that are summed over at once. left, right: how the product so far and the value are laid beside each other, with
    dimensions that both have, that the product has (`own` of them), that are then summed over (`after`) and that the value has.
    last: how the result is laid out, if this is the last value.
    """

    alone: tuple[int, ...]
    left: Move
    right: Move
    own: int
    after: tuple[int, ...]
    last: Move


@lru_cache(maxsize=4096)
def _plan(axes: tuple[tuple[str, ...], ...], out: tuple[str, ...]) -> tuple[_Step, ...]:
    """One step for each value."""
    have: tuple[str, ...] = ()
    steps: list[_Step] = []
    for i, own in enumerate(axes):
        group, later = (POINT, *own), {POINT, *out}.union(*axes[i + 1 :])
        alone = tuple(d for d, a in enumerate(group) if a not in later and a not in have)
        group = tuple(a for d, a in enumerate(group) if d not in alone)
        both = tuple(a for a in have if a in group and a in later)
        mine, summed = tuple(a for a in have if a not in group), tuple(a for a in have if a in group and a not in later)
        theirs = tuple(a for a in group if a not in have)
        union, first = (*both, *mine, *summed, *theirs), len(both) + len(mine)
        left, right, after = _move(have, union), _move(group, union), tuple(range(first, first + len(summed)))
        have = (*both, *mine, *theirs)
        steps.append(_Step(alone, left, right, len(mine), after, _move(have, (POINT, *out))))
    return tuple(steps)


def matmul(modulus: Any, x: Residues, y: Residues) -> Residues:
    """The matrix product over the last two dimensions."""
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if isinstance(modulus, Modulus) and prod(lead) * x.shape[-2] * prod(y.shape[-2:]) >= MANY and x.shape[-1] <= LONGEST:
        return modulus.matmul(x, y)
    found: Residues = modulus.sum(modulus.mul(x[..., :, :, None], y[..., None, :, :]), (-2,))
    return found


def solve(modulus: Modulus, matrix: Residues, rhs: Residues) -> Residues:
    """y with matrix y = rhs over the last two dimensions, by elimination; a singular matrix gives some y."""
    lead = np.broadcast_shapes(matrix.shape[:-2], rhs.shape[:-2])
    n = matrix.shape[-1]
    work = np.concatenate([np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (matrix, rhs)], axis=-1)
    for k in range(n):
        work = _pivoted(work, k)
        row = modulus.mul(work[..., k, :], modulus.inverse(work[..., k, k])[..., None])
        work = modulus.sub(work, modulus.mul(work[..., :, k, None], row[..., None, :]))
        work[..., k, :] = row
    return work[..., n:]


def inverse(modulus: Modulus, matrix: Residues) -> Residues:
    """The matrix's inverse over the last two dimensions; of a singular one, something that depends on it alone."""
    return solve(modulus, matrix, np.broadcast_to(np.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape))


def _pivoted(work: Residues, k: int) -> Residues:
    """The rows k and first-with-an-entry-in-column-k exchanged, matrix by matrix."""
    found = k + (work[..., k:, k] != 0).argmax(axis=-1)
    order = np.broadcast_to(np.arange(work.shape[-2]), (*found.shape, work.shape[-2])).copy()
    np.put_along_axis(order, found[..., None], k, axis=-1)
    order[..., k] = found
    return np.take_along_axis(work, order[..., None], axis=-2)


def unit_lower_inverse(modulus: Modulus, x: Residues) -> Residues:
    """(1 + x)^-1 over the last two dimensions: row by row if x is strictly lower triangular, else by elimination."""
    n = x.shape[-1]
    unit = np.broadcast_to(np.eye(n, dtype=x.dtype), x.shape)
    if np.triu(x).any():
        return solve(modulus, modulus.add(unit, x), unit)
    out = unit.copy()
    for i in range(1, n):
        earlier = modulus.mul(x[..., i, :i, None], out[..., :i, :i])
        out[..., i, :i] = modulus.neg(modulus.sum(earlier, (-2,)))
    return out
