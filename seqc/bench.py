"""`seqc bench`: every form of a layer timed on this machine, beside its estimate. The only module that runs PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import StringIO
from math import isfinite
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from seqc.compiler import Checked, programs
from seqc.emit.estimate import Estimate, estimate
from seqc.explanation import known_sizes
from seqc.forms import FORMS
from seqc.options import Options
from seqc.outcome import certificate_said
from seqc.package_cache import NotProved, load_package
from seqc.terminal import BadUsage, CheckFailed, Terminal

if TYPE_CHECKING:
    from torch import Tensor

BASE = "recurrent"  # the form that computes every layer: what the others are compared with
DECAY = 1.0  # how far below its upper end an input without a lower one is drawn
Progress = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Run:
    """What is timed: one call's sizes, and how often. threads: of PyTorch, None for as many as it takes; groups are the text's."""

    tokens: int = 2048
    batch: int = 1
    heads: int | None = None
    dtype: str = "float32"
    threads: int | None = None
    backward: bool = True
    repeat: int = 5


@dataclass(frozen=True)
class Timed:
    """Milliseconds of a form, measured (the median) and estimated; how many times as fast as the recurrent form it is.

    The second three are of forward and backward, and None where that is not timed.
    """

    form: str
    forward_ms: float
    forward_estimate_ms: float
    forward_speedup: float | None
    both_ms: float | None
    both_estimate_ms: float | None
    both_speedup: float | None


@dataclass(frozen=True)
class Bench:
    """A layer's forms, timed. auto: what `auto` takes for this call, forward alone, and with gradients."""

    name: str
    tokens: int
    batch: int
    heads: int
    dtype: str
    threads: int
    repeat: int
    sizes: dict[str, int]
    forms: tuple[Timed, ...]
    auto_forward: str
    auto_both: str | None

    def as_json(self) -> dict[str, Any]:
        """The times as plain data."""
        return asdict(self)


def bench_of(t: Terminal, spec: str, checked: Checked, options: Options, run: Run) -> Bench:
    """Compiles unless the cache has the package, and times. Raises BadUsage where PyTorch is missing, CheckFailed for a failed proof."""
    if find_spec("torch") is None:
        raise BadUsage("PyTorch is not installed, and nothing can be timed without it: pip install 'seqc[torch]'")
    try:
        with t.progress(f"compiling and proving {checked.model.name} ..."):
            package = load_package(spec, dict(options.sizes), options.chunk_size)
    except NotProved as error:
        t.say("\n".join(certificate_said(error.certificate)))
        raise CheckFailed from None
    _, sizes = known_sizes(checked.recurrence, checked)
    heads = run.heads or sizes.get("heads", 1)
    with _threads(run.threads) as threads:
        arguments = draw(package, sizes, run, heads)
        forward = _measured(package, arguments, run, t.progress, gradient=False)
        both = _measured(package, arguments, run, t.progress, gradient=True) if run.backward else None
        autos = [_auto(package, arguments, gradient) for gradient in (False, True)[: 1 + run.backward]]
    made = {f.name: estimate(programs(checked, f), sizes, options.chunk_size) for f in FORMS if f.name in package.FORMS}
    forms = tuple(_timed(made[f], forward, both, run, heads) for f in package.FORMS)
    shown = {a: n for a, n in sizes.items() if a not in ("heads", "depth", "depths")}
    return Bench(
        checked.model.name, run.tokens, run.batch, heads, run.dtype, threads, run.repeat, shown, forms,
        autos[0], autos[1] if run.backward else None,
    )  # fmt: skip


