"""The proof accepts what is right and rejects what is not: lowerings, adjoints and derivative rules that are wrong by a hair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from hand_built import RECURRENCES, lowered

from seqc.forms import Lowered
from seqc.forms.base import VALID
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask, rebuild, walk
from seqc.ir.ops import TABLE, OpDef
from seqc.ir.program import Carry, Equation, Map, Program, Stage, body_roots
from seqc.ir.recurrence import Recurrence
from seqc.passes.differentiate import differentiate
from seqc.proof.candidate import Candidate, candidate
from seqc.proof.prove import Certificate, prove

ERASE, BY_KEY = RECURRENCES["scalar decay, erase"], RECURRENCES["key decay, erase, shared"]


def certify(name: str, **changed: Any) -> Certificate:
    return prove(RECURRENCES[name], {**lowered(RECURRENCES[name]), **changed}, "seed")


# --- What is right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECURRENCES)
def test_proved(name: str) -> None:
    certificate = certify(name)
    assert certificate.ok, [*map(str, certificate.failures), *certificate.gaps]
    assert certificate.forms == ("recurrent", "chunkwise")
    assert certificate.log2_error < -40


def test_a_certificate_is_determined_by_its_seed() -> None:
    one, two = certify("ratio"), certify("ratio")
    assert one == two
    data = one.as_json()
    assert json.loads(json.dumps(data)) == data
    assert data["ok"] and data["points"] == 16 and data["sizes"][0]["tokens"] == 7


def test_sizes_that_are_compiled_in_are_kept() -> None:
    certificate = certify("erases in turn")
    assert all(dict(sizes)["n"] == 2 for sizes in certificate.sizes)
    sizes = dict(certificate.sizes[0])
    assert sizes["K"] != sizes["V"] and sizes["tokens"] % sizes["chunk"]


def test_nothing_proved_is_not_ok() -> None:
    assert not prove(ERASE, {}, "seed").ok


def test_a_gap_is_visible() -> None:
    """An op without a meaning in the field is named, and the certificate fails."""
    turned = ops.unary("re", ops.exp(ops.complex_(ops.number(0), ops.var("beta"))))
    rec = replace(ERASE, outputs=(replace(ERASE.outputs[0], value=ops.mul(turned, ERASE.outputs[0].value)),))
    certificate = prove(rec, lowered(ERASE), "seed")
    assert not certificate.ok and not certificate.forms
    assert {g.form for g in certificate.gaps} == {"recurrent", "chunkwise"} and "`complex`" in certificate.gaps[0].reason


def test_a_form_may_have_a_gap_and_a_failure() -> None:
    """Both are said: what is wrong as lowered, at its smallest sizes, and what could not be examined as printed."""
    form = candidate("chunkwise", lowered(ERASE)["chunkwise"])
    wrong = mutated(form.lowered, WRONG["signs are swapped"])
    unknown = mutated(form.forward, at("exp", lambda x: ops.unary("re", ops.complex_(x, x))))
    certificate = certify(ERASE.name, chunkwise=printed(replace(form, lowered=wrong), forward=unknown))
    assert certificate.forms == ("recurrent",) and not certificate.ok
    assert {(f.form, f.stage) for f in certificate.failures} == {("chunkwise", "as lowered")}
    assert all(dict(f.sizes)["tokens"] <= 4 for f in certificate.failures)
    assert [g.form for g in certificate.gaps] == ["chunkwise"] and "`complex`" in certificate.gaps[0].reason


# --- Wrong lowerings ---------------------------------------------------------------------------------------------------

Rule = Callable[[Expr], Expr | None]


def mutated(program: Program, rule: Rule) -> Program:
    """The program with a rule applied to every node, bottom-up; None leaves a node as it is."""

    def apply(node: Expr, args: tuple[Expr, ...]) -> Expr:
        same = node if args == node.args else node.op.build(args, node.attr)
        return rule(same) or same

    def change(e: Expr) -> Expr:
        return rebuild((e,), apply)[0]

    def stage(s: Stage) -> Stage:
        equations = tuple(replace(e, value=change(e.value)) for e in s.equations)
        if isinstance(s, Map):
            return Map(equations)
        return replace(s, equations=equations, carried=tuple(replace(c, next=change(c.next)) for c in s.carried))

    return replace(program, stages=tuple(map(stage, program.stages)))


def at(op: str, change: Callable[[Expr], Expr]) -> Rule:
    return lambda node: change(node) if node.op.name == op else None


def moved(mask: Mask, by: int) -> Mask:
    return replace(mask, offset=mask.offset + by)


def one(node: Expr) -> Expr:
    return ops.broadcast(ops.number(1), node.axes)


def remasked(by: int) -> Rule:
    def rule(node: Expr) -> Expr | None:
        match node.op.name:
            case "masked":
                return ops.masked(node.args[0], moved(node.attr, by))  # type: ignore[arg-type]
            case "decay":
                return node.op.build(node.args, moved(node.attr, by))  # type: ignore[arg-type]
            case "decayed":
                attr: Any = node.attr
                return node.op.build(node.args, (attr[0], moved(attr[1], by)))
        return None

    return rule


WRONG: dict[str, Rule] = {
    "a decay factor is dropped": at("exp", one),
    "a mask is one further": remasked(1),
    "a mask is one short": remasked(-1),
    "the padding is not masked": at("var", lambda x: one(x) if x.attr[0] == VALID else x),  # type: ignore[index]
    "an exponent is not shifted": at("shift", lambda x: x.args[0]),
    "a sum runs the other way": at("cumsum", lambda x: ops.cumsum(x.args[0], x.attr[0], True)),  # type: ignore[index, arg-type]
    "the inverse is left out": at("unit_lower_inverse", lambda x: ops.eye(*map(str, x.attr)) if len(x.axes) == 2 else x.args[0]),  # type: ignore[arg-type]
    "a number is off by 1e-4": at("exp", lambda x: ops.mul(ops.number(Fraction(10001, 10000)), x)),
    "signs are swapped": at("sub", lambda x: ops.add(*x.args)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_lowering_is_caught(what: str) -> None:
    forms = lowered(ERASE)
    broken = replace(forms["chunkwise"], program=mutated(forms["chunkwise"].program, WRONG[what]))
    assert broken.program != forms["chunkwise"].program
    certificate = certify(ERASE.name, chunkwise=broken)
    assert not certificate.ok and certificate.forms == ("recurrent",)
    first = certificate.failures[0]
    assert first.form == "chunkwise" and first.stage == "as lowered" and first.output in ("o", "S@T")
    assert dict(first.sizes)["tokens"] <= 4


def test_a_failure_names_the_smallest_sizes() -> None:
    """A mask that is one short loses a token's own write: one token shows it. An unshifted exponent needs two."""
    wrong = ("a mask is one short", "an exponent is not shifted")
    short, unshifted = (mutated(lowered(ERASE)["chunkwise"].program, WRONG[w]) for w in wrong)
    found = certify(ERASE.name, chunkwise=Lowered(short, {}))
    assert dict(found.failures[0].sizes)["tokens"] == 1
    found = certify(ERASE.name, chunkwise=Lowered(unshifted, {}))
    assert str(found.failures[0]).startswith("`chunkwise` differs in `")
    assert "as lowered" in str(found.failures[0])


