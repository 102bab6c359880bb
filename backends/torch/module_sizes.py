"""The sizes of a generated module: its arguments, their defaults and what is checked about them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from seqc.frontend import ast
from seqc.frontend.check_sizes import NotExact, evaluate
from seqc.frontend.project_types import Project, walk
from seqc.ir.expr import variables
from seqc.ir.model import Append, Learn, Model, Retain

# A quotient of two whole-number expressions; how tightly each binds: 0 a sum, 1 a product, 2 anything closed.
SUM, PRODUCT, CLOSED = range(3)


@dataclass(frozen=True)
class Whole:
    text: str
    binds: int = CLOSED

    def within(self, binds: int) -> str:
        return self.text if self.binds >= binds else f"({self.text})"


Ratio = tuple[Whole, Whole]
ONE = Whole("1")


@dataclass(frozen=True)
class Argument:
    """A size of the module: the text of its default (None: required; `None`: computed), and the lines that compute or check it."""

    name: str
    default: str | None
    kind: str = "int"
    lines: tuple[str, ...] = ()
    whole: bool = False


def ratio(e: ast.Expr) -> Ratio | None:
    """A default as a quotient of whole-number expressions; None where there is none."""
    match e:
        case ast.Number(value=v):
            return Whole(str(v.numerator)), Whole(str(v.denominator))
        case ast.Ref(id=name):
            return Whole(name), ONE
        case ast.Binary(op="^", left=left, right=ast.Number(value=n)) if n.denominator == 1:
            found = ratio(left)
            return None if found is None else (_power(found[0], int(n)), _power(found[1], int(n)))
        case ast.Binary(op=op, left=left, right=right) if op in ("+", "-", "*", "/"):
            a, b = ratio(left), ratio(right)
            return None if a is None or b is None else _combined(op, a, b)
        case ast.Call(function=ast.Ref(id="ceil"), args=(x,)):
            found = ratio(x)
            return None if found is None else (Whole(f"-(-{found[0].within(CLOSED)} // {found[1].within(CLOSED)})", PRODUCT), ONE)
        case ast.Call(function=ast.Ref(id="floor"), args=(x,)):
            found = ratio(x)
            return None if found is None else (Whole(f"{found[0].within(PRODUCT)} // {found[1].within(CLOSED)}", PRODUCT), ONE)
    return None


def _power(x: Whole, n: int) -> Whole:
    if x == ONE or n == 1:
        return x
    return Whole(f"{x.text}**{n}" if x.text.isidentifier() or x.text.isdigit() else f"({x.text}) ** {n}", PRODUCT)


def _times(a: Whole, b: Whole) -> Whole:
    if a == ONE or b == ONE:
        return b if a == ONE else a
    return Whole(f"{a.within(PRODUCT)} * {b.within(CLOSED if '//' in b.text else PRODUCT)}", PRODUCT)


def _combined(op: str, a: Ratio, b: Ratio) -> Ratio:
    if op == "*":
        return _times(a[0], b[0]), _times(a[1], b[1])
    if op == "/":
        return _times(a[0], b[1]), _times(a[1], b[0])
    left, right = _times(a[0], b[1]), _times(b[0], a[1])
    bottom = a[1] if a[1] == b[1] else _times(a[1], b[1])
    if a[1] == b[1]:
        left, right = a[0], b[0]
    return Whole(f"{left.text} {op} {right.within(SUM if op == '+' else PRODUCT)}", SUM), bottom


def arguments(model: Model, project: Project) -> tuple[Argument, ...]:
    """The module's sizes: heads first where the layer does not declare them, then as declared."""
    static, declared = dict(model.values), dict(project.sizes)
    found = [] if "heads" in declared else [Argument("heads", "1")]
    if "groups" not in declared and uses_groups(model, project):
        found.append(Argument("groups", "None", "int | None", ("if groups is None:", "    groups = heads")))
    for name, default in project.sizes:
        found.append(_argument(model, name, default, static))
    if any(a.name == "groups" for a in found):
        text = 'raise ValueError(f"groups = {groups} does not divide heads = {heads}")'
        found.append(Argument("", None, "", ("if heads % groups:", f"    {text}")))
    found += [Argument(n, start) for n, start in (("depth", "0"), ("depths", "1")) if n in numbers(model, project)]
    return tuple(found)


def _argument(model: Model, name: str, default: ast.Expr | None, static: dict[str, int]) -> Argument:
    if name in static:
        text = f'raise ValueError(f"{model.name} is compiled for {name} = {static[name]}, not {{{name}}}")'
        return Argument(name, str(static[name]), "int", (f"if {name} != {static[name]}:", f"    {text}"))
    chosen = next((s.default for s in model.sizes if s.name == name), None)
    if chosen is not None and not _follows(default, chosen, {s.name: s.default for s in model.sizes}):
        return Argument(name, str(chosen))
    found = ratio(default) if default is not None else None
    if found is None:
        return Argument(name, None)
    top, bottom = found
    value = top.text if bottom == ONE else f'whole("{name}", {top.text}, {bottom.text})'
    return Argument(name, "None", "int | None", (f"if {name} is None:", f"    {name} = {value}"), bottom != ONE)


def _follows(default: ast.Expr | None, chosen: Fraction, values: dict[str, Fraction | None]) -> bool:
    """Whether the value is that of a formula, to be computed from the module's other sizes; else it was chosen at compile time."""
    if default is None or isinstance(default, ast.Number):
        return False
    try:
        return evaluate(default, values) == chosen
    except NotExact:
        return False


def uses_groups(model: Model, project: Project) -> bool:
    """Whether anything is shared by the heads of a group."""
    values = [a.axes for a in project.assigns] + [v.axes for a in project.assigns for v in walk(a.value)]
    scopes = [i.scope for i in model.inputs] + [p.scope for p in model.params] + [s.scope for s in model.states]
    return "group" in scopes or any("groups" in axes for axes in values)


def numbers(model: Model, project: Project) -> set[str]:
    """`depth` and `depths`, where the layer or its section uses them."""
    roots = [*(p.init.value for p in model.params), *(s.init for s in model.states)]
    for s in model.steps:
        match s:
            case Retain() | Learn():
                roots += [u.value for u in s.updates]
            case Append():
                roots += [e for _, e in s.items]
            case _:
                roots.append(s.value)
    values = [a.value for a in project.assigns] + [p.init for p in project.params]
    found = {v.name for v in variables(*roots)} | {str(v.attr[0]) for a in values for v in walk(a) if v.op == "count"}
    return found & {"depth", "depths"}


def sorted_lines(found: tuple[Argument, ...], defaults: dict[str, ast.Expr | None]) -> list[str]:
    """The lines of the arguments, each after those of the sizes that its default uses."""
    lines: list[str] = []
    done: set[str] = set()

    def visit(a: Argument) -> None:
        if a.name in done:
            return
        done.add(a.name)
        text = " ".join(a.lines)
        for other in found:
            if other.name and other.name != a.name and other.name in names(defaults.get(a.name)):
                visit(other)
        lines.extend(a.lines if text else ())

    for a in sorted(found, key=lambda a: not a.name):
        visit(a)
    return lines


def names(e: ast.Expr | None) -> set[str]:
    """The sizes that a default uses."""
    match e:
        case ast.Ref(id=name):
            return {name}
        case ast.Binary(left=left, right=right):
            return names(left) | names(right)
        case ast.Call(args=args):
            return {n for a in args for n in names(a)}
        case ast.Negate(value=value):
            return names(value)
    return set()
