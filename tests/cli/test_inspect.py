"""`seqc inspect`: kernels, launches and bytes beside counts of their own; what is beyond a GPU; what goes wrong."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from conftest import import_package

pytest.importorskip("triton")

from triton.runtime import JITFunction

import seqc
from seqc.backends.triton.targets import TARGETS
from seqc.compiler import compile_checked
from seqc.emit.write import write_package
from seqc.options import Options

run, document = partial(commands.run, "inspect"), partial(commands.document, "inspect")
ROOT = Path(__file__).parents[2]
B, T, H, D = 2, 70, 3, 16
SMALL = ("-B", str(B), "-T", str(T), "-H", str(H), "-s", f"K={D}", "-s", f"V={D}", "--chunk-size", "16")
ROWS = B * T * H
PHASE = {"triton", "torch", "bytes", "again", "ideal", "flops"}
NEEDS = {"grid", "warps", "stages", "registers", "stack", "spills", "shared", "products", "again"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return os.environ.get("SEQC_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQC_CACHE_DIR", cache)
    return tmp_path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every launch as the host code makes it: the kernel's name, and the bytes of its tensors."""
    found: list[tuple[str, int]] = []
    launch = JITFunction.run

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = {x.data_ptr(): x.numel() * x.element_size() for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)}
        if not kwargs["warmup"]:  # which compiles, and launches nothing
            found.append((self.fn.__name__, sum(tensors.values())))
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", counted)
    return found


def counted(kernels: list[dict[str, Any]]) -> Counter[str]:
    """Launches by kernel; the backward may launch one of the forward's."""
    found: Counter[str] = Counter()
    for k in kernels:
        found[k["name"]] += k["launches"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("bf16", "fp32"))
def test_numbers(dtype: str, launched: list[tuple[str, int]]) -> None:
    data = document("linear_attention", "--target", "sm_90", "--form", "chunkwise", "--dtype", dtype, *SMALL)
    assert (data["ok"], data["name"], data["form"]) == (True, "linear_attention", "chunkwise")
    assert (data["target"], data["shared"]) == ("sm_90", 227 * 1024)
    assert (data["batch"], data["tokens"], data["heads"], data["dtype"]) == (B, T, H, dtype)
    assert (data["sizes"], data["chunk_size"]) == ({"K": D, "V": D}, 16)
    assert all(set(k) == {"phase", "kind", "name", "launches", "bytes", "fits", *NEEDS} for k in data["kernels"])
    assert all((k[n] is None) == (k["kind"] == "torch") for k in data["kernels"] for n in NEEDS)
    assert set(data["forward"]) == set(data["backward"]) == PHASE
    # Three arguments and a result; three arguments, the adjoint of a result, three of arguments: each [B, T, H, D].
    width = D * {"bf16": 2, "fp32": 4}[dtype]
    assert (data["forward"]["ideal"], data["backward"]["ideal"]) == (4 * width, 7 * width)
    kernels = [k for k in data["kernels"] if k["kind"] == "triton"]
    assert counted(kernels) == Counter(name for name, _ in launched)
    assert sum(k["bytes"] for k in kernels) == pytest.approx(sum(n for _, n in launched) / ROWS)
    assert data["forward"]["triton"] + data["backward"]["triton"] == len(launched)
    assert all(0 < k["registers"] <= 255 and k["warps"] > 0 and k["fits"] for k in kernels)
    for phase in ("forward", "backward"):
        mine = [k for k in data["kernels"] if k["phase"] == phase]
        assert data[phase]["bytes"] == pytest.approx(sum(k["bytes"] for k in mine)) and data[phase]["bytes"] > data[phase]["ideal"]
        assert data[phase]["torch"] == sum(k["launches"] for k in mine if k["kind"] == "torch")
    explained = commands.document("explain", "linear_attention", *SMALL[6:])
    (form,) = (f for f in explained["forms"] if f["form"] == "chunkwise")
    assert [data[p]["flops"] for p in ("forward", "backward")] == [form["flops"], form["backward_flops"]]


