"""Times every form of layers on one thread, forward and forward + backward, and says how they compare with the recurrent form.

    python examples/time_forms.py                                  all shipped layers, as a table in Markdown
    python examples/time_forms.py specs/gla.seq specs/kda.seq --tokens 256 --heads 4

The operators alone, on random inputs, float32, batch 1, sizes as the text gives them. Milliseconds are the least processor time of a
few runs, the forms in turn: what other programs do on the machine disturbs them little. A ratio is the recurrent form's time over
the form's; the forms of a layer stand from the fastest to the slowest with the backward.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

import seqc
from seqc.bench import BASE, Run, draw, taken
from seqc.compiler import check_file
from seqc.explanation import known_sizes

SPECS = Path(__file__).parents[1] / "specs"
Times = dict[str, tuple[float, float]]  # by form: milliseconds forward, and forward and backward


def milliseconds(package: ModuleType, arguments: tuple[torch.Tensor, ...], form: str, backward: bool) -> float:
    """Processor time of one call."""
    given = [x.detach().requires_grad_(backward) for x in taken(package, arguments)]
    start = time.process_time()
    with torch.set_grad_enabled(backward):
        out, _ = getattr(package, package.MANIFEST["name"])(*given, form=form)
        if backward:
            torch.autograd.backward(sum(o.sum() for o in (out if isinstance(out, tuple) else (out,))))
    return 1e3 * (time.process_time() - start)


def timed(spec: Path, tokens: int, heads: int, repeat: int) -> Times:
    """Every form's times, the least of some runs after one that does not count."""
    package, checked = seqc.load(spec), check_file(spec)
    _, sizes = known_sizes(checked.recurrence, checked)
    arguments = draw(package, sizes, Run(tokens=tokens), heads)
    found: dict[str, list[list[float]]] = {form: [[], []] for form in package.FORMS}
    for n in range(repeat + 1):
        for form, both in found.items():
            for backward, kept in zip((False, True), both, strict=True):
                kept += [milliseconds(package, arguments, form, backward)][: 1 if n else 0]
    return {form: (min(forward), min(both)) for form, (forward, both) in found.items()}


def rows(name: str, times: Times) -> list[str]:
    """A line per form. Without another form than the recurrent one there is nothing to compare."""
    lines = []
    for form, (forward, both) in sorted(times.items(), key=lambda item: item[1][1]):
        ratios = ["", ""] if form == BASE else [shown(times[BASE][i] / t, 2) for i, t in enumerate((forward, both))]
        cells = (name, form, shown(forward), ratios[0], shown(both), ratios[1])
        lines.append(f"| {' | '.join(cells)} |")
        name = ""
    return lines


def shown(x: float, digits: int = 3) -> str:
    """A number to some digits, without an exponent."""
    return f"{x:.0f}" if x >= 10 ** (digits - 1) else f"{x:.{digits}g}"


def main() -> int:
    """Prints a table with one line per layer and form, and what could not be timed; the exit code says whether that is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", type=Path, default=sorted(SPECS.glob("*.seq")))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| layer | form | forward ms | ratio | forward + backward ms | ratio |")
    print("|---|---|---|---|---|---|")
    failed = []
    best: dict[str, tuple[float, float]] = {}
    for spec in options.specs:
        try:
            times = timed(spec, options.tokens, options.heads, options.repeat)
        except (seqc.SpecError, RuntimeError, ValueError) as error:
            failed.append(f"{spec.stem}: {type(error).__name__}: {error}")
            continue
        print("\n".join(rows(spec.stem, times)), flush=True)
        if len(times) > 1:
            best[spec.stem] = tuple(times[BASE][i] / min(t[i] for form, t in times.items() if form != BASE) for i in (0, 1))
    lost = [f"{name} ({a:.2f}, {b:.2f})" for name, (a, b) in best.items() if min(a, b) < 1]
    won = sum(min(pair) >= 1 for pair in best.values())
    print(f"\n{len(options.specs)} layers; {len(best)} have a form beside the recurrent one, which is faster in both columns for {won}.")
    print(f"Not so (ratios forward, and with the backward): {', '.join(lost) or 'none'}.")
    for line in failed:
        print(f"could not be timed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