def test_what_is_printed_is_examined_apart_from_what_was_lowered() -> None:
    form = candidate("chunkwise", lowered(ERASE)["chunkwise"])
    broken = printed(form, forward=mutated(form.forward, WRONG["a mask is one further"]))
    stages = {f.stage for f in certify(ERASE.name, chunkwise=broken).failures}
    assert "as printed" in stages and "as lowered" not in stages


# --- Wrong adjoints ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """A form's programs, as a compiler hands them over."""

    lowered: Lowered
    forward: Program
    backward: Program
    double_backward: Program


def printed(form: Candidate, **changed: Program) -> Printed:
    programs = {"forward": form.forward, "backward": form.backward, "double_backward": form.double_backward, **changed}
    return Printed(Lowered(form.lowered, {}), **programs)


def with_outputs(program: Program, change: Callable[[tuple[Equation, ...]], tuple[Equation, ...]]) -> Program:
    return replace(program, outputs=change(program.outputs))


def swapped(outputs: tuple[Equation, ...]) -> tuple[Equation, ...]:
    """d_q and d_k in each other's place."""
    value = {e.name: e.value for e in outputs}
    exchange = {"d_q": "d_k", "d_k": "d_q"}
    return tuple(replace(e, value=value[exchange.get(e.name, e.name)]) for e in outputs)


