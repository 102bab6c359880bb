"""The check and `derive`: every layer passes, every wrong text gives its one error, and equal texts give equal recurrences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse, parse_text, read_source
from seqc.ir import interp, model, ops
from seqc.ir.expr import substitute, variables
from seqc.ir.recurrence import Recurrence

ROOT = Path(__file__).parents[2]
LAYERS = [p for folder in ("specs", "tests/language") for p in sorted((ROOT / folder).glob("*.seq"))]
BAD = sorted((ROOT / "tests" / "bad").glob("check_*.seq"))
DELTA = """
  input   q[K], k[K] in unit, v[V], beta in (0, 1)
  memory  S[K, V] = 0
  {}
  output  o[V] = S(q)
"""
PAIRS = """
  input   q[K], k[n, K], v[n, V]
  memory  S[K, V] = 0
{}
  output  o[V] = S(q)
"""


def layer(body: str, header: str = "K = 4, V = 3", after: str = "", **sizes: int) -> model.Model:
    return check(parse_text(f"seqc 1\n\nlayer toy({header}){body}{after}"), sizes=sizes, beside=None)[0]


def errors(body: str, header: str = "K = 4, V = 3", after: str = "", **sizes: int) -> list[Diagnostic]:
    with pytest.raises(SpecError) as caught:
        layer(body, header, after, **sizes)
    return list(caught.value.diagnostics)


def codes(body: str, header: str = "K = 4, V = 3", after: str = "", **sizes: int) -> list[str]:
    return [d.code for d in errors(body, header, after, **sizes)]


def same(one: Recurrence, other: Recurrence) -> bool:
    """Whether two recurrences compute the same expressions: nodes are interned."""
    states = [(s.name, s.next) for s in one.states] == [(s.name, s.next) for s in other.states]
    return states and [o.value for o in one.outputs] == [o.value for o in other.outputs]


def test_hidden_states_stand_where_they_are_needed() -> None:
    body = """
  input   q[K], k[K], v[V]
  memory  S[K, V] = 0
  let     late = shift(k) * 2
  let     many = sum[c](window[c](q))
  learn   S by descent(rate = 1) on l2(S(k), v) at start(S, 4)
  output  o[V] = S(q + late + many)
