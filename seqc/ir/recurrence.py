"""Recurrence: what happens at one token, as pure expressions. The definition of the layer's meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seqc.ir.expr import Expr
from seqc.ir.model import Input, Param, Scope, Size
from seqc.source import Span


@dataclass(frozen=True)
class Clock:
    """When a state may change. `every` None: at each token. Otherwise only where position mod `every` is 0."""

    every: int | None = None


@dataclass(frozen=True)
class State:
    """One tensor that is handed from token to token.

    init: its value before the first token. next: its value after the token, over leaves named like inputs, params and
    states (a state's leaf is its value before the token). role: declared in the text, owned by an algorithm, implied
    by the text, or a stabiliser. growing: the axis that lengthens by one at every token. stabiliser: the name of a state
    m, if the text's value is this one times e^m.
    """

    name: str
    axes: tuple[str, ...]
    scope: Scope
    dtype: str
    init: Expr
    next: Expr
    role: Literal["declared", "algorithm", "hidden", "stabiliser"]
    span: Span
    clock: Clock = Clock()
    growing: str | None = None
    integer: bool = False
    stabiliser: str | None = None


@dataclass(frozen=True)
class Output:
    name: str
    axes: tuple[str, ...]
    value: Expr
    span: Span


@dataclass(frozen=True)
class Fold:
    """A state that a line folds with `operand`, by an operator that the text claims to be associative, or in an order of its own.

    operator: the state after the line, over the states before the token and the operands as leaves: `leaf` is this fold's own.
    Folds that read each other's states, or each other's operands, are one operator on all of them.
    """

    state: str
    operand: Expr
    leaf: Expr
    operator: Expr
    order: Literal["claimed", "left", "tree"]
    span: Span


@dataclass(frozen=True)
class Line:
    """A line of the text and the value that it gives a name: what explanations and generated comments cite."""

    name: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Recurrence:
    """One step of a layer, per sequence and head.

    `spans` finds the line behind a node: passes need not keep it, and a lookup falls back to the equation's span.
    """

    name: str
    doc: tuple[str, ...]
    sizes: tuple[Size, ...]
    values: tuple[tuple[str, int], ...]
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]
    folds: tuple[Fold, ...]
    lines: tuple[Line, ...]
    span: Span

    @property
    def declared_axes(self) -> tuple[tuple[str, ...], ...]:
        """The axes of inputs, params, states and outputs, in the order of the text."""
        given = (*(i.axes for i in self.inputs), *(p.axes for p in self.params))
        return (*given, *(s.axes for s in self.states), *(o.axes for o in self.outputs))
