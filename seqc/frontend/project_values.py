"""ast.Expr -> Value: types an expression of a project section against the axes that its place needs.

A place is the axes that a result must have, or None where nothing says so yet. `linear`, `headwise` and `reshape` take
their result's axes from it; elementwise partners give each other theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction

from seqc.frontend import ast, intervals
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.intervals import ANY, Interval, at_least, point
from seqc.frontend.project_names import (
    ARGUMENTS,
    COUNTS,
    DRAWS,
    ELSEWHERE,
    EPSILON,
    FUNCTIONS,
    HEADS,
    OPTIONS,
    REDUCTIONS,
    SINGLE,
    WEIGHTED,
    Axes,
    PlaceUnknown,
    Scope,
    function_name,
)
from seqc.frontend.project_types import ORDER, Owner, Tail, Value
from seqc.source import Span


@dataclass
class Typing:
    """Types one target's expression; collects its owners and tails. `init`: draws are allowed and nothing owns weights."""

    scope: Scope
    target: str
    paths: dict[int, str]
    init: bool = False
    owners: dict[str, Owner] = field(default_factory=dict)
    tails: dict[str, Tail] = field(default_factory=dict)

    def left(self) -> tuple[tuple[Owner, ...], tuple[Tail, ...]]:
        """Its owners and tails, in the order of the text."""
        order = tuple(self.paths.values())
        return tuple(self.owners[p] for p in order if p in self.owners), tuple(self.tails[p] for p in order if p in self.tails)

    def value(self, e: ast.Expr, place: Axes | None) -> Value:
        match e:
            case ast.Number(value=number):
                return Value("number", (), (number,), range=point(float(number)))
            case ast.Ref():
                return self.reference(e)
            case ast.Negate():
                inner = self.value(e.value, place)
                return Value("neg", (inner,), (), inner.axes, inner.when, intervals.negate(inner.range))
            case ast.Binary(op="@"):
                raise self.scope.problems.refuse(
                    "not-in-project", "`@` has no meaning in a project section", e.span, helps=("write `linear(...)` for a learned matrix",)
                )
            case ast.Binary(op=op) if op in intervals.COMBINED:
                return self.elementwise(op, (e.left, e.right), e, place)
            case ast.Binary():
                return self.elementwise("compare", (e.left, e.right), e, place, (e.op,))
            case ast.Index():
                raise self.scope.problems.refuse("not-in-project", "a project section takes no entries of a value", e.span)
            case ast.Call():
                return self.call(e, place)

    def reference(self, e: ast.Ref) -> Value:
        scope = self.scope
        scope.used.add(e.id)
        if e.id in scope.names:
            known = scope.names[e.id]
            if known.axes is None:
                raise Refused()
            return Value("name", (), (e.id,), known.axes, known.when, known.range)
        if e.id in scope.sizes:
            fixed = scope.sizes[e.id]
            return Value("size", (), (e.id,), range=at_least(1) if fixed is None else point(fixed))
        if e.id in ("pi", "inf"):
            return Value("constant", (), (e.id,), range=point(3.141592653589793 if e.id == "pi" else intervals.INF))
        if e.id in COUNTS:
            axes, range_ = COUNTS[e.id]
            return Value("count", (), (e.id,), axes, "token" if e.id == "position" else "static", range_)
        if e.id in scope.coming:
            raise scope.problems.refuse(
                "used-too-early",
                f"`{e.id}` has no value yet at this line",
                e.span,
                secondary=((scope.coming[e.id], "it gets its value here"),),
            )
        near: dict[str, Span | None] = {n: k.span for n, k in scope.names.items()} | dict.fromkeys(scope.sizes) | scope.coming
        secondary, helps = scope.problems.misspelt(e.id, near)
        raise scope.problems.refuse("unknown-name", f"nothing here is named `{e.id}`", e.span, secondary=secondary, helps=helps)

    # --- Elementwise -------------------------------------------------------------------------------------------

    def elementwise(self, op: str, args: tuple[ast.Expr, ...], e: ast.Expr, place: Axes | None, attr: tuple[str, ...] = ()) -> Value:
        values = self.operands(args, place)
        axes = self.joined(values, args, e)
        rule = intervals.COMBINED.get(op)
        when = max((v.when for v in values), key=ORDER.index)
        return Value(op, values, attr, axes, when, rule(*(v.range for v in values)) if rule else Interval(0, 1, False, False))

    def operands(self, args: tuple[ast.Expr, ...], place: Axes | None) -> tuple[Value, ...]:
        """The arguments typed; those that cannot say their own axes take them from the widest of the others."""
        found: dict[int, Value] = {}
        waiting: dict[int, PlaceUnknown] = {}
        for i, a in enumerate(args):
            try:
                found[i] = self.value(a, place)
            except PlaceUnknown as unknown:
                waiting[i] = unknown
        if waiting:
            widest = max((v.axes for v in found.values()), key=len, default=())
            if not widest:
                raise next(iter(waiting.values()))
            found |= {i: self.value(args[i], widest) for i in waiting}
        return tuple(found[i] for i in range(len(args)))

    def joined(self, values: tuple[Value, ...], args: tuple[ast.Expr, ...], e: ast.Expr) -> Axes:
        """The widest argument's axes; the others' must be among them."""
        widest = max(range(len(values)), key=lambda i: len(values[i].axes))
        for i, v in enumerate(values):
            if not set(v.axes) <= set(values[widest].axes):
                shown = [(args[j].span, listed(values[j].axes)) for j in sorted((i, widest))]
                text = f"the axes {shown[0][1]} and {shown[1][1]} meet, and neither includes the other"
                raise self.scope.problems.refuse("silent-outer-product", text, e.span, secondary=shown)
        return values[widest].axes

    # --- Calls -------------------------------------------------------------------------------------------------

    def call(self, e: ast.Call, place: Axes | None) -> Value:
        name = function_name(e)
        brackets = self.brackets(e.function) if isinstance(e.function, ast.Index) else ()
        self.known(name, e)
        if name in DRAWS:
            a, b = (self.value(arg, None) for arg in e.args)
            return Value(name, (a, b), (), place or (), "static", _drawn(name, a.range, b.range))
        if name in ("max", "min") and len(e.args) == 2:
            return self.elementwise(name, e.args, e, place)
        if name in ("where", "lerp"):
            return self.elementwise(name, e.args, e, place)
        if name in intervals.ELEMENTWISE:
            inner = self.value(e.args[0], place)
            return Value(name, (inner,), (), inner.axes, inner.when, intervals.ELEMENTWISE[name](inner.range))
        if name in ("linear", "headwise"):
            return self.mapped(e, name, brackets or place)
        if name == "reshape":
            if place is None:
                raise PlaceUnknown(e, name)
            inner = self.value(e.args[0], None)
            return Value(name, (inner,), (), place, inner.when, inner.range)
        if name == "first":
            return self.first(e, brackets, place)
        inner = self.value(e.args[0], place if name not in REDUCTIONS else None)
        if name == "conv":
            return self.conv(e, inner)
        if name == "shift":
            path = self.paths[id(e)]
            self.tails[path] = Tail(f"{self.target}.{path}", "shift", inner.axes, 1)
            self.in_time(inner, e, name)
            return Value(name, (inner,), (path,), inner.axes, "token", intervals.delayed(inner.range))
        return self.along(e, name, inner, brackets)

    def known(self, name: str, e: ast.Call) -> None:
        """Refuses what is no function here, wrong counts of arguments and wrong options."""
        scope = self.scope
        allowed = (*FUNCTIONS, *DRAWS) if self.init else FUNCTIONS
        if name in DRAWS and not self.init:
            raise scope.problems.refuse(
                "draw-outside-param",
                f"`{name}` draws an initial value, and this is computed at every token",
                e.span,
                helps=("write it in a `param`",),
            )
        if self.init and name in (*WEIGHTED, "rope", "shift", "reshape", "first"):
            raise scope.problems.refuse("init-varies", f"`{name}` has no meaning in an initial value", e.span)
        if name in ELSEWHERE:
            raise scope.problems.refuse(
                "not-in-project", f"`{name}` has no meaning in a project section", e.function.span, helps=("write it in the layer's body",)
            )
        if name not in allowed:
            close = get_close_matches(name, allowed, 1)
            helps = (f"did you mean `{close[0]}`?",) if close else ()
            raise scope.problems.refuse(
                "not-a-function", f"no function of a project section is named `{e.function.span.text}`", e.function.span, helps=helps
            )
        need = 2 if name in DRAWS else ARGUMENTS.get(name, 1)
        several = name in ("linear", "headwise") or (name in ("max", "min") and len(e.args) == 2)
        if len(e.args) != need and not (several and e.args):
            raise scope.problems.refuse(
                "argument-count", f"`{name}` takes {need} argument{'s' * (need > 1)}, and {len(e.args)} are given", e.span
            )
        for option, _ in e.named:
            if option.id != OPTIONS.get(name):
                helps = (f"write `{OPTIONS[name]} = ...`",) if name in OPTIONS else ()
                raise scope.problems.refuse("unknown-argument", f"`{name}` has no option `{option.id}`", option.span, helps=helps)

    def brackets(self, index: ast.Index) -> Axes:
        """The axes in a call's brackets: sizes, or whole numbers for an axis of that length."""
        found = []
        for item in index.items:
            if isinstance(item, ast.Ref) and (item.id in self.scope.sizes or item.id in ("model", *HEADS)):
                self.scope.used.add(item.id)
                found.append(item.id)
            elif isinstance(item, ast.Number) and item.value.denominator == 1 and item.value >= 1:
                found.append(str(item.value))
            else:
                close = get_close_matches(item.id, self.scope.sizes, 1) if isinstance(item, ast.Ref) else []
                helps = (f"did you mean `{close[0]}`?",) if close else ("write a size of the layer, `model` or a whole number",)
                raise self.scope.problems.refuse("not-an-axis", f"`{item.span.text}` is no axis", item.span, helps=helps)
        return tuple(found)

    def constant(self, e: ast.Expr, what: str) -> Fraction:
        """A number that the text fixes."""
        match e:
            case ast.Number(value=number):
                return number
            case ast.Ref(id=name) if self.scope.sizes.get(name):
                self.scope.used.add(name)
                return Fraction(self.scope.sizes[name] or 0)
            case ast.Binary(op="*"):
                return self.constant(e.left, what) * self.constant(e.right, what)
            case ast.Binary(op="/"):
                return self.constant(e.left, what) / (self.constant(e.right, what) or 1)
        raise self.scope.problems.refuse("not-a-whole-number", f"{what} is a number that the text fixes", e.span)

    def option(self, e: ast.Call, name: str) -> ast.Expr | None:
        return next((v for n, v in e.named if n.id == name), None)

    def bias(self, e: ast.Call) -> bool:
        found = self.option(e, "bias")
        if found is not None and not (isinstance(found, ast.Ref) and found.id in ("true", "false")):
            raise self.scope.problems.refuse("not-true-or-false", "`bias` is `true` or `false`", found.span)
        return isinstance(found, ast.Ref) and found.id == "true"

    def mapped(self, e: ast.Call, name: str, place: Axes | None) -> Value:
        """linear, headwise: the arguments side by side, times one learned matrix (for headwise one per head)."""
        if place is None:
            raise PlaceUnknown(e, name)
        args = tuple(self.value(a, None) for a in e.args)
        shared = place[:1] if name == "headwise" else ()
        for a, v in zip(e.args, (*args, None), strict=False):
            if v is not None and shared and (shared[0] not in HEADS or v.axes[:1] != shared):
                label = ((a.span, listed(v.axes)),)
                raise self.scope.problems.refuse(
                    "not-per-head",
                    f"`headwise` maps {listed(v.axes)} to {listed(place)}, and both begin with the same heads or groups",
                    e.span,
                    secondary=label,
                )
        path = self.paths[id(e)]
        inputs = tuple(a.axes[len(shared) :] for a in args)
        self.owners[path] = Owner(self.target, path, name, inputs, place, self.bias(e))
        return Value(name, args, (path,), place, max((a.when for a in args), key=ORDER.index))

    def in_time(self, inner: Value, e: ast.Call, name: str) -> None:
        if inner.when != "token":
            raise self.scope.problems.refuse(
                "not-in-time", f"`{name}` runs over tokens, and this is the same at every token", e.args[0].span
            )

    def conv(self, e: ast.Call, inner: Value) -> Value:
        width = self.constant(e.args[1], "the width of a `conv`")
        if width.denominator != 1 or width < 1:
            raise self.scope.problems.refuse("not-a-whole-number", "the width of a `conv` is a whole number from 1", e.args[1].span)
        self.in_time(inner, e, "conv")
        path = self.paths[id(e)]
        owner = Owner(self.target, path, "conv", (inner.axes,), inner.axes, self.bias(e), int(width))
        self.owners[path] = owner
        self.tails[path] = Tail(owner.name, "conv", inner.axes, int(width) - 1)
        return Value("conv", (inner,), (path,), inner.axes, "token")

    def first(self, e: ast.Call, brackets: Axes, place: Axes | None) -> Value:
        """The first tokens of the sequence along an axis of their own."""
        if len(brackets) != 1:
            raise self.scope.problems.refuse(
                "axis-needed", "`first` needs the axis that counts its tokens", e.span, helps=("write `first[M](...)`",)
            )
        inner = self.value(e.args[0], tuple(a for a in place if a != brackets[0]) if place is not None else None)
        self.in_time(inner, e, "first")
        if brackets[0] in inner.axes:
            raise self.scope.problems.refuse("axis-mismatch", f"the value has an axis `{brackets[0]}` already", e.span)
        path = self.paths[id(e)]
        axes = (*brackets, *inner.axes)
        self.tails[path] = Tail(f"{self.target}.{path}", "first", axes, brackets[0])
        return Value("first", (inner,), (path,), axes, "sequence", inner.range)

    def along(self, e: ast.Call, name: str, inner: Value, brackets: Axes) -> Value:
        """Norms, reductions and their kin: along the axes in brackets, else along the only one besides heads and groups."""
        own = tuple(a for a in inner.axes if a not in HEADS)
        missing = [a for a in brackets if a not in inner.axes]
        if missing:
            raise self.scope.problems.refuse(
                "axis-mismatch", f"the value has no axis `{missing[0]}`", e.function.span, secondary=((e.args[0].span, listed(inner.axes)),)
            )
        if not brackets and len(own) != 1 and name not in ("sum", "mean", "norm", "max", "min"):
            fact = f"its value has {'the axes ' + ' and '.join(f'`{a}`' for a in own) if own else 'none'}"
            helps = (f"write `{name}[{own[-1]}](...)`",) if own else ()
            raise self.scope.problems.refuse("axis-needed", f"`{name}` runs along one axis, and {fact}", e.span, helps=helps)
        axes = brackets or own
        if len(axes) > 1 and name in SINGLE:
            raise self.scope.problems.refuse("axis-needed", f"`{name}` runs along one axis, and {len(axes)} are named", e.function.span)
        eps = self.option(e, "eps")
        epsilon = EPSILON.get(name) if eps is None else self.constant(eps, "`eps`")
        if name in WEIGHTED:
            path = self.paths[id(e)]
            self.owners[path] = Owner(self.target, path, name, (axes,), inner.axes, name == "groupnorm", eps=epsilon)
            return Value(name, (inner,), (path,), inner.axes, inner.when)
        if name == "rope":
            self.in_time(inner, e, name)
            return Value(
                name, (inner,), (axes[0],), inner.axes, "token", Interval(unit=inner.range.unit if inner.range.unit == axes[0] else None)
            )
        left = tuple(a for a in inner.axes if name not in REDUCTIONS or a not in axes)
        range_ = intervals.ALONG[name](inner.range)
        if name == "l2norm" and len(axes) == 1:
            range_ = Interval(-1, 1, unit=axes[0])
        return Value(name, (inner,), (axes, epsilon), left, inner.when, range_)


def _drawn(name: str, a: Interval, b: Interval) -> Interval:
    return ANY if name == "normal" else Interval(a.low, b.high)