def _timed(e: Estimate, forward: dict[str, float], both: dict[str, float] | None, run: Run, heads: int) -> Timed:
    def of(measured: dict[str, float], gradient: bool) -> tuple[float, float, float | None]:
        mine = measured[e.form]
        estimated = e.time(run.tokens, run.batch, heads, gradient)
        return round(1e3 * mine, 4), round(estimated / 1e3, 4), round(measured[BASE] / mine, 3) if BASE in measured else None

    return Timed(e.form, *of(forward, False), *(of(both, True) if both is not None else (None, None, None)))


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """As many threads as wanted, and afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    try:
        if wanted is not None:
            torch.set_num_threads(wanted)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


# --- Arguments -------------------------------------------------------------------------------------------------------


def draw(package: ModuleType, sizes: dict[str, int], run: Run, heads: int) -> tuple[Tensor, ...]:
    """Random inputs and params of a package's function, in their order, each inside its declared domain."""
    import torch

    generator = torch.Generator().manual_seed(0)
    signature, domains = package.ops.signature(0), package.ops.DOMAINS
    groups = sizes.get("groups", heads)
    lead = {"B": run.batch, "N": run.batch, "T": run.tokens, "H": heads, "G": groups if heads % groups == 0 else heads}
    lengths = {**sizes, **dict(signature.sizes)}
    found = []
    for value in (*signature.inputs, *signature.params):
        shape = [*(lead[a] for a in value.lead), *(lengths[a] if a in lengths else int(a) for a in value.axes)]
        low, high, unit = domains.get(value.name, (float("-inf"), float("inf"), False))
        u = torch.rand(shape, generator=generator)
        if unit:
            x = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        elif isfinite(low) and isfinite(high):
            x = low + (high - low) * (0.02 + 0.96 * u)
        elif isfinite(high):
            x = high - DECAY * (u + 1e-3)
        elif isfinite(low):
            x = low + u + 1e-2
        else:
            x = torch.randn(shape, generator=generator)
        found.append(x.to(getattr(torch, run.dtype)))
    return tuple(found)


# --- Times -------------------------------------------------------------------------------------------------------------


def _measured(package: ModuleType, arguments: tuple[Tensor, ...], run: Run, progress: Progress, gradient: bool) -> dict[str, float]:
    """The median seconds of every form: one run of each after the other, and the first of each does not count."""
    times: dict[str, list[float]] = {form: [] for form in package.FORMS}
    for i in range(run.repeat + 1):
        for form, taken in times.items():
            what = "forward and backward" if gradient else "forward"
            with progress(f"{form}, {what}, {f'run {i} of {run.repeat}' if i else 'warming up'} ..."):
                taken.append(_seconds(package, arguments, form, gradient))
    return {form: median(taken[1:]) for form, taken in times.items()}


def _seconds(package: ModuleType, arguments: tuple[Tensor, ...], form: str, gradient: bool) -> float:
    import torch

    given = taken(package, _given(arguments, gradient))
    start = time.perf_counter()
    with torch.set_grad_enabled(gradient):
        out, _ = _function(package)(*given, form=form)
        if gradient:
            torch.autograd.backward(sum(o.float().sum() for o in (out if isinstance(out, tuple) else (out,))))
    return time.perf_counter() - start


def taken(package: ModuleType, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those of the drawn arguments that the package's function takes: it makes the one without entries, which shows sizes, itself."""
    signature = package.ops.signature(0)
    return tuple(x for v, x in zip((*signature.inputs, *signature.params), arguments, strict=True) if v.axes[:1] != ("0",))


def _auto(package: ModuleType, arguments: tuple[Tensor, ...], gradient: bool) -> str:
    """The form that the package takes by itself."""
    import torch

    given, inputs = _given(arguments, gradient), len(package.ops.signature(0).inputs)
    with torch.set_grad_enabled(gradient):
        return str(package.ops.OPERATOR.fastest(given[:inputs], given[inputs:], None))


def _given(arguments: tuple[Tensor, ...], gradient: bool) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_(gradient) for x in arguments)


def _function(package: ModuleType) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(package, package.MANIFEST["name"])
    return function


# --- The page --------------------------------------------------------------------------------------------------------


def page(b: Bench, *, color: bool = False, width: int | None = None) -> str:
    """The times as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("form", no_wrap=True)
    whats = ("forward", "both")[: 1 + (b.auto_both is not None)]
    for what in whats:
        for title in (f"{what} ms", "estimate", f"vs {BASE}"):
            table.add_column(title, justify="right", no_wrap=True)
    table.add_column("auto", no_wrap=True)
    for f in b.forms:
        cells = [_number(f.forward_ms), _number(f.forward_estimate_ms), _times(f.forward_speedup)]
        cells += [_number(f.both_ms), _number(f.both_estimate_ms), _times(f.both_speedup)] if b.auto_both is not None else []
        taken = [what for what, form in zip(whats, (b.auto_forward, b.auto_both), strict=False) if form == f.form]
        table.add_row(f.form, *cells, ", ".join(taken))
    sizes = ", ".join(f"{a} = {n}" for a, n in b.sizes.items())
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=max(width or 0, 120), highlight=False, emoji=False
    )  # fmt: skip
    console.print(f"{b.name}: {b.tokens} tokens, batch {b.batch}, heads {b.heads}, {sizes}, {b.dtype}, {_counted(b.threads, 'thread')}")
    console.print(table)
    console.print(f"Medians of {_counted(b.repeat, 'run')}; both: forward and backward; estimates are for one core in float32.")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _times(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}x"
