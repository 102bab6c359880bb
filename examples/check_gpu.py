"""Checks the Triton kernels of layers on a GPU against float64, and times them.

    python examples/check_gpu.py                      all shipped layers, several at once; then the times of a few
    python examples/check_gpu.py gla specs/ema.seq    these, and their times
    python examples/check_gpu.py ema --interpret      the same checks without a GPU: tiny, in Triton's interpreter, in float16

Every form that has kernels computes a batch and packed rows, from first states that a past has reached, with inputs in bfloat16 inside
their domains; params and states are float32. Its outputs, last states and all gradients are compared with those of the package's
`reference` in float64 on the same rounded numbers. A row is one vector of a batch, token and head (of a state: of a sequence and head). Its
ratio is the norm of its error over that of the row's own reference, or over a thousandth of the tensor's mean row where that is larger.
The exit code is 1 if a row's ratio exceeds 5e-3 or something fails; the ratio of whole tensors is shown beside it. Every layer has a
process of its own: a kernel that ends one spoils no other.

Times are medians by CUDA events, of the form that `auto` takes, called eagerly and replayed from a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

INTERPRET = "--interpret" in sys.argv
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its own functions are decorated then

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import seqc  # noqa: E402
from seqc.bench import Run, draw, taken  # noqa: E402
from seqc.compiler import Checked, prepared  # noqa: E402
from seqc.explanation import known_sizes  # noqa: E402
from seqc.timing import clock_of  # noqa: E402

SPECS = Path(__file__).parents[1] / "specs"
MOST = 5e-3  # of a row's ratio
LIMIT = 1800  # seconds for the checks of one layer
TINY = (16, 20, 18)  # lengths of axes in the interpreter: the shortest that are multiplied as matrices
STEPS = ("theta", "eta", "rate", "lr", "gamma")  # inputs by which memories that learn in blocks step: large steps leave narrow ranges
TIMED = ("gated_deltanet", "gla", "kda", "linear_attention", "mamba2", "mamba", "rwkv7", "titans")
SHAPES = ((1, 8192, 16), (8, 2048, 16), (32, 512, 16))  # batch, tokens, heads
RUNS = 10


@dataclass(frozen=True)
class Case:
    """One call: inputs as the kernels get them, params, first states, ends of packed rows, and sizes that no tensor shows."""

    name: str
    inputs: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    cu_seqlens: Tensor | None
    sizes: dict[str, int]


# --- Calls -----------------------------------------------------------------------------------------------------------


def lengths(spec: str, checked: Checked) -> dict[str, int]:
    """The length of every axis: the text's own, or tiny ones where the kernels take any, and what follows from those."""
    sizes = {**known_sizes(checked.recurrence, checked)[1], "depth": 2, "depths": 5}
    if not INTERPRET:
        return sizes
    compiled_in = {n for n, _ in checked.recurrence.values}
    free = [s.name for s in checked.model.sizes if not s.static and s.name not in compiled_in and (s.formula or "").isdigit()]
    chosen = {n: TINY[i % len(TINY)] for i, n in enumerate(n for n in free if n not in ("heads", "groups"))}
    small = seqc.check(spec, sizes=chosen)
    unknown = known_sizes(small.recurrence, small)[0]
    return {**sizes, **dict.fromkeys(unknown, TINY[0]), **small.sizes, **dict(checked.recurrence.values)}


def inside(domain: tuple[float, float, bool], shape: list[int], generator: torch.Generator) -> Tensor:
    """Numbers of a declared domain, well away from open ends: float16 and bfloat16 round them to numbers inside."""
    low, high, unit = domain
    u = torch.rand(shape, generator=generator)
    if unit:
        return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    if isfinite(low) and isfinite(high):
        reach = min((high - low) / 2, 2.0)
        return (low + high) / 2 + 2 * reach * (0.02 + 0.96 * u - 0.5)
    if isfinite(high):
        return high - u - 1e-3
    return low + u + 1e-2 if isfinite(low) else torch.randn(shape, generator=generator)


