"""`seqc bench`: every form of a layer timed on this machine, by both backends on a GPU, and beside its estimate on a processor.

With timing.py the only module that runs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from seqc.timing import Clock, Taken, clock_of

if TYPE_CHECKING:
    from torch import Tensor

BASE = "recurrent"  # the form that computes every layer: what the others are compared with
DECAY = 1.0  # how far below its upper end an input without a lower one is drawn
Progress = Callable[[str], AbstractContextManager[None]]
Subject = tuple[str, str]  # a form, and the backend by which it is called
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """What is timed: one call's sizes, and how often. threads: of PyTorch, None for as many as it takes; groups are the text's.

    device: `cpu` or `cuda`, None for a GPU where there is one. backend: `torch`, `triton`, or `auto` for what the device has of both.
    """

    tokens: int = 2048
    batch: int = 1
    heads: int | None = None
    dtype: str = "float32"
    threads: int | None = None
    backward: bool = True
    repeat: int = 5
    device: str | None = None
    backend: str = "auto"


@dataclass(frozen=True)
class Timed:
    """Milliseconds of a form, measured (the median) and estimated (on a processor); how many times as fast as the recurrent form by the
    same backend it is; the memory of a call on a GPU beyond its arguments.

    The second four are of forward and backward, and None where that is not timed.
    """

    form: str
    backend: str
    forward_ms: float
    forward_estimate_ms: float | None
    forward_speedup: float | None
    forward_mib: float | None
    both_ms: float | None
    both_estimate_ms: float | None
    both_speedup: float | None
    both_mib: float | None


@dataclass(frozen=True)
class Bench:
    """A layer's forms, timed. auto: what `auto` takes for this call, forward alone, and with gradients. gpu: its name, if one is timed."""

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
    device: str
    gpu: str | None
    auto_backend: str

    def as_json(self) -> dict[str, Any]:
        """The times as plain data."""
        return asdict(self)


def bench_of(t: Terminal, spec: str, checked: Checked, options: Options, run: Run) -> Bench:
    """Compiles unless the cache has the package, and times. Raises BadUsage where PyTorch, a GPU or Triton is missing, CheckFailed for a
    failed proof."""
    if find_spec("torch") is None:
        raise BadUsage("PyTorch is not installed, and nothing can be timed without it: pip install 'seqc[torch]'")
    device = _device(run.device)
    backends = _backends(run, device)
    try:
        with t.progress(f"compiling and proving {checked.model.name} ..."):
            package = load_package(spec, dict(options.sizes), options.chunk_size, "triton" if "triton" in backends else "torch")
    except NotProved as error:
        t.say("\n".join(certificate_said(error.certificate)))
        raise CheckFailed from None
    _, sizes = known_sizes(checked.recurrence, checked)
    heads = run.heads or sizes.get("heads", 1)
    subjects = _subjects(package, backends)
    clock = clock_of(device)
    with _threads(run.threads) as threads:
        arguments = tuple(x.to(device) for x in draw(package, sizes, run, heads))
        forward = measured(package, arguments, subjects, clock, run.repeat, t.progress, gradient=False)
        both = measured(package, arguments, subjects, clock, run.repeat, t.progress, gradient=True) if run.backward else None
        autos = [_auto(package, arguments, backends[-1], gradient) for gradient in (False, True)[: 1 + run.backward]]
    made = {f.name: estimate(programs(checked, f), sizes, options.chunk_size) for f in FORMS if f.name in package.FORMS and device == "cpu"}
    forms = tuple(_timed(s, made.get(s[0]), forward, both, run, heads) for s in subjects)
    shown = {a: n for a, n in sizes.items() if a not in ("heads", "depth", "depths")}
    return Bench(
        checked.model.name, run.tokens, run.batch, heads, run.dtype, threads, run.repeat, shown, forms,
        autos[0], autos[1] if run.backward else None, device, _gpu(device), backends[-1],
    )  # fmt: skip


def _timed(
    subject: Subject, e: Estimate | None, forward: dict[Subject, Taken], both: dict[Subject, Taken] | None, run: Run, heads: int
) -> Timed:  # fmt: skip
    def of(found: dict[Subject, Taken], gradient: bool) -> tuple[float, float | None, float | None, float | None]:
        mine, base = found[subject], found.get((BASE, subject[1]))
        estimated = round(e.time(run.tokens, run.batch, heads, gradient) / 1e3, 4) if e is not None else None
        memory = round(mine.bytes / MIB, 3) if mine.bytes is not None else None
        return round(1e3 * mine.seconds, 4), estimated, round(base.seconds / mine.seconds, 3) if base is not None else None, memory

    return Timed(subject[0], subject[1], *of(forward, False), *(of(both, True) if both is not None else (None, None, None, None)))


