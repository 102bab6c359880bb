"""Run by test_triton.py in a process of its own: Triton kernels in Triton's interpreter, against float64.

Prints lines of JSON. Of a layer, for each form the largest distances of results and gradients, or why the form has no kernels; of
the ops, for each example its distance, or why it has no kernel.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its own functions are decorated then
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "backends")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from conftest import import_package  # noqa: E402
from layers import Call, call, checked, distance, gradients, interpreted, steady  # noqa: E402
from op_examples import EXAMPLES  # noqa: E402
from printing import NAMED, like  # noqa: E402
from test_printed_ops import BATCHES, LEADS, MASKS, UNPRINTED, decayed_operands, lengths, running, spread_over  # noqa: E402

from seqc import compiler  # noqa: E402
from seqc.analysis.chain import Refusal  # noqa: E402
from seqc.backends.torch.triton_rows import Rows  # noqa: E402
from seqc.backends.triton import cuts, launches, launching, parts, tiles  # noqa: E402
from seqc.backends.triton.package import HEAD, functions  # noqa: E402
from seqc.emit.write import write_package  # noqa: E402
from seqc.ir.execute import execute  # noqa: E402
from seqc.ir.expr import Expr, make, variables, walk  # noqa: E402
from seqc.ir.interp import Reals  # noqa: E402
from seqc.ir.ops import TABLE, var  # noqa: E402
from seqc.ir.program import BATCH, CHUNKS, LEAD, TOKENS, Equation, Map, Program, Stage  # noqa: E402
from seqc.ir.rules import extent  # noqa: E402
from seqc.options import Options  # noqa: E402
from seqc.proof.certificate import Certificate  # noqa: E402

CHUNK = 8
SIZES = (3, 5, 4, 2, 6)


def package(name: str, folder: Path, chunk_size: int = CHUNK) -> ModuleType:
    """The layer's package with Triton kernels. Its proof is other tests' business, and takes longer than all else here."""
    compiler.prove = lambda *_, **__: Certificate(name, "", 0, (), (), (), 0, 0.0, (), ())  # type: ignore[assignment]
    options = Options(chunk_size=chunk_size, backend="triton")
    place = folder / Path(name).name
    text = compiler.check_file(ROOT.parent / "specs" / f"{name}.seq", options)
    write_package(compiler.compile_checked(text, options).files, place)
    p = import_package(place, f"triton_{place.name}")
    importlib.import_module(f"{p.__name__}.triton_launching").made = not_written
    return p


def not_written(rows: Rows, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """In place of memory that may hold anything: what no kernel fills is seen."""
    return torch.full(shape, float("nan"), dtype=dtype)


def in_float32(c: Call) -> Call:
    def narrow(xs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kinds = {torch.float64: torch.float32, torch.complex128: torch.complex64}
        return tuple(x.detach().to(kinds.get(x.dtype, x.dtype)).requires_grad_(x.requires_grad) for x in xs)

    return replace(c, inputs=narrow(c.inputs), params=narrow(c.params), states=narrow(c.states))


def in_float64(c: Call) -> Call:
    def wide(xs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kinds = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        return tuple(x.detach().to(kinds.get(x.dtype, x.dtype)).requires_grad_(x.requires_grad) for x in xs)

    return replace(c, inputs=wide(c.inputs), params=wide(c.params), states=wide(c.states))


def worst(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> float:
    return max((distance(x, y) for x, y in zip(found, wanted, strict=True)), default=0.0)


def compared(p: ModuleType, c: Call, forms: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """For each form the rows furthest from float64: of results and gradients in Triton, of results and gradients in PyTorch's float32."""
    c = in_float32(c)
    exact = in_float64(c)
    loop = exact.run(p, "reference")
    assert worst(loop, tuple(torch.as_tensor(x) for x in interpreted(exact))) < 1e-9
    slopes = gradients(loop, exact.arguments)
    rec = c.checked.recurrence
    of_tokens = [not v.axes for v in rec.outputs] + [False] * len(rec.states)
    of_arguments = [not v.axes for v in rec.inputs] + [False] * (len(rec.params) + len(rec.states))
    of_slopes = [scalar for scalar, x in zip(of_arguments, c.arguments, strict=True) if x.requires_grad]
    found = {}
    for form in forms:
        both = []
        for backend in ("triton", "torch"):
            results = c.run(chosen(p, backend), form)
            both += [worst_row(results, loop, of_tokens), worst_row(gradients(results, c.arguments), slopes, of_slopes)]
        found[form] = tuple(both)
    return found


def worst_row(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], of_tokens: list[bool]) -> float:
    return max((rows_apart(*xs) for xs in zip(found, wanted, of_tokens, strict=True)), default=0.0)


