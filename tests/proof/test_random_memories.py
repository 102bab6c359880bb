"""Random lines about one memory: where the chunkwise form says that it applies, the proof finds it equal, derivatives included."""

from __future__ import annotations

import random
import re

import pytest

from seqc.compiler import check_source, judge, prepared, programs
from seqc.diagnostics import SpecError
from seqc.forms import Applies
from seqc.forms.chunkwise import CHUNKWISE
from seqc.forms.recurrent import RECURRENT
from seqc.proof.prove import prove
from seqc.source import Source

pytestmark = pytest.mark.slow  # not part of `make check`

INPUTS = {
    "q": "q[K]", "r": "r[V]", "k": "k[K]", "w": "w[K]", "v": "v[V]", "u": "u[V]", "c": "c", "ks": "ks[n, K]", "vs": "vs[n, V]",
    "a": "a in (0, 1)", "e": "e[K] in (-inf, 0)", "f": "f[V] in (-inf, 0)", "b": "b in (0, 1)", "m": "m[n] in (0, 1)",
}  # fmt: skip
STEPS = (
    "retain S by decay(a)",
    "retain S by decay(exp(e))",
    "retain S by decay(exp(f))",
    "update S = outer(exp(e), exp(f)) * S",
    "update S = S + outer(k, v)",
    "update S = S + outer(exp(e) * w, u) - c * outer(k, u)",
    "update S = lerp(S, outer(k, v), b)",
    "update S = a * (S + outer(w, u)) + outer(k, c * v)",
    "update S = outer(w, v) - b * (outer(k, u) - S)",
    "learn S by descent(rate = b) on dot(S(w), u)",
    "learn S by descent(rate = b) on sum[n](dot(S(window[n](w)), window[n](u)))",
)
ALONG_KEYS = (
    "learn S by descent(rate = b) on l2(S(k), v)",
    "learn S by descent(rate = b) on l2(S(k), v) at start(S)",
    "update S = S - outer(w, S(k)) + outer(k, v)",
    "update S = S - outer(w, c * (k @ (S + outer(w, u))))",
    "learn S by descent(rate = b) on sum[n](m * l2(S(ks), vs))",
    "update S = lerp(S, S - outer(k, S(k) - v), b)",
)
ALONG_VALUES = (
    "learn S by descent(rate = b) on l2(S @ v, k)",
    "update S = S - outer(S @ r, u) + outer(k, v)",
    "update S = S - outer(c * (S @ v) - w, v)",
)
READS = ("[V] = S(q)", "[K] = S @ r", " = (q @ S) @ r", "[V] = q @ (b * S + outer(k, v)) - c * v", "[K] = (S - outer(k, v)) @ u")


def text(seed: int) -> str:
    """Two to five lines that change the memory, with reads between and behind them."""
    rng = random.Random(seed)
    erases = rng.choice((ALONG_KEYS, ALONG_VALUES))
    lines = [rng.choice(STEPS + erases * 2) for _ in range(rng.randint(2, 5))]
    for name in ("o", "p"):
        lines.insert(rng.randint(0, len(lines)), f"output {name}{rng.choice(READS)}")
    lines.append(f"output last{rng.choice(READS)}")
    body = "\n".join(f"  {line}" for line in lines)
    words = set(re.findall(r"\w+", body))
    inputs = ", ".join(x for n, x in INPUTS.items() if n in words)
    sizes = ", ".join(f"{n} = {x}" for n, x in (("K", 3), ("V", 2), ("n", 2)) if n != "n" or "n" in words)
    return f"seqc 1\n\nlayer drawn({sizes})\n\n  input {inputs}\n  memory S[K, V] = 0\n{body}\n"


def applying(seed: int):
    """The text's check and its verdict on the form; None for a text that does not check."""
    try:
        checked = check_source(Source("drawn.seq", text(seed)))
    except SpecError:
        return None
    return checked if isinstance(judge(checked)["chunkwise"], Applies) else None


@pytest.mark.parametrize("seed", range(60))
def test_proved(seed: int) -> None:
    checked = applying(seed)
    if checked is None:
        return
    forms = {form.name: programs(checked, form) for form in (CHUNKWISE, RECURRENT)}
    certificate = prove(prepared(checked), forms, "seed", sizes=checked.sizes, points=4)
    assert certificate.ok, (text(seed), [*map(str, certificate.failures), *certificate.gaps])


def test_most_of_them_apply() -> None:
    assert sum(applying(seed) is not None for seed in range(60)) >= 30


BLOCKS = "seqc 1\n\nlayer drawn(K = 3, V = 2)\n  input k[K] in unit, v[V], q[K]\n  memory S[K, V] = 0\n"
BLOCKS += "  learn S by prefix_sum(rate = 1/2, weight = 1/4, every = 2) on dot(S(k), v)\n  output o[V] = S(q)\n"


def test_a_memory_that_learns_in_blocks_has_no_scan() -> None:
    """Its chunks do not begin where blocks do."""
    checked = check_source(Source("drawn.seq", BLOCKS))
    verdicts = judge(checked)
    assert not isinstance(verdicts["scan"], Applies) and isinstance(verdicts["chunkwise"], Applies)
    built = {f.name: programs(checked, f) for f in (CHUNKWISE, RECURRENT)}
    assert prove(prepared(checked), built, "seed", text=checked.recurrence, sizes=checked.sizes).ok