def cases(package: ModuleType, sizes: dict[str, int], device: str, dtype: torch.dtype) -> Iterator[Case]:
    """A batch, and packed rows of which one is empty. Sequences come from pasts of different lengths."""
    signature, generator = package.ops.signature(0), torch.Generator().manual_seed(0)
    in_blocks = any(s.blocks for s, _ in package.ops.OPERATOR.forms.values())
    T, heads = (19, 2) if INTERPRET else (200, sizes.get("heads", 2))
    groups = sizes.get("groups", heads)
    groups = groups if heads % groups == 0 else heads
    hidden = next((v.axes[1:] for v in signature.params if v.axes[:1] == ("0",)), ())

    def drawn(values: tuple[Any, ...], B: int, N: int, T: int) -> list[Tensor]:
        lead = {"B": B, "N": N, "T": T, "H": heads, "G": groups}
        found = []
        for v in values:
            shape = [*(lead[a] for a in v.lead), *(sizes[a] if a in sizes else int(a) for a in v.axes)]
            x = inside(package.ops.DOMAINS.get(v.name, (-inf, inf, False)), shape, generator)
            found.append((x / 16 if in_blocks and v.name in STEPS else x).to(device))
        return found

    for name, ends in (("batch", None), ("rows", (0, 0, 1, T // 2, T))):
        B, N = (1, len(ends) - 1) if ends else (2, 2)
        inputs = tuple(x.to(dtype) for x in drawn(signature.inputs, B, N, T))
        params = tuple(drawn([v for v in signature.params if v.axes[:1] != ("0",)], B, N, T))
        past = tuple(accumulate(range(4, N + 4), initial=0))
        before = [
            x if v.lead.startswith("N") else y
            for v, x, y in zip(signature.inputs, inputs, drawn(signature.inputs, 1, N, past[-1]), strict=True)
        ]
        named = {n: sizes[n] for n in hidden}
        first = Case(name, tuple(before), params, (), torch.tensor(past, device=device), named)
        states = call(package, first, *exact(first), "reference")[1]
        cu_seqlens = torch.tensor(ends, device=device) if ends else None
        yield Case(name, inputs, params, tuple(s.float() if s.is_floating_point() else s for s in states), cu_seqlens, named)


def exact(c: Case) -> tuple[list[Tensor], list[Tensor]]:
    """The arguments and first states in float64, the same numbers."""
    wide = [[x.double() if x.is_floating_point() else x for x in xs] for xs in ((*c.inputs, *c.params), c.states)]
    return wide[0], wide[1]


def call(
    package: ModuleType, c: Case, arguments: list[Tensor], states: list[Tensor], form: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:  # fmt: skip
    """Outputs and last states, by a form's Triton kernels or by the reference."""
    first = None if not states else states[0] if len(states) == 1 else tuple(states)
    how = {} if form == "reference" else {"form": form, "backend": "triton"}
    function = getattr(package, "reference" if form == "reference" else package.MANIFEST["name"])
    out, last = function(*arguments, **c.sizes, initial_state=first, output_final_state=True, cu_seqlens=c.cu_seqlens, **how)
    return (out if isinstance(out, tuple) else (out,)), (last if isinstance(last, tuple) else (last,))


# --- Checks ----------------------------------------------------------------------------------------------------------


def measured(package: ModuleType, checked: Checked, c: Case, form: str, dtype: torch.dtype) -> list[tuple[str, Tensor, int]]:
    """Outputs, last states and the gradients of a random linear functional of them, in float64, each with how many leading axes it has."""
    arguments, states = exact(c) if form == "reference" else ([*c.inputs, *c.params], list(c.states))
    rec, signature = prepared(checked), package.ops.signature(0)
    units = {s.name for s in rec.states if s.role == "stabiliser"}  # no form need choose the same ones
    leaves = {}
    values = [*signature.inputs, *(v for v in signature.params if v.axes[:1] != ("0",)), *signature.states]
    for v, x in zip(values, [*arguments, *states], strict=True):
        if x.is_floating_point() and v.name not in units:
            leaves[v.name] = (x.detach().clone().requires_grad_(), len(v.lead))
    given = [leaves[v.name][0] if v.name in leaves else x for v, x in zip(values, [*arguments, *states], strict=True)]
    outputs, last = call(package, c, given[: len(arguments)], given[len(arguments) :], form)
    found = [(v.name, y.double(), len(v.lead)) for v, y in zip(signature.outputs, outputs, strict=True)]
    by_name = {v.name: y.double() for v, y in zip(signature.states, last, strict=True)}
    for s, v in zip(rec.states, signature.states, strict=True):
        if s.stabiliser is not None:
            axes = next(m.axes for m in rec.states if m.name == s.stabiliser)
            m = by_name[s.stabiliser]
            shape = [*m.shape[: len(v.lead)], *(m.shape[len(v.lead) + axes.index(a)] if a in axes else 1 for a in s.axes)]
            by_name[s.name] = by_name[s.name] * m.reshape(shape).exp()
        if s.name not in units:
            found.append((f"last {s.name}", by_name[s.name], len(v.lead)))
    generator, total = torch.Generator().manual_seed(1), torch.zeros((), dtype=torch.float64, device=arguments[0].device)
    for _, y, _ in found:
        weights = torch.randn(y.shape, generator=generator).to(dtype).double().to(y.device)
        total = total + (y * weights).sum()
    slopes = torch.autograd.grad(total, [x for x, _ in leaves.values()], allow_unused=True, materialize_grads=True)
    found += [(f"d {name}", d.double(), lead) for (name, (_, lead)), d in zip(leaves.items(), slopes, strict=True)]
    return [(name, y.detach(), lead) for name, y, lead in found]


def ratio(found: Tensor, wanted: Tensor, lead: int) -> float:
    """The largest of a tensor's rows."""
    if not wanted.numel():
        return 0.0
    rows = [x.reshape(*x.shape[:lead], -1).flatten(0, -2) if lead else x.reshape(1, -1) for x in (found, wanted)]
    error, own = (rows[0] - rows[1]).norm(dim=-1), rows[1].norm(dim=-1)
    each = torch.where(error == 0, 0.0, error / torch.maximum(own, own.mean() / 1000))
    return inf if bool(each.isnan().any()) else each.max().item()


def check(spec: str) -> dict[str, Any]:
    """What one process finds of a layer: for each form with kernels the worst ratios, or what went wrong."""
    device, dtype = ("cpu", torch.float16) if INTERPRET else ("cuda", torch.bfloat16)
    package, checked = seqc.load(spec, chunk_size=16 if INTERPRET else 32, backend="triton"), seqc.check(spec)
    about = package.MANIFEST["triton"]
    forms: dict[str, dict[str, Any]] = {form: {"refused": reason} for form, reason in about["refused"].items()}
    for c in cases(package, lengths(spec, checked), device, dtype):
        wanted = measured(package, checked, c, "reference", dtype)
        for form in about["forms"]:
            said = forms.setdefault(form, {"outputs": 0.0, "gradients": 0.0, "whole": 0.0, "worst": "", "ratio": -1.0})
            try:
                found = measured(package, checked, c, form, dtype)
            except Exception as error:  # it is what the check shows
                forms[form] = {"error": f"{c.name}: {type(error).__name__}: {error}"[-400:]}
                continue
            for (name, x, lead), (_, y, _) in zip(found, wanted, strict=True):
                r = ratio(x, y, lead)
                kind = "gradients" if name.startswith("d ") else "outputs"
                if "error" not in said:
                    said[kind], said["whole"] = max(said[kind], r), max(said["whole"], ratio(x, y, 0))
                    said |= {"worst": f"{name}, {c.name}", "ratio": r} if r > said["ratio"] else {}
    return {"forms": forms}


# --- Times -----------------------------------------------------------------------------------------------------------


def times(spec: str, device: str = "cuda") -> dict[str, Any]:
    """Milliseconds of forward and of forward and backward, eager and from a CUDA graph; a text where that is not possible."""
    package, checked = seqc.load(spec, backend="triton"), seqc.check(spec)
    _, sizes = known_sizes(checked.recurrence, checked)
    found = []
    for B, T, heads in SHAPES:
        given = taken(package, tuple(x.to(device) for x in draw(package, sizes, Run(tokens=T, batch=B, dtype="bfloat16"), heads)))
        row: dict[str, Any] = {"shape": (B, T, heads), "form": ""}
        for what, gradient in (("forward", False), ("both", True)):
            step = one_call(package, given, gradient)
            for how in ("eager", "graph"):
                try:
                    row["form"] = step()
                    row[f"{what} {how}"] = milliseconds(step if how == "eager" else in_graph(step), device)
                except RuntimeError as error:  # a form that iterates cannot be captured; a call may not fit into memory
                    row[f"{what} {how}"] = str(error).split("\n")[0][:80]
        found.append(row)
    return {"times": found}


def one_call(package: ModuleType, arguments: tuple[Tensor, ...], gradient: bool) -> Callable[[], str]:
    given = [x.detach().requires_grad_(gradient) for x in arguments]
    function = getattr(package, package.MANIFEST["name"])

    def step() -> str:
        with torch.set_grad_enabled(gradient):
            out, _, info = function(*given, backend="triton", return_info=True)
            if gradient:
                torch.autograd.grad(sum(o.float().sum() for o in (out if isinstance(out, tuple) else (out,))), given, allow_unused=True)
        return str(info.form)

    return step


def in_graph(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph: after some runs on a stream of their own, so that what is compiled and allocated once is there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def milliseconds(run: Callable[[], object], device: str) -> float:
    clock = clock_of(device)
    return 1e3 * median([clock.taken(run).seconds for _ in range(clock.warm_up + RUNS)][clock.warm_up :])


# --- One process for each layer ----------------------------------------------------------------------------------------


def process(what: str, spec: str) -> dict[str, Any]:
    """A layer's checks or times by a process of its own."""
    command = [sys.executable, __file__, f"--{what}-one", spec, *(["--interpret"] if INTERPRET else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT} s"}
    if done.returncode:
        return {"error": f"exit code {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1][-400:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def checked_rows(spec: str, found: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """A line for each form, with its worst ratio; infinity for what failed."""
    name = Path(spec).stem
    if "error" in found:
        yield inf, f"| {name} | | | | | {found['error']} |"
    for form, said in found.get("forms", {}).items():
        if "refused" in said:
            yield 0.0, f"| {name} | {form} | | | | no kernels: {said['refused']} |"
        elif "error" in said:
            yield inf, f"| {name} | {form} | | | | {said['error']} |"
        else:
            numbers = " | ".join(f"{said[kind]:.1e}" for kind in ("outputs", "gradients", "whole"))
            yield said["ratio"], f"| {name} | {form} | {numbers} | {said['worst']} |"


def print_times(spec: str, found: dict[str, Any]) -> None:
    if "error" in found:
        print(f"| {Path(spec).stem} | | {found['error']} | | | | |", flush=True)
    for row in found.get("times", ()):
        cells = [row.get(f"{what} {how}", "") for what in ("forward", "both") for how in ("eager", "graph")]
        shown = [f"{x:.3g}" if isinstance(x, float) else x for x in cells]
        print(f"| {Path(spec).stem} | {row['form']} | {' x '.join(map(str, row['shape']))} | {' | '.join(shown)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    parser.add_argument("--interpret", action="store_true", help="on the CPU, in Triton's interpreter")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="layers that are checked at once")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--check-one", metavar="SPEC", help=argparse.SUPPRESS)
    parser.add_argument("--times-one", metavar="SPEC", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check_one or options.times_one:
        try:
            found = check(options.check_one) if options.check_one else times(options.times_one)
        except Exception as error:  # a spec that is wrong, say: it is what the table shows
            found = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:400]}
        print(json.dumps(found))
        return 0
    specs = options.specs or sorted(p.stem for p in SPECS.glob("*.seq"))
    if not INTERPRET and not torch.cuda.is_available():
        print(
            f"No GPU: PyTorch {torch.__version__} sees none, and nothing was checked. On one, this would check the Triton kernels of "
            f"{len(specs)} layers in bfloat16, outputs and all gradients, against float64, and time some. `--interpret` checks on the CPU."
        )
        return 0
    print(f"{'float16, in the interpreter' if INTERPRET else f'bfloat16, {torch.cuda.get_device_name()}'}; largest ratios of rows\n")
    print("| layer | form | outputs | gradients | whole tensors | worst |\n|---|---|---|---|---|---|", flush=True)
    worst: dict[str, float] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for spec, found in zip(specs, pool.map(lambda spec: process("check", spec), specs), strict=True):
            for r, line in checked_rows(spec, found):
                worst[spec] = max(worst.get(spec, 0.0), r)
                print(line, flush=True)
    print("\nWorst of each layer: " + ", ".join(f"{Path(s).stem} {r:.1e}" for s, r in sorted(worst.items(), key=lambda item: -item[1])))
    above = [Path(s).stem for s, r in worst.items() if not r <= MOST]
    print(f"Above {MOST:g}, or failed: {', '.join(above) or 'none'} of {len(specs)} layers.", flush=True)
    if not INTERPRET and not options.no_times:
        print("\n| layer | form | B x T x H | forward ms | in a graph | forward + backward ms | in a graph |")
        print("|---|---|---|---|---|---|---|")
        for spec in options.specs or TIMED:
            print_times(spec, process("times", spec))
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