def _device(wanted: str | None) -> str:
    """What is timed on. Raises BadUsage for a GPU that PyTorch does not see."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        built = "is built without CUDA" if torch.version.cuda is None else "sees no GPU here"
        raise BadUsage(f"PyTorch {torch.__version__} {built}: nothing can be timed with --device cuda")
    return wanted or ("cuda" if there else "cpu")


def _gpu(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else None


def _backends(run: Run, device: str) -> tuple[str, ...]:
    """The backends that are timed; the last is the one that a call takes by itself. Raises BadUsage for one that cannot be called."""
    if run.backend == "torch":
        return ("torch",)
    problem = None
    if device == "cpu":
        problem = "Triton kernels run on a GPU: there are none to be timed on the CPU"
    elif run.dtype == "float64":
        problem = "Triton kernels compute in float32: float64 has the backend `torch` alone"
    elif find_spec("triton") is None:
        problem = "Triton is not installed: pip install 'seqc[triton]'"
    if problem is not None and run.backend == "triton":
        raise BadUsage(problem)
    return ("torch",) if problem is not None else ("triton",) if run.backend == "triton" else ("torch", "triton")


def _subjects(package: ModuleType, backends: tuple[str, ...]) -> list[Subject]:
    """Every form by every backend that has it, the backends side by side. Raises BadUsage where that is none."""
    has = {"torch": package.FORMS, "triton": tuple(package.MANIFEST.get("triton", {}).get("forms", ()))}
    found = [(form, backend) for form in package.FORMS for backend in backends if form in has[backend]]
    if not found:
        raise BadUsage(f"no form of `{package.MANIFEST['name']}` has Triton kernels")
    return found


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


def measured(
    package: ModuleType, arguments: tuple[Tensor, ...], subjects: Sequence[Subject], clock: Clock, repeat: int, progress: Progress,
    gradient: bool,
) -> dict[Subject, Taken]:  # fmt: skip
    """The median seconds and bytes of every form: one run of each after the other, and the first of each do not count.

    Raises BadUsage where the GPU has too little memory.
    """
    import torch

    found: dict[Subject, list[Taken]] = {subject: [] for subject in subjects}
    what = "forward and backward" if gradient else "forward"
    for i in range(clock.warm_up + repeat):
        count = i + 1 - clock.warm_up
        for (form, backend), runs in found.items():
            with progress(f"{form}, {backend}, {what}, {f'run {count} of {repeat}' if count > 0 else 'warming up'} ..."):
                try:
                    runs.append(clock.taken(_call(package, arguments, form, backend, gradient)))
                except torch.OutOfMemoryError:
                    less = "time fewer --tokens, a smaller --batch or fewer --heads"
                    raise BadUsage(f"`{form}` by {backend}, {what}, does not fit into the GPU's memory: {less}") from None
    return {subject: _median(runs[clock.warm_up :]) for subject, runs in found.items()}


def _median(runs: list[Taken]) -> Taken:
    held = [r.bytes for r in runs if r.bytes is not None]
    return Taken(median(r.seconds for r in runs), int(median(held)) if held else None)


def _call(package: ModuleType, arguments: tuple[Tensor, ...], form: str, backend: str, gradient: bool) -> Callable[[], None]:
    """What is timed."""
    import torch

    given = taken(package, _given(arguments, gradient))

    def call() -> None:
        with torch.set_grad_enabled(gradient):
            out, _ = _function(package)(*given, form=form, backend=backend)
            if gradient:
                torch.autograd.backward(sum(o.float().sum() for o in (out if isinstance(out, tuple) else (out,))))

    return call


def taken(package: ModuleType, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those of the drawn arguments that the package's function takes: it makes the one without entries, which shows sizes, itself."""
    signature = package.ops.signature(0)
    return tuple(x for v, x in zip((*signature.inputs, *signature.params), arguments, strict=True) if v.axes[:1] != ("0",))


def _auto(package: ModuleType, arguments: tuple[Tensor, ...], backend: str, gradient: bool) -> str:
    """The form that the package takes by itself with this backend."""
    import torch

    given, inputs = _given(arguments, gradient), len(package.ops.signature(0).inputs)
    operator = package.ops.OPERATOR
    forms = tuple(operator.triton if backend == "triton" else operator.forms)
    with torch.set_grad_enabled(gradient):
        return str(operator.fastest(given[:inputs], given[inputs:], None, forms))


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
    on_gpu = b.gpu is not None
    if on_gpu:
        table.add_column("backend", no_wrap=True)
    whats = ("forward", "both")[: 1 + (b.auto_both is not None)]
    for what in whats:
        for title in (f"{what} ms", "MiB" if on_gpu else "estimate", f"vs {BASE}"):
            table.add_column(title, justify="right", no_wrap=True)
    table.add_column("auto", no_wrap=True)
    for f in b.forms:
        cells = [f.backend] if on_gpu else []
        cells += [_number(f.forward_ms), _number(f.forward_mib if on_gpu else f.forward_estimate_ms), _times(f.forward_speedup)]
        if b.auto_both is not None:
            cells += [_number(f.both_ms), _number(f.both_mib if on_gpu else f.both_estimate_ms), _times(f.both_speedup)]
        taken = [what for what, form in zip(whats, (b.auto_forward, b.auto_both), strict=False) if form == f.form]
        table.add_row(f.form, *cells, ", ".join(taken) if f.backend == b.auto_backend else "")
    sizes = ", ".join(f"{a} = {n}" for a, n in b.sizes.items())
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=max(width or 0, 120), highlight=False, emoji=False
    )  # fmt: skip
    where = b.gpu or _counted(b.threads, "thread")
    console.print(f"{b.name}: {b.tokens} tokens, batch {b.batch}, heads {b.heads}, {sizes}, {b.dtype}, {where}")
    console.print(table)
    about = "by CUDA events; MiB: the most memory of a call beyond its arguments" if on_gpu else "estimates are for one core in float32"
    console.print(f"Medians of {_counted(b.repeat, 'run')}; both: forward and backward; {about}.")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _times(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}x"