"""
    found = {s.name: s.span.line for s in derive(layer(body, "K = 4, V = 3, c = 2")).states if s.role == "hidden"}
    assert found == {"position": 8, "q@window2": 7, "k@shift": 6, "S@start4": 8}


@pytest.mark.parametrize("path", LAYERS, ids=lambda p: p.stem)
def test_layer_checks_and_derives(path: Path) -> None:
    found, said = check(parse(read_source(path)), sizes={}, beside=path.parent)
    assert said == ()
    recurrence = derive(found)
    given = {i.name for i in recurrence.inputs} | {p.name for p in recurrence.params} | {"head", "heads", "depth", "depths"}
    leaves = {v.name for v in variables(*(s.next for s in recurrence.states), *(o.value for o in recurrence.outputs))}
    unknown = {v for v in leaves if v.endswith("@next")}
    assert leaves <= given | {s.name for s in recurrence.states} | unknown
    for s in recurrence.states:
        assert (s.next.axes, s.next.type.dtype) == (s.axes, s.dtype) or s.growing
        assert {v.name for v in variables(s.init)} <= given


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_text_gives_its_error_and_nothing_else(path: Path) -> None:
    code = path.stem.removeprefix("check_").split("__")[0].replace("_", "-")
    with pytest.raises(SpecError) as caught:
        check(parse(read_source(path)), sizes={}, beside=None)
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_several_mistakes_are_all_reported() -> None:
    found = codes(DELTA.format("learn   S by descent(rate = betta) on l2(S(k), v)\n  update  S = S + k * v"))
    assert sorted(found) == ["silent-outer-product", "unknown-name"]


def test_a_refused_name_is_not_reported_again() -> None:
    assert codes(DELTA.format("let     w = k * v\n  learn   S by descent(rate = beta) on l2(S(k), w)")) == ["silent-outer-product"]


def test_a_mistake_in_a_loop_is_reported_once() -> None:
    assert (
        codes(PAIRS.format("  for i in n\n    learn   S by descent(rate = 1) on l2(S(k[i]), w[i])\n  end"), "K = 4, V = 3, n = 3").count(
            "unknown-name"
        )
        == 1
    )


# --- Order, points and loops -----------------------------------------------------------------------------------------


def values(found: model.Model, seed: int = 0, **sizes: int) -> np.ndarray:
    """The first output on random inputs."""
    rng = np.random.default_rng(seed)
    known = {s.name: int(s.default) for s in found.sizes if s.default is not None} | sizes
    inputs = {i.name: rng.normal(size=[6, *(known[a] for a in i.axes)]) for i in found.inputs}
    return next(iter(interp.run(derive(found), inputs, {}, known)[0].values()))


STEP = "  for i in n\n    learn   S by descent(rate = 1) on l2(S(k[i]), v[i]){}\n  end"
SUM = "  learn   S by descent(rate = 1) on sum[n](l2(S(k), v))"
SIZES = "K = 4, V = 3, n = 2"


def test_pairs_in_turn_at_the_start_are_pairs_at_once() -> None:
    at_once = values(layer(PAIRS.format(SUM), SIZES))
    np.testing.assert_allclose(values(layer(PAIRS.format(STEP.format(" at start(S)")), SIZES)), at_once, atol=1e-10)
    assert np.abs(values(layer(PAIRS.format(STEP.format("")), SIZES)) - at_once).max() > 1e-3


def test_a_loop_is_its_lines_written_out() -> None:
    lines = "".join(f"  learn   S by descent(rate = 1) on l2(S(k{i}), v{i})\n" for i in range(2))
    written = layer(f"\n  input   q[K], k0[K], k1[K], v0[V], v1[V]\n  memory  S[K, V] = 0\n{lines}  output  o[V] = S(q)\n")
    loop = derive(layer(PAIRS.format(STEP.format("")), SIZES))
    k, v = ops.var("k", ("n", "K")), ops.var("v", ("n", "V"))
    picked = {ops.var(f"k{i}", ("K",)): ops.select(k, "n", i) for i in range(2)} | {
        ops.var(f"v{i}", ("V",)): ops.select(v, "n", i) for i in range(2)
    }
    assert substitute([derive(written).states[0].next], picked)[0] is loop.states[0].next


def test_a_gradient_at_the_start_does_not_see_the_decay() -> None:
    body = "\n  input   q[K], k[K], v[V]\n  memory  S[K, V] = 0\n{}  output  o[V] = S(q)\n"
    start = values(layer(body.format("  retain  S by decay(1/2)\n  learn   S by descent(rate = 1) on l2(S(k), v) at start(S)\n")))
    by_hand = values(layer(body.format("  update  S = 1/2 * S - outer(k, S(k) - v)\n")))
    here = values(layer(body.format("  retain  S by decay(1/2)\n  learn   S by descent(rate = 1) on l2(S(k), v)\n")))
    np.testing.assert_allclose(start, by_hand, atol=1e-12)
    assert np.abs(here - start).max() > 1e-3


def test_at_start_of_the_first_line_changes_nothing() -> None:
    here = derive(layer(DELTA.format("learn   S by descent(rate = beta) on l2(S(k), v)")))
    start = derive(layer(DELTA.format("learn   S by descent(rate = beta) on l2(S(k), v) at start(S)")))
    assert same(here, start)


def test_a_let_is_a_number_in_an_objective() -> None:
    inside = derive(layer(DELTA.format("learn   S by descent(rate = beta) on l2(S(k) - S(k), v)")))
    frozen = derive(layer(DELTA.format("let     r = S(k)\n  learn   S by descent(rate = beta) on l2(S(k) - r, v)")))
    assert inside.states[0].next is not frozen.states[0].next


def test_an_algorithm_keeps_one_state_for_each_tensor() -> None:
    body = """
  input   q[K], k[K], v[K]
  memory  M(z[K]) = tanh(z @ A) @ B with A[K, N] = learned, B[N, K] = 0
  learn   M by momentum(rate = 1, keep = 1/2) on l2(M(k), v) at start(M, C)
  output  o[K] = M(q)