def negated(name: str) -> Callable[[tuple[Equation, ...]], tuple[Equation, ...]]:
    return lambda outputs: tuple(replace(e, value=ops.neg(e.value)) if e.name == name else e for e in outputs)


@pytest.mark.parametrize("form_name", ("recurrent", "chunkwise"))
def test_swapped_gradients_are_caught(form_name: str) -> None:
    form = candidate(form_name, lowered(ERASE)[form_name])
    found = certify(ERASE.name, **{form_name: printed(form, backward=with_outputs(form.backward, swapped))})
    assert {(f.form, f.output) for f in found.failures if f.stage == "gradient"} == {(form_name, "d_q"), (form_name, "d_k")}


def test_a_wrong_gradient_of_a_first_state_is_caught() -> None:
    form = candidate("chunkwise", lowered(BY_KEY)["chunkwise"])
    found = certify(BY_KEY.name, chunkwise=printed(form, backward=with_outputs(form.backward, negated("d_S@0"))))
    assert {f.output for f in found.failures if f.stage == "gradient"} == {"d_S@0"}


def test_a_wrong_second_adjoint_is_caught() -> None:
    form = candidate("chunkwise", lowered(ERASE)["chunkwise"])
    found = certify(ERASE.name, chunkwise=printed(form, double_backward=with_outputs(form.double_backward, negated("d_v"))))
    assert {(f.stage, f.output) for f in found.failures} == {("second gradient", "d_v")}


@pytest.mark.parametrize("output", ["d_q", "d_k", "d_beta", "d_S@0", "d_d_o"])
def test_a_wrong_second_adjoint_of_a_form_alone_is_caught(output: str) -> None:
    """Where no other form is there to compare with, derivatives taken forward tell."""
    form = candidate("recurrent", lowered(ERASE)["recurrent"])
    assert output in {e.name for e in form.double_backward.outputs}
    broken = printed(form, double_backward=with_outputs(form.double_backward, negated(output)))
    assert prove(ERASE, {"recurrent": printed(form)}, "seed").ok
    found = prove(ERASE, {"recurrent": broken}, "seed")
    assert {(f.form, f.stage, f.output) for f in found.failures} == {("recurrent", "second gradient", output)}


# --- Wrong derivative rules --------------------------------------------------------------------------------------------


@contextmanager
def rule_of(op: str, vjp: Callable[..., Any]) -> Iterator[None]:
    """A row of the op table with another derivative. Nodes hold their row, so the row itself is changed, and put back."""
    row, right = TABLE[op], TABLE[op].vjp
    object.__setattr__(row, "vjp", vjp)
    try:
        yield
    finally:
        object.__setattr__(row, "vjp", right)


def rule(op: str) -> Callable[[Expr, Expr], tuple[Expr | None, ...]]:
    return TABLE[op].vjp


APPLIED, DECAYED, DECAY, CONTRACT = map(rule, ("apply_inverse", "decayed", "decay", "contract"))


def not_transposed(e: Expr, g: Expr) -> tuple[Expr | None, ...]:
    """dx = T dy for dx = T^T dy."""
    row, column = map(str, e.attr)  # type: ignore[arg-type]
    right = ops.rename(ops.broadcast(g, e.axes), {row: column})
    return (*APPLIED(e, g)[:2], ops.contract((e.args[1], right), e.axes))


