"""`seqc inspect`: what the kernels of a layer need of a GPU that is not there, and what a call launches and moves, beside what it must."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import StringIO
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from seqc.analysis.cost import cost
from seqc.backends.triton.targets import TARGETS, KiB, Target
from seqc.bench import Run, draw, taken
from seqc.compiler import Checked, programs
from seqc.diagnostics import Diagnostic, SpecError
from seqc.emit.estimate import estimate
from seqc.explanation import known_sizes
from seqc.forms import FORMS
from seqc.options import Options
from seqc.outcome import certificate_said
from seqc.package_cache import NotProved, load_package
from seqc.terminal import CheckFailed, Terminal

if TYPE_CHECKING:
    from seqc.backends.triton.dry import Launch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PHASES = ("forward", "backward")
NUMBERS = ("launches", "warps", "stages", "registers", "stack", "spills", "shared", "products", "bytes", "again")
LEGEND = """\
Bytes and operations are per token and head. Bytes: of the tensors that a kernel is given, each once, and what an operation of PyTorch
reads and writes. Again: what programs of other blocks read once more, if no cache has it. The least: arguments and results once; backward
arguments and the adjoints of both. Nothing ran, no time is measured."""


@dataclass(frozen=True)
class Call:
    """What is inspected. form: None for the one that `auto` takes; heads: None for those of the text."""

    target: str
    form: str | None = None
    tokens: int = 2048
    batch: int = 1
    heads: int | None = None
    dtype: str = "bf16"


@dataclass(frozen=True)
class Kernel:
    """Launches of one kernel over one grid (kind `triton`), or of an operation of PyTorch between kernels (kind `torch`).

    bytes: per token and head, of all these launches: of the tensors that a kernel is given, each once; those that an operation reads
    and writes. again: bytes of tensors without an axis whose blocks are programs, beyond the first time that they are read. registers
    and stack are a thread's, shared (bytes) a block's; products are instructions of tensor cores in its text.
    """

    phase: str
    kind: str
    name: str
    launches: int
    bytes: float
    grid: tuple[int, ...] | None = None
    warps: int | None = None
    stages: int | None = None
    registers: int | None = None
    stack: int | None = None
    spills: int | None = None
    shared: int | None = None
    products: int | None = None
    again: float | None = None
    fits: bool = True


@dataclass(frozen=True)
class Phase:
    """Of the forward or the backward, per token and head: bytes of kernels and operations, those that are read again, and those that no
    schedule can do without (`ideal`: arguments and results once; backward arguments and the adjoints of both); operations on numbers,
    counted from the Program."""

    triton: int
    torch: int
    bytes: float
    again: float
    ideal: float
    flops: int


@dataclass(frozen=True)
class Inspection:
    """A form of a layer, inspected. shared: bytes that a block of the target can have."""

    name: str
    form: str
    target: str
    shared: int
    tokens: int
    batch: int
    heads: int
    dtype: str
    chunk_size: int
    sizes: dict[str, int]
    kernels: tuple[Kernel, ...]
    forward: Phase
    backward: Phase

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """A package with kernels, and what its function is called with. drawn: the arguments as they were drawn, those without entries too."""

    package: Any
    form: str
    sizes: dict[str, int]
    heads: int
    drawn: tuple[Any, ...]
    arguments: tuple[Any, ...]

    def __call__(self) -> tuple[Any, ...]:
        """Outputs, last states and what is said of the call."""
        function = getattr(self.package, self.package.MANIFEST["name"])
        found: tuple[Any, ...] = function(*self.arguments, form=self.form, backend="triton", return_info=True)
        return found


def subject_of(t: Terminal, spec: str, checked: Checked, options: Options, call: Call, device: str = "cpu") -> Subject:
    """Compiles the layer unless the cache has it. Raises SpecError, CheckFailed for a failed proof."""
    try:
        with t.progress(f"compiling and proving {checked.model.name} ..."):
            package = load_package(spec, dict(options.sizes), options.chunk_size, "triton")
    except NotProved as error:
        t.say("\n".join(certificate_said(error.certificate)))
        raise CheckFailed from None
    form = _with_kernels(package, call.form)
    _, sizes = known_sizes(checked.recurrence, checked)
    heads = call.heads or sizes.get("heads", 1)
    run = Run(tokens=call.tokens, batch=call.batch, dtype=DTYPES[call.dtype])
    drawn = tuple(x.to(device) for x in draw(package, sizes, run, heads))
    return Subject(package, form, sizes, heads, drawn, tuple(x.requires_grad_() for x in taken(package, drawn)))


def inspected(t: Terminal, spec: str, checked: Checked, options: Options, call: Call) -> Inspection:
    """Compiles the layer unless the cache has it, and a call's kernels for the target. Raises SpecError, CheckFailed for a failed proof."""
    target = target_of(call.target)
    subject = subject_of(t, spec, checked, options, call)
    from seqc.backends.triton.dry import NotCompiled, forward_and_backward  # imports torch and triton

    sizes, heads = subject.sizes, subject.heads
    gpu = launching_of(subject.package)
    forms = list[str]()

    def called() -> tuple[Any, ...]:
        found = subject()
        forms.append(found[2].form)
        return found

    try:
        with t.progress(f"compiling the kernels of {checked.model.name} for {target.name} ..."), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="triton")  # of what a later version will do
            with _read_again(gpu) as again:
                found = forward_and_backward(target, called, subject.arguments)
    except NotCompiled as error:
        raise not_compiled(error.kernel, error.reason, target) from None
    rows = call.tokens * call.batch * heads
    of_launch = iter(again)
    kernels = [k for phase in PHASES for k in _kernels(phase, getattr(found, phase), of_launch, rows, target)]
    made = programs(checked, next(f for f in FORMS if f.name == forms[0]))
    chunk = estimate(made, sizes, options.chunk_size).chunk or 1
    phases = [
        _phase(kernels, phase, ideal / rows, round(cost(getattr(made, phase), sizes, chunk).flops))
        for phase, ideal in zip(PHASES, (found.forward_ideal, found.backward_ideal), strict=True)
    ]
    shown = {a: n for a, n in sizes.items() if a not in ("heads", "groups", "depth", "depths")} | _groups(subject.package, subject.drawn)
    return Inspection(
        checked.model.name, forms[0], target.name, target.shared, call.tokens, call.batch, heads, call.dtype, options.chunk_size, shown,
        tuple(kernels), *phases,
    )  # fmt: skip


