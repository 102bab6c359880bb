"""`seqc tune`: the blocks, stages and warps of a layer's kernels found by trying them, written beside the package."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any

from rich.console import Console
from rich.table import Table

from seqc import __version__
from seqc.compiler import Checked
from seqc.diagnostics import Diagnostic, SpecError
from seqc.inspection import Call, Subject, launching_of, not_compiled, replaced, subject_of, target_of
from seqc.options import Options
from seqc.terminal import BadUsage, Terminal
from seqc.timing import Clock, clock_of

RUNS = 10  # of a way, the median of which counts
TOLERANCE = {2: 1e-2, 4: 1e-4}  # of a tensor, by the bytes of the factors: the root of the summed squares of what differs, of its own
Way = tuple[int, int, int]
Judge = Callable[[Any, Any, tuple[Any, ...]], "Kernel"]  # the package's module for launches, a launch, its tensors as they were before it


@dataclass(frozen=True)
class Kernel:
    """A kernel at the lengths of its tiles, and how it is launched: stages of its loops (0: as many as Triton takes), how often the most
    numbers of a tile are halved, least warps. default: what a package takes by itself; milliseconds of both where they were measured.

    wrong: ways with other results than the default's, which are not taken.
    """

    name: str
    way: Way
    default: Way
    ms: float | None = None
    default_ms: float | None = None
    wrong: tuple[Way, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """The kernels of a layer's forms, and the file that says how they are launched."""

    name: str
    forms: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    path: str

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def tune(t: Terminal, spec: str, checked: Checked, options: Options, call: Call, folder: Path | None) -> Tuned:
    """Tries the ways of each kernel of each form, forward and backward, and writes what is best beside the package.

    On a GPU each way is run, compared with the default's results, and timed; for the GPU of `call.target`, which is not there, the
    compiler tells which kernels fit and what they spill. folder: a package of the same spec and options, None for that in the cache.
    Raises SpecError for a folder that is none, BadUsage without a GPU and a target.
    """
    device = "cpu" if call.target else _gpu()
    first = subject_of(t, spec, checked, options, call, device)
    forms = (call.form,) if call.form else tuple(first.package.MANIFEST["triton"]["forms"])
    home = Path(first.package.__file__).parent
    place = _same_package(home, folder or home, first.package.MANIFEST["triton"]["forms"])
    gpu = launching_of(first.package)
    found: dict[str, Kernel] = {}
    for form in forms:
        with t.progress(f"trying the kernels of {form} ..."):
            found |= _by_compiler(gpu, replace(first, form=form), call) if call.target else _by_clock(gpu, replace(first, form=form))
    path = place / f"triton_launching{gpu.TUNED}"
    _write(path, {name: k.way for name, k in found.items()})
    gpu.tuned.cache_clear()
    gpu.CHOSEN.clear()
    gpu.COMPILED.clear()
    gpu.AGAIN.clear()  # a call in this process takes what was found
    return Tuned(checked.model.name, forms, tuple(found.values()), str(path))


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise BadUsage("PyTorch sees no GPU here: kernels can be timed on one, or chosen by the compiler for the GPU of --target")
    return "cuda"


def _same_package(home: Path, folder: Path, forms: list[str]) -> Path:
    """The folder. Raises SpecError if its kernels are not those of the spec and options that were given."""
    for name in (f"triton_{form}.py" for form in forms):
        there = folder / name
        if not there.is_file() or there.read_bytes() != (home / name).read_bytes():
            said = f"`{folder}` has no kernels of this spec with these options: `{name}` {'differs' if there.is_file() else 'is missing'}"
            helps = ("give the sizes and the --chunk-size with which it was compiled with --backend triton",)
            raise SpecError((Diagnostic("other-package", said, None, helps=helps),))
    return folder


# --- Trying --------------------------------------------------------------------------------------------------------------


def _by_compiler(gpu: Any, subject: Subject, call: Call) -> dict[str, Kernel]:
    from seqc.backends.triton.dry import NotCompiled, dry

    target = target_of(call.target)
    try:
        with dry(target), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="triton")  # of what a later version will do
            return tried(gpu, subject, lambda gpu, asked, before: Kernel(asked.name, *(gpu.chosen(asked),) * 2))
    except NotCompiled as error:
        raise not_compiled(error.kernel, error.reason, target) from None


def _by_clock(gpu: Any, subject: Subject) -> dict[str, Kernel]:
    clock = clock_of("cuda")
    return tried(gpu, subject, lambda gpu, asked, before: judged(gpu, asked, before, clock))


