"""Random layers, well typed by construction: what may stand at a place is drawn from the values that have its axes.

A layer is drawn as data (memories, states, steps, reads), its text is printed from that. Hypothesis shrinks the data, so that a
failure is a short text. Inputs are used where they are named, so nothing is unused; domains keep every form's conditions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import strategies as st

SIZES = {"K": 3, "V": 2, "M": 2, "n": 2, "c": 3}


@dataclass
class Text:
    """The parts of a layer as they are met. Inputs and states are declared when something first asks for them."""

    inputs: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    outputs: int = 0
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def input(self, stem: str, axes: str = "", domain: str = "") -> str:
        n = self.name(stem)
        self.inputs[n] = f"{n}{f'[{axes}]' if axes else ''}{f' in {domain}' if domain else ''}"
        return n

    def __str__(self) -> str:
        named = {a for x in self.lines() for some in re.findall(r"\[([\w, ]+)\]", x) for a in some.split(", ")}
        used = [a for a in SIZES if a in named]
        sizes = ", ".join(f"{a} = {SIZES[a]}" for a in used)
        return "\n".join(["seqc 1", "", f"layer drawn({sizes})", '  "Drawn at random."', "", *(f"  {x}" for x in self.lines())]) + "\n"

    def lines(self) -> list[str]:
        given = [f"input   {x}" for x in self.inputs.values()] + [f"param   {x}" for x in self.params.values()]
        return [*given, *self.states, *self.steps]


GATES = ("(0, 1)", "(0, 1]", "[0.5, 1]")


def a_decay(draw: st.DrawFn, t: Text, axes: str = "") -> str:
    """A factor in (0, 1] that nothing but its domain or form shows to be one."""
    kind = draw(st.sampled_from(("exp", "gate", "sigmoid", "constant", "head", "product", "coupled")))
    match kind:
        case "exp":
            return f"exp({t.input('g', axes, '(-inf, 0)')})"
        case "gate":
            return t.input("a", axes, draw(st.sampled_from(GATES)))
        case "sigmoid":
            return f"sigmoid({t.input('f', axes)})"
        case "product":
            return f"{t.input('a', axes, '(0, 1)')} * exp(-softplus({t.input('f')}))"
        case "coupled":
            x = t.input("b", axes, "(0, 1)")
            return f"(1 - {x} / 2)"
        case "head":
            return "(1 - 2^(-3 - head))"
    return draw(st.sampled_from(("0.9", "7/8", "1/2")))


def a_rate(draw: st.DrawFn, t: Text) -> str:
    kind = draw(st.sampled_from(("input", "twice", "constant", "gate")))
    if kind == "constant":
        return draw(st.sampled_from(("1", "1/4", "0.3")))
    x = t.input("beta", "", "(0, 1)")
    if kind == "gate":
        return f"sigmoid({t.input('w')}) * {x}"
    return f"2 * {x}" if kind == "twice" else x


def a_vector(draw: st.DrawFn, t: Text, axis: str, known: list[tuple[str, str]], *, unit: bool = False, extra: str = "") -> str:
    """A value of one axis: an input, something made of inputs, or an earlier read of a memory."""
    axes = f"{extra}, {axis}" if extra else axis
    reads = [e for e, a in known if a == axis] if not extra and not unit else []
    kinds = ["input", "input", "shared", "made", *(["read"] if reads else []), *(["shift"] if not extra else [])]
    match draw(st.sampled_from(kinds)):
        case "read":
            return draw(st.sampled_from(reads))
        case "shift":
            x = t.input("s", axes)
            return f"{draw(st.sampled_from(('0.5', '1/3')))} * shift({x}) + {x}" if not unit else f"l2norm(shift({x}) + {x})"
        case "made" if not unit:
            x = t.input("x", axes)
            return draw(st.sampled_from((f"tanh({x})", f"silu({x})", f"{x} - 1/4", f"2 * {x}")))
        case "shared":
            n = t.name("p")
            t.inputs[n] = f"{n}[{axes}]{' in unit' if unit else ''} per {draw(st.sampled_from(('group', 'layer')))}"
            return n
    return t.input("k", axes, "unit" if unit else "")


def a_memory(draw: st.DrawFn, t: Text, known: list[tuple[str, str]]) -> None:
    """A matrix with a retention, one or several updates, and reads before, between and after them."""
    rows, columns = draw(st.sampled_from((("K", "V"), ("V", "K"), ("K", "M"))))
    S = t.name("S")
    t.states.append(f"memory  {S}[{rows}, {columns}] = {draw(st.sampled_from(('0', '0', 'learned')))}")
    if draw(st.booleans()):
        a_read(draw, t, S, rows, columns, known)
    if draw(st.integers(0, 3)):
        a_retention(draw, t, S, rows, columns)
    for _ in range(draw(st.integers(1, 2))):
        an_update(draw, t, S, rows, columns, known)
        if draw(st.integers(0, 3)) == 0:
            a_read(draw, t, S, rows, columns, known)
    a_read(draw, t, S, rows, columns, known, out=True)


def a_retention(draw: st.DrawFn, t: Text, S: str, rows: str, columns: str) -> None:
    """Mostly a decay of the whole memory, along one of its axes or along both in turn."""
    match draw(st.sampled_from(("decay", "decay", "decay", "decay", "rows", "columns", "both", "other"))):
        case "decay":
            t.steps.append(f"retain  {S} by decay({a_decay(draw, t)})")
        case "rows":
            t.steps.append(f"retain  {S} by decay({a_decay(draw, t, rows)})")
        case "columns":
            t.steps.append(f"retain  {S} by decay({a_decay(draw, t, columns)})")
        case "both":
            t.steps += [f"retain  {S} by decay({a_decay(draw, t, along)})" for along in (rows, columns)]
        case _:
            kind = draw(st.sampled_from(("reset(3)", "shrink(1/8)", "sphere()")))
            t.steps.append(f"retain  {S} by {kind}")
            if kind == "sphere()":  # which zero is not on
                t.states[-1] = f"memory  {S}[{rows}, {columns}] = learned"


def an_update(draw: st.DrawFn, t: Text, S: str, rows: str, columns: str, known: list[tuple[str, str]]) -> None:
    common = ("learn", "learn", "turns", "at once", "plain", "low rank", "mixed")
    kinds = (*common, *common, "momentum", "window", "blocks", "other loss")
    kind = draw(st.sampled_from(kinds))
    point = draw(st.sampled_from(("", "", f" at start({S})")))
    match kind:
        case "turns":
            rate = a_rate(draw, t)
            k, v = a_vector(draw, t, rows, [], unit=True, extra="n"), t.input("v", f"n, {columns}")
            t.steps += ["for i in n", f"  learn   {S} by descent(rate = {rate}) on l2({S}({k}[i]), {v}[i])", "end"]
        case "at once":
            k, v, w = a_vector(draw, t, rows, [], unit=True, extra="n"), t.input("v", f"n, {columns}"), t.input("w", "n", "(0, 1)")
            loss = draw(st.sampled_from(("l2", "dot")))
            t.steps.append(f"learn   {S} by descent(rate = 1/2) on sum[n]({w} * {loss}({S}({k}), {v})){point}")
        case "window":
            k, v = t.input("k", rows, "unit"), t.input("v", columns)
            t.steps.append(f"learn   {S} by descent(rate = 1/4) on sum[c](dot({S}(window[c]({k})), window[c]({v}))){point}")
        case "plain":
            a, b, g = t.input("e", rows, "unit"), t.input("r", rows, "unit"), a_rate(draw, t)
            k, v = a_vector(draw, t, rows, known), a_vector(draw, t, columns, known)
            t.steps.append(f"update  {S} = {S} - {g} * outer({a}, {S}({b})) + outer({k}, {v})")
        case "low rank":
            ranks = range(draw(st.integers(1, 3)))
            erased = [f"{a_rate(draw, t)} * outer({t.input('e', rows, 'unit')}, {S}({t.input('r', rows, 'unit')}))" for _ in ranks]
            written = [f"outer({t.input('k', rows)}, {a_vector(draw, t, columns, known)})" for _ in ranks[: draw(st.integers(1, 3))]]
            t.steps.append(f"update  {S} = {S} - {' - '.join(erased)} + {' + '.join(written)}")
        case "mixed":
            k, b = a_vector(draw, t, rows, known), t.input("b", "", "(0, 1)")
            match draw(st.sampled_from(("lerp", "scaled", "keys", "values"))):
                case "lerp":
                    new = f"lerp({S}, outer({k}, {a_vector(draw, t, columns, known)}), {b})"
                case "scaled":
                    new = f"{b} * ({S} + outer({k}, {a_vector(draw, t, columns, known)}))"
                case "keys":
                    new = f"lerp({S}, {S} - outer({k}, {S}({t.input('r', rows, 'unit')})), {b})"
                case _:
                    erased = f"outer({S} @ {t.input('r', columns, 'unit')}, {t.input('w', columns)})"
                    new = f"lerp({S}, {S} - {erased} + outer({k}, {t.input('v', columns)}), {b})"
            t.steps.append(f"update  {S} = {new}")
        case "blocks":
            k, v = a_vector(draw, t, rows, [], unit=True), a_vector(draw, t, columns, known)
            every = draw(st.integers(2, 3))
            t.steps.append(f"learn   {S} by prefix_sum(rate = 1/2, weight = 1/4, every = {every}) on dot({S}({k}), {v})")
        case "other loss":
            k, v = a_vector(draw, t, rows, [], unit=True), a_vector(draw, t, columns, known)
            loss = draw(st.sampled_from(("huber", "huber_mixture", "lp", "value_shift")))
            more = {"huber": ", delta = 1", "huber_mixture": ", delta = 1", "lp": "", "value_shift": ", radius = 1/2"}[loss]
            t.steps.append(f"learn   {S} by descent(rate = 1/8) on {loss}({S}({k}), {v}{more})")
        case "momentum":
            k, v = a_vector(draw, t, rows, [], unit=True), a_vector(draw, t, columns, known)
            keep = t.input("mu", "", "(0, 1)")
            t.steps.append(f"learn   {S} by momentum(rate = {a_rate(draw, t)}, keep = {keep}) on l2({S}({k}), {v}){point}")
        case _:
            loss = draw(st.sampled_from(("l2", "l2", "dot", "2 * l2")))
            k, v = a_vector(draw, t, rows, [], unit=True), a_vector(draw, t, columns, known)
            late = f" at next({S})" if loss != "dot" and draw(st.integers(0, 5)) == 0 else point
            name, factor = loss.split(" * ")[-1], "2 * " if " * " in loss else ""
            t.steps.append(f"learn   {S} by descent(rate = {a_rate(draw, t)}) on {factor}{name}({S}({k}), {v}){late}")


def a_read(draw: st.DrawFn, t: Text, S: str, rows: str, columns: str, known: list[tuple[str, str]], out: bool = False) -> None:
    """A read of a memory, as an output or as a value for what follows."""
    q = a_vector(draw, t, rows, [])
    value = f"{S}({q})"
    if draw(st.integers(0, 4)) == 0:
        value = f"{value} * sigmoid({t.input('u', columns)})"
    if out or draw(st.booleans()):
        t.outputs += 1
        t.steps.append(f"output  o{t.outputs}[{columns}] = {value}")
    else:
        n = t.name("r")
        squash = draw(st.sampled_from(("", "tanh", "sigmoid")))
        t.steps.append(f"let     {n}[{columns}] = {f'{squash}({value})' if squash else value}")
        t.outputs += 1
        t.steps.append(f"output  o{t.outputs}[{columns}] = {n} / 2")
        known.append((n, columns))


def a_vector_state(draw: st.DrawFn, t: Text, known: list[tuple[str, str]]) -> None:
    """An elementwise state: a decay, a write, perhaps another state that it is coupled with, perhaps exponential keys and a ratio."""
    axis = draw(st.sampled_from(("K", "V")))
    h = t.name("h")
    kind = draw(st.sampled_from(("plain", "plain", "coupled", "ratio", "peak", "nonlinear")))
    t.states.append(f"state   {h}[{axis}] = 0")
    t.outputs += 1
    match kind:
        case "coupled":
            z, a, b = t.name("z"), a_decay(draw, t), t.input("w", "", "(-1, 1)")
            t.states.append(f"state   {z}[{axis}] = 0")
            x = a_vector(draw, t, axis, known)
            t.steps.append(f"update  {z} = {a} * {z} - {b} * {h} + {x}")
            t.steps.append(f"update  {h} = {h} / 2 + {b} * {z}")
            t.steps.append(f"output  o{t.outputs}[{axis}] = {h} - {z}")
            return
        case "ratio":
            z, a, k = t.name("z"), a_decay(draw, t), t.input("k", axis)
            t.states.append(f"state   {z}[{axis}] = 0")
            t.steps.append(f"update  {h} = {a} * {h} + exp({k}) * {a_vector(draw, t, axis, known)}")
            t.steps.append(f"update  {z} = {a} * {z} + exp({k})")
            t.steps.append(f"output  o{t.outputs}[{axis}] = {h} / {z}")
            return
        case "peak":
            t.steps.append(f"update  {h} = max({h} - 1/4, {a_vector(draw, t, axis, known)})")
        case "nonlinear":
            t.steps.append(f"update  {h} = tanh({h} / 2 + {a_vector(draw, t, axis, known)})")
        case _:
            along = draw(st.sampled_from(("", axis)))
            t.steps.append(f"update  {h} = {a_decay(draw, t, along)} * {h} + {a_vector(draw, t, axis, known)}")
    if draw(st.booleans()):
        known.append((h, axis))
    t.steps.append(f"output  o{t.outputs}[{axis}] = {draw(st.sampled_from((h, f'2 * {h}', f'tanh({h})')))}")


@st.composite
def layers(draw: st.DrawFn) -> str:
    """The text of a layer with one to three states."""
    t, known = Text(), list[tuple[str, str]]()
    for n in range(3):
        if n and draw(st.integers(0, 2)) < 2:  # asked in front of each, so that any of them can be taken away when a failure shrinks
            break
        if draw(st.integers(0, 2)):
            a_memory(draw, t, known)
        else:
            a_vector_state(draw, t, known)
    return str(t)