def beyond(found: Inspection) -> tuple[Diagnostic, ...]:
    """What is said of kernels that need more shared memory than a block can have."""
    return tuple(
        Diagnostic(
            "too-much-shared-memory",
            f"the kernel `{k.name}` needs {_kib(k.shared or 0)} of shared memory; a block of {found.target} has {_kib(found.shared)}",
            None,
        )
        for k in found.kernels
        if not k.fits
    )


# --- What can be asked for -----------------------------------------------------------------------------------------------


def not_compiled(kernel: str, reason: str, target: Target) -> SpecError:
    """What is said of a kernel that the compiler does not take."""
    return _wrong("kernel-not-compiled", f"the kernel `{kernel}` does not compile for {target.name}: {reason}")


def target_of(name: str) -> Target:
    """The GPU of a name. Raises SpecError for one that is none, or where nothing can be compiled."""
    if name not in TARGETS:
        raise _wrong("unknown-target", f"`{name}` is no target", notes=(f"the targets are {_listed(TARGETS)}",))
    for module, called in (("torch", "PyTorch"), ("triton", "Triton")):
        if find_spec(module) is None:
            message = f"{called} is not installed: host code is run by PyTorch, kernels are compiled by Triton"
            raise _wrong("not-installed", message, helps=("pip install 'seqc[triton]'",))
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise _wrong("interpreted", "TRITON_INTERPRET is set: Triton would interpret the kernels and compile none")
    return TARGETS[name]


def _with_kernels(package: Any, form: str | None) -> str:
    """The form, if it has kernels; `auto` for None."""
    with_kernels = package.MANIFEST["triton"]["forms"]
    refused = {**package.REFUSED, **package.MANIFEST["triton"]["refused"]}
    if form in with_kernels or (form is None and with_kernels):
        return form or "auto"
    notes = (f"forms with kernels: {_listed(with_kernels)}",) if with_kernels else ()
    if form is None:
        raise _wrong("no-kernels", "no form has Triton kernels", notes=tuple(f"`{f}`: {why}" for f, why in refused.items()))
    if form in refused:
        raise _wrong("no-kernels", f"the form `{form}` has no Triton kernels: {refused[form]}", notes=notes)
    raise _wrong("unknown-form", f"`{form}` is no form", notes=notes)


def _wrong(code: str, message: str, notes: tuple[str, ...] = (), helps: tuple[str, ...] = ()) -> SpecError:
    return SpecError((Diagnostic(code, message, None, notes=notes, helps=helps),))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def _groups(package: Any, drawn: tuple[Any, ...]) -> dict[str, int]:
    """How many groups share an argument, where one is given per group."""
    signature = package.ops.signature(0)
    values = zip((*signature.inputs, *signature.params), drawn, strict=True)
    found = [x.shape[v.lead.index("G")] for v, x in values if "G" in v.lead]
    return {"groups": found[0]} if found else {}


# --- Counting ------------------------------------------------------------------------------------------------------------


