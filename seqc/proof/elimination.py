"""Sums of products, and linear systems by exact elimination, over residues whose first dimension holds points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from seqc.proof.field import Modulus, Residues

POINT = "\0"  # the dimension of points, in front of a value's axes


def aligned(x: Residues, have: Sequence[str], want: Sequence[str]) -> Residues:
    """The array with its dimensions in the order of `want`; those that it lacks have length 1."""
    if tuple(have) == tuple(want):
        return x
    moved = x.transpose([have.index(a) for a in want if a in have])
    lengths = iter(moved.shape)
    return moved.reshape([next(lengths) if a in have else 1 for a in want])


def einsum(modulus: Modulus, values: Sequence[Residues], axes: Sequence[Sequence[str]], out: Sequence[str]) -> Residues:
    """The product of the values, summed over every axis that is not in `out`: each as soon as nothing later needs it."""
    steps, last = _plan(tuple(map(tuple, axes)), tuple(out))
    total = values[0]
    for i, (value, (alone, mine, theirs, after)) in enumerate(zip(values, steps, strict=True)):
        value = modulus.sum(value, alone) if alone else value
        total = modulus.mul(_moved(total, theirs), _moved(value, mine)) if i else value
        total = modulus.sum(total, after) if after else total
    return _moved(total, last)


Move = tuple[tuple[int, ...], tuple[Any, ...]] | None  # an order of dimensions and an index that adds others; None: as it is


def _moved(x: Residues, move: Move) -> Residues:
    return x if move is None else x.transpose(move[0])[move[1]]


def _move(have: Sequence[str], want: Sequence[str]) -> Move:
    """How `aligned` rearranges."""
    if tuple(have) == tuple(want):
        return None
    return tuple(have.index(a) for a in want if a in have), tuple(slice(None) if a in have else None for a in want)


@lru_cache(maxsize=4096)
def _plan(axes: tuple[tuple[str, ...], ...], out: tuple[str, ...]) -> tuple[list[Any], Move]:
    """For each value the dimensions that it is summed over alone, how it and the product so far are laid beside each other, and the
    dimensions that their product is summed over; at the end, how the result is laid out."""
    have: tuple[str, ...] = ()
    steps: list[Any] = []
    for i, own in enumerate(axes):
        group, later = (POINT, *own), {POINT, *out}.union(*axes[i + 1 :])
        alone = tuple(d for d, a in enumerate(group) if a not in later and a not in have)
        group = tuple(a for d, a in enumerate(group) if d not in alone)
        union = tuple(dict.fromkeys((*have, *group)))
        after = tuple(d for d, a in enumerate(union) if a not in later) if i else ()
        steps.append((alone, _move(group, union), _move(have, union), after))
        have = tuple(a for d, a in enumerate(union) if d not in after)
    return steps, _move(have, (POINT, *out))


def matmul(modulus: Modulus, x: Residues, y: Residues) -> Residues:
    """The matrix product over the last two dimensions."""
    return modulus.sum(modulus.mul(x[..., :, :, None], y[..., None, :, :]), (-2,))


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
