"""What a project section may name: its functions, the names around it and the paths of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from seqc.frontend import ast, intervals
from seqc.frontend.check_problems import Problems
from seqc.frontend.intervals import Interval, at_least
from seqc.frontend.project_types import When
from seqc.source import Span

Axes = tuple[str, ...]
HEADS = ("heads", "groups")
WEIGHTED = ("linear", "headwise", "conv", "rmsnorm", "layernorm", "groupnorm")
# Functions that leave something behind: weights, or values carried from call to call.
NAMED = (*WEIGHTED, "shift", "first")
EPSILON = {
    "l2norm": Fraction(1, 10**6),
    "standardize": Fraction(1, 10**5),
    "rmsnorm": Fraction(1, 10**5),
    "layernorm": Fraction(1, 10**5),
    "groupnorm": Fraction(1, 10**5),
}
COUNTS = {
    "head": (("heads",), at_least(0)),
    "heads": ((), at_least(1)),
    "depth": ((), at_least(0)),
    "depths": ((), at_least(1)),
    "position": ((), at_least(0)),
}
REDUCTIONS = ("sum", "mean", "norm", "max", "min", "logsumexp")
SINGLE = ("softmax", "log_softmax", "cumsum", "rope")
ELSEWHERE = (
    "start",
    "phase",
    "window",
    "outer",
    "diag",
    "eye",
    "transpose",
    "solve",
    "concat",
    "rotate",
    "roll",
    "complex",
    "polar",
    "re",
    "im",
    "conj",
    "trailing_zeros",
)
DRAWS = ("uniform", "log_uniform", "normal")
FUNCTIONS = (*intervals.ELEMENTWISE, "max", "min", "where", "lerp", *intervals.ALONG, *WEIGHTED, "rope", "shift", "reshape", "first")
OPTIONS = {"linear": "bias", "headwise": "bias", "conv": "bias"} | dict.fromkeys(EPSILON, "eps")
ARGUMENTS = {"conv": 2, "where": 3, "lerp": 3}


class PlaceUnknown(Exception):
    """Nothing says which axes a call's result has."""

    def __init__(self, call: ast.Call, name: str):
        self.call, self.name = call, name


@dataclass(frozen=True)
class Name:
    """What a name stands for: axes None once its own line was refused; `late` if it needs the layer's outputs."""

    axes: Axes | None
    when: When
    range: Interval
    span: Span | None
    late: bool = False


@dataclass
class Scope:
    """What is known at a line of the section: names, sizes and what has been refused so far."""

    sizes: dict[str, int | None]  # a static size's value
    names: dict[str, Name]
    coming: dict[str, Span]  # names whose equation or declaration lies below
    problems: Problems
    used: set[str] = field(default_factory=set)


def paths(e: ast.Expr) -> dict[int, str]:
    """The path of each call that owns weights or carries values, in the order of the text: `linear`, `conv`, `linear_2`."""
    counts: dict[str, int] = {}
    found: dict[int, str] = {}
    for call in _calls(e):
        name = function_name(call)
        if name in NAMED:
            counts[name] = counts.get(name, 0) + 1
            found[id(call)] = name if counts[name] == 1 else f"{name}_{counts[name]}"
    return found


def _calls(e: ast.Expr) -> Iterator[ast.Call]:
    match e:
        case ast.Call():
            yield e
            for a in (*e.args, *(v for _, v in e.named)):
                yield from _calls(a)
        case ast.Binary():
            yield from _calls(e.left)
            yield from _calls(e.right)
        case ast.Negate():
            yield from _calls(e.value)
        case _:
            pass


def function_name(call: ast.Call) -> str:
    base = call.function.base if isinstance(call.function, ast.Index) else call.function
    return base.id if isinstance(base, ast.Ref) else ""
