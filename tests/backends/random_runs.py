"""Random layers, each compiled with its proof or refused with a reason; every form of the package against the float64 interpreter.

`make random` examines thousands, in parts that processes share; `test_random_specs.py` has a sample.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import torch
from conftest import import_package
from hypothesis import HealthCheck, Phase, given, seed, settings
from layers import Call, call, distance, gradients, interpreted
from random_specs import layers

from seqc.compiler import Checked, check_source, compile_checked
from seqc.diagnostics import SpecError
from seqc.emit.write import write_package
from seqc.forms import Applies, Refuses
from seqc.frontend.format import format_file
from seqc.ir.ops import base
from seqc.ir.text import recurrence
from seqc.options import Options
from seqc.source import Source

CHUNK = 4
TOKENS = 7  # no chunk divides it
ROWS = (1, 0, 6, 3)  # packed: one shorter than a chunk, one empty, one longer, and none that chunks divide
BOUND = 1e-8
HUGE = 1e80  # of a value: its gradients may be too large for float64


@dataclass
class Tally:
    """What became of the layers: how often each form applied, and the reasons of refusals."""

    compiled: int = 0
    beyond: int = 0  # calls that are not compared
    refused: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.compiled, self.beyond = self.compiled + other.compiled, self.beyond + other.beyond
        for mine, theirs in ((self.refused, other.refused), (self.forms, other.forms), (self.reasons, other.reasons)):
            mine.update(theirs)

    def __str__(self) -> str:
        forms = ", ".join(f"{name} {n}" for name, n in self.forms.most_common())
        lines = [f"{self.compiled} compiled ({forms}), {self.refused.total()} refused, {self.beyond} calls beyond {HUGE:.0e}"]
        lines += [f"  {n:>6}  whole layers: {reason}" for reason, n in self.refused.most_common()]
        return "\n".join(lines + [f"  {n:>6}  {reason}" for reason, n in self.reasons.most_common()])


class Wrong(AssertionError):
    """A layer that a form or the compiler gets wrong."""


def examine(text: str, tally: Tally) -> None:
    """Raises Wrong for what is wrong with one layer."""
    source = Source("drawn.seq", text)
    checked = check_source(source)
    _survives_fmt(checked)
    try:
        compiled = compile_checked(checked, Options(chunk_size=CHUNK))
    except SpecError as e:
        _must(all(d.message for d in e.diagnostics), "a refusal without a reason")
        tally.refused[_kind(e.diagnostics[-1].message)] += 1
        return
    certificate = compiled.certificate
    applying = tuple(n for n, v in compiled.verdicts.items() if isinstance(v, Applies))
    _must(certificate.ok and certificate.forms == applying, f"{certificate.gaps} {certificate.failures}")
    tally.compiled += 1
    tally.forms.update(applying)
    for name, verdict in compiled.verdicts.items():
        if isinstance(verdict, Refuses):
            _must(bool(verdict.reason), f"`{name}` is refused without a reason")
            tally.reasons[f"{name}: {_kind(verdict.reason)}"] += 1
    with _imported(compiled.files, compiled.digest) as package:
        _must(tuple(package.FORMS) == applying, f"forms of the package: {package.FORMS}")
        ends = tuple(accumulate(ROWS, initial=0))
        own = dict.fromkeys(base(a) for axes in checked.recurrence.declared_axes for a in axes)
        lengths = tuple(checked.sizes.get(a, 2) for a in own)
        calls = (call("", TOKENS, spec=checked, B=1, lengths=lengths), call("", ends[-1], ends=ends, spec=checked, seed=1, lengths=lengths))
        tally.beyond += sum(not _agree(package, c) for c in calls)


def _must(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


def _kind(reason: str) -> str:
    """A reason without the names of one text."""
    parts = reason.split("`")
    return "`".join(p if i % 2 == 0 else "..." for i, p in enumerate(parts))


def _survives_fmt(checked: Checked) -> None:
    formatted = format_file(checked.source)
    _must(format_file(Source("drawn.seq", formatted)) == formatted, "fmt is not done after one time")
    again = check_source(Source("drawn.seq", formatted))
    _must(recurrence(again.recurrence) == recurrence(checked.recurrence), "fmt changes the meaning")


@contextmanager
def _imported(files: tuple, digest: str) -> Iterator[ModuleType]:
    """The package, imported under a name of its own, which is forgotten afterwards."""
    folder, name = Path(tempfile.mkdtemp()), f"drawn_{digest[:16]}"
    try:
        write_package(files, folder / name)
        yield import_package(folder / name, name)
    finally:
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]
        importlib.invalidate_caches()
        shutil.rmtree(folder)


def _agree(package: ModuleType, c: Call) -> bool:
    """Values with the interpreter, gradients of inputs, params and first states with autograd through the loop over tokens. Whether there
    are numbers to compare: some layers grow so fast that by their definition they leave the range of float64."""
    truth = interpreted(c)
    if any(bool((x.abs() > HUGE).any()) for x in map(torch.as_tensor, truth)):
        return False
    loop = c.run(package, "reference")
    wanted = gradients(loop, c.arguments)
    kind = "packed rows" if c.cu_seqlens is not None else "tokens"
    for form in ("reference", *package.FORMS):
        found = loop if form == "reference" else c.run(package, form)
        slopes = wanted if form == "reference" else gradients(found, c.arguments)
        for what, mine, theirs in (("value", found, truth), ("gradient", slopes, wanted)):
            far = [(i, d) for i, (x, y) in enumerate(zip(mine, theirs, strict=True)) if not (d := distance(x, y)) < BOUND]
            _must(not far, f"`{form}`, {kind}: {what} {far}")
    return True


def examine_drawn(first: int, count: int, report: Callable[[Exception], None] | None = None) -> Tally:
    """Examines one layer per number, shrunk to a short text where it is wrong. report: what is done with a failure, which is raised else.

    Each number is a search of its own: a longer one would look at variants of what it has seen.
    """
    tally, done = Tally(), set[str]()

    def check(text: str) -> None:
        if text in done:  # the simplest text, with which every search begins
            return
        mine = Tally()
        try:
            examine(text, mine)
        except Exception as e:
            raise Wrong(f"{type(e).__name__}: {e}\n\n{text}") from e
        done.add(text)
        tally.add(mine)

    for n in range(first, first + count):
        try:
            seed(n)(SEARCH(given(layers())(check)))()
        except Wrong as e:
            if report is None:
                raise
            report(e)
    return tally


SEARCH = settings(
    max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    print_blob=False, report_multiple_bugs=False,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--part", type=int, default=0, help="which of the parts")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--first", type=int, default=1000, help="the number of the first layer; the sample of `make test` begins at 0")
    options = parser.parse_args()
    share = -(-options.count // options.parts)
    first, wrong, total, start = options.first + options.part * share, list[Exception](), Tally(), time.time()
    for n in range(first, first + min(share, options.count - options.part * share), 50):
        size = min(50, first + share - n)
        total.add(examine_drawn(n, size, lambda e: (wrong.append(e), print(f"{e}", flush=True))))
        print(f"part {options.part}: {n + size - first} of {share}, {len(wrong)} wrong, {time.time() - start:.0f} s", flush=True)
    print(total)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
