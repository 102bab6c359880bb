"""Every IR as text: printed for people and goldens, never parsed."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from seqc.ir.expr import Expr, Mask, walk
from seqc.ir.kernel import Assign, Kernel, Repeat, Statement
from seqc.ir.model import Append, Domain, Fold, Learn, Let, Model, Retain, Step, Update
from seqc.ir.program import Carry, Equation, Map, Program, Stage
from seqc.ir.recurrence import Recurrence

INFIX = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "power": ("^", 4)}
RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
LIMIT = 400  # characters of an expression after which a reader is lost


def show(e: Expr, names: Mapping[Expr, str] | None = None, *, limit: int = LIMIT) -> str:
    """An expression in infix; nodes in `names` by their name."""
    text = _show(e, names or {}, {})[0]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _show(root: Expr, names: Mapping[Expr, str], done: dict[int, tuple[str, int]]) -> tuple[str, int]:
    for node in walk(root):
        if node in names and (node is not root or not done):
            done[id(node)] = (names[node], 9)
        elif id(node) not in done:
            text, level = _node(node, [done[id(a)] for a in node.args])
            done[id(node)] = (text if len(text) <= LIMIT else text[:LIMIT], level)
    return done[id(root)]


def _node(e: Expr, args: list[tuple[str, int]]) -> tuple[str, int]:
    op = e.op.name
    if op == "var":
        return e.name, 9
    if op == "const":
        value = Fraction(e.attr)
        return (str(value), 9 if value.denominator == 1 and value >= 0 else 2)
    if op in ("constant", "size"):
        return str(e.attr), 9
    if op in INFIX:
        sign, level = INFIX[op]
        left = _wrap(args[0], level)
        right = _wrap(args[1], level + (sign in "-/"))
        return f"{left} {sign} {right}", level
    if op == "neg":
        return f"-{_wrap(args[0], 3)}", 3
    if op == "compare":
        return f"{_wrap(args[0], 1)} {RELATIONS[str(e.attr)]} {_wrap(args[1], 1)}", 0
    if op in ("broadcast", "rename"):
        return args[0]
    if op == "contract":
        summed = [a for a in dict.fromkeys(a for x in e.args for a in x.axes) if a not in e.axes]
        inner = " * ".join(_wrap(a, 2) for a in args)
        return (f"sum[{', '.join(summed)}]({inner})", 9) if summed else (inner, 2)
    texts = [a[0] for a in args]
    attr = "" if e.attr in ((), None) else f"[{_attr(e.attr)}]"
    return f"{op}{attr}({', '.join(texts)})", 9


def _attr(attr: object) -> str:
    if isinstance(attr, Mask):
        return f"{attr.row}, {attr.column}: j//{attr.per_column} < (i//{attr.per_row})*{attr.step} + {attr.offset}"
    if isinstance(attr, tuple):
        return ", ".join(map(_attr, attr))
    return str(attr)


def _wrap(item: tuple[str, int], level: int) -> str:
    return item[0] if item[1] >= level else f"({item[0]})"


def nodes(roots: list[tuple[str, Expr]], indent: str = "  ") -> list[str]:
    """Named expressions, with shared parts given numbers so that the text stays as small as the graph."""
    count: dict[int, int] = {}
    for node in walk(*(e for _, e in roots)):
        for a in node.args:
            count[id(a)] = count.get(id(a), 0) + 1
    names: dict[Expr, str] = {}
    lines: list[str] = []
    for node in walk(*(e for _, e in roots)):
        if count.get(id(node), 0) > 1 and node.args:
            text = show(node, names)
            names[node] = f"%{len(names)}"
            lines.append(f"{indent}{names[node]}: {node.type} = {text}")
    for name, e in roots:
        lines.append(f"{indent}{name}: {e.type} = {names[e] if e in names else show(e, names)}")
    return lines


def recurrence(rec: Recurrence) -> str:
    lines = [f"recurrence {rec.name}"]
    lines += [f"  input {i.name}[{', '.join(i.axes)}] per {i.scope}" for i in rec.inputs]
    lines += [f"  param {p.name}[{', '.join(p.axes)}]" for p in rec.params]
    for s in rec.states:
        clock = f" every {s.clock.every}" if s.clock.every else ""
        lines.append(f"  state {s.name}[{', '.join(s.axes)}] {s.role}{clock} = {show(s.init)}")
    lines.append("step")
    lines += nodes([(f"next {s.name}", s.next) for s in rec.states] + [(f"output {o.name}", o.value) for o in rec.outputs])
    return "\n".join(lines) + "\n"


def program(p: Program) -> str:
    lines = [f"program {p.name}"]
    lines += [f"  input {leaf.name}: {leaf.type}" for leaf in p.inputs]
    lines += [f"  axis {a} = {f'{n} * {of}' if of else n}" for a, of, n in p.widths]
    lines += [line for stage in p.stages for line in _stage(stage)]
    lines.append("outputs")
    return "\n".join(lines + nodes(_named(p.outputs))) + "\n"


def _named(equations: tuple[Equation, ...]) -> list[tuple[str, Expr]]:
    return [(e.name, e.value) for e in equations]


def _stage(stage: Stage) -> list[str]:
    if isinstance(stage, Map):
        return ["map", *nodes(_named(stage.equations))]
    if isinstance(stage, Carry):
        return _carry(stage)
    lines = [f"solve {', '.join(u.name for u in stage.unknowns)}", *nodes([(f"guess {u.name}", u.guess) for u in stage.unknowns])]
    lines += [f"  {line}" for s in stage.stages for line in _stage(s)]
    return lines + nodes([(f"add to {u.name}", u.step) for u in stage.unknowns])


def _carry(stage: Carry) -> list[str]:
    lines = [f"carry along {stage.axis}{', last to first' if stage.reverse else ''}"]
    lines += [f"  {k.name} from {show(k.init)}, at the end {k.final}" for k in stage.carried]
    return lines + nodes([(f"next {k.name}", k.next) for k in stage.carried] + _named(stage.equations))


# --- Model -----------------------------------------------------------------------------------------------------------


def model(m: Model) -> str:
    """A checked spec, declarations first, then its steps in order."""
    lines = [f"model {m.name}"]
    for s in m.sizes:
        known = s.default if s.default is not None else s.formula or "given"
        lines.append(f"  size {s.name} = {known}{' (compiled in)' if s.static else ''}")
    lines += [f"  input {i.name}[{', '.join(i.axes)}] per {i.scope} in {_domain(i.domain)}" for i in m.inputs]
    lines += [f"  param {p.name}[{', '.join(p.axes)}] per {p.scope} = {show(p.init.value)}" for p in m.params]
    for state in m.states:
        owner = f" of {state.memory}" if state.memory is not None and state.memory != state.name else ""
        lines.append(f"  state {state.name}[{', '.join(state.axes)}]{owner} = {show(state.init)}")
    lines += [f"  hidden {h.name}[{', '.join(h.axes)}] {h.kind}" for h in m.hidden]
    lines.append("steps")
    for step in m.steps:
        lines += _step(step)
    return "\n".join(lines) + "\n"


def _domain(d: Domain) -> str:
    ends = f"{'(' if d.open_low else '['}{_number(d.low)}, {_number(d.high)}{')' if d.open_high else ']'}"
    return " ".join([ends, *(word for word in ("unit", "integer", "complex") if getattr(d, word))])


def _number(x: float) -> str:
    return str(int(x)) if x.is_integer() else str(x)


def _step(step: Step) -> list[str]:
    if isinstance(step, (Learn, Retain)):
        args = ", ".join(f"{name} = {show(value)}" for name, value in step.args)
        word = "learn" if isinstance(step, Learn) else "retain"
        head = f"  {word} {step.memory} by {step.library}({args})"
        if isinstance(step, Learn):
            head += f" on {show(step.objective)} at {step.point}"
        return [head, *(f"    {u.state} = {show(u.value)}" for u in step.updates)]
    if isinstance(step, Append):
        return [f"  append {', '.join(f'{show(e)} to {name}' for name, e in step.items)}"]
    if isinstance(step, Fold):
        return [f"  fold {step.state} with {show(step.operand)} {step.order} = {show(step.value)}"]
    if isinstance(step, Update):
        return [f"  update {step.state} = {show(step.value)}"]
    return [f"  {'let' if isinstance(step, Let) else 'output'} {step.name}: {step.value.type} = {show(step.value)}"]


# --- Kernel ----------------------------------------------------------------------------------------------------------


def kernel(k: Kernel) -> str:
    """A kernel's statements in order, loops indented."""
    lines = [f"kernel {k.name}", *(f"  input {leaf.name}: {leaf.type}" for leaf in k.inputs)]
    for statement in k.body:
        lines += _statement(statement)
    return "\n".join([*lines, *(f"  return {name}: {e.type} = {show(e)}" for name, e in k.outputs)]) + "\n"


def _statement(statement: Statement) -> list[str]:
    if isinstance(statement, Assign):
        return [_assign(statement, "  ")]
    if isinstance(statement, Repeat):
        lines = [f"  repeat for {x.leaf.name} from {show(x.first)}, less {x.residual.name}, plus {x.step.name}" for x in statement.found]
        return lines + [f"  {line}" for s in statement.body for line in _statement(s)]
    lines = [f"  loop along {statement.axis}{', last to first' if statement.reverse else ''}"]
    lines += [f"    {name} from {show(first)}, then {next_}, after it {after}" for name, first, next_, after in statement.carried]
    lines += [f"    {name} = a slice of {leaf.name}" for leaf, name in statement.sliced]
    lines += [_assign(a, "    ") for a in statement.body]
    return lines + [f"    stack {name} as {leaf.name}" for leaf, name in statement.stacked]


def _assign(a: Assign, indent: str) -> str:
    return f"{indent}{a.name}: {a.value.type} = {show(a.value)}{f'    # {a.note}' if a.note else ''}"
