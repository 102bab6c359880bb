"""ast.Project -> Project: names, places, weights and the proof that every declared domain is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seqc.diagnostics import SpecError
from seqc.frontend import ast, intervals
from seqc.frontend.check_functions import BUILT_IN_NAMES
from seqc.frontend.check_problems import Problems, Refused, listed
from seqc.frontend.check_scope import RESERVED
from seqc.frontend.intervals import ANY, Interval
from seqc.frontend.project_names import HEADS, Axes, Name, PlaceUnknown, Scope, paths
from seqc.frontend.project_types import Assign, Given, Learned, Project, Value, When, walk
from seqc.frontend.project_values import Typing
from seqc.ir import model
from seqc.ir.model import Domain
from seqc.source import Span


@dataclass(frozen=True)
class Around:
    """What the section sees of its layer."""

    inputs: Mapping[str, model.Input]
    outputs: Mapping[str, model.Output]
    params: Mapping[str, model.Param]


def visible(axes: Sequence[str], scope: model.Scope) -> Axes:
    """All axes of a declared name: those written, after the heads or groups that each have one."""
    if scope == "layer" or any(a in (*HEADS, "model") for a in axes):
        return tuple(axes)
    return ("groups" if scope == "group" else "heads", *axes)


def check_project(
    layer: ast.Layer,
    inputs: Sequence[model.Input],
    params: Sequence[model.Param],
    outputs: Sequence[model.Output],
    values: Sequence[tuple[str, int]] = (),
    problems: Problems | None = None,
) -> Project:
    """The layer's project section, checked against the layer around it. `values` are its static sizes.

    Refusals go into `problems`; without one, all of them are raised together as SpecError.
    """
    assert layer.project is not None
    own = problems or Problems()
    before = len(own.errors)
    around = Around({i.name: i for i in inputs}, {o.name: o for o in outputs}, {p.name: p for p in params})
    project = _Section(layer, layer.project, around, _scope(layer, around, dict(values), own)).check()
    if problems is None and len(own.errors) > before:
        raise SpecError(own.errors)
    return project


def _scope(layer: ast.Layer, around: Around, static: Mapping[str, int], problems: Problems) -> Scope:
    sizes: dict[str, int | None] = dict.fromkeys(("model", *HEADS))
    sizes |= {s.name.id: static.get(s.name.id) for s in layer.sizes}
    names = {p.name: Name(visible(p.axes, p.scope), "static", ANY, p.span) for p in around.params.values()}
    names |= {o.name: Name(visible(o.axes, "head"), "token", ANY, o.span, late=True) for o in around.outputs.values()}
    assert layer.project is not None
    coming: dict[str, Span] = {}
    for s in layer.project.body:
        for name in (
            s.targets
            if isinstance(s, ast.Equation)
            else [t.name for t in s.tensors]
            if isinstance(s, ast.Declare)
            else [s.name]
            if isinstance(s, ast.Let)
            else []
        ):
            coming.setdefault(name.id, name.span)
    return Scope(sizes, names, coming, problems)


def domain_of(domain: Domain) -> Interval:
    return Interval(domain.low, domain.high, domain.open_low, domain.open_high)


@dataclass
class _Section:
    """Reads the statements in order; a refused name is known but has no axes, so that it is reported once."""

    layer: ast.Layer
    project: ast.Project
    around: Around
    scope: Scope

    def check(self) -> Project:
        given = tuple(g for i, s in enumerate(self.project.inputs) if (g := self.given(s, first=i == 0)))
        self.result_name()
        params: list[Learned] = []
        assigns: list[Assign] = []
        for s in self.project.body:
            match s:
                case ast.Declare():
                    params.extend(p for t in s.tensors if (p := self.param(t)))
                case ast.Let():
                    assigns.extend(a for a in [self.let(s)] if a)
                case ast.Equation():
                    assigns.extend(a for t in s.targets if (a := self.equation(t, s)))
        self.complete()
        sizes = tuple((s.name.id, s.default) for s in self.layer.sizes)
        return Project(given, tuple(params), tuple(assigns), self.project.result.id, sizes, self.project.span)

    # --- Declarations ------------------------------------------------------------------------------------------

    def axes(self, axes: Sequence[ast.Axis]) -> Axes | None:
        """The axes as written, if each is a size."""
        for a in axes:
            if a.name not in self.scope.sizes:
                secondary, helps = self.scope.problems.misspelt(a.name, dict.fromkeys(self.scope.sizes))
                self.scope.problems.report("unknown-axis", f"no size is named `{a.name}`", a.span, secondary=secondary, helps=helps)
                return None
            self.scope.used.add(a.name)
        return tuple(a.name for a in axes)

    def declared(self, axes: Sequence[ast.Axis], scopes: Sequence[ast.Name]) -> Axes | None:
        """The axes of a name that exists once per head unless they or its scope say otherwise."""
        words = [s.id for s in scopes]
        scope: model.Scope = "group" if "group" in words else "layer" if "layer" in words else "head"
        own = self.axes(axes)
        return None if own is None else visible(own, scope)

    def new(self, name: ast.Name) -> bool:
        """Whether the section may declare the name; says so if not, once."""
        problems = self.scope.problems
        if name.id in RESERVED:
            problems.report("reserved-name", f"`{name.id}` cannot be declared", name.span)
        elif name.id in BUILT_IN_NAMES:
            problems.report("redefines-builtin", f"`{name.id}` is built in, and nothing may redefine it", name.span)
        elif name.id in self.scope.names or name.id in self.around.inputs or name.id in self.scope.sizes:
            taken = self.scope.names.get(name.id) or self.around.inputs.get(name.id)
            first = taken.span if taken else None
            problems.report("declared-twice", f"`{name.id}` is declared twice", name.span, secondary=[(first, "first here")])
        else:
            return True
        self.scope.used.add(name.id)
        if name.id not in self.around.inputs:
            self.scope.names.setdefault(name.id, Name(None, "static", ANY, name.span))
        return False

    def given(self, signal: ast.Signal, first: bool) -> Given | None:
        """An input of the module: [model] for the first, else once per head."""
        self.new(signal.name)
        axes = ("model",) if first and not signal.axes else self.declared(signal.axes, signal.scopes)
        when: When = "sequence" if "sequence" in [s.id for s in signal.scopes] else "token"
        self.scope.names[signal.name.id] = Name(axes, when, self.domain(signal), signal.span)
        return None if axes is None else Given(signal.name.id, axes, when, signal.span)

    def domain(self, signal: ast.Signal) -> Interval:
        """What may be assumed of an input of the module."""
        typing = Typing(self.scope, "", {}, init=True)
        found = ANY
        for d in signal.domains:
            if d.kind == "unit":
                found = Interval(-1, 1, False, False, unit=signal.axes[-1].name if signal.axes else None)
            elif d.kind == "integer":
                found = Interval(whole=True)
            elif d.low is not None and d.high is not None:
                with self.scope.problems.statement():
                    low, high = typing.value(d.low, ()).range, typing.value(d.high, ()).range
                    found = Interval(low.low, high.high, d.open_low, d.open_high)
        return found

    def result_name(self) -> None:
        """The result's name is new; an output of the same name is what it is made of, so that is refused too."""
        self.new(self.project.result)

    def param(self, tensor: ast.Tensor) -> Learned | None:
        if not self.new(tensor.name):
            return None
        axes = self.declared(tensor.axes, tensor.scopes)
        found = None
        with self.scope.problems.statement():
            typing = Typing(self.scope, tensor.name.id, {}, init=True)
            init = typing.value(tensor.init, axes)
            for v in walk(init):
                if (v.op == "name" and v.attr[0] not in self.params()) or v.when != "static":
                    raise self.scope.problems.refuse(
                        "init-varies", "an initial value is made of numbers, draws and params", tensor.init.span
                    )
            if axes is not None:
                self.fits(tensor.name, axes, init, tensor.init.span)
                found = Learned(tensor.name.id, axes, init, tensor.span)
        self.scope.names[tensor.name.id] = Name(axes if found else None, "static", ANY, tensor.name.span)
        return found

    def params(self) -> set[str]:
        declared = (t.name.id for s in self.project.body if isinstance(s, ast.Declare) for t in s.tensors)
        return {*self.around.params, *declared}

    # --- Equations ---------------------------------------------------------------------------------------------

    def typed(self, target: ast.Name, e: ast.Expr, place: Axes | None) -> tuple[Value, Typing]:
        typing = Typing(self.scope, target.id, paths(e))
        try:
            return typing.value(e, place), typing
        except PlaceUnknown as unknown:
            text = f"nothing says which axes this `{unknown.name}` has"
            raise self.scope.problems.refuse("place-unknown", text, unknown.call.span, helps=self.widths(unknown)) from None

    def widths(self, unknown: PlaceUnknown) -> tuple[str, ...]:
        if unknown.name == "reshape":
            return ("name its axes with a `let`",)
        own = next((s.name.id for s in self.layer.sizes if s.name.id not in HEADS), "model")
        return (f"write `{unknown.name}[heads, {own}](...)` or a number in the brackets",)

    def late(self, value: Value) -> bool:
        return any(v.op == "name" and (known := self.scope.names.get(str(v.attr[0]))) is not None and known.late for v in walk(value))

    def let(self, s: ast.Let) -> Assign | None:
        if not self.new(s.name):
            return None
        place = self.axes(s.axes) if s.axes else None
        assign = None
        with self.scope.problems.statement():
            if s.axes and place is None:
                raise Refused()
            value, typing = self.typed(s.name, s.value, place)
            axes = value.axes if place is None else place
            self.fits(s.name, axes, value, s.value.span)
            late = self.late(value)
            assign = Assign("let", s.name.id, axes, value, late, *typing.left(), s.span)
        self.scope.names[s.name.id] = Name(
            assign.axes if assign else None, assign.value.when if assign else "token", assign.value.range if assign else ANY,
            s.name.span, assign is not None and assign.late,
        )  # fmt: skip
        return assign

    def equation(self, target: ast.Name, s: ast.Equation) -> Assign | None:
        """One target: an input of the layer, or the result."""
        problems = self.scope.problems
        known = self.scope.names.get(target.id)
        result = target.id == self.project.result.id
        if known is not None and (result or target.id in self.around.inputs):
            problems.report(
                "repeated-equation", f"`{target.id}` has two equations", target.span, secondary=[(known.span, "the first is here")]
            )
            return None
        if not result and target.id not in self.around.inputs:
            secondary, helps = problems.misspelt(target.id, {n: i.span for n, i in self.around.inputs.items()})
            note = (f"the layer's inputs are {', '.join(f'`{n}`' for n in self.around.inputs)}",)
            problems.report(
                "not-a-target", f"the layer has no input `{target.id}`", target.span, secondary=secondary, helps=helps, notes=note
            )
            return None
        place = ("model",) if result else _place(self.around.inputs[target.id])
        assign = None
        with problems.statement():
            value, typing = self.typed(target, s.value, place)
            self.fits(target, place, value, s.value.span)
            self.times(target, value, s, result)
            assign = Assign("result" if result else "input", target.id, place, value, result, *typing.left(), s.span)
        when: When = "token" if result or self.around.inputs[target.id].scope != "sequence" else "sequence"
        if assign and not result:
            self.prove(self.around.inputs[target.id], assign.value, s.value.span)
        self.scope.names[target.id] = Name(place if assign else None, when, _kept(self.around.inputs.get(target.id), assign), target.span)
        return assign

    def fits(self, target: ast.Name, place: Axes, value: Value, span: Span) -> None:
        """The value's axes are those of its place, or fewer (it is then the same along the others)."""
        extra = [a for a in value.axes if a not in place]
        if extra:
            shown = listed(place) if place else "a single number"
            text = f"`{target.id}` is {shown}, and this has the axis `{extra[0]}`"
            known = self.around.inputs.get(target.id)
            raise self.scope.problems.refuse(
                "axis-mismatch", text, span, listed(value.axes), secondary=[(known.span if known else None, "declared here")]
            )

    def times(self, target: ast.Name, value: Value, s: ast.Equation, result: bool) -> None:
        """Inputs come before outputs; a value per sequence cannot be made of tokens, except of the first ones."""
        problems = self.scope.problems
        if result:
            return
        declared = self.around.inputs[target.id]
        if self.late(value):
            raise problems.refuse("output-too-early", f"`{target.id}` is an input of the layer, and this needs an output", s.value.span)
        if declared.scope == "sequence" and value.when == "token":
            helps = (f"write `first[M](...)` with M = {declared.axes[0]} for the first tokens",) if declared.axes else ()
            text = f"`{target.id}` is given once per sequence, and this changes from token to token"
            raise problems.refuse("not-per-sequence", text, s.value.span, secondary=[(declared.span, "declared here")], helps=helps)
        if declared.scope != "sequence" and any(v.op == "first" for v in walk(value)):
            text = f"`{target.id}` is given at every token, and `first` looks ahead"
            raise problems.refuse(
                "look-ahead",
                text,
                s.value.span,
                secondary=[(declared.span, "declared here")],
                notes=("`first` is for inputs `per sequence`",),
            )

    def prove(self, declared: model.Input, value: Value, span: Span) -> None:
        """Refuses an equation whose range is not inside the declared domain."""
        domain, found = declared.domain, value.range
        name, secondary = declared.name, [(declared.span, "declared here")]
        report = self.scope.problems.report
        if domain.unit and found.unit != declared.axes[-1]:
            text = f"`{name}` is declared in unit, and nothing bounds the norm of this along `{declared.axes[-1]}` by 1"
            report("domain-not-proved", text, span, secondary=secondary, helps=(f"write `l2norm[{declared.axes[-1]}](...)`",))
        elif domain.integer and not found.whole:
            report("domain-not-proved", f"`{name}` is declared in integer, and this may be a fraction", span, secondary=secondary)
        elif domain.complex:
            pass
        elif not domain.unit and not intervals.inside(found, domain_of(domain)):
            text = f"`{name}` is declared in {domain_of(domain)}, and {_excess(found, domain_of(domain))}"
            helps = (f"declare `{name} in {found}`",) if (found.low, found.high) != (ANY.low, ANY.high) else _bounds(domain_of(domain))
            report("domain-not-proved", text, span, f"in {found}", secondary=secondary, helps=helps)

    # --- At the end --------------------------------------------------------------------------------------------

    def complete(self) -> None:
        """Every input and the result has an equation, and every declaration a use."""
        problems, targets = self.scope.problems, {t.id for s in self.project.body if isinstance(s, ast.Equation) for t in s.targets}
        for name, declared in self.around.inputs.items():
            if name not in targets and name not in problems.suggested:
                text = f"the project section has no equation for the input `{name}`"
                problems.report(
                    "missing-equation",
                    text,
                    _header(self.project),
                    secondary=[(declared.span, "declared here")],
                    helps=(_example(declared, self.project.inputs[0].name.id),),
                )
        if self.project.result.id not in targets:
            problems.report(
                "missing-equation",
                f"the project section has no equation for its result `{self.project.result.id}`",
                self.project.result.span,
            )
        declared_names = [s.name for s in self.project.inputs]
        declared_names += [t.name for s in self.project.body if isinstance(s, ast.Declare) for t in s.tensors]
        declared_names += [s.name for s in self.project.body if isinstance(s, ast.Let)]
        for n in declared_names:
            if n.id not in self.scope.used and n.id not in problems.suggested:
                problems.report("unused", f"nothing uses `{n.id}`", n.span)