class _Chosen:
    """A package whose function runs by one backend."""

    def __init__(self, p: ModuleType, backend: str):
        self.p, self.backend = p, backend

    def __getattr__(self, name: str) -> object:
        function = getattr(self.p, name)
        return (lambda *a, **k: function(*a, backend=self.backend, **k)) if callable(function) else function


def chosen(p: ModuleType, backend: str) -> ModuleType:
    return _Chosen(p, backend)  # type: ignore[return-value]


def ops_one_by_one(folder: Path) -> None:
    """Every op's examples, as tiles alone and in a grid of sequences and heads that some leaves lack."""
    (folder / "ops").mkdir(parents=True)
    (folder / "ops" / "__init__.py").touch()
    for module in (launching, tiles):
        shutil.copy(Path(module.__file__), folder / "ops" / f"triton_{Path(module.__file__).name}")
    import_package(folder / "ops", "triton_ops")
    for n, example in enumerate(EXAMPLES):
        for i, leads in enumerate((((),), *LEADS[1::2]) if example.leaves else (((),),)):
            said: dict[str, object] = {"op": example.op, "example": n, "leads": str(leads)}
            if example.op in UNPRINTED and i:
                continue
            e, given = spread_over(example, leads, n)
            try:
                said["distance"] = one_op(folder / "ops", f"op_{n}_{i}", e, given)
            except Refusal as r:
                said["refused"] = r.reason
            except Exception as error:  # it is what the test shows
                said["error"] = f"{type(error).__name__}: {error}"[-600:]
            print(json.dumps(said), flush=True)


