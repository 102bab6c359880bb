"""The command line: options in, results on stdout, diagnostics on stderr, an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from seqc import __version__, terminal
from seqc.arguments import (
    LARGEST,
    Backend,
    Chunk,
    Color,
    Colored,
    Device,
    Dtype,
    Floats,
    Json,
    Kind,
    Memory,
    Sizes,
    Spec,
    Stage,
    Timed,
    sizes_given,
)
from seqc.terminal import BadUsage, CheckFailed, Terminal, running, usage_errors

if TYPE_CHECKING:
    from seqc.compiler import Checked
    from seqc.diagnostics import Diagnostic
    from seqc.ir.model import Model
    from seqc.options import Options
    from seqc.source import Source

STDIN = "-"
ARGUMENTS = "seqc.arguments"  # in the context of a run: what the command line was given

# The compiler is imported by the commands that need it: `seqc --help` and `seqc list --help` answer at once.


class Commands(TyperGroup):
    """The commands. What is wrong with the arguments is said in JSON where that is asked for."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Takes the group's own arguments."""
        given = tuple(args)
        with usage_errors(given):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def invoke(self, ctx: Any) -> Any:
        """Finds the command, takes its arguments and runs it."""
        with usage_errors(ctx.meta[ARGUMENTS]):
            return super().invoke(ctx)


app = typer.Typer(
    name="seqc", cls=Commands, no_args_is_help=True,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Compile a short text spec of a sequence-model layer into a PyTorch package, every form proved equal.",
)  # fmt: skip


def main() -> None:
    """The `seqc` command."""
    try:
        app()
    except BrokenPipeError:
        # The reader has gone: Python must not fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.stderr.write(f"error: {terminal.bug('seqc', error)[0]}\n")
        sys.exit(terminal.BUG)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"seqc {__version__}\n")
        raise typer.Exit


