"""Branches that random numbers alone would not take: what is wrong there is rejected, or the certificate says that it was not examined."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from fractions import Fraction

import pytest
from conftest import ROOT

from seqc.compiler import Checked, check_source, judge, prepared, with_short_blocks
from seqc.diagnostics import SpecError
from seqc.forms import FORMS, Applies
from seqc.ir.model import Domain
from seqc.options import Options
from seqc.outcome import certificate_line, certificate_page
from seqc.proof.arithmetic import Field
from seqc.proof.certificate import OneSided
from seqc.proof.field import MODULI, P
from seqc.proof.oracles import Oracles
from seqc.proof.prove import Certificate, prove
from seqc.proof.reach import LARGEST, Reach, equalled, whole_numbers
from seqc.source import Source


def checked(text: str) -> Checked:
    name = text.partition("layer ")[2].partition("(")[0]
    return with_short_blocks(check_source(Source(f"{name}.seq", text)), Options())


def layer(*body: str, sizes: str = "N = 4") -> str:
    return "\n".join(["seqc 1", "", f"layer far({sizes})", *(f"  {line}" for line in body), ""])


def certificate(text: str, compiled: str | None = None) -> Certificate:
    """That of a text for the forms of another."""
    c, other = checked(text), checked(compiled or text)
    verdicts = judge(other)
    forms = {f.name: f.lower(prepared(other), other.sizes) for f in FORMS if isinstance(verdicts[f.name], Applies)}
    assert "recurrent" in forms
    return prove(prepared(c), forms, "seed", text=c.recurrence, sizes=c.sizes)


@dataclass(frozen=True)
class Slip:
    """A text, and one that differs in a branch which is far from small numbers, or in where it begins."""

    text: str
    right: str
    wrong: str


DECAYED = ("input a[N]", "state h[N] = 0")
OUT = "output y[N] = h"


def slip(update: str, right: str, wrong: str, *inputs: str) -> Slip:
    head = inputs if any("input a" in x for x in inputs) else (*inputs, DECAYED[0])
    return Slip(layer(*head, DECAYED[1], f"update h = 1/2 * h + {update}", OUT), right, wrong)


def fernn(right: str, wrong: str) -> Slip:
    return Slip((ROOT / "specs/fernn.seq").read_text(), right, wrong)


GREATEST = layer("input a[N]", "state h[N] = -inf", "fold h = max(h, a)", "output y[N] = where(h > 1000, 1/3, a)")
ENTRIES = layer(*DECAYED, "let far[n: N] = where(n > 6, 1/3, 1)", "update h = 1/2 * h + far * a", OUT, sizes="N = 64")
IN_BLOCKS = layer(
    "input k[N], v[N], r in (0, 1)", "memory M(z[N]) = W @ z with W[N, N] = learned", "let far = where(position > 400, 1/3, r)",
    "learn M by descent(rate = far) on l2(M(k), v) at start(M, C)", "output o[N] = M(k)", sizes="N = 3, C = 8",
)  # fmt: skip
INDEX = "input i in integer in [0, 5000]"
SLIPS = {
    "a later position": slip("where(position > 100, 1/3, a)", "1/3", "2/5"),
    "the position at which a branch begins": slip("where(position > 100, 1/3, a)", "100", "101"),
    "the position, the other way": slip("where(position <= 100, a, 1/3)", "1/3", "2/5"),
    "one of several positions": slip("where(position > 1000, where(position > 70000, 1/3, 2), a)", "1/3", "2/5"),
    "a multiple of the position": slip("where(20 * position > 5 * 2000, 1/3, a)", "1/3", "2/5"),
    "a rounded share of the position": slip("where(floor(position / 9) > 90, 1/3, a)", "1/3", "2/5"),
    "a share of the position": slip("where(position / 9 > 90, 1/3, a)", "1/3", "2/5"),
    "one position": slip("where(position == 500, 1/3, a)", "1/3", "2/5"),
    "a whole input": slip("where(i >= 3000, 1/3, a)", "1/3", "2/5", INDEX),
    "one value of a whole input": slip("where(i == 4000, 1/3, a)", "1/3", "2/5", INDEX),
    "a negative whole input": slip("where(i < -3000, 1/3, a)", "1/3", "2/5", "input i in integer"),
    "a whole input of any sign": slip("abs(i) * a", "abs(i)", "i", "input i in integer"),
    "a whole input up to an end": slip("where(i < -3000, 1/3, a)", "1/3", "2/5", "input i in integer in (-inf, -1]"),
    "an input": slip("where(a > 1000, 1/3, a)", "1/3", "2/5"),
    "the least of an input": slip("min(max(a, -300), 300)", "300)", "301)"),
    "one value of an input": slip("where(a == 7, 1/3, a)", "1/3", "2/5"),
    "a state": slip("where(h > 1000, 1/3, a)", "1/3", "2/5"),
    "an entry": Slip(ENTRIES, "1/3", "2/5"),
    "a later block": Slip(IN_BLOCKS, "1/3", "2/5"),
    "an order": Slip(GREATEST, "1/3", "2/5"),
    "a velocity": fernn("n - floor(N / 2)", "n - floor(N / 2) + 1"),
    "a velocity, the other way": fernn("n - floor(N / 2)", "floor(N / 2) - n"),
    "a velocity, rounded up": fernn("n - floor(N / 2)", "n - ceil(N / 2)"),
    "the first position": slip("where(position == 0, 1/3, a)", "1/3", "2/5"),
    "a rounded share, up to its end": slip(
        "where(floor(position / 2000000) == 0, a, 1/3)", "floor(position / 2000000) == 0", "position < 1999999"
    ),
    "one value of a whole input, next to an open end": slip("where(i == 4, 1/3, a)", "1/3", "2/5", "input i in integer in (0, 5)"),
    "one value of a positive input": slip("where(a == 1, 1/3, a)", "1/3", "2/5", "input a[N] in (0, inf)"),
    "a tap": fernn("roll[X](moved, w - floor(W / 2))", "roll[X](moved, w)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SLIPS)
def test_a_slip_in_a_branch_is_rejected(what: str) -> None:
    one = SLIPS[what]
    assert one.right in one.text
    right = certificate(one.text)
    assert right.ok and not right.one_sided, (right.failures, right.gaps, right.one_sided)
    assert not certificate(one.text, one.text.replace(one.right, one.wrong)).ok


SQUARE, POSITIVE = "where(position > 900000000, floor({}), 1) * a", "input c in (0, inf)"
SAME = {
    "a rounded share and a position": ("where(floor(position / 2000000) == 0, a, 1/3)", "where(position < 2000000, a, 1/3)"),
    "a share of a large square": (SQUARE.format("position * position / 3"), SQUARE.format("position / 3 * position")),
    "a share of a cube": (SQUARE.format("position * position * position / 3"), SQUARE.format("position / 3 * position * position")),
    "a square of a share": ("floor(position / 3 * (position / 3)) * a", "floor((position / 3)^2) * a"),
    "a sum of shares": ("floor(sum[N](shares)) * a", "floor(N * shares) * a", "let shares[n: N] = (position + 0 * n) / 3"),
    "a number too large to be known": (too_large := "where(position^40 / 3 > 900000000^40 / 3, a, 1/3)", too_large),
    "a root where the text names a number": ("c * where(c == 7, 1/3, 1) * a", "sqrt(c) * sqrt(c) * where(c == 7, 1/3, 1) * a", POSITIVE),
    "a root where it names one": ("c * where(c == 1, 1/3, 1) * a", "sqrt(c) * sqrt(c) * where(c == 1, 1/3, 1) * a", POSITIVE),
}


@pytest.mark.parametrize("what", SAME)
def test_equal_texts_are_accepted(what: str) -> None:
    one, other, *inputs = SAME[what]
    text, compiled = (layer(*inputs, *DECAYED, f"update h = 1/2 * h + {update}", OUT) for update in (one, other))
    c = certificate(text, compiled)
    assert c.ok, (c.failures, c.gaps)


ONE_SIDED = {
    "a position that no sequence reaches": ("where(position > 5000000000, 1/3, a)", "position > 5000000000", False),
    "a value that is never small": ("where(floor(position / 2) >= 0, a, 1/3)", "floor(position / 2) >= 0", True),
    "a number of heads": ("where(heads > 100, 1/3, a)", "heads > 100", False),
    "a depth": ("max(depths - 40, 1) * a", "depths - 40 >= 1", False),
    "a number that an open end excludes": ("where(i == 0, 1/3, a)", "i == 0", False, "input i in integer in (0, 5)"),
    "a number that is no power of the generator": ("where(c == 5, 1/3, a)", "c == 5", False, POSITIVE),
    "a number that is not small": ("where(i == 4294967296, i * i, 1/3) * a", "i == 4294967296", False, "input i in integer"),
    "a rectified position": ("relu(position + 1) * a", "position + 1 > 0", True),
    "a size of a position": ("abs(position) * a + sign(position + 2)", "position + 2 > 0", True),
}


@pytest.mark.parametrize("what", ONE_SIDED)
def test_what_is_not_examined_is_said(what: str) -> None:
    update, condition, always, *inputs = ONE_SIDED[what]
    c = certificate(layer(*inputs, *DECAYED, f"update h = 1/2 * h + {update}", OUT))
    assert c.ok, (c.failures, c.gaps)
    found = [x for x in c.one_sided if condition in x.condition]
    assert found and found[0].always is always and found[0].line == 6 + len(inputs), c.one_sided
    assert any(x.startswith("  one side ") and condition in x and f"line {6 + len(inputs)}" in x for x in certificate_page(c))
    assert f"choices met on one side only: {len(c.one_sided)}" in certificate_line(c)
    data = c.as_json()["one_sided"]
    assert json.loads(json.dumps(data)) == data and {"condition", "always", "line"} == set(data[0])


def test_a_largest_entry_that_is_always_the_first_is_said() -> None:
    c = certificate(layer(*DECAYED, "let falling[n: N] = position - n", "update h = 1/2 * h + max[N](falling) * a", OUT))
    assert c.ok and [(x.always, x.line) for x in c.one_sided] == [(True, 7)] and "max_over" in c.one_sided[0].condition


def test_what_is_always_rounded_is_not_one_sided() -> None:
    c = certificate(layer(*DECAYED, "update h = 1/2 * h + floor(a) + floor(position / 3) + floor(2 * position) * a", OUT))
    assert c.ok and c.one_sided == (OneSided("floor(2 * position) == 2 * position", True, 6),)


def test_a_claim_that_holds_of_small_numbers_alone_is_refused() -> None:
    with pytest.raises(SpecError, match="not neutral"):
        checked(GREATEST.replace("max(h, a)", "min(max(h, a), 1000)"))


def test_certificates_say_which_lengths_were_tried() -> None:
    c = certificate((ROOT / "specs/gla.seq").read_text())
    lengths = [(dict(s)["tokens"], dict(s)["shortest"], dict(s)["chunk"]) for s in c.sizes]
    assert any(t % n == 0 for t, _, n in lengths) and any(t % n for t, _, n in lengths) and any(s < n for _, s, n in lengths)
    page = "\n".join(certificate_page(c))
    assert "tokens = 7, shortest = 2, chunk = 3" in page and "first states" in page
    assert "a chunk divides 3, does not divide 7 and is longer than 2" in page


def test_every_second_point_is_random() -> None:
    """There the certificate's bound holds; at the others some entries are what the text compares them with."""
    oracles = Oracles("seed")
    drawn = [oracles.draw(f"x {k}", m, (8, 64)) for k, m in enumerate(MODULI)]
    field = Field(oracles, {})
    x = equalled(field, field.given(drawn), Domain(), (Fraction(7),), oracles.draw("which", P, (8, 64)))
    changed = (x.p != drawn[0]).sum(1)
    assert not changed[::2].any() and (changed[1::2] > 4).all() and (x.p[x.p != drawn[0]] == 7).all()