@pytest.mark.slow
def test_the_table(launched: list[tuple[str, int]]) -> None:
    result = run("linear_attention", "--target", "sm_80", *SMALL)
    assert result.exit_code == 0 and not result.stderr, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"linear_attention, chunkwise, for sm_80: {T} tokens, batch {B}, heads {H}, K = {D}, V = {D}, bf16"
    assert lines[1].split()[:4] == ["phase", "kernel", "kind", "grid"] and lines[1].split()[-2:] == ["bytes", "again"]
    rows = [line.split() for line in lines[2:]]
    assert {name for name, _ in launched} <= {word for row in rows for word in row[:2]}
    summed = [re.match(r"(\w+): (\d+) launches, (\d+) of kernels and (\d+) of PyTorch; ([\d,]+) bytes, ", line) for line in lines[-5:-3]]
    assert [m and m[1] for m in summed] == ["forward", "backward"]
    assert sum(int(m[3]) for m in summed if m) == len(launched)
    assert all(m and int(m[2]) == int(m[3]) + int(m[4]) for m in summed)


@pytest.mark.slow
def test_what_programs_of_other_blocks_read_again() -> None:
    """A loop over the chunks of a head has a program for each block of values: all read every query and key, and which tokens there are."""
    data = document("linear_attention", "--target", "sm_90", "--form", "chunkwise", "-T", "256", "-s", "K=128", "-s", "V=128")
    forward, backward = (next(k for k in data["kernels"] if k["name"] == name) for name in ("_forward_kept_1", "_backward_1"))
    blocks = forward["grid"][0]
    assert blocks > 1 and backward["grid"][0] == blocks
    width = 2 * 128
    assert forward["again"] >= (blocks - 1) * 2 * width and backward["again"] >= (blocks - 1) * 2 * width
    assert forward["again"] < (blocks - 1) * 3 * width  # not the values, nor the results
    assert data["forward"]["again"] == pytest.approx(forward["again"])
    assert next(k["again"] for k in data["kernels"] if k["name"] == "_backward_2") == 0  # a program has a whole chunk


@pytest.mark.slow
def test_for_amd(launched: list[tuple[str, int]]) -> None:
    """Sizes below those of matrix instructions, which every GPU compiles."""
    data = document("retnet", "--target", "gfx942", "-T", "20", "-H", "2", "-s", "K=8", "-s", "V=8", "--chunk-size", "8")
    kernels = [k for k in data["kernels"] if k["kind"] == "triton"]
    assert data["shared"] == 64 * 1024 and counted(kernels) == Counter(name for name, _ in launched)
    assert all(0 < k["registers"] <= 512 and not k["stack"] and not k["spills"] for k in kernels)


@pytest.mark.slow
def test_a_kernel_beyond_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "tiny", replace(TARGETS["sm_90"], name="tiny", shared=256))
    result = run("linear_attention", "--target", "tiny", *SMALL)
    assert result.exit_code == 1
    assert re.search(r"_(forward|backward)_\d+ .* [\d,]+ ! ", result.stdout) and "forward: " in result.stdout
    assert re.search(r"error\[too-much-shared-memory\]: the kernel `\w+` needs \S+ KiB .*; a block of tiny has 0.25 KiB", result.stderr)
    data = document("linear_attention", "--target", "tiny", *SMALL, code=1)
    beyond = [k for k in data["kernels"] if not k["fits"]]
    assert beyond and all(k["shared"] > 256 for k in beyond) and all((k["shared"] or 0) <= 256 for k in data["kernels"] if k["fits"])
    assert [d["code"] for d in data["diagnostics"]] == ["too-much-shared-memory"] * len(beyond) and not data["ok"]


# --- What goes wrong -----------------------------------------------------------------------------------------------------


def test_an_unknown_target() -> None:
    result = run("retnet", "--target", "sm_75")
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.startswith("error[unknown-target]: `sm_75` is no target\n")
    assert "`sm_80`, `sm_90`, `sm_100`, `gfx942`" in result.stderr


