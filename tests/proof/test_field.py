"""The vectorised arithmetic against Python's integers, and the structure that the proof stands on."""

from __future__ import annotations

from fractions import Fraction
from operator import mul

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqc.proof import elimination
from seqc.proof.field import BASES, LONGEST, MODULI, QUARTER, REAL, L, Modulus, P, Q, cosets, raised

EDGES = (0, 1, 2, 2**32 - 1, 2**32, 2**58 + 1)
residues = st.lists(st.integers(0, 2**63), min_size=1, max_size=40)


def array(modulus: Modulus, values: list[int]) -> np.ndarray:
    """The values with the modulus' ends among them, reduced."""
    ends = (modulus.value - 1, modulus.value - 2, modulus.value // 2)
    return np.array([v % modulus.value for v in (*values, *EDGES, *ends)], np.uint64)


def is_prime(n: int) -> bool:
    """Miller and Rabin with bases that decide below 2^64."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for b in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(b, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_tower() -> None:
    assert P.value == 4 * L.value + 1 and L.value == Q.value + 1 and Q.value == 12 * Q.prime
    assert all(is_prime(n) for n in (P.value, L.value, Q.prime))
    assert pow(BASES[0], L.value, P.value) == 1 != BASES[0] and pow(BASES[1], Q.prime, L.value) == 1 != BASES[1]
    assert QUARTER**2 % P.value == P.value - 1


@pytest.mark.parametrize("modulus", MODULI[:REAL])
@given(residues, residues)
@settings(max_examples=30, deadline=None)
def test_elementwise(modulus: Modulus, left: list[int], right: list[int]) -> None:
    n = modulus.value
    x, y = array(modulus, left), array(modulus, right[::-1])
    x, y = x[: min(len(x), len(y))], y[: min(len(x), len(y))]
    pairs = [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
    assert modulus.add(x, y).tolist() == [(a + b) % n for a, b in pairs]
    assert modulus.sub(x, y).tolist() == [(a - b) % n for a, b in pairs]
    assert modulus.mul(x, y).tolist() == [a * b % n for a, b in pairs]
    assert modulus.neg(x).tolist() == [-a % n for a, _ in pairs]
    assert modulus.power(x, 13).tolist() == [pow(a, 13, n) for a, _ in pairs]
    assert modulus.powers(x, y).tolist() == [pow(a, b, n) for a, b in pairs]


@pytest.mark.parametrize("modulus", MODULI[:REAL])
@given(residues)
@settings(max_examples=30, deadline=None)
def test_along_a_dimension(modulus: Modulus, values: list[int]) -> None:
    n, x = modulus.value, array(modulus, values)
    numbers = [int(a) for a in x]
    assert int(modulus.sum(x[None], (1,))[0]) == sum(numbers) % n
    assert modulus.cumsum(x, 0).tolist() == [sum(numbers[: i + 1]) % n for i in range(len(numbers))]
    running = [1]
    for a in numbers:
        running.append(running[-1] * a % n)
    assert modulus.cumprod(x[None], 1)[0].tolist() == running[1:]
    assert int(modulus.prod(x[None], 1)[0]) == running[-1]


@pytest.mark.parametrize("modulus", (P, L))
@given(residues)
@settings(max_examples=30, deadline=None)
def test_inverse(modulus: Modulus, values: list[int]) -> None:
    x = array(modulus, values)
    assert modulus.inverse(x).tolist() == [pow(int(a), -1, modulus.value) if a else 0 for a in x]


def test_inverse_counts_modulo_the_prime() -> None:
    x = np.array([3, 10**17 + 7], np.uint64)
    assert [int(a) % Q.prime for a in Q.mul(x, Q.inverse(x))] == [1, 1]


@pytest.mark.parametrize("modulus", MODULI[:REAL])
def test_rationals(modulus: Modulus) -> None:
    half, whole = modulus.residue(Fraction(-7, 2)), modulus.residues(np.array([-7, 5]))
    assert (2 * int(half) + 7) % modulus.prime == 0
    assert whole.tolist() == [modulus.value - 7, 5]
    assert modulus.signed_powers(np.array([2, 2], np.uint64), np.array([3, -1])).tolist()[0] == 8


@given(st.integers(0, L.value - 1), st.integers(0, Q.value - 1))
@settings(max_examples=20, deadline=None)
def test_exponentials(first: int, second: int) -> None:
    for level, exponent in ((0, first), (1, second)):
        found = raised(level, np.array([exponent], np.uint64))
        assert int(found[0]) == pow(BASES[level], exponent, MODULI[level].value)


@given(st.integers(1, P.value - 1), st.integers(0, L.value - 1))
@settings(max_examples=20, deadline=None)
def test_cosets(value: int, exponent: int) -> None:
    x = np.array([value], np.uint64)
    scaled = P.mul(x, raised(0, np.array([exponent], np.uint64)))
    coset = int(cosets(x)[0])
    assert coset in range(4) and int(cosets(scaled)[0]) == coset
    assert int(cosets(P.neg(x))[0]) == (coset + 2) % 4
    assert cosets(np.zeros(1, np.uint64))[0] == -1


def determinant(matrix: np.ndarray) -> int:
    """Of three rows, in whole numbers."""
    a, b, c = ([int(x) for x in row] for row in matrix)
    minors = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
    return sum(x * m for x, m in zip(a, minors, strict=True)) % P.value


@given(st.lists(st.integers(0, P.value - 1), min_size=9, max_size=9), st.lists(st.integers(0, P.value - 1), min_size=6, max_size=6))
@example([0, 0, 5, 0, 0, 1, 2, 3, 4], [0, 0, 0, 1, 0, 0])  # singular
@settings(max_examples=20, deadline=None)
def test_systems(entries: list[int], right: list[int]) -> None:
    matrix, rhs = np.array(entries, np.uint64).reshape(1, 3, 3), np.array(right, np.uint64).reshape(1, 3, 2)
    matrix[0, 0, 0] = 0  # rows must be exchanged
    found = elimination.solve(P, matrix, rhs)
    if determinant(matrix[0]):
        assert (elimination.matmul(P, matrix, found) == rhs).all()
    lower = np.tril(matrix, -1)
    unit = P.add(lower, np.eye(3, dtype=np.uint64)[None])
    assert (elimination.matmul(P, unit, elimination.unit_lower_inverse(P, lower)) == np.eye(3)).all()
    full = P.add(matrix, np.eye(3, dtype=np.uint64)[None])
    if determinant(full[0]):
        assert (elimination.matmul(P, full, elimination.unit_lower_inverse(P, matrix)) == np.eye(3)).all()


@pytest.mark.slow
@pytest.mark.parametrize("modulus", MODULI[:REAL])
@pytest.mark.parametrize(("rows", "length", "columns"), [(3, 5, 4), (1, LONGEST, 2), (17, 1, 16)])
def test_matrices_of_limbs(modulus: Modulus, rows: int, length: int, columns: int) -> None:
    """Every entry as Python's integers have it, the largest residues among them."""
    r = np.random.default_rng(0)
    x, y = (r.integers(0, modulus.value, shape).astype(np.uint64) for shape in ((2, rows, length), (2, length, columns)))
    x[0], y[0] = modulus.value - 1, modulus.value - 1
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    wanted = [[[sum(map(mul, row, column)) % modulus.value for column in zip(*b, strict=True)] for row in a] for a, b in pairs]
    assert modulus.matmul(x, y).tolist() == wanted


@pytest.mark.parametrize("axes", [("ij", "jk"), ("ij", "j"), ("i", "ij"), ("ij", "ij"), ("ijl", "ljk"), ("jil", "lkj", "k")])
@pytest.mark.parametrize("out", ["", "i", "ki", "ik"])
def test_contractions_by_either_way(axes: tuple[str, ...], out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By matrices of limbs and by products of residues; a value of one point, and one that is constant along what is summed over."""
    if not set(out) <= set("".join(axes)):
        return
    r, lengths = np.random.default_rng(0), {"i": 3, "j": 4, "k": 2, "l": 5}
    values = [r.integers(0, P.value, (2, *(lengths[a] for a in group))).astype(np.uint64) for group in axes]
    values[0] = values[0][:1]
    if all("j" in group for group in (axes[0], axes[-1])):
        values[-1] = values[-1].take([0], 1 + axes[-1].index("j"))
    wanted = np.zeros((2, *(lengths[a] for a in out)), object)
    for point in range(2):
        whole = [np.broadcast_to(x, (len(x), *(lengths[a] for a in group))) for x, group in zip(values, axes, strict=True)]
        terms = [x[point % len(x)].astype(object) for x in whole]
        wanted[point] = np.einsum(",".join(axes) + "->" + out, *terms)
    found = {}
    for many in (1, 10**9):
        monkeypatch.setattr(elimination, "MANY", many)
        x = elimination.einsum(P, values, axes, out)
        assert (np.broadcast_to(x, wanted.shape).astype(object) == wanted % P.value).all()
        found[many] = x.shape
    assert len(set(found.values())) == 1


def test_large_matrices_of_real_numbers() -> None:
    """Real numbers have no limbs: an order behind a `solve` of many entries asks for their product."""
    x = np.random.default_rng(0).random((2, 20, 20))
    np.testing.assert_allclose(elimination.matmul(MODULI[REAL], x, x), x @ x)
