"""`seqc ir`: the result of each arrow of the pipeline, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

from seqc.analysis.chain import Refusal
from seqc.analysis.structure import analyse
from seqc.analysis.text import structure
from seqc.compiler import Checked, check_source, judge, prepared, programs
from seqc.diagnostics import SpecError
from seqc.emit.layer import Programs
from seqc.explanation import refusal
from seqc.forms import FORMS, Form, Refuses
from seqc.frontend.ast import Name
from seqc.frontend.parser import parse
from seqc.ir import text
from seqc.options import Options
from seqc.schedule.linear import axis_order, linearise
from seqc.source import Source


class NoSuchForm(Exception):
    """No form has this name."""


def stage_text(stage: str, source: Source, beside: Path | None, options: Options, form: str | None) -> str:
    """What `stage` makes of a text. Raises SpecError, NoSuchForm."""
    if form is not None and form not in [f.name for f in FORMS]:
        raise NoSuchForm(f"there is no form `{form}`; there are {', '.join(f.name for f in FORMS)}")
    if stage == "ast":
        return "\n".join(tree(parse(source))) + "\n"
    checked = check_source(source, options, beside)
    match stage:
        case "model":
            return text.model(checked.model)
        case "recurrence":
            return text.recurrence(checked.recurrence)
        case "stabilised":
            return _prepared(checked)
        case "structure":
            return _structure(checked)
    made = programs(checked, _form(checked, form))
    match stage:
        case "program":
            return text.program(made.forward)
        case "adjoint":
            return text.program(made.backward)
    return _kernel(checked, made)


def _form(checked: Checked, wanted: str | None) -> Form:
    """The form asked for, or the first that applies; raises SpecError with the reasons."""
    refused, verdicts = [], judge(checked)
    for form in FORMS:
        if wanted in (None, form.name):
            verdict = verdicts[form.name]
            if not isinstance(verdict, Refuses):
                return form
            refused.append(refusal(form.name, verdict))
    raise SpecError(tuple(refused))


def _prepared(checked: Checked) -> str:
    try:
        return text.recurrence(prepared(checked))
    except Refusal as found:
        return f"recurrence {checked.recurrence.name}\n  refused: {found.reason}\n"


def _structure(checked: Checked) -> str:
    try:
        return structure(analyse(prepared(checked), checked.sizes))
    except Refusal as found:
        return f"structure {checked.recurrence.name}\n  refused: {found.reason}\n"


def _kernel(checked: Checked, made: Programs) -> str:
    rec = prepared(checked)
    declared = [x.axes for x in rec.inputs] + [x.axes for x in rec.params] + [x.axes for x in rec.states] + [x.axes for x in rec.outputs]
    order = axis_order(made.forward, declared)
    return text.kernel(linearise(made.forward, made.hints, order))


def tree(node: object, indent: str = "") -> Iterator[str]:
    """A syntax tree without its places: one line per node, its parts below it."""
    if not is_dataclass(node):
        yield f"{indent}{node!r}"
        return
    values = [(f.name, getattr(node, f.name)) for f in fields(node) if f.name not in ("span", "source")]
    plain = [f"{name}={_plain(value)}" for name, value in values if not _deep(value)]
    yield f"{indent}{type(node).__name__}{_in_brackets(plain)}"
    for name, value in values:
        if _deep(value):
            yield f"{indent}  {name}:"
            for item in value if isinstance(value, tuple) else (value,):
                for part in item if isinstance(item, tuple) else (item,):
                    yield from tree(part, indent + "    ")


def _deep(value: object) -> bool:
    """Whether a value gets lines of its own."""
    if isinstance(value, tuple):
        return any(_deep(v) or is_dataclass(v) for v in value)
    return is_dataclass(value) and not isinstance(value, Name)


def _plain(value: object) -> str:
    return value.id if isinstance(value, Name) else repr(value)


def _in_brackets(items: list[str]) -> str:
    return f"({', '.join(items)})" if items else ""