@app.callback()
def seqc(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Compile a short text spec of a sequence-model layer into a PyTorch package, every form proved equal."""


# --- Specs -----------------------------------------------------------------------------------------------------------


def _options(sizes: Mapping[str, int], chunk_size: int = 32, backend: Backend = Backend.torch) -> Options:
    from seqc.locate import options

    return options(sizes, chunk_size, backend.value)


def _checked(spec: str, chosen: Options, t: Terminal) -> Checked:
    """The checked spec; its warnings are shown."""
    from seqc.locate import checked

    found = checked(spec, chosen)
    t.diagnose(found.warnings)
    return found


def _standard_input() -> Source:
    """The text on standard input. Raises SpecError where it is not text; its size is the parser's to refuse."""
    from seqc.diagnostics import Diagnostic, SpecError
    from seqc.frontend.text import MARK
    from seqc.source import Source

    try:
        return Source("<stdin>", sys.stdin.buffer.read().decode("utf-8").removeprefix(MARK))
    except UnicodeDecodeError:
        raise SpecError((Diagnostic("not-utf8", "`<stdin>` is not UTF-8 text", None),)) from None


def _meaning(spec: str, sizes: Mapping[str, int]) -> tuple[Model, tuple[Diagnostic, ...]]:
    """The model of a spec, or of the text on standard input, which has no library beside it; and warnings."""
    from seqc.locate import meaning, tested

    if spec != STDIN:
        return meaning(spec, sizes)
    from seqc.frontend.check import check as checked_model
    from seqc.frontend.parser import parse

    layer, warnings = checked_model(parse(_standard_input()), sizes=sizes, beside=None)
    tested(layer)
    return layer, warnings


# --- Commands --------------------------------------------------------------------------------------------------------


@app.command()
def compile(
    spec: Spec,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", metavar="DIR", help="Where NAME/ is written, or the single file.", show_default="generated",
    )] = None,
    size: Sizes = None, chunk_size: Chunk = 32,
    backend: Annotated[Backend, typer.Option(help="What kernels are printed in: PyTorch, or Triton as well.")] = Backend.torch,
    single_file: Annotated[bool, typer.Option("--single-file", help="Write one Python file in place of a folder, NAME.py.")] = False,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Compile a spec into a PyTorch package: DIR/NAME/, or one file."""
    with running("compile", json, color.value) as t:
        from seqc.compiler import compile_checked, in_one_file
        from seqc.destination import destination, write
        from seqc.outcome import certificate_line, certificate_said, import_line

        chosen = _options(sizes_given(size), chunk_size, backend)
        layer = _checked(spec, chosen, t)
        place = destination(output, layer.model.name, single_file)
        with t.progress(f"compiling and proving {layer.model.name} ..."):
            made = compile_checked(layer, chosen)
        forms = {n: getattr(v, "reason", None) for n, v in made.verdicts.items()}
        t.document |= {"name": layer.model.name, "certificate": made.certificate.as_json(), "folder": None, "file": None}
        t.document |= {"forms": [n for n, r in forms.items() if r is None], "refused": {n: r for n, r in forms.items() if r is not None}}
        if not made.certificate.ok:
            t.say("\n".join(certificate_said(made.certificate)) + "\nNothing was written.")
            raise CheckFailed
        write(in_one_file(made) if single_file else made.files, place)
        line = import_line(place.with_suffix("") if single_file else place, layer.model)
        t.document |= {"import": line, "file" if single_file else "folder": str(place)}
        t.document |= {} if single_file else {"files": [f.name for f in made.files]}
        t.result(f"{place}{'' if single_file else os.sep}\n  {line}")
        for name, reason in forms.items():
            t.result(f"  {name}: {'applies' if reason is None else f'does not apply: {reason}'}")
        t.result(f"  {certificate_line(made.certificate)}")


@app.command()
def check(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Files, or names of layers that come with seqc; `-` reads stdin.")],
    size: Sizes = None, json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Check specs: names, axes, domains, meaning. Says everything that is wrong."""
    with running("check", json, color.value) as t:
        from seqc.diagnostics import SpecError

        sizes, failed = sizes_given(size), False
        t.document["specs"] = []
        for spec in dict.fromkeys(specs):
            try:
                layer, warnings = _meaning(spec, sizes)
                t.diagnose(warnings)
                t.document["specs"].append({"spec": spec, "ok": True, "name": layer.name})
                t.result(f"{spec}: ok")
            except SpecError as error:
                t.diagnose(error.diagnostics)
                t.document["specs"].append({"spec": spec, "ok": False, "name": None})
                failed = True
        if failed:
            raise SpecError(())


@app.command()
def explain(spec: Spec, size: Sizes = None, chunk_size: Chunk = 32, json: Json = False, color: Colored = Color.auto) -> None:
    """Explain a spec: memory and objective, transition matrices, equations, costs, and every form with reasons."""
    with running("explain", json, color.value) as t:
        from seqc.explanation import explained, page

        chosen = _options(sizes_given(size), chunk_size)
        explanation = explained(_checked(spec, chosen, t), chosen)
        t.document |= explanation.as_json()
        t.result(page(explanation, color=t.use_color(sys.stdout), width=t.width()).rstrip("\n"))


@app.command()
def prove(spec: Spec, size: Sizes = None, chunk_size: Chunk = 32, json: Json = False, color: Colored = Color.auto) -> None:
    """Prove that every form, its backward and the backward of that compute the recurrence. Writes nothing."""
    with running("prove", json, color.value) as t:
        from seqc.compiler import compile_checked
        from seqc.outcome import certificate_page, certificate_said

        chosen = _options(sizes_given(size), chunk_size)
        layer = _checked(spec, chosen, t)
        with t.progress(f"proving {layer.model.name} ..."):
            certificate = compile_checked(layer, chosen).certificate
        t.document["certificate"] = certificate.as_json()
        if not certificate.ok:
            t.say("\n".join(certificate_said(certificate)))
            raise CheckFailed
        t.result("\n".join(certificate_page(certificate)))


