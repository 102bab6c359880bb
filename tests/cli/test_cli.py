"""The command line as a user meets it: results, JSON, exit codes, and nothing left behind by a failure."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import document, run
from conftest import every
from typer.testing import CliRunner

from seqc.cli import app
from seqc.proof.certificate import Certificate, Failure

ROOT = Path(__file__).parents[2]
GROWING = ROOT / "tests/language/softmax_attention.seq"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQC_CACHE_DIR", os.environ.get("SEQC_TEST_CACHE", str(tmp_path / "cache")))
    monkeypatch.delenv("SEQC_COLOR", raising=False)
    return tmp_path


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-m", "seqc", *arguments], cwd=cwd, env=whole, capture_output=True, text=True)


# --- Results ---------------------------------------------------------------------------------------------------------


def test_compile(own_folder: Path) -> None:
    result = run("compile", "deltaproduct")
    assert result.exit_code == 0
    assert "from generated.deltaproduct import deltaproduct, Deltaproduct" in result.stdout
    assert "chunkwise: applies" in result.stdout and "proved: chunkwise and recurrent" in result.stdout
    names = {p.name for p in (own_folder / "generated/deltaproduct").iterdir()}
    assert {"__init__.py", "ops.py", "module.py", "chunkwise.py", "recurrent.py", "reference.py", "manifest.json"} <= names
    assert not [p for p in (own_folder / "generated").iterdir() if p.name != "deltaproduct"]


def test_compile_elsewhere_with_sizes(own_folder: Path) -> None:
    data = document("compile", str(ROOT / "specs/deltaproduct.seq"), "-o", "out/put", "-s", "n=3", "--chunk-size", "16")
    manifest = json.loads((own_folder / "out/put/deltaproduct/manifest.json").read_text("utf-8"))
    assert manifest["options"] == {"sizes": [["n", 3]], "chunk_size": 16, "backend": "torch"}
    assert data["import"] == "from out.put.deltaproduct import deltaproduct, Deltaproduct"
    assert data["certificate"]["ok"] and data["forms"] == ["chunkwise", "recurrent"]


def test_the_name_and_the_file_are_one_layer(own_folder: Path) -> None:
    document("compile", "kda", "-o", "a")
    document("compile", str(ROOT / "specs/kda.seq"), "-o", "b")
    for path in (own_folder / "a/kda").iterdir():
        assert path.read_bytes() == (own_folder / "b/kda" / path.name).read_bytes()


def test_check_several(own_folder: Path) -> None:
    result = run("check", "gla", str(ROOT / "specs/kda.seq"), "nowhere.seq")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["gla: ok", f"{ROOT / 'specs/kda.seq'}: ok"]
    assert "unreadable-file" in result.stderr
    data = document("check", "gla", "nowhere.seq", code=1)
    assert [s["ok"] for s in data["specs"]] == [True, False] and data["diagnostics"][0]["code"] == "unreadable-file"


def test_explain() -> None:
    text = run("explain", "gated_deltanet").stdout
    assert "A_t = (I - beta k k^T) exp(g)" in text and "B_t = beta k v^T" in text and "o_t = q^T S_t" in text
    assert "objective  l2(S(k), v)" in text and "retention  decay(exp(g))" in text and "algorithm  descent(rate = beta)" in text
    data = document("explain", "deltaproduct")
    assert "A_1 = I - beta[0] k[0] k[0]^T" in data["states"][0]["equations"] and data["choices"][0]["times"] == 2
    assert {f["form"] for f in data["forms"]} == {"chunkwise", "recurrent"} and data["state_size"] == 64 * 64


def test_explain_stabilisers() -> None:
    data = document("explain", "rwkv4")
    assert data["stabilisers"] == ["num and den are kept as multiples of e^m, m_t = max(m_{t-1} - exp(w), k)"]
    assert data["state_size"] == 3 * 64
    assert document("explain", "gla")["stabilisers"] == []


def test_explain_decays_and_reads_along_both_axes() -> None:
    specs = ROOT / "tests/backends/specs"
    text = run("explain", str(specs / "windows_at_once.seq")).stdout
    assert "S_t = A_t S_{t-1} diag(exp(f)) + B_t" in text and "B_t = A_2 B_1 diag(exp(f)) + B_2" in text  # the first write decays too
    assert "S_2" not in text and "A_1 = diag(exp(e)) - " in text
    text = run("explain", "gated_oja").stdout
    assert "A_t = (I - beta v v^T) diag(exp(g))" in text and "o_t = S_t q" in text
    assert "no A_t and B_t, since a step erases what `S` was before its decay" in run("explain", str(specs / "two_sided.seq")).stdout


def test_explain_what_a_memory_writes_of_its_reads() -> None:
    """It is no part of A_t: the text says what is found and what becomes of it."""
    text = run("explain", "moneta_linear").stdout
    assert "A_t = alpha\n" in text and "B_t = (-(k * 3 * eta)) u_t^T" in text
    assert "u_t = tanh(10 * r) * (r ^ 2 + 1/1000000) with r = k^T M_{t-1} - v" in text
    text = run("explain", str(ROOT / "tests/backends/specs/cubes_in_turn.seq")).stdout
    assert "A_2 = I\n" in text and "with r = k[1]^T S_{t,1} - v[1]" in text


def test_explain_what_no_form_computes() -> None:
    result = run("explain", str(GROWING))
    assert result.exit_code == 0
    assert "grows with every token" in result.stdout and "^^^^^" in result.stdout
    assert [r["form"] for r in document("explain", str(GROWING))["refused"]] == ["chunkwise", "conv", "scan", "newton", "recurrent"]


@every
def test_every_layer_can_be_explained(name: str) -> None:
    assert run("explain", name).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/language/*.seq")), ids=lambda path: path.stem)
def test_every_text_can_be_explained(path: Path) -> None:
    assert run("explain", str(path)).exit_code == 0


def test_prove() -> None:
    assert "equal to the recurrence" in run("prove", "gla").stdout
    assert document("prove", "gla")["certificate"]["ok"]


@pytest.mark.parametrize("stage", ["ast", "model", "recurrence", "stabilised", "structure", "program", "adjoint", "kernel"])
def test_ir(stage: str) -> None:
    once, again = run("ir", "rwkv7", "--after", stage), run("ir", "rwkv7", "--after", stage)
    assert once.exit_code == 0 and once.stdout == again.stdout and len(once.stdout) > 100
    assert document("ir", "rwkv7", "--after", stage)["text"].strip() == once.stdout.strip()


@pytest.mark.slow
def test_ir_of_complex_states() -> None:
    assert "h.re, h.im: affine" in run("ir", "s4d", "--after", "structure").stdout
    assert "program conv" in run("ir", "s4d", "--after", "program").stdout
    assert "delay x@shift: x" in run("ir", "mamba3", "--after", "structure").stdout
    assert document("explain", "s4d")["state_size"] == 64


def test_ir_of_a_form() -> None:
    assert "program recurrent" in run("ir", "gla", "--after", "program", "--form", "recurrent").stdout
    assert run("ir", "gla", "--form", "none").exit_code == 2
    assert run("ir", str(GROWING), "--after", "program").exit_code == 1


@pytest.mark.slow
def test_list() -> None:
    items = {i["name"]: i for i in document("list")["items"]}
    assert items["deltaproduct"]["forms"] == ["chunkwise", "recurrent"] and "arXiv" in items["deltaproduct"]["doc"]
    for kind in ("objectives", "retentions", "algorithms", "functions"):
        assert document("list", "--kind", kind)["items"]


@pytest.mark.parametrize("memory", ["matrix", "diagonal", "deep"])
def test_new(own_folder: Path, memory: str) -> None:
    assert run("new", "mine", "--memory", memory).exit_code == 0
    text = (own_folder / "mine.seq").read_text("utf-8")
    assert run("fmt", "--check", "mine.seq").exit_code == 0
    assert run("compile", "mine.seq").exit_code == 0
    assert run("new", "mine").exit_code == 2
    assert (own_folder / "mine.seq").read_text("utf-8") == text


@pytest.mark.parametrize("name", ["Mine", "../mine", "a b", "", "layer", "lambda", "exp", "x" + "é"])
def test_new_refuses_names(own_folder: Path, name: str) -> None:
    assert run("new", name).exit_code == 2
    assert not list(own_folder.glob("*.seq"))


@pytest.mark.parametrize(("name", "said"), [("gla", "choose another name"), ("ops", "reserved"), ("torch", "reserved")])
def test_new_refuses_taken_names(own_folder: Path, name: str, said: str) -> None:
    result = run("new", name)
    assert result.exit_code == 2 and said in result.stderr
    assert not list(own_folder.glob("*.seq"))


def test_doctor() -> None:
    data = document("doctor")
    assert data["versions"]["torch"] and data["caches"]["cache"]


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("seqc ")
    assert run("--help").exit_code == 0
    assert run("compile", "--help").exit_code == 0


# --- fmt -------------------------------------------------------------------------------------------------------------


LOOSE = (ROOT / "specs/gla.seq").read_text("utf-8").replace("  input   q[K]", " input q[ K ]")


def test_fmt(own_folder: Path) -> None:
    path = own_folder / "gla.seq"
    path.write_text(LOOSE, "utf-8")
    path.chmod(0o640)
    assert run("fmt", "--check", "gla.seq").exit_code == 4
    shown = run("fmt", "--diff", "gla.seq")
    assert shown.exit_code == 4 and "- input q[ K ]" in shown.stdout and path.read_text("utf-8") == LOOSE
    assert run("fmt", "gla.seq").exit_code == 0
    assert path.read_text("utf-8") == (ROOT / "specs/gla.seq").read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert run("fmt", "--check", "gla.seq").exit_code == 0
    assert [p.name for p in own_folder.glob("*.seq*")] == ["gla.seq"]


def test_fmt_stdin() -> None:
    assert run("fmt", "-", stdin=LOOSE).stdout == (ROOT / "specs/gla.seq").read_text("utf-8")
    assert run("fmt", "--check", "-", stdin=LOOSE).exit_code == 4


def test_fmt_line_ends(own_folder: Path) -> None:
    canonical = (ROOT / "specs/gla.seq").read_bytes()
    (own_folder / "gla.seq").write_bytes(b"\xef\xbb\xbf" + canonical.replace(b"\n", b"\r\n"))
    assert run("fmt", "--check", "gla.seq").exit_code == 4
    assert run("fmt", "gla.seq").exit_code == 0
    assert (own_folder / "gla.seq").read_bytes() == canonical


def test_fmt_leaves_what_it_cannot_read(own_folder: Path) -> None:
    (own_folder / "bad.seq").write_text("seqc 1\nlayer (\n")
    (own_folder / "gla.seq").write_text(LOOSE, "utf-8")
    assert run("fmt", "bad.seq", "gla.seq").exit_code == 1
    assert (own_folder / "bad.seq").read_text() == "seqc 1\nlayer (\n"
    assert (own_folder / "gla.seq").read_text("utf-8") != LOOSE


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compile", "check", "explain", "prove", "ir", "fmt"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\xff\xfe", b"a" * 100_000, b"seqc 1\n", b"seqc 9\n", b"\xff" * 10, b"seqc 1\nlayer x()\n  output o = 1 +\n"]
)
def test_bad_files(own_folder: Path, command: str, content: bytes) -> None:
    (own_folder / "x.seq").write_bytes(content)
    before = sorted(p.name for p in own_folder.iterdir() if p.name != "cache")
    result = run(command, "x.seq")
    assert result.exit_code == 1 and "error[" in result.stderr and not result.stdout
    assert sorted(p.name for p in own_folder.iterdir() if p.name != "cache") == before
    assert (own_folder / "x.seq").read_bytes() == content
    assert document(command, "x.seq", code=1)["diagnostics"]


@pytest.mark.parametrize("command", ["compile", "check", "explain", "prove", "ir", "fmt"])
def test_missing_files_and_folders(own_folder: Path, command: str) -> None:
    for name in ("missing.seq", "missing", ".", "a\x00b", "x" * 5000):
        assert run(command, name).exit_code == 1
    assert not (own_folder / "generated").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("nothing",), ("compile",), ("compile", "gla", "-s", "K"), ("compile", "gla", "-s", "K=x"), ("compile", "gla", "-s", "K=0"),
        ("compile", "gla", "-s", "K=9999999999"), ("compile", "gla", "-s", "K=1", "-s", "K=2"), ("compile", "gla", "--chunk-size", "0"),
        ("check",), ("ir", "gla", "--after", "nothing"), ("list", "--kind", "nothing"), ("compile", "gla", "--colour"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_usage(own_folder: Path, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2
    assert not (own_folder / "generated").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "nothing"), (("check",), "SPEC"), (("compile", "gla", "--chunk-size", "0"), "chunk-size"),
        (("compile", "gla", "--chunk-size", "many"), "chunk-size"), (("ir", "gla", "--after", "nothing"), "nothing"),
        (("compile", "gla", "--colour"), "--colour"), (("compile", "gla", "-s", "K"), "-s K"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_usage_in_json(arguments: tuple[str, ...], said: str) -> None:
    data = document(*arguments, code=2)
    assert said in data["error"] and data["diagnostics"] == []
    assert not run(*arguments, "--json").stderr


def test_check_stdin(own_folder: Path) -> None:
    text = (ROOT / "specs/gla.seq").read_text("utf-8")
    assert run("check", "-", stdin=text).stdout == "-: ok\n"
    wrong = run("check", "-", "deltanet", stdin="seqc 1\nlayer (\n")
    assert wrong.exit_code == 1 and "<stdin>:2" in wrong.stderr and wrong.stdout == "deltanet: ok\n"
    assert "not UTF-8" in CliRunner().invoke(app, ["check", "-"], input=b"\xe9").stderr
    assert "larger than" in run("check", "-", stdin="#" * (1 << 17)).stderr
    (own_folder / "objectives").mkdir()
    (own_folder / "objectives/l2.seq").write_text("not a text", "utf-8")
    assert run("check", "-", stdin=text).exit_code == 0


def test_no_form(own_folder: Path) -> None:
    result = run("compile", str(GROWING))
    assert result.exit_code == 1 and "form-not-applicable" in result.stderr
    assert not (own_folder / "generated").exists()


def test_a_failed_proof_writes_nothing(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure("chunkwise", "gradient", "d_q", (("tokens", 2),))

    def refute(*args: object, **kwargs: object) -> Certificate:
        return Certificate("gla", "0", 16, ("recurrent",), ("gradient",), (), 0, -50.0, (), (failure,))

    monkeypatch.setattr("seqc.compiler.prove", refute)
    result = run("compile", "gla")
    assert result.exit_code == 4 and "`chunkwise` differs in `d_q`" in result.stderr
    assert run("prove", "gla").exit_code == 4
    assert document("compile", "gla", code=4)["folder"] is None
    assert not (own_folder / "generated").exists()


def test_a_bug_is_reported(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("what only its authors understand")

    monkeypatch.setattr("seqc.compiler.judge", fail)
    result = run("compile", "gla")
    assert result.exit_code == 3 and "this is a bug in seqc" in result.stderr
    data = document("compile", "gla", code=3)
    assert "what only its authors understand" in Path(data["report"]).read_text("utf-8")
    assert not (own_folder / "generated").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(own_folder: Path) -> None:
    folder = own_folder / "closed"
    folder.mkdir(mode=0o500)
    result = run("compile", "gla", "-o", str(folder))
    assert result.exit_code == 2 and "cannot write" in result.stderr


def test_a_file_in_the_way(own_folder: Path) -> None:
    (own_folder / "generated").write_text("mine")
    assert run("compile", "gla").exit_code == 2
    assert (own_folder / "generated").read_text() == "mine"


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in run("explain", "gla", "--color", "always").stdout
    assert "\x1b[" not in run("explain", "gla").stdout
    monkeypatch.setenv("SEQC_COLOR", "always")
    assert "\x1b[" in run("explain", "gla").stdout


# --- Whole processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_as_a_module_and_a_closed_pipe(own_folder: Path) -> None:
    assert process("--version", cwd=own_folder).stdout.startswith("seqc ")
    command = f"{sys.executable} -m seqc ir rwkv7 --after adjoint | head -1"
    done = subprocess.run(command, shell=True, cwd=own_folder, capture_output=True, text=True)
    assert "program" in done.stdout and not done.stderr


@pytest.mark.slow
def test_without_a_cache_folder(own_folder: Path) -> None:
    (own_folder / "file").write_text("")
    done = process("check", "gla", cwd=own_folder, SEQC_CACHE_DIR=str(own_folder / "file/cache"))
    assert done.returncode == 0, done.stderr


def test_ascii_terminal(own_folder: Path) -> None:
    (own_folder / "x.seq").write_text("seqc 1\n\nlayer x()\n  output o = é\n", "utf-8")
    done = process("check", "x.seq", cwd=own_folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and "bug" not in done.stderr


@pytest.mark.slow
def test_concurrent_compiles(own_folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda i: process("compile", "gla", "--chunk-size", str(8 << i % 2), cwd=own_folder), range(4)))
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    assert [p.name for p in (own_folder / "generated").iterdir()] == ["gla"]
    manifest = json.loads((own_folder / "generated/gla/manifest.json").read_text("utf-8"))
    assert f"CHUNK_SIZE = {manifest['options']['chunk_size']}" in (own_folder / "generated/gla/ops.py").read_text("utf-8")
