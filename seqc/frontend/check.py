"""ast.File -> Model: one layer with its names, axes, roles and domains resolved, or every error in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend import ast, library
from seqc.frontend.check_functions import BUILT_IN_NAMES
from seqc.frontend.check_learn import find_links
from seqc.frontend.check_library import note_text
from seqc.frontend.check_problems import Problems, Refused
from seqc.frontend.check_scope import NOT_FOR_LAYERS, RESERVED, Build, Definitions, Env
from seqc.frontend.check_sizes import layer_sizes, model_sizes
from seqc.frontend.check_steps import run
from seqc.frontend.check_unused import report_unused, report_unused_definition
from seqc.frontend.project import check_project
from seqc.ir import model
from seqc.source import Span


def check(file: ast.File, *, sizes: Mapping[str, int], beside: Path | None) -> tuple[model.Model, tuple[Diagnostic, ...]]:
    """The Model of the file's layer, and warnings and notes; raises SpecError with every error.

    sizes: values that replace the header's defaults; `model` may be among them. beside: the folder whose library comes
    before the shipped one.
    """
    problems = Problems()
    with problems.statement():
        layer = _layer(file, problems)
        definitions = _definitions(file, problems)
        build = _build(file, layer, problems, sizes, beside, definitions)
        env = Env(build, {}, {}, f"layer `{layer.name.id}`", file.source.name)
        _body(env, layer)
        result = _model(env, layer)
        if not problems.errors:
            result = _with_project(layer, result, problems)
    if problems.errors:
        raise SpecError(tuple(sorted(problems.errors, key=_place)))
    return result, tuple(sorted((d for d in problems.found if d.level != "error"), key=_place))


def _place(d: Diagnostic) -> tuple[str, int]:
    return (d.primary.span.source.name, d.primary.span.start) if d.primary else ("", 0)


def _layer(file: ast.File, problems: Problems) -> ast.Layer:
    layers = [d for d in file.definitions if isinstance(d, ast.Layer)]
    if not layers:
        raise problems.refuse("no-layer", "the file has no layer", Span(file.source, 0, 0), helps=("write `layer NAME(...)`",))
    layer, path = layers[0], PurePath(file.source.name)
    if (name := layer.name.id) in RESERVED or name in BUILT_IN_NAMES or name in NOT_FOR_LAYERS:
        why = NOT_FOR_LAYERS.get(name, "")
        problems.report("reserved-name", f"`{name}` cannot be a layer's name", layer.name.span, why)
    elif path.suffix == ".seq" and path.stem != layer.name.id:
        problems.report(
            "layer-name",
            f"the layer is `{layer.name.id}`, and its file `{path.name}`",
            layer.name.span,
            "",
            helps=(f"name it `{path.stem}`",),
        )
    return layer


def _definitions(file: ast.File, problems: Problems) -> Definitions:
    """The file's own definitions by kind and name."""
    found: Definitions = {}
    for d in file.definitions:
        if not isinstance(d, ast.Definition):
            continue
        key = (d.kind, d.name.id)
        if d.name.id in BUILT_IN_NAMES:
            problems.report("redefines-builtin", f"`{d.name.id}` is built in, and nothing may redefine it", d.name.span)
        elif d.name.id in RESERVED:
            problems.report("reserved-name", f"`{d.name.id}` cannot be declared", d.name.span)
        elif key in found:
            problems.report(
                "declared-twice",
                f"the {d.kind} `{d.name.id}` is defined twice",
                d.name.span,
                "",
                secondary=[(found[key].name.span, "first here")],
            )
        else:
            found[key] = d
            report_unused_definition(d, file, problems)
            _note_hidden(d, problems)
    return found


def _note_hidden(d: ast.Definition, problems: Problems) -> None:
    if library.find(d.kind, d.name.id, None) is not None:
        problems.report("hides-library", f"`{d.name.id}` hides the library's {d.kind} of that name", d.name.span, level="note")


def _build(
    file: ast.File, layer: ast.Layer, problems: Problems, given: Mapping[str, int], beside: Path | None, definitions: Definitions
) -> Build:
    sizes, values = layer_sizes(layer, given, problems)
    build = Build(problems, file.source, beside, {file.source.name: definitions}, sizes, values)
    note_text(Env(build, {}, {}, ""), PurePath(file.source.name).name, file.source)
    return build


def _body(env: Env, layer: ast.Layer) -> None:
    problems = env.build.problems
    with problems.statement():
        find_links(env, layer.body)
    with problems.statement():
        run(env, layer.body)
    if not any(isinstance(s, model.Output) for s in env.build.steps) and not problems.errors:
        problems.report("no-output", f"`{layer.name.id}` has no output", layer.name.span, "", helps=("end the body with `output ...`",))
    for name, state in env.build.states.items():
        if state.growing is not None and not env.build.grown.get(state.growing) and not problems.errors:
            problems.report(
                "never-appended", f"nothing is appended to `{name}`", state.span, "it stays empty", helps=(f"write `append ... to {name}`",)
            )
    report_unused(layer, env.build.sizes, problems)


def _model(env: Env, layer: ast.Layer) -> model.Model:
    build = env.build
    if build.problems.errors:
        raise Refused
    sizes, values = model_sizes(build)
    return model.Model(
        layer.name.id, layer.doc, sizes, values, tuple(build.inputs), tuple(build.params), (*build.states.values(), *build.owned.values()),
        tuple(build.hidden.values()), tuple(build.steps), None, tuple(build.texts.values()), layer.name.span,
    )  # fmt: skip


def _with_project(layer: ast.Layer, result: model.Model, problems: Problems) -> model.Model:
    """The Model with its project section checked, if the layer has one."""
    if layer.project is None:
        return result
    outputs = tuple(s for s in result.steps if isinstance(s, model.Output))
    project = check_project(layer, result.inputs, result.params, outputs, result.values, problems)
    return replace(result, project=project)
