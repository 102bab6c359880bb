"""What a backend gets and gives: a layer with its programs, and the files of a package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from seqc.forms import Applies, Form, Lowered, Refuses
from seqc.ir.expr import Expr
from seqc.ir.model import Model
from seqc.ir.program import Program
from seqc.ir.recurrence import Recurrence
from seqc.options import Options
from seqc.proof.certificate import Certificate
from seqc.source import Source


@dataclass(frozen=True)
class GeneratedFile:
    """A file of the package: its name in the package's folder and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Programs:
    """One form: its Program, cut into phases, with its adjoint and the adjoint of that. hints: names for nodes."""

    form: Form
    lowered: Lowered
    forward: Program
    backward: Program
    double_backward: Program
    hints: Mapping[Expr, str]


@dataclass(frozen=True)
class Layer:
    """Everything that a package is printed from. digest: the hash of all that it depends on."""

    source: Source
    model: Model
    recurrence: Recurrence
    sizes: Mapping[str, int]
    options: Options
    digest: str
    verdicts: Mapping[str, Applies | Refuses]
    programs: Mapping[str, Programs]
    certificate: Certificate


Backend = Callable[[Layer], tuple[GeneratedFile, ...]]
