"""What generated functions call: tensors, and launches of kernels with lengths of blocks, stages and warps that the GPU can take."""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

LARGEST, SMALLEST_BLOCK, MOST = 4096, 16, 128  # numbers of a tile, of a block along an axis: least and most


class Cut(NamedTuple):
    """How a kernel's tiles lie: the axes of each, and the axes that go in blocks, those whose blocks are programs first. lacking: for each
    of those the places of the tensors that do not have it, which the programs of all blocks read."""

    shapes: tuple[tuple[str, ...], ...]
    split: tuple[str, ...] = ()
    walked: tuple[str, ...] = ()
    lacking: tuple[tuple[int, ...], ...] = ()


# How a kernel is tried: the stages of its loops (0: as many as Triton takes), how often LARGEST is halved (LINES times: products with large
# tiles go line by line, too), the least warps. The first of WAYS that fits is taken; if its threads have too few registers, of it and
# INSTEAD the one that keeps the fewest bytes in memory.
Way = tuple[int, int, int]
LINES = 3
WAYS = ((0, 0, 4), (2, 0, 4), (1, 0, 4), (1, 1, 4), (1, 2, 4), (1, LINES, 8))
INSTEAD = ((0, 0, 8), (0, 1, 4), (0, 1, 8), (1, 2, 4))
TUNED = ".tuned.json"  # in place of this file's suffix: ways that were found by trying
TENSOR_MEMORY = 512  # columns, on GPUs that have it


