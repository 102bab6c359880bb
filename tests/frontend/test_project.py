"""The project section: places, weights, proofs of domains, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend.check import check
from seqc.frontend.parser import parse
from seqc.frontend.project_types import Project
from seqc.source import Source

# Each file of tests/bad has one cause; this is its code.
BAD = {
    "arguments": "argument-count",
    "axes_do_not_fit": "axis-mismatch",
    "axes_do_not_meet": "silent-outer-product",
    "axis_needed": "axis-needed",
    "conv_width": "not-a-whole-number",
    "declared_twice": "declared-twice",
    "domain_not_proved": "domain-not-proved",
    "domain_unbounded": "domain-not-proved",
    "draw_outside": "draw-outside-param",
    "init_varies": "init-varies",
    "look_ahead": "look-ahead",
    "missing_equation": "missing-equation",
    "missing_result": "missing-equation",
    "not_a_target": "not-a-target",
    "not_in_project": "not-in-project",
    "not_in_time": "not-in-time",
    "not_per_head": "not-per-head",
    "output_too_early": "output-too-early",
    "per_sequence": "not-per-sequence",
    "place_unknown": "place-unknown",
    "repeated_equation": "repeated-equation",
    "reserved_name": "reserved-name",
    "too_early": "used-too-early",
    "unit_not_proved": "domain-not-proved",
    "unknown_axis": "not-an-axis",
    "unknown_function": "not-a-function",
    "unknown_name": "unknown-name",
    "not_true_or_false": "not-true-or-false",
    "unknown_option": "unknown-argument",
    "unused": "unused",
    "weights_in_init": "init-varies",
}

FILES = sorted([*Path("specs").glob("*.seq"), *Path("tests/language").glob("*.seq")])
SECTIONS = [p for p in FILES if "\n  project " in p.read_text()]

LAYER = """seqc 1
layer tiny(heads = 2, K = 4, V = 3)
  input   q[K], v[V], beta in {domain}
  state   S[K, V] = 0
  update  S = S + beta * outer(q, v)
  output  o[V] = q @ S
  project x -> y
{body}
"""
EQUATIONS = {"q": "q = linear(x)", "v": "v = linear(x)", "beta": "beta = linear(x)", "y": "y = linear(o)"}


def project(domain: str = "(-inf, inf)", before: str = "", **equations: str) -> Project:
    body = "\n".join([before, *(EQUATIONS | equations).values()])
    found = check(parse(Source("<string>", LAYER.format(domain=domain, body=body))), sizes={}, beside=None)[0].project
    assert isinstance(found, Project)
    return found


def refused(domain: str = "(-inf, inf)", before: str = "", **equations: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as error:
        project(domain, before, **equations)
    return error.value.diagnostics


def test_every_bad_spec_is_listed() -> None:
    assert {p.stem.removeprefix("project_") for p in Path("tests/bad").glob("project_*.seq")} == set(BAD)


@pytest.mark.parametrize("name", BAD)
def test_bad_spec(name: str) -> None:
    path = Path(f"tests/bad/project_{name}.seq")
    with pytest.raises(SpecError) as error:
        check(parse(Source(path.name, path.read_text())), sizes={}, beside=None)
    (found,) = error.value.diagnostics
    assert found.code == BAD[name]
    assert found.primary is not None and found.primary.span.source.name == path.name
    assert not found.message.endswith(".") and found.message[0] in "`abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.stem)
def test_sections_of_all_specs_are_proved(path: Path) -> None:
    model, _ = check(parse(Source(path.name, path.read_text())), sizes={}, beside=path.parent)
    assert isinstance(model.project, Project)
    assert {a.name for a in model.project.assigns} >= {i.name for i in model.inputs} | {model.project.result}


def test_linear_maps_to_the_axes_of_its_place() -> None:
    made = project(q="q = silu(linear(linear[16](x), x)) / sqrt(K)", y="y = linear(o * silu(linear(x)))")
    owners = {o.name: o for o in made.owners}
    assert owners["q.linear"].inputs == (("16",), ("model",)) and owners["q.linear"].outputs == ("heads", "K")
    assert owners["q.linear_2"].outputs == ("16",)
    assert owners["y.linear"].inputs == (("heads", "V"),)
    assert owners["y.linear_2"].outputs == ("heads", "V")
    assert [o.name for o in made.owners] == ["q.linear", "q.linear_2", "v.linear", "beta.linear", "y.linear", "y.linear_2"]


def test_each_target_has_its_own_weights() -> None:
    made = project(q="", v="q, v = conv(linear(x), 4, bias = true)")
    assert [(o.name, o.bias) for o in made.owners[:4]] == [("q.conv", True), ("q.linear", False), ("v.conv", True), ("v.linear", False)]
    assert [(t.name, t.axes, t.length) for t in made.tails] == [("q.conv", ("heads", "K"), 3), ("v.conv", ("heads", "V"), 3)]


def test_norms_run_along_the_only_axis_besides_heads() -> None:
    made = project(y="y = linear(rmsnorm(o) + rmsnorm[heads, V](o) + groupnorm(o, eps = 64e-5))")
    norms = [o for o in made.owners if o.kind != "linear"]
    assert [o.inputs[0] for o in norms] == [("V",), ("heads", "V"), ("V",)]
    assert norms[2].bias and float(norms[2].eps or 0) == 64e-5


def test_all_errors_are_reported_together_and_once() -> None:
    found = refused(q="let a[heads, K] = linear(xx)", v="q = a * 2", beta="v = swish(x)")
    assert [d.code for d in found] == ["missing-equation", "unknown-name", "not-a-function"]


def test_message_of_a_domain_that_is_not_proved() -> None:
    (found,) = refused("(0, 1)", beta="beta = 2 * sigmoid(linear(x))")
    assert found.message == "`beta` is declared in (0, 1), and this may reach 2"
    assert found.primary is not None and (found.primary.span.text, found.primary.text) == ("2 * sigmoid(linear(x))", "in (0, 2)")
    assert [(label.span.text, label.text) for label in found.secondary] == [("beta in (0, 1)", "declared here")]
    assert found.helps == ("declare `beta in (0, 2)`",)


@pytest.mark.parametrize(
    ("domain", "value"),
    [
        ("(0, 1)", "sigmoid(linear(x))"),
        ("(0, 1)", "lerp(sigmoid(linear(x)), 1, sigmoid(linear(x)))"),
        ("(0, 1)", "1 - sigmoid(linear(x))"),
        ("(0, 1)", "sigmoid(linear(x))^2"),
        ("(0, 1)", "2^(-5 - head)"),
        ("(0, inf)", "elu(linear(x)) + 1"),
        ("(0, inf)", "exp(w)"),
        ("[0, inf)", "linear(x)^2"),
        ("(-inf, 0)", "-exp(w) * softplus(linear(x))"),
        ("(-inf, 0)", "log_sigmoid(linear(x)) / 16"),
        ("(-exp(-1/2), 0)", "-exp(-1/2) * sigmoid(linear(x))"),
        ("(0, 0.5)", "0.5 * sigmoid(linear(x)) / K"),
        ("[0, 1]", "max(0, min(1, linear(x)))"),
        ("[-1, 1)", "where(linear(x) > 0, -1, tanh(linear(x)))"),
        ("[0, 1)", "shift(sigmoid(linear(x)))"),
    ],
)
def test_domain_is_proved(domain: str, value: str) -> None:
    project(domain, "param w = 0" if "(w)" in value else "", beta=f"beta = {value}")


@pytest.mark.parametrize(
    ("domain", "value", "message"),
    [
        ("(0, 1)", "relu(linear(x))", "nothing bounds this above"),
        ("(0, 1)", "max(0, tanh(linear(x)))", "this may reach 0"),
        ("(0, 1)", "lerp(sigmoid(linear(x)), 1, max(0, min(1, linear(x))))", "this may reach 1"),
        ("(0, 1)", "1 - 2 * sigmoid(linear(x))", "this may reach -1"),
        ("(0, 1)", "shift(sigmoid(linear(x)))", "this may reach 0"),
        ("(0, 1)", "sigmoid(linear(x)) * w", "nothing bounds this"),
        ("(-inf, 0)", "-relu(linear(x))", "this may reach 0"),
        ("integer", "sigmoid(linear(x))", "this may be a fraction"),
    ],
)
def test_domain_is_not_proved(domain: str, value: str, message: str) -> None:
    (found,) = refused(domain, "param w = 0" if "* w" in value else "", beta=f"beta = {value}")
    assert found.code == "domain-not-proved" and found.message.endswith(message)