@app.command()
def bench(
    spec: Spec, size: Sizes = None, chunk_size: Chunk = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=LARGEST)] = 2048,
    batch: Annotated[int, typer.Option("--batch", min=1, max=LARGEST)] = 1,
    heads: Annotated[int | None, typer.Option("--heads", min=1, max=LARGEST, help="Else those of the text.")] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype")] = Dtype.float32,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Else as many as PyTorch takes.")] = None,
    backward: Annotated[bool, typer.Option("--backward/--no-backward", help="Time the backward too.")] = True,
    repeat: Annotated[int, typer.Option("--repeat", min=1, max=LARGEST, help="Runs of each form; the median counts.")] = 5,
    device: Annotated[Device | None, typer.Option("--device", help="Else the GPU, if PyTorch sees one.")] = None,
    backend: Annotated[Timed, typer.Option("--backend", help="Whose kernels; auto: both, where both run.")] = Timed.auto,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Time every form on this machine, forward and backward: beside its estimate, or on a GPU by both backends. Needs PyTorch."""
    with running("bench", json, color.value) as t:
        from seqc.bench import Run, bench_of, page

        chosen = _options(sizes_given(size), chunk_size)
        run = Run(tokens, batch, heads, dtype.value, threads, backward, repeat, device and device.value, backend.value)
        found = bench_of(t, spec, _checked(spec, chosen, t), chosen, run)
        t.document |= found.as_json()
        t.result(page(found, color=t.use_color(sys.stdout), width=t.width()).rstrip("\n"))


@app.command()
def inspect(
    spec: Spec,
    target: Annotated[str, typer.Option("--target", metavar="GPU", help="sm_80, sm_90, sm_100 or gfx942.")] = "sm_90",
    form: Annotated[str | None, typer.Option("--form", help="Else the one that `auto` takes.")] = None,
    size: Sizes = None, chunk_size: Chunk = 32,
    tokens: Annotated[int, typer.Option("-T", "--tokens", min=1, max=LARGEST)] = 2048,
    batch: Annotated[int, typer.Option("-B", "--batch", min=1, max=LARGEST)] = 1,
    heads: Annotated[int | None, typer.Option("-H", "--heads", min=1, max=LARGEST, help="Else those of the text.")] = None,
    dtype: Annotated[Floats, typer.Option("--dtype", help="Of the arguments.")] = Floats.bf16,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Compile Triton kernels for a GPU that is not there: what each needs, what a call launches and moves. Needs PyTorch and Triton."""
    with running("inspect", json, color.value) as t:
        from seqc.diagnostics import SpecError
        from seqc.inspection import Call, beyond, inspected, page

        chosen = _options(sizes_given(size), chunk_size, Backend.triton)
        found = inspected(t, spec, _checked(spec, chosen, t), chosen, Call(target, form, tokens, batch, heads, dtype.value))
        t.document |= found.as_json()
        t.result(page(found, color=t.use_color(sys.stdout), width=t.width()).rstrip("\n"))
        if problems := beyond(found):
            raise SpecError(problems)