@cache
def plan(cut: Cut, sizes: tuple[tuple[str, int], ...], halved: int = 0) -> tuple[dict[str, int], int, int]:
    """The tiles' lengths, how many programs an index of the grid has, and the warps of a program."""
    n = dict(sizes)
    b = {a: triton.next_power_of_2(max(x, 1)) for a, x in sizes}
    free = [*cut.split, *cut.walked]
    for a in free:
        b[a] = min(b[a], MOST)

    def numbers(shape: tuple[str, ...]) -> int:
        return prod(b[a] for a in shape)

    most = LARGEST >> halved >> bool(cut.walked)  # a walk has what it adds up to in registers, too
    for shape in sorted(cut.shapes, key=numbers, reverse=True):
        while numbers(shape) > most and (long := [a for a in shape if a in free and b[a] > SMALLEST_BLOCK]):
            b[max(long, key=b.__getitem__)] //= 2
        # Of two axes a product has one of 16; of three any.
        while numbers(shape) > 4 * LARGEST >> halved and len(long := [a for a in shape if a in free and b[a] > 1]) > (len(shape) < 3):
            b[long[-1]] //= 2
    largest = max(map(numbers, cut.shapes), default=1)
    blocks = prod(-(-n[a] // b[a]) for a in cut.split)
    return {f"b_{a}": x for a, x in b.items()}, blocks, 8 if largest >= LARGEST else 4


def launch(kernel: Any, cut: Cut, programs: int, tensors: tuple[torch.Tensor, ...], rows: Any, **sizes: int) -> None:
    """The kernel over a grid of one axis. b_x is the length of a tile that holds n_x or a block of it."""
    if not programs:
        return
    at = device()
    if tensors[0].is_cuda and tensors[0].get_device() != at:
        with torch.cuda.device_of(tensors[0]):
            launch(kernel, cut, programs, tensors, rows, **sizes)
        return
    again = AGAIN.get((id(kernel), id(rows)))
    if again is not None and again.like(at, programs, tensors, sizes):
        started(again.compiled, again.grid, at, (*tensors, *again.others))
        return
    known = KNOWN.get(id(kernel)) or facts(kernel, cut, len(tensors), tuple(sizes))
    counts = [*([rows.tokens] if known.n_T else ()), *[sizes[n] for n in known.counts]]
    key = id(kernel), at, rows.dtype, rows.even, *[sizes[n] for n in known.fixed], *[x.dtype for x in tensors]
    compiled, blocks, constants = COMPILED.get(key, NOTHING)
    # Triton compiles a kernel again where an address, a memory or a count is of another kind.
    plain = max([programs * blocks, *counts]) < INT32
    for x in tensors:
        plain = plain and not x.data_ptr() % 16 and x.nbytes < INT32
    if plain and compiled is not None:
        others = *([rows.table] if known.p_rows else ()), *counts, *constants
        started(compiled, programs * blocks, at, (*tensors, *others))
        if rows.even:
            if len(AGAIN) >= REMEMBERED:
                AGAIN.clear()
            alike = [(x.dtype, 0) for x in tensors]
            AGAIN[id(kernel), id(rows)] = Again(at, programs, sizes, alike, compiled, programs * blocks, others, rows)
        return
    asked = asked_for(kernel, cut, programs, tensors, rows, sizes)
    if (kept := way_of(asked)) not in CHOSEN:
        CHOSEN[kept] = chosen(asked)
    compiled = asked.run(CHOSEN[kept])
    blocks, options = asked.blocks_and_options(*CHOSEN[kept])
    if plain and compiled is not None and programs * blocks < INT32:
        COMPILED[key] = compiled, blocks, [options[n] if n in options else asked.given[n] for n in known.constants]


class Again(NamedTuple):
    """A launch of a kernel in calls alike, which share their rows and with them the shapes of all tensors; alike: the tensors'
    types and where an address begins; others: what it takes behind them. It keeps its rows: or others could have their id."""

    at: int
    programs: int
    sizes: dict[str, int]
    alike: list[tuple[torch.dtype, int]]
    compiled: Any
    grid: int
    others: tuple[Any, ...]
    rows: Any

    def like(self, at: int, programs: int, tensors: tuple[torch.Tensor, ...], sizes: dict[str, int]) -> bool:
        """Whether it is this one, with tensors where Triton's kernel may have them."""
        same = at == self.at and programs == self.programs and sizes == self.sizes
        return same and [(x.dtype, x.data_ptr() % 16) for x in tensors] == self.alike


def started(compiled: Any, grid: int, at: int, arguments: tuple[Any, ...]) -> None:
    """What Triton does at a launch, without telling anyone where no one, a profiler say, is to be told."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        compiled[grid, 1, 1](*arguments)
        return
    stream = triton.runtime.driver.active.get_current_stream(at)
    compiled.run(grid, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


class Facts(NamedTuple):
    """Of a kernel: the lengths on which its tiles depend, those for which it is compiled and others; whether it takes the table of rows,
    the tokens of a row, and whether rows are even; the arguments that are compiled in, the last ones; and itself: or another could have
    its id."""

    tiled: tuple[str, ...]
    fixed: tuple[str, ...]
    counts: tuple[str, ...]
    p_rows: bool
    n_T: bool
    even: bool
    constants: tuple[str, ...]
    kernel: Any


KNOWN = dict[int, Facts]()
CHOSEN = dict[Any, Way]()  # of a kernel and lengths
NOTHING = (None, 1, list[Any]())
AGAIN = dict[tuple[int, int], Again]()  # by the ids of a kernel and rows
REMEMBERED = 4096
COMPILED = dict[Any, tuple[Any, int, list[Any]]]()  # the compiled kernel, its blocks and constants: Triton looks at every argument for it
INT32 = 2**31


def facts(kernel: Any, cut: Cut, tensors: int, sizes: tuple[str, ...]) -> Facts:
    inside, names = {a for shape in cut.shapes for a in shape}, tuple(kernel.arg_names)
    fixed = {p.name for p in getattr(kernel, "params", ()) if p.is_constexpr or not p.do_not_specialize}
    counts = tuple(n for n in names if n in sizes and n not in fixed)
    p_rows, n_T = "p_rows" in names, "n_T" in names
    known = Facts(
        tuple(n for n in sizes if n[2:] in inside), tuple(n for n in sizes if n in fixed), counts, p_rows, n_T, "EVEN" in names,
        names[tensors + p_rows + n_T + len(counts) :], kernel,
    )  # fmt: skip
    KNOWN[id(kernel)] = known
    return known


class Asked(NamedTuple):
    """A launch of a kernel before it is known how: of programs without blocks, with what it is given; lengths: those of its tiles."""

    kernel: Any
    cut: Cut
    programs: int
    tensors: tuple[torch.Tensor, ...]
    lengths: tuple[tuple[str, int], ...]
    dtype: torch.dtype
    given: dict[str, Any]

    def blocks_and_options(self, stages: int, halved: int, least: int) -> tuple[int, dict[str, Any]]:
        """What one of WAYS or INSTEAD says."""
        found, blocks, warps = plan(self.cut, self.lengths, halved)
        dot = "lines" if halved == LINES else SHORT.get(self.dtype) or exact()
        names = {name: x for name, x in (*found.items(), ("DOT", dot)) if name in self.kernel.arg_names}
        options = {**names, "num_warps": min(max(warps, least), most_warps(target(), TRITON))}
        return blocks, {**options, **({"num_stages": stages} if stages else {})}

    @property
    def key(self) -> tuple[Any, ...]:
        """By which its way is kept."""
        return id(self.kernel), device(), self.dtype, self.lengths

    def again(self, way: Way) -> int:
        """The bytes that programs of other blocks read again, if a tensor without an axis is read by those of all of its blocks."""
        (b, _, _), n = plan(self.cut, self.lengths, way[1]), dict(self.lengths)
        blocks = [-(-n[axis] // b[f"b_{axis}"]) for axis in self.cut.split]
        reads = [prod(n for n, lacking in zip(blocks, self.cut.lacking, strict=False) if i in lacking) for i in range(len(self.tensors))]
        return sum((count - 1) * x.nbytes for count, x in zip(reads, self.tensors, strict=True))

    def compiled(self, way: Way) -> Any:
        blocks, options = self.blocks_and_options(*way)
        return self.kernel.warmup(*self.tensors, **self.given, **options, grid=(self.programs * blocks,))

    def run(self, way: Way) -> Any:
        blocks, options = self.blocks_and_options(*way)
        return self.kernel[(self.programs * blocks,)](*self.tensors, **self.given, **options)

    @property
    def name(self) -> str:
        """The GPU, the kernel and its text, and what the blocks depend on."""
        kernel, text = self.kernel.fn.__name__, sha256(inspect.getsource(self.kernel.fn).encode()).hexdigest()[:16]
        lengths = " ".join(f"{axis}={n}" for axis, n in self.lengths)
        return f"{':'.join(map(str, target()))} {kernel} {text} {str(self.dtype).removeprefix('torch.')} {lengths}".rstrip()


def asked_for(kernel: Any, cut: Cut, programs: int, tensors: tuple[torch.Tensor, ...], rows: Any, sizes: dict[str, int]) -> Asked:
    """What `launch` is called with."""
    known = KNOWN.get(id(kernel)) or facts(kernel, cut, len(tensors), tuple(sizes))
    there = {"EVEN": (known.even, rows.even), "p_rows": (known.p_rows, rows.table), "n_T": (known.n_T, rows.tokens)}
    given = {**sizes, **{name: x for name, (takes, x) in there.items() if takes}}
    return Asked(kernel, cut, programs, tensors, tuple((n[2:], sizes[n]) for n in known.tiled), rows.dtype, given)


def way_of(asked: Asked) -> Any:
    """By which the way of a launch is kept: tensors of other types are other kernels."""
    return *asked.key, *[x.dtype for x in asked.tensors]


def chosen(asked: Asked) -> Way:
    """The first of WAYS that needs no more memory than the GPU has, the last if none does; one of INSTEAD if that spills less. What
    `seqc tune` has written beside this file comes first, if it fits."""
    if device() < 0 or not isinstance(asked.kernel, triton.JITFunction):
        return WAYS[0]
    if (known := tuned()) and (way := known.get(asked.name)) is not None and fits(asked.compiled(way)):
        return way
    for best in WAYS:
        if fits(found := asked.compiled(best)):
            break
    else:
        return WAYS[-1]
    least = spilled(found)
    for way in INSTEAD:
        if least and fits(found := asked.compiled(way)) and (spills := spilled(found)) < least:
            least, best = spills, way
    return best


@cache
def tuned() -> dict[str, Way]:
    """The ways of launches by their names. Raises ValueError for a file that is none of `seqc tune`."""
    path = Path(__file__).with_suffix(TUNED)
    if not path.exists():
        return {}
    try:
        return {str(name): (int(way[0]), int(way[1]), int(way[2])) for name, way in json.loads(path.read_text("utf-8"))["ways"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} holds no ways of kernels: write it again by `seqc tune`, or remove it") from error


def spilled(kernel: Any) -> int:
    """How many registers a thread of a compiled kernel lacks. They are known when it is loaded, which `run` sees to."""
    return int(kernel.n_spills) if kernel.run else 0


def fits(kernel: Any) -> bool:
    """Whether a block of the GPU at hand has the memory that a compiled kernel needs."""
    driver, needs = triton.runtime.driver.active, kernel.metadata
    has = driver.utils.get_device_properties(driver.get_current_device())["max_shared_mem"]
    return bool(needs.shared <= has) and (getattr(needs, "tmem_size", None) or 0) <= TENSOR_MEMORY


FULL = torch.float32
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def target() -> tuple[str, int | str]:
    """Of the GPU, Triton's names of its kind and architecture; of none, the interpreter."""
    try:
        found = triton.runtime.driver.active.get_current_target()
    except RuntimeError:
        return "interpreter", 0
    return found.backend, found.arch


def device() -> int:
    """The GPU that Triton is at; of none, the interpreter."""
    try:
        return int(triton.runtime.driver.active.get_current_device())
    except RuntimeError:
        return -1


def exact() -> str:
    """How products of float32 that lose no bits are composed: AMD's GPUs multiply them as they are."""
    return "ieee" if target()[0] == "hip" else "tf32x3"


# NVIDIA's GPUs by major compute capability; the version of Triton before which kernels like these were known to be miscompiled there, and
# the most warps that were not.
MISCOMPILED = ((9, (3, 7, 1), 4), (10, (3, 8, 0), 2))
TRITON = tuple(int(x) for x in re.findall(r"\d+", triton.__version__)[:3])


def most_warps(target: tuple[str, int | str], version: tuple[int, ...]) -> int:
    """How many warps a program may have."""
    kind, architecture = target
    known = [most for major, before, most in MISCOMPILED if kind == "cuda" and int(architecture) // 10 == major and version < before]
    return min(known, default=8)


def made(rows: Any, shape: tuple[int, ...], dtype: torch.dtype = FULL) -> torch.Tensor:
    """A tensor that a kernel fills."""
    return torch.empty(shape, dtype=dtype, device=rows.device)


def contiguous(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)