def _place(declared: model.Input) -> Axes:
    """The axes of an input of the layer; one that is given once per sequence still exists once per head."""
    return visible(declared.axes, "head" if declared.scope == "sequence" else declared.scope)


def _kept(declared: model.Input | None, assign: Assign | None) -> Interval:
    """What later lines may assume of an input: what its equation gives."""
    return assign.value.range if assign is not None and declared is not None else ANY


def _header(project: ast.Project) -> Span:
    return project.inputs[0].span.to(project.result.span)


def _excess(found: Interval, domain: Interval) -> str:
    """How a range leaves its domain, by the end that is wrong."""
    high = found.high > domain.high or (found.high == domain.high and domain.open_high and not found.open_high)
    end, side = (found.high, "above") if high else (found.low, "below")
    if found.low == -intervals.INF and found.high == intervals.INF:
        return "nothing bounds this"
    return f"nothing bounds this {side}" if abs(end) == intervals.INF else f"this may reach {intervals.show(end)}"


# Functions whose range is a domain that is often declared.
RANGES = {
    (0, 1): "sigmoid({})",
    (0, 2): "2 * sigmoid({})",
    (-1, 1): "tanh({})",
    (0, intervals.INF): "softplus({})",
    (-intervals.INF, 0): "-softplus({})",
}


def _bounds(domain: Interval) -> tuple[str, ...]:
    """A function that has the domain as its range."""
    text = RANGES.get((domain.low, domain.high))
    return (f"write `{text.format('...')}`, which is in {domain}",) if text else ()


def _example(declared: model.Input, given: str) -> str:
    """An equation that keeps the declared domain."""
    domain = declared.domain
    text = "l2norm({})" if domain.unit else RANGES.get((domain.low, domain.high), "{}")
    return f"write `{declared.name} = {text.format(f'linear({given})')}`"