@app.command()
def tune(
    spec: Spec,
    target: Annotated[str | None, typer.Option("--target", metavar="GPU", help="One that is not there; else the GPU that is.")] = None,
    package: Annotated[Path | None, typer.Option("--package", metavar="DIR", help="What `seqc compile` wrote; else the cache's.")] = None,
    form: Annotated[str | None, typer.Option("--form", help="Else all that have kernels.")] = None,
    size: Sizes = None, chunk_size: Chunk = 32,
    tokens: Annotated[int, typer.Option("-T", "--tokens", min=1, max=LARGEST)] = 2048,
    batch: Annotated[int, typer.Option("-B", "--batch", min=1, max=LARGEST)] = 1,
    heads: Annotated[int | None, typer.Option("-H", "--heads", min=1, max=LARGEST, help="Else those of the text.")] = None,
    dtype: Annotated[Floats, typer.Option("--dtype", help="Of the arguments.")] = Floats.bf16,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Try blocks, stages and warps of Triton kernels, and write the best beside the package. Needs PyTorch and Triton."""
    with running("tune", json, color.value) as t:
        from seqc.inspection import Call
        from seqc.tuning import page, tune

        chosen = _options(sizes_given(size), chunk_size, Backend.triton)
        call = Call(target or "", form, tokens, batch, heads, dtype.value)
        found = tune(t, spec, _checked(spec, chosen, t), chosen, call, package)
        t.document |= found.as_json()
        t.result(page(found, color=t.use_color(sys.stdout), width=t.width()).rstrip("\n"))


@app.command()
def fmt(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Files; `-` reads stdin and writes stdout.")],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 4 if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change; exit 4 if a file would.")] = False,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Format specs in place, in the one canonical layout."""
    with running("fmt", json, color.value) as t:
        from seqc.layout import formatted_files

        formatted_files(t, list(dict.fromkeys(specs)), write=not (check or diff), diff=diff)


@app.command()
def ir(
    spec: Spec,
    after: Annotated[Stage, typer.Option("--after", help="The stage whose result is printed.")] = Stage.recurrence,
    form: Annotated[str | None, typer.Option("--form", help="For program, adjoint and kernel; else the first that applies.")] = None,
    size: Sizes = None, json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Print what a stage of the pipeline makes of a spec."""
    with running("ir", json, color.value) as t:
        from seqc.locate import find
        from seqc.stages import NoSuchForm, stage_text

        chosen = _options(sizes_given(size))
        source, beside = find(spec)
        try:
            text = stage_text(after.value, source, beside, chosen, form)
        except NoSuchForm as error:
            raise BadUsage(str(error)) from None
        t.document |= {"after": after.value, "form": form, "text": text}
        t.result(text.rstrip("\n"))


@app.command(name="list")
def list_(
    kind: Annotated[Kind, typer.Option("--kind", help="What to list.")] = Kind.layers, json: Json = False, color: Colored = Color.auto
) -> None:
    """List what comes with seqc: layers with their papers and forms, objectives, retentions, algorithms, functions."""
    with running("list", json, color.value) as t:
        from seqc.catalog import catalog

        items = catalog(kind.value)
        t.document |= {"kind": kind.value, "items": [i.as_json() for i in items]}
        width = max((len(i.name) for i in items), default=0)
        for item in items:
            forms = f"  [{', '.join(item.forms)}]" if item.forms is not None else ""
            t.result(f"{item.name:<{width}}  {item.doc}{forms}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The layer's name; the file is NAME.seq in this folder.")],
    memory: Annotated[Memory, typer.Option("--memory", help="What the text begins with.")] = Memory.matrix,
    json: Json = False, color: Colored = Color.auto,
) -> None:  # fmt: skip
    """Write a commented spec to start from. It checks and compiles; an existing file is never replaced."""
    with running("new", json, color.value) as t:
        from seqc.starter import TEXTS, name_problem

        if (problem := name_problem(name)) is not None:
            raise BadUsage(problem)
        path = Path(f"{name}.seq")
        try:
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(TEXTS[memory.value].replace("NAME", name))
        except FileExistsError:
            raise BadUsage(f"`{path}` is there already and is not replaced") from None
        except OSError as error:
            raise BadUsage(f"cannot write `{path}`: {(error.strerror or str(error)).lower()}") from None
        t.document |= {"path": str(path), "memory": memory.value}
        t.result(f"{path}\nNext: seqc explain {path}; seqc compile {path}")


@app.command()
def doctor(json: Json = False, color: Colored = Color.auto) -> None:
    """Say which versions are installed and where things are kept. Imports nothing heavy."""
    with running("doctor", json, color.value) as t:
        from seqc.doctor import examined

        facts = examined()
        t.document |= facts
        t.result("\n".join(f"{name:<16} {value}" for name, value in facts["versions"].items()))
        t.result("\n".join(f"{name:<16} {value}" for name, value in facts["caches"].items()))