@pytest.mark.parametrize("missing", ("triton", "torch"))
def test_what_is_not_installed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqc.inspection.find_spec", lambda name: None if name == missing else name)
    data = document("retnet", "--target", "sm_90", code=1)
    (said,) = data["diagnostics"]
    assert said["code"] == "not-installed" and said["helps"] == ["pip install 'seqc[triton]'"]
    assert said["message"].startswith({"torch": "PyTorch", "triton": "Triton"}[missing])


def test_kernels_that_would_be_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert [d["code"] for d in document("retnet", code=1)["diagnostics"]] == ["interpreted"]


@pytest.mark.slow
def test_a_copy_of_a_package_that_is_there() -> None:
    """The kernels of the other one are launched, since operators are registered once."""
    options = Options(sizes=(("K", 24), ("V", 24)), backend="triton")
    write_package(compile_checked(seqc.check("retnet", sizes=dict(options.sizes)), options).files, Path("there"))
    import_package(Path("there"), "retnet_that_is_there")
    kernels = document("retnet", "-s", "K=24", "-s", "V=24", "-T", "64")["kernels"]
    assert all(k["again"] is not None for k in kernels if k["kind"] == "triton") and len(kernels) >= 3


@pytest.mark.slow
def test_forms_without_kernels() -> None:
    for form, said in (
        ("conv", "no-kernels]: the form `conv` has no Triton kernels: "),
        ("fast", "unknown-form]: `fast` is no form"),
    ):
        result = run("paragru", "--form", form)
        assert result.exit_code == 1 and f"error[{said}" in result.stderr and "forms with kernels: `newton`, `recurrent`" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), (("retnet", "chunkwise"), ("gla", "chunkwise"), ("ema", "scan")))
def test_kernels_of_layers(name: str, form: str) -> None:
    """They fit into a block of sm_90. States that lie in three axes with the tokens spill nothing: one of the axes is the grid's."""
    kernels = [k for k in document(name, "--form", form, "-T", "64")["kernels"] if k["kind"] == "triton"]
    assert len(kernels) >= 3 and all(k["fits"] and 0 < k["registers"] <= 255 for k in kernels)
    assert form != "scan" or not any(k["stack"] for k in kernels)


@pytest.mark.slow
def test_a_form_that_iterates() -> None:
    """What an iteration launches is counted for as many as there are of values that nobody computed: at least one."""
    data = document("paragru", "--target", "sm_90", "--form", "newton", "-T", "64")
    assert data["ok"] and {k["phase"] for k in data["kernels"]} == {"forward", "backward"} and data["forward"]["triton"] >= 8


@pytest.mark.slow
def test_a_layer_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type("Package", (), {"REFUSED": {"scan": "no"}, "MANIFEST": {"triton": {"forms": [], "refused": {"recurrent": "a reason"}}}})
    monkeypatch.setattr("seqc.inspection.load_package", lambda *_: package)
    result = run("retnet")
    assert result.exit_code == 1 and "error[no-kernels]: no form has Triton kernels" in result.stderr
    assert "`recurrent`: a reason" in result.stderr and "`scan`: no" in result.stderr


@pytest.mark.slow
def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.compiler import ASTSource

    def refuse(self: Any, *_: Any) -> Any:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(ASTSource, "make_ir", refuse)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(Path.cwd() / "triton"))
    result = run("linear_attention", *SMALL)
    assert result.exit_code == 1 and not result.stdout
    assert re.match(r"error\[kernel-not-compiled\]: the kernel `\w+` does not compile for sm_90: PassManager::run failed\n$", result.stderr)


@pytest.mark.parametrize("arguments", [("-s", "Q=3"), ("nowhere.seq",)], ids=str)
def test_a_wrong_spec(arguments: tuple[str, ...]) -> None:
    result = run(*(("retnet", *arguments) if arguments[0] == "-s" else arguments))
    assert result.exit_code == 1 and result.stderr.count("error[") == 1 and not result.stdout


@pytest.mark.parametrize("arguments", [("-s", "K"), ("-s", "K=0"), ("-T", "0"), ("--dtype", "fp64"), ("-H", "x")], ids=str)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    assert run("retnet", *arguments).exit_code == 2
    assert document("retnet", *arguments, code=2)["exit"] == 2
