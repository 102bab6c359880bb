"""Arguments as a definition sees them: formals with axes take the trailing axes, and the rest is mapped over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from seqc.frontend import ast
from seqc.frontend.check_problems import listed
from seqc.frontend.check_scope import Env
from seqc.frontend.check_values import Value, canonical_names, identity, relabel, shown
from seqc.ir import ops
from seqc.source import Span


@dataclass(frozen=True)
class Actual:
    """An argument: its value, where it stands, and the state tensor that it is, if it is one."""

    value: Value
    span: Span
    tensor: str | None = None


FormalOf = tuple[str, tuple[ast.Axis, ...], Actual]


@dataclass(frozen=True)
class Inside:
    """How the axes of arguments look from inside a definition."""

    axes: dict[str, str]  # formal axis -> identity
    outside: dict[str, str]  # tagged identity -> identity; mapped axis -> the axis it was
    leads: tuple[str, ...]  # mapped axes, in the order of the result


def map_axes(env: Env, stack: ExitStack, formals: Sequence[FormalOf], what: str) -> tuple[Inside, dict[str, Value]]:
    """Formals with axes take the trailing axes of their arguments; the rest is mapped over."""
    axes, outside = _name_axes(env, stack, formals, what)
    tables: dict[str, dict[str, str]] = {}
    visible: dict[str, tuple[str, ...]] = {}
    leads: dict[str, tuple[str, ...]] = {}
    for name, formal_axes, actual in formals:
        value = actual.value
        if not formal_axes:
            visible[name], leads[name], tables[name] = value.axes, (), {}
            continue
        n = len(formal_axes)
        tail, leads[name] = value.axes[-n:], value.axes[:-n]
        inside = [axes[a.name] for a in formal_axes]
        visible[name] = canonical_names(inside)
        tables[name] = dict(zip(tail, visible[name], strict=True))
    taken = {ops.base(a) for v in visible.values() for a in v} | {ops.base(i) for i in axes.values()}
    renamed = _lead_names(env, stack, leads, taken)
    outside.update({new: old for old, new in renamed.items()})
    values = {
        n: Value(
            relabel(a.value.expr, tables[n] | {x: renamed[x] for x in leads[n]}),
            visible[n],
            *((a.value.counts, a.value.whole) if not leads[n] else ()),
        )
        for n, _, a in formals
    }
    return Inside(axes, outside, tuple(renamed[a] for a in _widest(env, leads, formals))), values


def _name_axes(env: Env, stack: ExitStack, formals: Sequence[FormalOf], what: str) -> tuple[dict[str, str], dict[str, str]]:
    """The identity that each formal axis has inside, and what those made for the purpose are outside.

    Two formal axes that take one size are told apart: both get an identity that no other argument has.
    """
    problems = env.build.problems
    taken: dict[str, str] = {}
    for name, formal_axes, actual in formals:
        value, n = actual.value, len(formal_axes)
        if len(value.axes) < n:
            have = f"this has the axes {listed(shown(value.axes))}" if value.axes else "this is a number"
            raise problems.refuse(
                "too-few-axes", f"`{name}` of {what} has the axes {listed(a.name for a in formal_axes)}", actual.span, have
            )
        for formal, axis in zip(formal_axes, value.axes[len(value.axes) - n :], strict=True):
            have = taken.setdefault(formal.name, identity(axis))
            if have != identity(axis):
                raise problems.refuse(
                    "axis-mismatch",
                    f"`{formal.name}` of {what} is `{ops.base(have)}` in one place and `{ops.base(axis)}` in `{name}`",
                    actual.span,
                )
    shared = Counter(taken.values())
    axes = {f: stack.enter_context(env.build.identity(ops.base(i))) if shared[i] > 1 else i for f, i in taken.items()}
    return axes, {axes[f]: i for f, i in taken.items() if axes[f] != i}


def _lead_names(env: Env, stack: ExitStack, leads: Mapping[str, tuple[str, ...]], taken: set[str]) -> dict[str, str]:
    """The mapped axes' names inside: their own unless the definition could see an axis of that name."""
    renamed: dict[str, str] = {}
    for axis in dict.fromkeys(a for group in leads.values() for a in group):
        clash = ops.base(axis) in taken or axis != identity(axis)
        renamed[axis] = stack.enter_context(env.build.identity(ops.base(axis))) if clash else axis
    return renamed


def _widest(env: Env, leads: Mapping[str, tuple[str, ...]], formals: Sequence[FormalOf]) -> tuple[str, ...]:
    widest = max(leads.values(), key=len, default=())
    for name, _, actual in formals:
        if not set(leads[name]) <= set(widest):
            raise env.build.problems.refuse(
                "silent-outer-product",
                f"`{name}` is mapped over {listed(shown(leads[name]))} and another argument over {listed(shown(widest))}",
                actual.span,
                "neither includes the other",
            )
    return widest


def leave(value: Value, mapping: Inside) -> Value:
    """A value as its caller sees it: what was mapped over comes first."""
    if not mapping.leads and not mapping.outside:
        return value
    result = tuple(mapping.outside.get(identity(a), identity(a)) for a in value.axes)
    before = tuple(mapping.outside.get(a, a) for a in mapping.leads)
    names = canonical_names((*before, *result))
    others = tuple(a for a in value.mapped if a not in mapping.leads)
    wide = value.expr if set(mapping.leads) <= set(value.expr.axes) else ops.broadcast(value.expr, (*others, *mapping.leads, *value.axes))
    return Value(relabel(wide, dict(zip((*mapping.leads, *value.axes), names, strict=True))), names)