@pytest.mark.parametrize("ends", ("(0, 5)", "[0, 5]", "(1/2, 7/2)", "[2147483648, 4294967296]"))
def test_whole_numbers_lie_inside(ends: str) -> None:
    """As far as there are small ones."""
    domain = checked(layer(f"input i in integer in {ends}", *DECAYED, "update h = 1/2 * h + i * a", OUT)).recurrence.inputs[0].domain
    met = set(whole_numbers(Oracles("seed").draw("i", P, (16, 64)), domain, Reach((LARGEST - 1,))).ravel().tolist())
    inside = {"(0, 5)": {1, 2, 3, 4}, "[0, 5]": {0, 1, 2, 3, 4, 5}, "(1/2, 7/2)": {1, 2, 3}}
    assert met == inside.get(ends, {LARGEST})


def known(rng: random.Random, depth: int) -> str:
    """A number that the proof knows."""
    if not depth or rng.random() < 0.2:
        return rng.choice(("position", "i", "0", "1", "7", "50", "900", "70000", "5000000", f"{rng.randint(1, 9)}/{rng.randint(2, 9)}"))
    x, y, n = known(rng, depth - 1), known(rng, depth - 1), rng.randint(2, 60)
    one = (f"floor({x})", f"ceil({x} / {n})", f"({x} / {n})", f"abs({x})", f"relu({x})", f"sign({x})", "phase(3)")
    two = (f"({x} + {y})", f"({x} - {y})", f"({x} * {y})", f"max({x}, {y})", f"min({x}, {y})")
    return rng.choice((*one, *two, f"where({condition(rng, depth - 1)}, {x}, {y})"))


def condition(rng: random.Random, depth: int = 2) -> str:
    return f"{known(rng, depth)} {rng.choice(('<', '<=', '>', '>=', '=='))} {known(rng, depth)}"


def value(rng: random.Random, depth: int = 2) -> str:
    if not depth:
        return rng.choice(("a", "b", "1/3", "2"))
    x, y = value(rng, depth - 1), value(rng, depth - 1)
    return rng.choice((f"where({condition(rng)}, {x}, {y})", f"({x} + {y})", f"({x} * {y})"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("folded", (False, True))
def test_random_choices_are_proved(seed: int, folded: bool) -> None:
    """Forms decide as the recurrence does, wherever numbers are known, whatever else they are computed beside."""
    rng = random.Random(seed)
    drive = f"let drive[N] = {value(rng)} + where({condition(rng)}, a, b) * i"
    step = ("state h[N] = -inf", "fold h = max(h, drive)") if folded else ("state h[N] = 0", "update h = b * h + drive")
    text = layer("input i in integer in [-3, 2000], a[N], b", drive, *step, f"output y[N] = where({condition(rng)}, 1, 2) * h + b")
    c = certificate(text)
    assert c.ok and len(c.forms) > 1, (text, c.failures, c.gaps)
