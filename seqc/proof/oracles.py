"""Random functions that are the same wherever they are asked: what stands for whatever has no exact meaning in a field.

An oracle's answer depends on its name and on the residues that it is given, and on nothing else: equal arguments give
equal answers, which is what a lowering must preserve. The mixing function is splitmix64 (Steele et al. 2014).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from seqc.proof.field import MODULI, Integers, Modulus, P, Residues, cosets, half_power

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(x: Residues) -> Residues:
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


class Oracles:
    """The random functions and draws of one seed. `calls` counts by name what was asked of functions.

    ordered: whether comparisons have to be those of an order (see `seqc.proof.arithmetic.Field.compare`).
    """

    def __init__(self, seed: str, ordered: bool = False):
        self.seed, self.ordered = seed, ordered
        self.calls: Counter[str] = Counter()
        self._known: dict[Any, Any] = {}

    def _key(self, name: str) -> Residues:
        digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
        return np.frombuffer(digest[:8], "<u8").astype(np.uint64)

    def draw(self, name: str, modulus: Modulus, shape: tuple[int, ...]) -> Residues:
        """Random residues under a name, the same at every call."""
        count = int(np.prod(shape, dtype=int))
        bits = _mix(_mix(np.arange(count, dtype=np.uint64) + self._key(name)) ^ self._key(f"{name}\0"))
        return modulus.reduce(bits).reshape(shape)

    def function(self, name: str, modulus: Modulus, *arguments: Residues) -> Residues:
        """A random function of residues mod p, element by element."""
        self.calls[name] += 1
        bits = self._key(f"{name}\0{modulus.bits}")
        for x in arguments:
            bits = _mix(bits ^ _mix(x))
        return modulus.reduce(bits)

    def once(self, what: Any, make: Callable[[Residues], Any], x: Residues) -> Any:
        """What is made of the residues, remembered by their values: programs and the recurrence ask for the same roots and inverses."""
        key = (what, x.shape, x.tobytes())
        if key not in self._known:
            self._known[key] = make(x)
        return self._known[key]

    def cosets(self, x: Residues) -> Integers:
        """`seqc.proof.field.cosets`, remembered."""
        found: Integers = self.once("cosets", lambda x: cosets(x, self.half_power(x)), x)
        return found

    def half_power(self, x: Residues) -> Residues:
        """`seqc.proof.field.half_power`, remembered."""
        found: Residues = self.once("half power", half_power, x)
        return found

    def inverse(self, level: int, x: Residues) -> Residues:
        """One divided by them, at a level; remembered."""
        found: Residues = self.once(("inverse", level), MODULI[level].inverse, x)
        return found

    def power(self, x: Residues, n: int) -> Residues:
        """The power mod p, remembered."""
        found: Residues = self.once(("power", n), lambda x: P.power(x, n), x)
        return found
