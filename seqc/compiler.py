"""The pipeline, in order: text -> Model -> Recurrence -> Programs -> proof -> package. Read this first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

from seqc.analysis.chain import Refusal
from seqc.analysis.structure import span_of
from seqc.backends import BACKENDS
from seqc.diagnostics import Diagnostic, InternalError, Label, SpecError
from seqc.emit.layer import GeneratedFile, Layer, Programs
from seqc.emit.single_file import single_file
from seqc.forms import FORMS, Applies, Form, Lowered, Refuses
from seqc.forms.base import VALID
from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse, read_source
from seqc.ir.model import Model
from seqc.ir.program import CHUNKS
from seqc.ir.recurrence import Recurrence
from seqc.options import Options
from seqc.passes.differentiate import differentiate
from seqc.passes.implicit import solved
from seqc.passes.pairs import in_pairs
from seqc.passes.phases import split
from seqc.passes.stabilise import stabilised
from seqc.proof.prove import Certificate, prove, without_collection
from seqc.source import Source

VERSION = "0.1.0"
BLOCK = 3  # tokens of a block in the proof


@dataclass(frozen=True)
class Checked:
    """A spec that means something: its model, its recurrence, warnings, and the sizes that are known without the module's width."""

    source: Source
    model: Model
    recurrence: Recurrence
    warnings: tuple[Diagnostic, ...]
    sizes: Mapping[str, int]
    beside: Path | None = None  # the folder whose library texts come first

    @cached_property
    def over_reals(self) -> Recurrence:
        """As forms take it; `prepared` says more."""
        return stabilised(solved(in_pairs(self.recurrence)), self.sizes)


@dataclass(frozen=True)
class Compiled:
    """A checked spec with its forms, the proof and the package's files."""

    checked: Checked
    verdicts: Mapping[str, Applies | Refuses]
    certificate: Certificate
    files: tuple[GeneratedFile, ...]
    digest: str


def check_source(source: Source, options: Options = Options(), beside: Path | None = None) -> Checked:
    """Text -> Model -> Recurrence. Raises SpecError with every error of the stage that failed."""
    model, warnings = check(parse(source), sizes=dict(options.sizes), beside=beside)
    return Checked(source, model, certified(model), warnings, known_sizes(model), beside)


def known_sizes(model: Model) -> dict[str, int]:
    """The sizes that are known without the module's width."""
    return {s.name: int(s.default) for s in model.sizes if s.default is not None} | dict(model.values)


def certified(model: Model) -> Recurrence:
    """The recurrence. Raises SpecError if an operator is not what a `fold` claims: associative, with the initial value neutral."""
    rec = derive(model)
    if not any(f.order == "claimed" for f in rec.folds):
        return rec
    from seqc.proof.laws import broken

    try:
        found = broken(in_pairs(rec), known_sizes(model))
    except Refusal:
        return rec  # no form takes the text, and says why
    if found is not None:
        label = Label(found.fold.span, "claimed here")
        raise SpecError((Diagnostic("fold-law", f"the fold of `{found.fold.state}`: {found.reason}", label, helps=(found.help,)),))
    return rec


def check_file(path: Path, options: Options = Options()) -> Checked:
    """A file's text, checked; library texts of its own folder come before the shipped ones."""
    return check_source(read_source(path), options, path.resolve().parent)


def prepared(checked: Checked) -> Recurrence:
    """The recurrence as forms take it: over real numbers, without implicit steps, stabilised. Raises Refusal where that is not possible."""
    return checked.over_reals


def judge(checked: Checked) -> dict[str, Applies | Refuses]:
    """Which forms compute the recurrence, and why the others do not."""
    try:
        rec = prepared(checked)
    except Refusal as r:
        no = Refuses(r.reason, span_of(checked.recurrence, r.cause, checked.recurrence.span), r.helps)
        return {form.name: no for form in FORMS}
    return {form.name: form.applies(rec, checked.sizes) for form in FORMS}


def programs(checked: Checked, form: Form) -> Programs:
    """A form's Program, its adjoint and the adjoint of that, each cut into pre, carry and post."""
    lowered = form.lower(prepared(checked), checked.sizes)
    return build(lowered, form)