CORRUPT: dict[str, tuple[str, Callable[[Expr, Expr], tuple[Expr | None, ...]]]] = {
    "exp: the factor is forgotten": ("exp", lambda e, g: (g,)),
    "mul: the factors are exchanged": ("mul", lambda e, g: (ops.mul(g, e.args[0]), ops.mul(g, e.args[1]))),
    "contract: a sign": ("contract", lambda e, g: tuple(map(ops.neg, CONTRACT(e, g)))),  # type: ignore[arg-type]
    "apply_inverse: a sign": ("apply_inverse", lambda e, g: (ops.neg(APPLIED(e, g)[0]), *APPLIED(e, g)[1:])),  # type: ignore[arg-type]
    "apply_inverse: not transposed": ("apply_inverse", not_transposed),
    "decay: exponents exchanged": ("decay", lambda e, g: tuple(map(ops.neg, DECAY(e, g)))),  # type: ignore[arg-type]
    "decayed: an exponent forgotten": ("decayed", lambda e, g: (*DECAYED(e, g)[:3], None)),
    "decayed: a sign": ("decayed", lambda e, g: (*DECAYED(e, g)[:2], *map(ops.neg, DECAYED(e, g)[2:]))),  # type: ignore[arg-type]
    "cumsum: not reversed": ("cumsum", lambda e, g: (ops.cumsum(ops.broadcast(g, e.axes), *e.attr),)),  # type: ignore[misc]
    "shift: the same way": ("shift", lambda e, g: (ops.shift(ops.broadcast(g, e.axes), *e.attr),)),  # type: ignore[misc]
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CORRUPT)
def test_a_wrong_derivative_rule_is_caught(what: str) -> None:
    op, wrong = CORRUPT[what]
    rec = BY_KEY if op == "decayed" else ERASE
    with rule_of(op, wrong):
        found = prove(rec, lowered(rec), "seed", points=4)
    failed = {(f.form, f.stage) for f in found.failures}
    assert ("chunkwise", "gradient") in failed and ("chunkwise", "as lowered") not in failed
    assert prove(rec, lowered(rec), "seed", points=4).ok


def ops_of(stages: Iterable[Stage]) -> set[str]:
    """The ops with a derivative that occur in stages."""
    roots = (e for s in stages for e in (body_roots(s) if isinstance(s, Carry) else tuple(x.value for x in s.equations)))
    return {node.op.name for node in walk(*roots) if node.args and node.type.dtype == "real"}


MET = {name: ops_of([s for form in lowered(rec).values() for s in form.program.stages]) for name, rec in RECURRENCES.items()}


# Its derivative is `apply_inverse`'s in first adjoints: only second ones need its own, which the next test shows.
LATER = {"unit_lower_inverse"}


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(set().union(*MET.values()) - LATER))
def test_every_derivative_rule_matters(op: str) -> None:
    """Each op's adjoints doubled: some recurrence shows it, through forward mode, which shares no rule."""
    right = TABLE[op].vjp

    def doubled(e: Expr, g: Expr) -> tuple[Expr | None, ...]:
        return tuple(None if x is None else ops.mul(ops.number(2), x) for x in right(e, g))

    with rule_of(op, doubled):
        for rec in (rec for name, rec in RECURRENCES.items() if op in MET[name]):
            if any(f.stage == "gradient" for f in prove(rec, lowered(rec), "seed", points=2).failures):
                return
    pytest.fail(f"no recurrence shows that the derivative of {op} is wrong")


def _in_backwards(rec: Recurrence) -> set[str]:
    programs = [p for form in lowered(rec).values() for p in (candidate("", form).backward,)]
    return {op for p in programs for op in ops_of(p.stages)}


SECOND = {name: _in_backwards(RECURRENCES[name]) for name in (ERASE.name, BY_KEY.name)}


def test_what_second_adjoints_show_is_in_them() -> None:
    assert set().union(*SECOND.values()) >= LATER


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(set().union(*SECOND.values())))
def test_every_derivative_rule_matters_in_second_adjoints(op: str) -> None:
    """Each op's adjoints doubled where a backward is differentiated, in both forms alike: only derivatives taken forward show it."""
    right = TABLE[op].vjp

    def again(form: Candidate) -> Program:
        with rule_of(op, lambda e, g: tuple(None if x is None else ops.mul(ops.number(2), x) for x in right(e, g))):
            return differentiate(form.backward, [leaf.name for leaf in form.backward.inputs if leaf.name != VALID])

    for name in (name for name, met in SECOND.items() if op in met):
        rec = RECURRENCES[name]
        forms = {n: candidate(n, form) for n, form in lowered(rec).items()}
        wrong = {n: printed(form, double_backward=again(form)) for n, form in forms.items()}
        if any(f.stage == "second gradient" for f in prove(rec, wrong, "seed", points=2).failures):
            return
    pytest.fail(f"no second adjoint shows that the derivative of {op} is wrong")


def test_rows_are_shared_by_nodes() -> None:
    """What `rule_of` relies on."""
    assert isinstance(ops.exp(ops.var("x")).op, OpDef) and ops.exp(ops.var("x")).op is TABLE["exp"]