def decays(folder: Path) -> None:
    """Products with decays in all three shapes, along all masks of micro-steps, below, at and beyond a block of rows, some far below any
    number."""
    (folder / "ops").mkdir(parents=True)
    (folder / "ops" / "__init__.py").touch()
    for module in (launching, tiles):
        shutil.copy(Path(module.__file__), folder / "ops" / f"triton_{Path(module.__file__).name}")
    import_package(folder / "ops", "triton_ops")
    for kind, mask, count, extreme in product(("gram", "rows", "columns"), MASKS, (7, 16, 40), (0.1, 20.0)):
        x, y, out = (tuple(a for a in axes if a != BATCH) for axes in decayed_operands(kind, mask))
        n, rng = lengths(count), np.random.default_rng(count)
        leaves = (var("x", x), var("y", y), var("up", (mask.row, "K")), var("low", (mask.column, "K")))
        given = {v.name: rng.standard_normal([n[a] for a in v.axes]) for v in leaves[:2]}
        total = np.round(64 * running("K", 1, count, extreme, rng, ())) / 64  # differences of exponents are exact in float32
        given |= {"up": np.repeat(total, n[mask.row] // count, -2), "low": np.repeat(total, n[mask.column] // count, -2)}
        widths = tuple((a, TOKENS, k) for a, k in (("@s", 1), ("@r6", 2), ("@s6", 2), ("@s9", 3)) if a in (mask.row, mask.column))
        name = f"decays_{kind}_{MASKS.index(mask)}_{count}_{int(extreme)}"
        apart = one_op(folder / "ops", name, make(TABLE["decayed"], leaves, (out, mask)), given, {**n, "@c": 1}, widths)
        print(json.dumps({"kind": kind, "mask": str(mask), "tokens": count, "distance": apart}), flush=True)


def one_op(
    folder: Path, name: str, e: Expr, given: dict[str, np.ndarray], sizes: dict[str, int] | None = None,
    widths: tuple[tuple[str, str, int], ...] | None = None,
) -> float:  # fmt: skip
    sizes = sizes or {**BATCHES, "@c": 1}
    widths = widths or tuple((a, TOKENS, 1) for a in ("@s", "@m") if any(a in node.axes for node in walk(e)))
    shown = like(e)
    leaf = var("made", e.axes, e.type.dtype)
    given = {**given, "like": np.zeros([extent(sizes, a) for a in shown.axes])}
    inputs = (shown, *(v for v in variables(e) if v.name != "like"))
    program = Program("one", inputs, (Map((Equation("made", e),)),), (Equation("made_out", leaf),), widths)
    order = (*LEAD, TOKENS, *(a for a, _, _ in widths), *NAMED)
    text = "\n\n".join([HEAD.format(form="one"), *functions(program, "compute", {}, LEAD, order)])
    (folder / f"{name}.py").write_text(text, "utf-8")
    compute = importlib.import_module(f"triton_ops.{name}").compute
    values = [torch.as_tensor(given[v.name], dtype=torch.float32) for v in inputs]
    count, most = sizes.get(BATCH, 1), sizes.get(CHUNKS, 1)
    even = Rows(values[0].new_empty(0), True, count, count * most, most, 1, (count, 1), torch.float32, torch.float32, values[0].device)
    (found,) = compute(*values, even)
    (wanted,) = execute(program, Reals, given, sizes).values()
    want = np.broadcast_to(np.asarray(wanted, float), found.shape).copy()
    return 0.0 if np.array_equal(want, found.numpy()) else distance(found, want)  # infinity is itself


def blocks_of(p: ModuleType, most: int) -> None:
    """No block is longer, though a tile could be."""
    found = importlib.import_module(f"{p.__name__}.triton_launching")
    found.MOST, found.LARGEST = most, 1


def rows_apart(found: torch.Tensor, wanted: torch.Tensor, of_tokens: bool) -> float:
    """The largest error of a vector of a sequence, token and head by its norm, or by a thousandth of the mean norm if that is larger.
    of_tokens: of one number per token and head, all tokens of a head are the vector."""
    x, y = (torch.view_as_real(v).flatten(-2) if v.is_complex() else v for v in (found.detach(), wanted.detach()))
    x, y = (v.double().movedim(1, -1) if of_tokens else v.double() for v in (x, y))
    assert x.shape == y.shape and torch.isfinite(x).all(), (x.shape, y.shape)
    norms = y.norm(dim=-1)
    return float(((x - y).norm(dim=-1) / norms.clamp(min=max(1e-3 * float(norms.mean()), 1e-30))).max()) if x.numel() else 0.0


def in_16_bits(name: str, folder: Path) -> None:
    """Chunkwise with inputs of 16 bits against float64 on the same numbers, over a packed row: outputs, then gradients by argument."""
    p = package(name, folder, 16)
    c = in_float32(steady(call(name, B=1, T=50, heads=2, ends=(0, 0, 21, 50), lengths=(16, 16, 16, 16, 16))))
    c = replace(c, inputs=tuple(x.detach().half().requires_grad_(x.requires_grad) for x in c.inputs))
    exact = in_float64(c)
    loop = exact.run(p, "reference")
    results = c.run(chosen(p, "triton"), "chunkwise")
    outputs = len(p.ops.OPERATOR.forms["chunkwise"][0].outputs)
    assert all(x.dtype == torch.float16 for x in results[:outputs])
    pairs = [*zip(results, loop, strict=True), *zip(gradients(results, c.arguments), gradients(loop, exact.arguments), strict=True)]
    print(json.dumps({"rows": [rows_apart(x, y, x.dim() == 3) for x, y in pairs]}), flush=True)


def by_lines(name: str, folder: Path) -> None:
    """Chunkwise with the way that is taken where no other fits, whose products go line by line; whose lines they were."""
    p = package(name, folder, 16)
    launching, tiles = (importlib.import_module(f"{p.__name__}.triton_{module}") for module in ("launching", "tiles"))
    lines, seen = tiles.lines, set[str]()

    def watched(x: Any, y: Any) -> Any:
        seen.add("y" if prod(x.shape) > 512 else "x" if prod(y.shape) > 512 else "both")
        return lines(x, y)

    launching.WAYS, tiles.LARGE, tiles.lines = launching.WAYS[-1:], tl.constexpr(512), watched
    c = steady(call(name, B=1, T=21, heads=2, lengths=(40, 40, 16, 16, 16)))
    for form, numbers in compared(p, c, ["chunkwise"]).items():
        print(json.dumps({"form": form, "call": sorted(seen), "distances": numbers}), flush=True)


def one_by_one(name: str, folder: Path) -> None:
    """Tokens decoded one by one, states in place, against the recurrent form."""
    p = package(name, folder)
    c = in_float32(steady(call(name, B=2, T=3, heads=2, lengths=SIZES)))
    signature = p.ops.OPERATOR.decoders["triton"][0]
    k = len(signature.outputs)
    with torch.no_grad():
        wanted = c.run(p, "recurrent")
        states = [s.detach().clone().contiguous() for s in c.states]
        states = [s.round().long() if v.whole else s for v, s in zip(signature.states, states, strict=True)]
        places, found = [s.data_ptr() for s in states], []
        for t in range(3):
            given = [x[:, t] if "T" in v.lead else x for v, x in zip(signature.inputs, c.inputs, strict=True)]
            y = p.decode(*given, *c.params, state=states, backend="triton")
            found.append(y if isinstance(y, tuple) else (y,))
    outputs = [torch.stack(column, 1) for column in zip(*found, strict=True)]
    assert [s.data_ptr() for s in states] == places
    apart = [distance(x, y) for x, y in zip((*outputs, *(s.float() for s in states)), wanted, strict=True)]
    print(json.dumps({"distances": apart, "outputs": k}), flush=True)


def cut_otherwise(text: Path, folder: Path) -> None:
    """A layer whose kernels are cut in four ways: by default, then at every product, with nothing folded, with nothing behind loops."""

    def as_they_are(stages: list[Stage], *_: object) -> list[Stage]:
        return stages

    changes = (
        ("default", ()),
        ("products apart", ((parts, "WORK", 1), (launches, "sunk", as_they_are))),
        ("nothing folded", ((cuts, "_folded", lambda *_: {}),)),
        ("nothing behind", ((cuts, "_fused", lambda stages, *_: (stages, {})),)),
    )
    options = Options(chunk_size=CHUNK, backend="triton")
    checked = compiler.check_file(text, options)
    c = in_float32(steady(call("", T=11, B=1, lengths=SIZES, spec=checked)))
    exact = in_float64(c)
    for n, (way, change) in enumerate(changes):
        for module, name, value in change:
            setattr(module, name, value)
        files = compiler.compile_checked(checked, options).files
        write_package(files, folder / f"way{n}")
        p = import_package(folder / f"way{n}", f"cut_{n}")
        loop = exact.run(p, "reference")
        found = c.run(chosen(p, "triton"), "chunkwise")
        apart = max(worst(found, loop), worst(gradients(found, c.arguments), gradients(loop, exact.arguments)))
        kernels = next(f.text for f in files if f.name == "triton_chunkwise.py")
        hosts = [part for part in kernels.split("\n\n\n") if part.startswith(("def forward(", "def backward("))]
        print(json.dumps({"way": way, "launches": sum(h.count("gpu.launch(") for h in hosts), "apart": apart}), flush=True)


def keeps(name: str, folder: Path) -> None:
    """Whether a call that needs no gradient gives the same to the last bit and keeps nothing; what is kept has the shapes that compilers
    are told, for even rows and packed ones; and the gradient is that of a compiled call."""
    p = package(name, folder, CHUNK)
    operator = p.ops.OPERATOR
    for ends in (None, (0, 0, 1, 12, 13, 13)):
        c = in_float32(steady(call(name, T=13, B=1, heads=2, lengths=SIZES, ends=ends)))
        _, found = operator.triton["chunkwise"]
        arguments = (*c.arguments, None if ends is None else torch.tensor(ends))
        torch.library.opcheck(found.op, arguments, test_utils=("test_schema", "test_faketensor"))
        results = c.run(chosen(p, "triton"), "chunkwise")
        with torch.no_grad():
            plain, bare = c.run(chosen(p, "triton"), "chunkwise"), found.plain(*arguments)
        compiled = torch.compile(lambda *a, c=c: c.run(chosen(p, "triton"), "chunkwise", a), fullgraph=True, backend="aot_eager")
        slopes = gradients(results, c.arguments)
        same = worst(gradients(compiled(*c.arguments), c.arguments), slopes)
        print(json.dumps({
            "equal": all(torch.equal(x, y) for x, y in zip(results, plain, strict=True)), "compiled": same,
            "plain": len(bare) - len(results), "kept": len(found.op(*arguments)) - len(results),
        }), flush=True)  # fmt: skip


def main(name: str, folder: Path, lengths: list[int], rows: list[int], chunk_size: int, sizes: tuple[int, ...], most: int) -> None:
    p = package(name, folder, chunk_size)
    if most:
        blocks_of(p, most)
    about = p.MANIFEST["triton"]
    for form, reason in about["refused"].items():
        print(json.dumps({"form": form, "refused": reason}), flush=True)
    calls = {f"T={T}": {"T": T} for T in lengths}
    if any(i.scope == "group" for i in checked(name).recurrence.inputs):
        calls["groups of one head"] = {"T": lengths[-1], "groups": 2}
    if rows:
        calls[f"rows {rows}"] = {"T": rows[-1], "ends": tuple(rows)}
    for what, arguments in calls.items():
        c = steady(call(name, B=1, heads=2, lengths=sizes, **arguments))  # type: ignore[arg-type]
        for form, numbers in compared(p, c, about["forms"]).items():
            print(json.dumps({"form": form, "call": what, "distances": numbers}), flush=True)


if __name__ == "__main__":
    layer, place, tokens, ends, chunk, axes, longest = (sys.argv[1:] + [""] * 7)[:7]
    other = {"ops": lambda: ops_one_by_one(Path(place)), "decays": lambda: decays(Path(place)),
             "16": lambda: in_16_bits(tokens, Path(place)), "lines": lambda: by_lines(tokens, Path(place)),
             "keeps": lambda: keeps(tokens, Path(place)), "decode": lambda: one_by_one(tokens, Path(place)),
             "cuts": lambda: cut_otherwise(Path(tokens), Path(place))}  # fmt: skip
    if layer in other:
        other[layer]()
        sys.exit()
    numbers = [[int(x) for x in text.split(",") if x] for text in (tokens, ends, axes)]
    main(layer, Path(place), numbers[0], numbers[1], int(chunk or CHUNK), tuple(numbers[2]) or SIZES, int(longest or 0))
