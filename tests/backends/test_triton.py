"""Triton kernels: run by Triton's interpreter against float64, and compiled for a GPU that is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ALL, ROOT, SHIPPED, import_package
from test_printed_ops import UNPRINTED

import seqc
from seqc.backends.triton.cuts import is_heavy
from seqc.backends.triton.launches import flat, launches
from seqc.backends.triton.parts import WORK
from seqc.compiler import programs
from seqc.emit.write import write_package
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir.expr import walk
from seqc.ir.program import LEAD

triton = pytest.importorskip("triton")

TOLERANCE = 2e-5
AMPLIFIED = 4  # where float32 itself is further off in a form in PyTorch, so much further may other orders of summation be
REFUSED: dict[str, str] = {}
# fernn sums over sequences inside a step, paragru's kernels iterate, yaad_linear's gradients are what is missing to one.
SAMPLE = ("gated_deltanet", "fernn", "paragru", "yaad_linear")
# The interpreter takes minutes for some layers: `make kernels` runs all of them, `make test` a few.
NAMES = SHIPPED if ALL else SAMPLE
every = pytest.mark.parametrize("name", NAMES)
BLOCKS = "33,40" if ALL else "17,20"  # K and V where blocks have 16: three of them, or two


def worker(*arguments: str) -> list[dict[str, object]]:
    """Lines of a process in which Triton interprets."""
    command = [sys.executable, str(ROOT / "tests/backends/triton_worker.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def far(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Of the calls of a layer's forms, of which there are some, those that are too far from float64."""
    found = [(str(x["call"]), x["distances"], x) for x in lines if "distances" in x]
    assert found
    bounds: dict[str, tuple[float, float]] = {}
    for call, (_, _, result, gradient), _ in found:  # type: ignore[misc]
        known = bounds.get(call, (TOLERANCE / AMPLIFIED, TOLERANCE / AMPLIFIED))
        bounds[call] = max(known[0], result), max(known[1], gradient)
    return [x for call, (result, gradient, *_), x in found  # type: ignore[misc]
            if not (result < AMPLIFIED * bounds[call][0] and gradient < AMPLIFIED * bounds[call][1])]  # fmt: skip


@pytest.mark.slow
def test_every_op(tmp_path: Path) -> None:
    """Every row of the op table as a kernel, at lengths that no tile has; what PyTorch's printer lacks is refused by name."""
    lines = worker("ops", str(tmp_path))
    refused = {str(line["op"]) for line in lines if "refused" in line and "complex" not in str(line["refused"])}
    assert refused == set(UNPRINTED) - {"complex"}
    assert not [line for line in lines if "error" in line]
    assert not [line for line in lines if "distance" in line and not float(line["distance"]) < 1e-5]  # type: ignore[arg-type]
    assert sum("distance" in line for line in lines) > 200


@pytest.mark.slow
def test_products_with_decays_by_blocks(tmp_path: Path) -> None:
    lines = worker("decays", str(tmp_path))
    assert len(lines) == 3 * 9 * 3 * 2
    assert not [line for line in lines if not float(line["distance"]) < 2e-6]  # type: ignore[arg-type]


