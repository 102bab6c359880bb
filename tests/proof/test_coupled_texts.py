"""Random texts of matrices that depend on each other: the chunkwise form applies to every one, and is proved."""

from __future__ import annotations

import random
import re

import pytest

from seqc.compiler import check_source, compile_checked
from seqc.forms import Applies
from seqc.source import Source

INPUTS = {
    "q": "q[K]", "k0": "k0[K]", "k1": "k1[K] in unit", "v0": "v0[V]", "v1": "v1[V]",
    "a": "a in (0, 1)", "b": "b in (-1, 1)", "g": "g in (-inf, 0)", "r": "r",
}  # fmt: skip
NUMBERS = ("a", "b", "exp(g)", "r", "1/2", "(1 - a)", "a * b")


def text(seed: int) -> str:
    """Two or three states, three to six updates, and a read of every state at some line."""
    rng = random.Random(seed)
    states = [f"S{i}" for i in range(rng.choice((2, 2, 3)))]

    def one(among: tuple[str, ...] | list[str]) -> str:
        return rng.choice(among)

    def read() -> str:
        return f"{one(('k0', 'k1'))} @ {one(states)}"

    def update(S: str) -> str:
        key, value, number = one(("k0", "k1")), one(("v0", "v1")), one(NUMBERS)
        return one(
            (
                f"{number} * {S}", f"{S} - {number} * {one(states)}", f"{S} + {number} * outer({key}, {value})",
                f"{S} - outer({key}, {read()} - {number} * {value})",
                f"{number} * {S} + {one(NUMBERS)} * outer({key}, {read()} + {read()})",
                f"{S} / 2 + {one(states)} * {number} - outer({number} * {key}, {read()})",
            )
        )  # fmt: skip

    body = [f"  update  {(S := one(states))} = {update(S)}" for _ in range(rng.randint(3, 6))]
    body += [f"  update  {S} = {update(S)}" for S in states]
    for i, S in enumerate(states):
        body.insert(rng.randint(0, len(body)), f"  output  o{i}[V] = q @ {S}")
    used = [declared for name, declared in INPUTS.items() if re.search(rf"\b{name}\b", "\n".join(body))]
    head = [f"  input   {', '.join(used)}", f"  state   {', '.join(f'{S}[K, V] = 0' for S in states)}"]
    return "\n".join(["seqc 1", "", "layer random_text(K = 4, V = 3)", "", *head, *body, ""])


@pytest.mark.slow  # not part of `make check`
@pytest.mark.parametrize("seed", range(8))
def test_a_random_text_is_proved(seed: int) -> None:
    result = compile_checked(check_source(Source("random_text.seq", text(seed))))
    assert isinstance(result.verdicts["chunkwise"], Applies), (text(seed), result.verdicts["chunkwise"])
    assert result.certificate.ok, (text(seed), result.certificate.failures)
