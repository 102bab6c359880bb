"""Axes in brackets, and values at an index."""

from __future__ import annotations

from collections.abc import Iterable

from seqc.frontend import ast
from seqc.frontend.check_expr import describe, read
from seqc.frontend.check_functions import BUILTINS, PROJECT_ONLY
from seqc.frontend.check_problems import listed
from seqc.frontend.check_scope import Env
from seqc.frontend.check_sizes import exact, static_size
from seqc.frontend.check_values import Value, canonical_names, identity, ordered, plain, relabel, shown
from seqc.ir import ops


def axis_of(env: Env, e: ast.Expr) -> str:
    """The identity of an axis that brackets name."""
    if not isinstance(e, ast.Ref):
        raise env.build.problems.refuse("not-an-axis", "brackets after a function name axes", e.span)
    if e.id in env.axes:
        return env.axes[e.id]
    if env.layer and (e.id in env.build.sizes or e.id in env.build.growing):
        return e.id
    known = (
        {n: (s.name.span if s else None) for n, s in env.build.sizes.items()} | dict(env.build.growing)
        if env.layer
        else dict.fromkeys(env.axes)
    )
    secondary, helps = env.build.problems.misspelt(e.id, known)
    raise env.build.problems.refuse(
        "unknown-axis", f"no axis is named `{e.id}`", e.span, f"not an axis of {env.place}", secondary=secondary, helps=helps
    )


def indexed(env: Env, e: ast.Index) -> Value:
    if isinstance(e.base, ast.Ref) and e.base.id == "eye" and "eye" not in env.names:
        if len(e.items) != 1:
            raise env.build.problems.refuse("axis-not-named", "`eye` takes one axis", e.span)
        axis = identity(axis_of(env, e.items[0]))
        need_fixed(env, e.items[0], "eye", (axis,))
        row, column = canonical_names((axis, axis))
        return Value(ops.eye(row, column), (row, column))
    if isinstance(e.base, ast.Ref) and e.base.id not in env.names and e.base.id in (*BUILTINS, "window", *PROJECT_ONLY):
        raise env.build.problems.refuse("not-a-value", f"`{e.base.id}` is a function and takes arguments", e.span)
    value = read(env, e.base)
    for item in e.items:
        value = take(env, e, value, item)
    return plain(value)


def take(env: Env, e: ast.Index, x: Value, item: ast.Expr) -> Value:
    """x at an index: along the axis that it counts, or, a whole number, into a vector."""
    problems = env.build.problems
    index = read(env, item)
    if not x.axes:
        raise problems.refuse("no-such-axis", f"{describe(e.base, 'left')} has no axis to index", e.span, "a number")
    whole = index.whole
    if whole is None and index.counts is None and index.expr.op.name == "const":
        value = exact(env.build, index.expr, item.span, "an index")
        whole = int(value) if value is not None and value.denominator == 1 else None
    if index.counts is None and (whole is None or len(x.axes) != 1):
        if whole is not None:
            raise problems.refuse(
                "not-an-index",
                "a whole number indexes a vector",
                item.span,
                f"{describe(e.base, 'left')} has the axes {listed(shown(x.axes))}",
            )
        raise problems.refuse(
            "not-an-index",
            "this does not count an axis",
            item.span,
            "",
            notes=("an index is a `for` or binder variable, `phase(C)`, or a whole number into a vector",),
        )
    counted = identity(index.counts) if index.counts is not None else identity(x.axes[0])
    matches = [a for a in x.axes if identity(a) == counted]
    if not matches:
        raise problems.refuse(
            "no-such-axis",
            f"the index counts `{counted}`, which {describe(e.base, 'left')} does not have",
            item.span,
            f"{describe(e.base, 'left')} has the axes {listed(shown(x.axes))}",
        )
    if len(matches) > 1 and len(e.items) < len(matches):
        raise problems.refuse("ambiguous-axis", f"`{counted}` is two axes of {describe(e.base, 'left')}", item.span)
    return _at(env, x, matches[0], index, whole, item)


def _at(env: Env, x: Value, axis: str, index: Value, whole: int | None, item: ast.Expr) -> Value:
    rest = tuple(a for a in x.axes if a != axis)
    if index.binds is not None and index.binds not in x.expr.axes:
        return ordered(relabel(x.expr, {axis: index.binds}), rest)
    if whole is None:
        return ordered(ops.gather(x.expr, axis, index.expr), rest)
    length = env.build.values.get(identity(axis))
    if whole < 0 or (length is not None and whole >= length):
        raise env.build.problems.refuse(
            "index-out-of-range", f"`{ops.base(axis)}` has the entries 0 to {int(length or 1) - 1}, and this is {whole}", item.span
        )
    if whole and length is not None:  # every size has an entry 0; that there is a third one is part of the compiled layer
        static_size(env.build, ops.base(axis), item.span, "the length of an axis with a numbered entry")
    return ordered(ops.select(x.expr, axis, whole), rest)


def need_fixed(env: Env, e: ast.Expr, name: str, axes: Iterable[str]) -> None:
    """Refuses a growing axis where the length of an axis enters."""
    growing = next((a for a in axes if a in env.build.growing), None)
    if growing is not None:
        raise env.build.problems.refuse(
            "growing-axis",
            f"`{name}` needs an axis of fixed length, and `{growing}` grows",
            e.span,
            "",
            secondary=[(env.build.growing[growing], "it grows")],
        )
