"""Measures which layers track a state: word problems of permutation groups, beyond the length that was trained on.

    python examples/state_tracking.py --plot state_tracking.svg
    python examples/state_tracking.py --tasks parity S3 --seeds 5

A word is a sequence of permutations, and at every position the model names the product so far. The model is an embedding,
one layer compiled from reflections.seq or projections.seq, a norm and a linear head: no positions, no convolution, no second
layer. At every token the layer multiplies its memory by n matrices I - beta k k^T: beta below 2 allows eigenvalues in
(-1, 1), beta below 1 only those in (0, 1). Training goes on to longer words, up to 32 tokens, as soon as the last half of
the shorter ones is right; the measure is at 256. Of several seeds the first that solves a task counts, else the best.

A word's letters are both elements (parity), all six (S3), the identity and the ten swaps (S5 swaps), a five-cycle, its inverse
and a three-cycle (A5), a five-cycle, its inverse and a swap (S5). The answers are all elements of the group.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from permutation_words import TASKS, Task
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import seqc

HERE = Path(__file__).parent
LENGTHS = (4, 8, 16, 32)  # trained on, one after the other
CHUNK = 4
SMOOTHING = 0.1  # of labels: with it a wider margin is no substitute for a state that stays exact
WARM_UP = 50  # steps
SOLVED = 0.95
WINDOW = 16  # positions that an accuracy is the mean of


@dataclass(frozen=True)
class Case:
    """One row: a task, and n steps per token with eigenvalues down to `lowest`, 0 or -1."""

    task: str
    n: int
    lowest: int

    @property
    def eigenvalues(self) -> str:
        return f"({self.lowest}, 1)"

    @property
    def label(self) -> str:
        return f"n = {self.n}, {self.eigenvalues}"

    @property
    def spec(self) -> Path:
        return HERE / ("reflections.seq" if self.lowest else "projections.seq")


CASES = tuple(
    Case(task, n, lowest)
    for task, rows in {
        "parity": ((1, 0), (1, -1)),
        "S3": ((1, -1), (2, 0), (2, -1)),
        "S5 swaps": ((1, 0), (1, -1)),
        "A5": ((1, -1), (2, -1)),
        "S5": ((1, -1), (2, -1), (3, -1), (4, 0), (4, -1)),
    }.items()
    for n, lowest in rows
)


def option(default: float, text: str) -> Any:
    """A field with a default and the text of its command-line option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Budget:
    """How long and how large."""

    steps: int = option(1000, "steps of a seed")
    seeds: int = option(3, "seeds of a case, at most")
    tokens: int = option(1024, "tokens of a batch")
    rate: float = option(0.02, "learning rate at its peak; it falls to zero")
    width: int = option(64, "width of the model")
    heads: int = option(2, "heads of the layer")
    size: int = option(8, "rows and columns of a head's memory")
    length: int = option(256, "tokens of the words that are measured")
    words: int = option(256, "words that are measured")


@dataclass(frozen=True)
class Result:
    """What a case reached: accuracy by position [length], the longest words trained on, and how many seeds were tried."""

    case: Case
    accuracy: Tensor
    trained: int
    seeds: int

    def at(self, end: int) -> float:
        """The accuracy over the positions that end there."""
        return self.accuracy[end - WINDOW : end].mean().item()

    @property
    def end(self) -> float:
        return self.at(len(self.accuracy))

    @property
    def solved(self) -> bool:
        return self.end > SOLVED


class Tracker(nn.Module):
    """Letters [batch, tokens] to logits of group elements [batch, tokens, elements], through one layer."""

    def __init__(self, case: Case, budget: Budget) -> None:
        super().__init__()
        task = TASKS[case.task]
        layer = seqc.load(case.spec, sizes={"n": case.n}, chunk_size=CHUNK).Layer
        self.embedding = nn.Embedding(len(task.letters), budget.width)
        self.mix = layer(budget.width, heads=budget.heads, K=budget.size, V=budget.size)
        self.norm = nn.RMSNorm(budget.width)
        self.head = nn.Linear(budget.width, task.elements)

    def forward(self, words: Tensor) -> Tensor:
        mixed, _ = self.mix(self.embedding(words), form="chunkwise")
        logits: Tensor = self.head(self.norm(mixed))
        return logits