def build(lowered: Lowered, form: Form) -> Programs:
    hints = dict(lowered.hints)
    post = tuple(a for a in form.axes if a == CHUNKS)
    arguments = [leaf.name for leaf in lowered.program.inputs if leaf.name != VALID]
    forward = split(lowered.program, hints, post=post)
    backward = split(differentiate(forward, arguments, hints), hints, post=post)
    again = [leaf.name for leaf in backward.inputs if leaf.name != VALID]
    double = split(differentiate(backward, again, hints), hints, post=post)
    return Programs(form, lowered, forward, backward, double, hints)


def _certificate(checked: Checked, options: Options, built: Mapping[str, Programs], digest: str) -> Certificate:
    """The proof, of the layer with short blocks if a size says how long they are: what holds for any number holds for a small one."""
    small = with_short_blocks(checked, options)
    if small is not checked:
        verdicts = judge(small)
        built = {name: programs(small, p.form) for name, p in built.items() if isinstance(verdicts[name], Applies)}
    return prove(prepared(small), built, seed=digest, text=small.recurrence, sizes=small.sizes)


def with_short_blocks(checked: Checked, options: Options) -> Checked:
    """The same text with blocks of three tokens, where a size says how long its blocks (`start(S, C)`) are; else the text as it is."""
    blocks = {s.clock.every for s in checked.recurrence.states if s.clock.every is not None}
    if len(blocks) != 1 or max(blocks) <= BLOCK:
        return checked
    for size in checked.model.sizes:
        if checked.sizes.get(size.name) in blocks:
            sizes = {**dict(options.sizes), size.name: BLOCK}
            model, _ = check(parse(checked.source), sizes=sizes, beside=checked.beside)
            small = replace(checked, model=model, recurrence=certified(model), sizes=known_sizes(model))
            if {s.clock.every for s in small.recurrence.states if s.clock.every is not None} == {BLOCK}:
                return small
    return checked


@without_collection()
def compile_checked(checked: Checked, options: Options = Options()) -> Compiled:
    """Recurrence -> Programs -> proof -> files. Raises SpecError if no form applies; the certificate may say `not ok`."""
    verdicts = judge(checked)
    applying = [form for form in FORMS if isinstance(verdicts[form.name], Applies)]
    if not applying:
        raise SpecError(tuple(_refusal(name, v) for name, v in verdicts.items() if isinstance(v, Refuses)))
    built = {form.name: programs(checked, form) for form in applying}
    digest = fingerprint(checked, options)
    certificate = _certificate(checked, options, built, digest)
    layer = Layer(checked.source, checked.model, prepared(checked), checked.sizes, options, digest, verdicts, built, certificate)
    package = BACKENDS[options.backend](layer)
    for file in package:
        _parses(file)
    return Compiled(checked, verdicts, certificate, package, digest)


def in_one_file(made: Compiled) -> str:
    """The package as the text of one Python file."""
    text = single_file(made.files)
    _parses(GeneratedFile(f"{made.checked.model.name}.py", text))
    return text


def _parses(file: GeneratedFile) -> None:
    """Raises InternalError for a Python file that does not parse: the proof is of Programs and cannot see it."""
    try:
        if file.name.endswith(".py"):
            compile(file.text, file.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise InternalError(f"{file.name}, line {error.lineno}: the generated text does not parse") from error


def _refusal(form: str, verdict: Refuses) -> Diagnostic:
    primary = Label(verdict.span, "the cause") if verdict.span else None
    return Diagnostic("form-not-applicable", f"the `{form}` form does not apply: {verdict.reason}", primary, helps=verdict.repairs)


def fingerprint(checked: Checked, options: Options) -> str:
    """The content that a package depends on: the texts, the options and the compiler's own sources."""
    texts = [(t.name, t.sha256) for t in checked.model.texts]
    whole = json.dumps([checked.source.text, texts, options.model_dump(mode="json"), compiler_hash()], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


@cache
def compiler_hash() -> str:
    """A hash of the compiler's own sources, so that no package outlives a fix in the code that wrote it."""
    digest = hashlib.sha256(VERSION.encode())
    for package in ("seqc", "seqc.grammar", "seqc.backends"):
        root = Path(str(files(package)))
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".lark", ".toml")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