"""
    found = layer(body, "K = 4, N = 5, C = 3")
    assert [s.name for s in found.states] == ["M.A", "M.B", "M.A.m", "M.B.m"]
    assert [p.name for p in found.params] == ["M_A_init"]
    recurrence = derive(found)
    assert [(s.name, s.role) for s in recurrence.states][4:] == [("position", "hidden"), ("M.A@start3", "hidden"), ("M.B@start3", "hidden")]
    assert [s.role for s in recurrence.states[:4]] == ["declared", "declared", "algorithm", "algorithm"]
    assert [s.clock.every for s in recurrence.states] == [None, None, None, None, None, 3, 3]
    assert found.values == (("C", 3),)


def test_a_window_waits_for_the_line_that_makes_its_value() -> None:
    late = "\n  input   x[K]\n  state   s[K] = 0\n  update  s = s + x\n  let     a = 2 * x\n  output  o[K] = s + sum[c](window[c](a))\n"
    by_hand = "\n  input   x[K]\n  state   s[K] = 0\n  update  s = s + x\n  output  o[K] = s + 2 * sum[c](window[c](x))\n"
    np.testing.assert_allclose(values(layer(late, "K = 4, c = 3")), values(layer(by_hand, "K = 4, c = 3")), atol=1e-12)


def test_what_is_carried_is_the_value_at_its_line() -> None:
    body = "\n  input   x[K]\n  state   s[K] = 0\n{}  output  o[K] = a + s\n"
    before = values(layer(body.format("  let     a = shift(s)\n  update  s = s + x\n"), "K = 4"))
    after = values(layer(body.format("  update  s = s + x\n  let     a = shift(s)\n"), "K = 4"))
    x = np.random.default_rng(0).normal(size=(6, 4))
    total = np.cumsum(x, 0)
    lag = np.concatenate((np.zeros((2, 4)), total))
    np.testing.assert_allclose(before, total + lag[:6], atol=1e-12)
    np.testing.assert_allclose(after, total + lag[1:7], atol=1e-12)


def test_an_algorithm_in_a_loop_keeps_one_state() -> None:
    turns = "  for i in n\n    learn   S by momentum(rate = 1, keep = 1/2) on l2(S(k[i]), v[i])\n  end\n"
    body = turns + "  learn   S by momentum(rate = 1, keep = 1/3) on sum[n](l2(S(k), v))"
    assert [s.name for s in layer(PAIRS.format(body), SIZES).states] == ["S", "S.m", "S.m2"]


# --- Scopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope, fine", [("", True), (" per group", False), (" per layer", False)])
def test_a_state_takes_values_of_its_scope_or_coarser(scope: str, fine: bool) -> None:
    body = f"\n  input   x[K]\n  state   s[K] = 0{scope}\n  update  s = s + x\n  output  s\n"
    if fine:
        layer(body, "K = 4")
    else:
        assert codes(body, "K = 4") == ["coarser-scope"]


def test_a_value_per_layer_feeds_every_scope() -> None:
    declared = "\n  input   x[K] per layer, y[K] per group\n  state   s[K] = 0 per group, r[K] = 0\n"
    layer(f"{declared}  update  s = s + x * y\n  update  r = r + s\n  output  r\n", "K = 4")


def test_the_number_of_a_head_is_as_fine_as_a_head() -> None:
    assert codes("\n  input   x[K] per layer\n  state   s[K] = 0 per layer\n  update  s = s + head * x\n  output  s\n", "K = 4") == [
        "coarser-scope"
    ]


def test_a_param_that_names_heads_exists_once() -> None:
    found = layer("\n  input   x[K]\n  param   a[heads] = 0, b[K] = 1\n  output  y[K] = x * b * sum(a)\n", "K = 4")
    assert [p.scope for p in found.params] == ["layer", "head"]


# --- Domains and sizes -----------------------------------------------------------------------------------------------


def test_domains_are_read_as_numbers() -> None:
    found = layer(
        "\n  input   a[K] in (-exp(-1/2), 0], b[K] in unit, c in integer, z[K] in complex\n  output  y[K] = a * b * c * re(z)\n", "K = 4"
    )
    a, b, c, z = (i.domain for i in found.inputs)
    assert (round(a.low, 6), a.high, a.open_low, a.open_high) == (-0.606531, 0.0, True, False)
    assert (b.unit, c.integer, z.complex) == (True, True, True)
    assert found.inputs[3].dtype == "complex"


def test_sizes_are_exact_fractions() -> None:
    found = layer("\n  input   x[N]\n  output  y[N] = x\n", "K = 3, N = 2 * (K / 2) + ceil(model / 16) ^ 1", model=20)
    assert {s.name: s.default for s in found.sizes}["N"] == 5


def test_sizes_of_an_unknown_model_stay_formulas() -> None:
    found = layer("\n  input   x[N]\n  output  y[N] = x\n", "N = 2 * model")
    size = next(s for s in found.sizes if s.name == "N")
    assert (size.formula, size.default, size.static) == ("2 * model", None, False)


def test_every_layer_has_heads_and_groups() -> None:
    found = layer("\n  input   x[K]\n  output  y[K] = x\n", "heads = 4, K = 3")
    assert {s.name: s.default for s in found.sizes} == {"groups": 4, "heads": 4, "K": 3}


def test_sizes_that_unroll_are_static() -> None:
    found = layer(PAIRS.format("  for i in n\n    learn   S by descent(rate = 1) on l2(S(k[i]), v[i])\n  end"), "K = 4, V = 3, n = 2", n=3)
    assert found.values == (("n", 3),)
    assert sum(isinstance(s, model.Learn) for s in found.steps) == 3
    assert [s.name for s in found.sizes if s.static] == ["n"]


def test_a_numbered_entry_fixes_the_axis() -> None:
    """A call with a shorter axis would have no such entry. Every axis has an entry 0."""
    body = "\n  input   x[K], y[V]\n  output  o[K] = x * y[{}]\n"
    assert layer(body.format(2)).values == (("V", 3),)
    assert layer(body.format(0)).values == ()


def test_an_unknown_size_is_refused() -> None:
    assert codes("\n  input   x[K]\n  output  y[K] = x\n", "K = 4", Q=3) == ["unknown-size"]


# --- Names -----------------------------------------------------------------------------------------------------------


def test_a_library_beside_the_spec_comes_first_and_is_noted(tmp_path: Path) -> None:
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "l2.seq").write_text("seqc 1\n\nobjective l2(p[N], y[N]) = sum((p - y)^2)\n")
    text = f"seqc 1\n\nlayer toy(K = 4, V = 3){DELTA.format('learn   S by descent(rate = beta) on l2(S(k), v)')}"
    own, said = check(parse_text(text), sizes={}, beside=tmp_path)
    assert [(d.code, d.level) for d in said] == [("hides-library", "note")]
    assert not same(derive(own), derive(check(parse_text(text), sizes={}, beside=None)[0]))
    assert {t.name for t in own.texts} == {"<string>", "algorithms/descent.seq", "objectives/l2.seq"}


def test_a_definition_in_the_file_comes_before_the_library() -> None:
    body = DELTA.format("learn   S by descent(rate = beta) on l2(S(k), v)")
    found = layer(body, after="\nobjective l2(p[N], y[N]) = sum((p - y)^2)\n")
    assert not same(derive(found), derive(layer(body)))


def test_definitions_nest_sixteen_deep() -> None:
    def chain(n: int) -> str:
        return "".join(f"\nfunction f{i}(x) = f{i + 1}(x)\n" for i in range(n - 1)) + f"\nfunction f{n - 1}(x) = x\n"

    body = "\n  input   x[K]\n  output  y[K] = f0(x)\n"
    layer(body, "K = 4", chain(16))
    assert codes(body, "K = 4", chain(17)) == ["nested-too-deep"]


def test_formal_axes_map_over_the_rest() -> None:
    whole = "\n  input   x[n, K], y[n, K]\n  output  o[n] = f(x, y)\n"
    found = layer(whole, "K = 4, n = 3", "\nfunction f(p[N], y[N]) = sum(p * y)\n")
    by_hand = layer("\n  input   x[n, K], y[n, K]\n  output  o[n] = sum[K](x * y)\n", "K = 4, n = 3")
    assert derive(found).outputs[0].value is derive(by_hand).outputs[0].value


def test_two_axes_of_one_size_keep_their_places() -> None:
    one_sided = "\n  input   x[K], y[K]\n  output  o[K] = {} @ x\n"
    rows, columns, turned = (values(layer(one_sided.format(e), "K = 4")) for e in ("outer(x, y)", "outer(y, x)", "transpose(outer(y, x))"))
    np.testing.assert_allclose(rows, turned, atol=1e-12)
    assert np.abs(rows - columns).max() > 1e-3


def test_formal_axes_of_one_size_are_kept_apart() -> None:
    body = "\n  input   x[K], y[K]\n  output  o[K] = f(outer(x, y)) @ x\n"
    found = values(layer(body, "K = 4", "\nfunction f(G[I, J]) = G / sum[J](G^2)\n"))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    want = [np.outer(a, b) / (np.outer(a, b) ** 2).sum(1, keepdims=True) @ a for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, want, atol=1e-9)


def test_importing_the_frontend_is_light() -> None:
    code = "import sys, seqc.frontend.check, seqc.frontend.derive; print(sorted({'torch', 'sympy', 'networkx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