def train(model: Tracker, task: Task, budget: Budget, seed: int) -> int:
    """Takes all steps and returns the length of words that was reached."""
    source = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=budget.rate, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARM_UP, 1 - step / budget.steps))
    lengths, right = list(LENGTHS), 0.0
    for _ in range(budget.steps):
        length = lengths[0]
        words, answers = task.words(budget.tokens // length, length, source)
        logits = model(words)
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        late = slice(length // 2, None)
        right += 0.1 * ((logits[:, late].argmax(-1) == answers[:, late]).float().mean().item() - right)
        if right > 0.9 and len(lengths) > 1:
            lengths, right = lengths[1:], 0.0
    return lengths[0]


@torch.no_grad()
def measure(model: Tracker, task: Task, budget: Budget) -> Tensor:
    """The accuracy at every position [length] of words that training did not draw."""
    words, answers = task.words(budget.words, budget.length, torch.Generator().manual_seed(2**32))
    right: Tensor = model(words).argmax(-1) == answers
    return right.float().mean(0)


def run(case: Case, budget: Budget) -> Result:
    """The first seed that solves the case, or the best."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task, results = TASKS[case.task], []
    for seed in range(budget.seeds):
        torch.manual_seed(seed)
        model = Tracker(case, budget)
        trained = train(model, task, budget, seed)
        results.append(Result(case, measure(model, task, budget), trained, seed + 1))
        if results[-1].solved:
            break
    return replace(max(results, key=lambda result: result.end), seeds=len(results))


def run_all(cases: list[Case], budget: Budget, jobs: int, console: Console) -> list[Result]:
    """Every case's result, in the order of the cases; so many processes work on them, each with one thread."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    spawn = multiprocessing.get_context("spawn")
    with Progress(*columns, console=console) as bar, ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        task = bar.add_task("cases", total=len(cases))
        pending = {pool.submit(run, case, budget): case for case in cases}
        for done in as_completed(pending):
            case = pending[done]
            bar.console.print(f"{case.task}, {case.label}: {done.result().end:.3f}", highlight=False)
            bar.advance(task)
    return [done.result() for done in pending]


def table(results: list[Result], budget: Budget) -> Table:
    """One row per case."""
    found = Table(title=f"accuracy over {WINDOW} positions; trained on up to {LENGTHS[-1]} tokens", box=SIMPLE, padding=(0, 0, 0, 1))
    for name in ("task", "n", "range", "trained", *(f"at {end}" for end in ends(budget)), "chance", "seeds", "solved"):
        found.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for before, result in zip([None, *results], results, strict=False):
        case = result.case
        if before is not None and before.case.task != case.task:
            found.add_section()
        measured = (f"{result.at(end):.3f}" for end in ends(budget))
        chance = f"{1 / TASKS[case.task].elements:.3f}"
        row = (case.task, case.n, case.eigenvalues, result.trained, *measured, chance, result.seeds)
        found.add_row(*map(str, row), "[green]yes[/]" if result.solved else "no")
    return found


def ends(budget: Budget) -> list[int]:
    """The lengths that the table shows: the trained one, twice as much, the whole."""
    return sorted({min(end, budget.length) for end in (LENGTHS[-1], 2 * LENGTHS[-1], budget.length)})


def plot(results: list[Result], file: Path) -> None:
    """The accuracy by position, one panel per task; the shaded positions were trained on."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result.case.task for result in results))
    figure = Figure(figsize=(3.4 * len(tasks), 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        for result in results:
            if result.case.task == task:
                means = result.accuracy.unfold(0, WINDOW, 1).mean(-1)
                axes.plot(range(WINDOW, WINDOW + len(means)), means.tolist(), label=result.case.label)
        axes.axvspan(0, LENGTHS[-1], color="0.9")
        axes.set(title=task, xlabel="position", xlim=(0, len(results[0].accuracy)), ylim=(-0.02, 1.02))
        axes.legend(fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.95))
    figure.supylabel(f"accuracy, mean over {WINDOW} positions")
    figure.savefig(file, dpi=120)


def parser() -> argparse.ArgumentParser:
    """The command line; every number of the budget has an option of its name."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)} (all)")
    for part in fields(Budget):
        text = f"{part.metadata['help']} ({part.default})"
        found.add_argument(f"--{part.name}", type=type(part.default), default=part.default, help=text)
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, each with one thread (one per core)")
    found.add_argument("--plot", type=Path, metavar="FILE", help="draw the accuracy by position (.png, .svg, .pdf)")
    found.add_argument("--quick", action="store_true", help="30 steps of one seed: shows that it runs, measures nothing")
    return found


def main(argv: list[str] | None = None) -> None:
    began = time.monotonic()
    args = parser().parse_args(argv)
    budget = Budget(**{part.name: getattr(args, part.name) for part in fields(Budget)})
    if args.quick:
        budget = replace(budget, steps=30, seeds=1, words=8, length=2 * LENGTHS[-1])
    if budget.length < WINDOW:
        raise SystemExit(f"--length is at least {WINDOW}")
    results = run_all([case for case in CASES if case.task in args.tasks], budget, args.jobs, Console(stderr=True))
    console = Console()
    console.print(table(results, budget))
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes, {args.jobs} processes; solved is an accuracy above {SOLVED} at the end")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