def tried(gpu: Any, subject: Subject, judge: Judge) -> dict[str, Kernel]:
    """What is judged of each kernel, by its name, when it is first launched by a call forward and backward."""
    import torch
    from torch.utils._pytree import tree_leaves

    found: dict[str, Kernel] = {}
    launch = gpu.launch

    def watched(kernel: Any, cut: Any, programs: int, tensors: tuple[Any, ...], rows: Any, **sizes: int) -> None:
        asked = gpu.asked_for(kernel, cut, programs, tensors, rows, sizes) if programs else None
        if asked is None or asked.name in found:
            launch(kernel, cut, programs, tensors, rows, **sizes)
            return
        before = tuple(x.clone() for x in tensors)
        launch(kernel, cut, programs, tensors, rows, **sizes)
        found[asked.name] = judge(gpu, asked, before)

    with replaced(gpu, launch=watched, tuned=dict, CHOSEN={}, COMPILED={}, AGAIN={}):  # nothing that was found before
        results = [x for x in tree_leaves(subject()[0]) if isinstance(x, torch.Tensor)]
        torch.autograd.grad(results, subject.arguments, [torch.ones_like(x) for x in results], allow_unused=True)
        with torch.no_grad():  # which keeps nothing, by kernels of its own
            subject()
    return found


def judged(gpu: Any, asked: Any, before: tuple[Any, ...], clock: Clock) -> Kernel:
    """The fastest way of a kernel whose launch is done, of those with the same results; its tensors are left as they are."""
    done = tuple(x.clone() for x in asked.tensors)
    default, wrong = gpu.chosen(asked), []
    different, times = dict[str, Way](), dict[Way, float]()
    for way in (default, *gpu.WAYS, *gpu.INSTEAD):
        different.setdefault(repr(asked.blocks_and_options(*way)), way)
    for way in different.values():
        if gpu.device() >= 0 and not gpu.fits(asked.compiled(way)):
            continue
        _copy(asked.tensors, before)
        asked.run(way)
        if any(differs(x, y, TOLERANCE[asked.dtype.itemsize]) for x, y in zip(asked.tensors, done, strict=True)):
            wrong.append(way)
            continue
        runs = [clock.taken(partial(asked.run, way)).seconds for _ in range(clock.warm_up + RUNS)]
        times[way] = median(runs[clock.warm_up :])
    _copy(asked.tensors, done)
    best = min(times, key=times.__getitem__, default=default)
    ms = {way: 1e3 * seconds for way, seconds in times.items()}
    return Kernel(asked.name, best, default, ms.get(best), ms.get(default), tuple(wrong))


def _copy(tensors: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    for x, y in zip(tensors, values, strict=True):
        x.copy_(y)


def differs(x: Any, y: Any, tolerance: float) -> bool:
    """Whether two tensors differ by more than rounding, relative to the second, or in where they are not finite."""
    if not x.is_floating_point():
        return not x.equal(y)
    x, y = x.double(), y.double()
    finite = x.isfinite()
    if not finite.equal(y.isfinite()):
        return True
    x, y = x[finite], y[finite]
    return bool((x - y).norm() > tolerance * y.norm())


def _write(path: Path, ways: dict[str, Way]) -> None:
    """Aside, then renamed. What the file says of other kernels and GPUs stays."""
    import triton

    try:
        known = json.loads(path.read_text("utf-8"))["ways"]
        kept = {name: way for name, way in known.items() if len(way) == 3 and all(isinstance(n, int) for n in way)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = {}
    text = json.dumps({"seqc": __version__, "triton": triton.__version__, "ways": {**kept, **ways}}, indent=1, sort_keys=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(text + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


# --- The page ------------------------------------------------------------------------------------------------------------


def page(found: Tuned, *, color: bool = False, width: int | None = None) -> str:
    """The kernels as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("kernel", "lengths", "stages", "halved", "warps", "ms", "by itself", "wrong"):
        table.add_column(title, justify="left" if title in ("kernel", "lengths") else "right", no_wrap=True)
    for k in found.kernels:
        _, name, _, dtype, *lengths = k.name.split()
        ms = ["" if x is None else f"{x:.4f}" for x in (k.ms, k.default_ms)]
        stages, halved, warps = k.way
        table.add_row(f"{name} {dtype}", " ".join(lengths), str(stages or "all"), str(halved), str(warps), *ms, str(len(k.wrong) or ""))
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=max(width or 0, 140), highlight=False, emoji=False
    )  # fmt: skip
    console.print(f"{found.name}: {', '.join(found.forms)}; written to {found.path}", soft_wrap=True)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
