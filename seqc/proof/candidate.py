"""What is examined of a form: its programs, as lowered and as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from seqc.forms.base import VALID, Lowered
from seqc.ir.expr import Expr
from seqc.ir.program import CHUNKS, Program
from seqc.passes.differentiate import differentiate
from seqc.passes.phases import split


class Built(Protocol):
    """A form's programs as they are printed."""

    @property
    def lowered(self) -> Lowered: ...
    @property
    def forward(self) -> Program: ...
    @property
    def backward(self) -> Program: ...
    @property
    def double_backward(self) -> Program: ...


@dataclass(frozen=True)
class Candidate:
    """A form's name and programs."""

    name: str
    lowered: Program
    forward: Program
    backward: Program
    double_backward: Program

    @property
    def wrt(self) -> tuple[str, ...]:
        """The inputs that are differentiated, in the order of the backward's outputs."""
        return tuple(e.name.removeprefix("d_") for e in self.backward.outputs)

    @property
    def seeds(self) -> tuple[Expr, ...]:
        """The leaves of the outputs' adjoints, in the order of the outputs: their names may have had to give way to others."""
        return self.backward.inputs[len(self.forward.inputs) :]

    @property
    def directions(self) -> tuple[Expr, ...]:
        """The leaves of the gradients' adjoints, in the order of the gradients."""
        return self.double_backward.inputs[len(self.backward.inputs) :]


def candidate(name: str, form: Lowered | Built) -> Candidate:
    """The form's programs; of a form that is only lowered, those that would be printed."""
    if not isinstance(form, Lowered):
        return Candidate(name, form.lowered.program, form.forward, form.backward, form.double_backward)
    post = tuple({a for leaf in form.program.inputs for a in leaf.axes} & {CHUNKS})

    def adjoint(program: Program) -> Program:
        return split(differentiate(program, [leaf.name for leaf in program.inputs if leaf.name != VALID]), form.hints, post=post)

    forward = split(form.program, form.hints, post=post)
    backward = adjoint(forward)
    return Candidate(name, form.program, forward, backward, adjoint(backward))