@pytest.mark.slow
@every
def test_kernels_are_the_recurrence(name: str, tmp_path: Path) -> None:
    """Results and all gradients row by row, at lengths around a chunk, and of packed rows with empty ones, the first among them."""
    lines = worker(name, str(tmp_path), "1,7,8,9,19" if ALL else "1,9,19", "0,0,1,12,13,13")
    assert all(line["refused"] == REFUSED.get(str(line["form"])) for line in lines if "refused" in line)
    assert not far(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gla", "gated_deltanet") if ALL else ("gla",))
def test_tiles_as_large_as_those_of_matrix_products(name: str, tmp_path: Path) -> None:
    assert not far(worker(name, str(tmp_path), "21", "", "16", "17,16,18,16,17"))


@pytest.mark.slow
def test_products_line_by_line(tmp_path: Path) -> None:
    """With large tiles on either side, and on none."""
    lines = worker("lines", str(tmp_path), "yaad_linear")
    assert not far(lines) and [line["call"] for line in lines] == [["both", "x", "y"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gla", "gated_deltanet") if ALL else ("gated_deltanet",))
def test_axes_in_blocks(name: str, tmp_path: Path) -> None:
    """K and V in blocks of 16: accumulators over blocks of what is summed, programs for blocks of what is not."""
    assert not far(worker(name, str(tmp_path), "21", "", "16", f"{BLOCKS},16,16,16", "16"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("lru", "lssl", "s5") if ALL else ("lssl",))
def test_tiles_of_three_axes_go_through_tokens_in_blocks(name: str, tmp_path: Path) -> None:
    assert not far(worker(name, str(tmp_path), "13", "0,0,1,12,13,13", "8", "3,5,4,2,6", "16"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("systems", "two_alike"))
def test_tokens_in_blocks_of_one(name: str, tmp_path: Path) -> None:
    """A system for every token; two inputs of one gradient, with two axes of one length."""
    assert not far(worker(f"../tests/backends/{name}", str(tmp_path), "5", "", "4", "3,5", "16"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("full_sums", "many_outputs", "hidden_sums", "group_params"))
def test_layers_of_few_lines(name: str, tmp_path: Path) -> None:
    """K and V in blocks of 16: nothing behind the end of an axis is summed; more outputs than inputs; sums behind sums that are folded into
    their readers; gradients that heads share."""
    lines = worker(f"../tests/backends/{name}", str(tmp_path), "9", "", "16", f"{BLOCKS},16,16", "16")
    assert not far(lines)


def test_entries_of_a_unit_matrix_in_a_loop() -> None:
    """A loop over tokens computes the row of its token; what it is a row of is folded into the loop."""
    made = seqc.compile("lightning_attention", backend="triton")
    manifest = json.loads(next(f.text for f in made.files if f.name == "manifest.json"))
    assert not manifest["triton"]["refused"]


def test_what_heads_share_is_summed_in_float32(text_of: Callable[[str], str]) -> None:
    """A sum over all tokens that the heads of a group add up afterwards, or hand on where each has its own."""
    assert "out_d_W_each = gpu.made(rows, (n_H, n_V, n_K))\n" in text_of("group_params")


def test_gradients_of_params_are_written_in_their_type(text_of: Callable[[str], str]) -> None:
    """The sums of each chunk are float32, and the kernel that adds them up writes what the caller gets."""
    text = text_of("rwkv7")
    assert "out_d_bonus_each = gpu.made(rows, (rows.places, n_H, n_K))\n" in text
    assert "out_d_bonus = gpu.made(rows, (n_H, n_K), bonus.dtype)\n" in text


@pytest.mark.parametrize("name", ("gated_deltanet", "group_params"))
def test_every_sum_that_is_printed_is_read(name: str, text_of: Callable[[str], str]) -> None:
    kernels = re.split(r"\n(?=@triton.jit|def )", text_of(name))
    sums = [(kernel, total) for kernel in kernels for total in re.findall(r"^ +(\w+) \+= ", kernel, re.MULTILINE)]
    assert len(sums) > 5
    assert not [total for kernel, total in sums if len(re.findall(rf"\b{total}\b", kernel)) < 3]


@pytest.mark.parametrize("name", ("gated_deltanet", "kda"))
def test_a_kernel_has_few_products(name: str) -> None:
    checked = seqc.check(name)
    made = programs(checked, CHUNKWISE)
    for program in (made.forward, made.backward):
        for launch in flat(launches(program, LEAD)[1]):
            if launch.loop is None:
                assert sum(is_heavy(n, launch.lead) for n in walk(*(e.value for e in launch.equations))) <= WORK


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gla", "gated_deltanet", "mamba2") if ALL else ("gated_deltanet",))
def test_factors_of_16_bits(name: str, tmp_path: Path) -> None:
    """float16, which the interpreter multiplies as a GPU does (bfloat16 it does not): every row of outputs, last states and gradients."""
    (line,) = worker("16", str(tmp_path), name)
    assert line["rows"] and max(line["rows"]) < 5e-3, line  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("name", ("lstm", "swla", "gated_deltanet", "ttt_linear") if ALL else ("gated_deltanet", "ttt_linear"))
def test_tokens_one_by_one_in_place(name: str, tmp_path: Path) -> None:
    (line,) = worker("decode", str(tmp_path), name)
    assert max(line["distances"]) < TOLERANCE, line  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gated_deltanet", "gla", "linear_attention") if ALL else ("gated_deltanet",))
def test_what_is_kept_for_the_backward(name: str, tmp_path: Path) -> None:
    lines = worker("keeps", str(tmp_path), name)
    assert len(lines) == 2
    for line in lines:
        assert line["equal"] is True and line["plain"] == 0 and int(line["kept"]) > 0, line  # type: ignore[call-overload]
        assert float(line["compiled"]) < 1e-6, line  # type: ignore[arg-type]


@pytest.mark.slow
def test_where_a_program_is_cut_changes_no_result(tmp_path: Path) -> None:
    """A layer from no paper, cut in four ways: other kernels, equal results and gradients."""
    lines = worker("cuts", str(tmp_path), str(ROOT / "tests/backends/invented.seq"))
    launches = [int(line["launches"]) for line in lines]  # type: ignore[call-overload]
    assert len(lines) == 4 and launches[0] < launches[1] < launches[2] <= launches[3], lines
    assert all(float(line["apart"]) < TOLERANCE for line in lines), lines  # type: ignore[arg-type]


def test_versions_of_triton_that_miscompile_get_fewer_warps() -> None:
    from seqc.backends.triton.launching import most_warps

    hopper, blackwell = ("cuda", 90), ("cuda", 100)
    assert [most_warps(hopper, v) for v in ((3, 6, 0), (3, 7, 0), (3, 7, 1), (3, 9, 0))] == [4, 4, 8, 8]
    assert [most_warps(blackwell, v) for v in ((3, 7, 1), (3, 8, 0))] == [2, 8]
    assert most_warps(("cuda", 80), (3, 6, 0)) == most_warps(("hip", "gfx942"), (3, 6, 0)) == most_warps(("interpreter", 0), (3, 6, 0)) == 8


# --- The package -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_of() -> Callable[[str], str]:
    """The chunkwise kernels of a layer."""

    def text(name: str) -> str:
        there = ROOT / "tests/backends" / f"{name}.seq"
        made = seqc.compile(there if there.exists() else name, backend="triton")
        return next(f.text for f in made.files if f.name == "triton_chunkwise.py")

    return text


@cache
def package(name: str, chunk_size: int) -> ModuleType:
    folder = Path(tempfile.mkdtemp()) / name
    write_package(seqc.compile(name, chunk_size=chunk_size, backend="triton").files, folder)
    return import_package(folder, f"with_triton_{name}_{chunk_size}")


@pytest.mark.slow
def test_a_package_asks_for_triton_only_when_it_is_called() -> None:
    """torch itself may import triton; the package's own kernels are not, and so not decorated."""
    path = Path(str(package("retnet", 16).__file__)).parent
    code = (
        f"import sys; sys.path.insert(0, {str(path.parent)!r}); import retnet, torch; x = torch.rand(1, 3, 1, 4); retnet.retnet(x, x, x);"
        "print([m for m in sys.modules if m.startswith('retnet.triton_') and m != 'retnet.triton_rows'], retnet.MANIFEST['triton'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] {'forms': ['chunkwise', 'recurrent'], 'refused': {}}\n"


def test_what_it_says_of_backends(package_of_torch: ModuleType) -> None:
    x = torch.rand(1, 3, 1, 4)
    with pytest.raises(ValueError, match=r"backend `triton` is not in this package; it has `torch`$"):
        package_of_torch.retnet(x, x, x, backend="triton")
    p = package("retnet", 16)
    with pytest.raises(ValueError, match=r"backend `cuda` is not in this package; it has `torch`, `triton`$"):
        p.retnet(x, x, x, backend="cuda")
    with pytest.raises(ValueError, match="compute in float32; float64 has the backend `torch`"):
        p.retnet(*(x.double(),) * 3, backend="triton")
    with pytest.raises(ValueError, match="form `scan` is not in this package"):
        p.retnet(x, x, x, form="scan", backend="triton")
    assert torch.equal(p.retnet(x, x, x)[0], p.retnet(x, x, x, backend="torch")[0])
    with pytest.raises(ValueError, match="backend is `torch` or `triton`"):
        seqc.load("retnet", backend="cuda")  # type: ignore[arg-type]


@pytest.fixture
def package_of_torch(tmp_path: Path) -> ModuleType:
    write_package(seqc.compile("retnet").files, tmp_path / "retnet")
    return import_package(tmp_path / "retnet", "without_triton")
