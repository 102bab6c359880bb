"""One canonical layout, from whatever was written."""

from __future__ import annotations

import random
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqc.frontend.format import format_file
from seqc.frontend.parser import parse_text
from seqc.source import Source

ROOT = Path(__file__).parents[2]
SPECS = sorted([*ROOT.glob("specs/**/*.seq"), *ROOT.glob("tests/language/*.seq")])
WORDS = r"(input|param|state|memory|let|output|retain|learn|update|append|fold|slope|link|return)\b"


def formatted(text: str) -> str:
    return format_file(Source("<test>", text))


def meaning(node: object) -> object:
    """A tree without its places."""
    if is_dataclass(node):
        return (type(node).__name__, *(meaning(getattr(node, f.name)) for f in fields(node) if f.name not in ("span", "source")))
    return tuple(map(meaning, node)) if isinstance(node, tuple) else node


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_are_canonical(path: Path) -> None:
    text = path.read_text("utf-8")
    assert formatted(text) == text


def scrambled(text: str, rng: random.Random) -> str:
    """The text with other indentation, empty lines, line ends, and space between words."""
    lines = []
    for line in text.splitlines():
        code, sign, comment = line.partition("#") if '"' not in line else (line, "", "")
        if '"' not in code:
            code = re.sub(r"(?<=\S) +(?=\S)", lambda gap: rng.choice((" ", "  ", "\t", gap.group())), code.rstrip())
            code = re.sub(r"(?<=[(\[,]) ?(?=\S)", lambda _: rng.choice(("", " ", "   ")), code)
        behind = rng.choice((" ", "     ", "\t")) + sign + comment if sign else ""
        lines += [rng.choice(("", "  ", "\t", "        ")) + code.strip() + behind]
        if not line.strip():
            lines += [" " * rng.randrange(3)] * rng.randrange(3)
    return rng.choice(("\n", "\r\n")).join(lines) + "\n" * rng.randrange(3)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_scrambled_specs_come_back(path: Path) -> None:
    text = path.read_text("utf-8")
    for seed in range(5):
        assert formatted(scrambled(text, random.Random(seed))) == text


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_meaning_comments_and_idempotence(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(SPECS)).read_text("utf-8").splitlines()
    remark = st.sampled_from(["# a remark", "#", "#x # y", "    # \u03b2 is learned ", "\t#\ttab"])
    for at in sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=4)), reverse=True):
        lines.insert(at, data.draw(remark))
    for at in data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=3)):
        if "#" not in lines[at]:
            lines[at] += " " * data.draw(st.integers(1, 60)) + data.draw(remark)
    text = "\n".join(lines)
    once = formatted(text)
    assert formatted(once) == once
    assert [c.strip() for c in re.findall("#.*", once)] == [c.strip() for c in re.findall("#.*", text)]
    assert meaning(parse_text(once)) == meaning(parse_text(text))
    assert not re.search(r"[ \t]$|\n\n\n|\r", once, re.MULTILINE) and once.endswith("\n") and not once.endswith("\n\n")


def test_layout() -> None:
    text = """# first
seqc 1
layer toy(K=2,V=2*K)
"What it is."
"More."
input q[K]in(0,1),k[K]   # keys
# about the loop
for i in K
let a=-q * 2^-k+1/2*( - k )
# last in the loop
end
learn S by descent( rate=1 )
on l2( S(k),v )   # objective
at start(S)
project x->y
q,k=f(x,
# between
n=1)
function f(a)=a
"""
    assert formatted(text) == """# first
seqc 1

layer toy(K = 2, V = 2*K)
  "What it is."
  "More."

  input   q[K] in (0, 1), k[K]               # keys
  # about the loop
  for i in K
    let     a = -q * 2^-k + 1/2 * (-k)
    # last in the loop
  end
  learn   S by descent(rate = 1)
          on l2(S(k), v)                     # objective
          at start(S)

  project x -> y
    q, k = f(x,
            # between
            n = 1)

function f(a) = a
"""