@contextmanager
def replaced(module: Any, **values: Any) -> Iterator[None]:
    """Names of a module with other values."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def launching_of(package: ModuleType) -> Any:
    """The module that launches a package's kernels: another one's, if the package is a copy of one that is there, as the operators are."""
    _, found = next(iter(package.ops.OPERATOR.triton.values()))
    return found.kernels.forward.args[0]().gpu


@contextmanager
def _read_again(gpu: Any) -> Iterator[list[int]]:
    """Of each launch of a kernel the bytes that are read again. gpu: a package's module for launches."""
    found, launch = list[int](), gpu.launch

    def watched(kernel: Any, cut: Any, programs: int, tensors: tuple[Any, ...], rows: Any, **sizes: int) -> None:
        launch(kernel, cut, programs, tensors, rows, **sizes)
        if programs:
            asked = gpu.asked_for(kernel, cut, programs, tensors, rows, sizes)
            found.append(asked.again(gpu.CHOSEN[gpu.way_of(asked)]))

    with replaced(gpu, launch=watched):
        yield found


def _kernels(phase: str, launches: Iterable[Launch], again: Iterator[int], rows: int, target: Target) -> list[Kernel]:
    """Launches with the same needs as one row each, in the order of their first launches; those of PyTorch behind the kernels. again: of
    each kernel's launch in turn."""
    groups: dict[tuple[object, ...], list[Launch]] = {}
    more: dict[tuple[object, ...], int] = {}
    for x in launches:
        key: tuple[object, ...] = (x.binary is None, x.name, x.grid, x.warps, x.stages, x.binary)
        groups.setdefault(key, []).append(x)
        more[key] = more.get(key, 0) + (0 if x.binary is None else next(again))
    found = []
    for key, same in sorted(groups.items(), key=lambda item: item[1][0].binary is None):
        x, n, moved = same[0], len(same), sum(y.bytes for y in same) / rows
        if (b := x.binary) is None:
            found.append(Kernel(phase, "torch", x.name, n, moved))
        else:
            needs = (x.grid, x.warps, x.stages, b.registers, b.stack, b.spills, b.shared, b.products, more[key] / rows)
            found.append(Kernel(phase, "triton", x.name, n, moved, *needs, b.shared <= target.shared))
    return found


def _phase(kernels: Iterable[Kernel], phase: str, ideal: float, flops: int) -> Phase:
    mine = [k for k in kernels if k.phase == phase]
    triton, torch = (sum(k.launches for k in mine if k.kind == kind) for kind in ("triton", "torch"))
    return Phase(triton, torch, sum(k.bytes for k in mine), sum(k.again or 0 for k in mine), ideal, flops)


# --- The page ------------------------------------------------------------------------------------------------------------


def page(found: Inspection, *, color: bool = False, width: int | None = None) -> str:
    """The kernels as a table, and the sums."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("phase", "kernel", "kind", "grid", *NUMBERS):
        table.add_column(title, justify="right" if title in NUMBERS else "left", no_wrap=True)
    phase = ""
    for k in found.kernels:
        table.add_row("" if k.phase == phase else k.phase, *_cells(k))
        phase = k.phase
    out = StringIO()
    console = Console(
        file=out, force_terminal=color, color_system="standard" if color else None, width=max(width or 0, 140), highlight=False, emoji=False
    )  # fmt: skip
    sizes = "".join(f", {a} = {n}" for a, n in found.sizes.items())
    call = f"{found.tokens} tokens, batch {found.batch}, heads {found.heads}{sizes}, {found.dtype}"
    console.print(f"{found.name}, {found.form}, for {found.target}: {call}")
    console.print(table)
    for phase, p in zip(PHASES, (found.forward, found.backward), strict=True):
        launches = f"{p.triton + p.torch} launches, {p.triton} of kernels and {p.torch} of PyTorch"
        least = f"{p.bytes / p.ideal:.1f} times the least, {p.ideal:,.0f}"
        console.print(f"{phase}: {launches}; {p.bytes:,.0f} bytes, {least}, {p.again:,.0f} again; {p.flops:,} operations")
    console.print(LEGEND)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _cells(k: Kernel) -> list[str]:
    """A row's kernel, kind, grid without its axes of length 1, and numbers."""
    grid = "" if k.grid is None else " x ".join(str(n) for n in k.grid if n > 1) or "1"
    needs = ["" if n is None else f"{n:,}" for n in (k.warps, k.stages, k.registers, k.stack, k.spills, k.shared, k.products)]
    needs[-2] += "" if k.fits else " !"
    return [k.name, k.kind, grid, str(k.launches), *needs, f"{k.bytes:,.0f}", "" if k.again is None else f"{k.again:,.0f}"]


def _kib(n: int) -> str:
    return f"{n / KiB:.4g} KiB"
