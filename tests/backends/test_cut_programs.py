"""Programs as kernels have them are the programs they were made of: equal in every result at random points of the prime field."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import ROOT, SHIPPED
from in_field import Points, assert_equal

import seqc
from seqc.backends.triton import cuts, parts, wide
from seqc.backends.triton.kernel import print_launch
from seqc.backends.triton.launches import Iteration, Launch, copied, flat, launches, leading, result
from seqc.backends.triton.meanings import meaning, needs
from seqc.backends.triton.package import emit as triton_kernels
from seqc.backends.triton.scales import scaled
from seqc.backends.triton.writer import Sizes, Writer
from seqc.compiler import Checked, judge, prepared, programs
from seqc.emit.layer import Layer, Programs
from seqc.forms import FORMS, Applies
from seqc.forms.base import Form
from seqc.forms.chunkwise import CHUNKWISE
from seqc.forms.recurrent import RECURRENT
from seqc.forms.scan import SCAN
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import CHUNKS, LEAD, Carried, Carry, Equation, Map, Program
from seqc.options import Options
from seqc.proof.certificate import Certificate

OWN = ("group_params", "group_vectors", "many_outputs", "hidden_sums", "full_sums", "systems", "two_alike")
FIRST = ("gated_deltanet", "kda", "linear_attention", "gated_deltaproduct", *OWN)


def as_cut(program: Program, lead: tuple[str, ...]) -> Program:
    """The program of the kernels, with the results that they write."""
    made, _ = launches(program, lead)
    apart = {e.name for e in copied(program)}
    leaves = {e.name: ops.var(result(e.name), e.value.axes, e.value.type.dtype) if e.name in apart else e.value for e in program.outputs}
    return Program(program.name, program.inputs, made.stages, tuple(Equation(n, v) for n, v in leaves.items()), program.widths)


every = pytest.mark.parametrize("name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in (*OWN, *SHIPPED)])


def layer_of(name: str) -> Checked:
    own = ROOT / "tests/backends" / f"{name}.seq"
    return seqc.check(own if own.exists() else name)


def forms_of(checked: Checked) -> Iterator[tuple[Form, tuple[str, ...]]]:
    """The forms that kernels are printed of, and the axes that a kernel sees one index of."""
    said = judge(checked)
    for form in FORMS:
        if isinstance(said[form.name], Applies) and form.name != "conv":
            yield form, leading(CHUNKS in form.axes)


def both(made: Programs) -> tuple[Program, Program]:
    return made.forward, made.backward


@pytest.mark.slow
@every
def test_a_cut_program_is_the_same_function(name: str) -> None:
    checked = layer_of(name)
    for form, lead in forms_of(checked):
        points, made = Points(checked, form), programs(checked, form)
        for program in both(made):
            assert_equal(points.run(as_cut(program, lead), {}), points.run(program, {}))


@every
def test_kernels_read_what_earlier_kernels_have_written(name: str) -> None:
    """Each value is written once, before any other kernel reads it, and read or a result."""
    checked = layer_of(name)
    for program, lead in ((p, lead) for f, lead in forms_of(checked) for p in both(programs(checked, f))):
        _, made = launches(program, lead)
        found = flat(made)
        results = {result(e.name) if e in copied(program) else e.value.name for e in program.outputs}
        of_iterations = {n for x in made if isinstance(x, Iteration) for names in x.found for n in names}
        done, read, finals = {i.name for i in program.inputs}, set[str](), set[str]()
        every_name = {n for x in found for n in written(x)}
        for x in found:
            own = {e.name for e in x.loop.equations} | {k.name for k in x.loop.carried} if x.loop else set()
            names = {n.name for v in x.values for n in walk(v) if n.op.name == "var"} - {*x.folded}
            assert not (names - own - done) & every_name, x.name
            assert done.isdisjoint(written(x)) and len({*written(x)}) == len(written(x))
            done |= {*written(x)}
            read |= names
            finals |= {k.final for k in x.loop.carried} if x.loop else set()
        assert every_name - {n for x in found for n in x.held} <= read | results | finals | of_iterations


@pytest.mark.slow
@every
def test_every_form_has_kernels(name: str) -> None:
    checked, said = layer_of(name), judge(layer_of(name))
    built = {form.name: programs(checked, form) for form in FORMS if isinstance(said[form.name], Applies)}
    proved = Certificate(name, "", 0, (), (), (), 0, 0.0, (), ())
    layer = Layer(checked.source, checked.model, prepared(checked), checked.sizes, Options(), "", said, built, proved)
    made, refused, _ = triton_kernels(layer)
    assert built and not refused, refused
    tiles = [set(re.findall(r"\b[nb]_\w+: tl.constexpr", kernel)) for f in made for kernel in f.text.split("@triton.jit")]
    assert all("n" + x[1:] in found for found in tiles for x in found if x[0] == "b"), "a tile's length depends on what is no constant"


def written(launch: Launch) -> list[str]:
    finals = [k.final for k in launch.loop.carried] if launch.loop else []
    return [*(e.name for e in (*launch.equations, *launch.behind)), *finals]


# --- Values of three axes of a tile ------------------------------------------------------------------------------------------


def test_sums_of_sums_keep_their_axes() -> None:
    p, q = ops.var("p", ("@h", "@t", "K", "J")), ops.var("q", ("@t", "V", "K"))
    value = ops.contract((ops.add(p, q),), ("V", "@h", "K", "J"))
    (made,) = wide.summed_inside([Map((Equation("o", value),))], LEAD)
    found = made.equations[0].value
    assert found is not value and found.axes == value.axes and sum(n.op.name == "add" for n in walk(found)) == 1


def test_equal_values_that_are_moved_keep_their_names() -> None:
    x, y, q = ops.var("x", ("@t", "K")), ops.var("y", ("@t", "V")), ops.var("q", ("@t", "K"))
    moved = ops.shift(ops.contract((x, y), ("@t", "K", "V")), "@t", 1)
    read = Equation("o", ops.contract((moved, q), ("@t", "V")))
    first, second = wide.moved_apart([Map((Equation("a", moved), Equation("b", moved), read))], LEAD)
    assert [e.name for e in first.equations] == ["a", "b"] and [e.name for e in second.equations] == ["o"]
    assert {n.name for n in walk(second.equations[0].value) if n.op.name == "var"} <= {"a", "b", "q"}


# --- Numbers per row -------------------------------------------------------------------------------------------------------

q, k, U = ops.var("q", ("@c", "t", "K")), ops.var("k", ("@c", "s", "K")), ops.var("U", ("@c", "s", "V"))
e, f = ops.var("e", ("@c", "t")), ops.var("f", ("@c", "s"))


def moved(*values: Expr) -> tuple[Expr, ...]:
    made = scaled(Program("p", (q, k, U, e, f), (Map(tuple(Equation(f"x{i}", v) for i, v in enumerate(values))),), ()), LEAD)
    equations = {x.name: x.value for x in made.stages[0].equations}  # type: ignore[union-attr]
    return tuple(equations[f"x{i}"] for i in range(len(values)))


def products(value: Expr) -> list[Expr]:
    return [n for n in walk(value) if n.op.name == "contract"]


def test_numbers_of_the_result_s_axes_stand_behind_the_product() -> None:
    (found,) = moved(ops.contract((ops.mul(e, q), ops.mul(f, k)), ("@c", "t", "s")))
    (product,) = products(found)
    assert product is ops.contract((q, k), ("@c", "t", "s")) and found.axes == product.axes


def test_numbers_of_the_summed_axis_go_to_what_is_computed() -> None:
    P = ops.exp(ops.contract((q, k), ("@c", "t", "s")))
    (found,) = moved(ops.contract((ops.mul(f, k), ops.exp(U)), ("@c", "K", "V")))
    assert found is ops.contract((k, ops.mul(f, ops.exp(U))), ("@c", "K", "V"))
    (found,) = moved(ops.contract((P, ops.mul(f, U)), ("@c", "t", "V")))
    assert found is ops.contract((ops.mul(f, P), U), ("@c", "t", "V"))


def test_of_two_that_are_read_each_keeps_its_numbers() -> None:
    both = ops.contract((ops.mul(f, k), U), ("@c", "K", "V"))
    assert moved(both) == (both,)


def test_what_a_name_stands_for_is_taken_apart() -> None:
    b, S = ops.mul(e, q), ops.var("S", ("@c", "K", "V"))
    stages = (Map((Equation("b", b),)), Map((Equation("y", ops.contract((ops.var("b", b.axes), S), ("@c", "t", "V"))),)))
    made = scaled(Program("p", (q, e, S), stages, ()), LEAD)
    (y,) = made.stages[1].equations  # type: ignore[union-attr]
    parts = {x.name: x.value for x in made.stages[0].equations}  # type: ignore[union-attr]
    (product,) = products(y.value)
    assert {parts[n.name] for n in walk(y.value) if n.op.name == "var" and n.name in parts} == {e, q} and parts["b"] is b
    assert [parts.get(x.name) for x in product.args] == [q, None]


# --- Loops in blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("moneta_linear", "longhorn"))
def test_a_loop_with_a_rule_of_rows_has_blocks(name: str) -> None:
    """What a rule says of one entry of a row it says of each: the columns of a state are apart."""
    made = programs(seqc.check(name), CHUNKWISE)
    found = [x for p in (made.forward, made.backward) for x in flat(launches(p, LEAD)[1])]
    loops = [x for x in found if any(n.op.name == "strict_solve" for n in walk(*x.values))]
    assert loops and all(x.split for x in loops)


@pytest.mark.slow
def test_a_system_is_solved_once_and_its_matrix_is_no_tile_of_every_token() -> None:
    """The matrices of all tokens are neither a tile nor in memory, and no loop over chunks waits for a solution."""
    made = programs(seqc.check("mesanet"), CHUNKWISE)
    for program, solutions in ((made.forward, 1), (made.backward, 2)):
        found = flat(launches(program, LEAD)[1])
        systems = [n for x in found for n in walk(*x.values) if n.op.name == "solve"]
        assert len(systems) == len({*systems}) == solutions
        assert not any(n.op.name == "solve" for x in found if x.loop for n in walk(*x.values))
        assert all(sum(a not in LEAD for a in e.value.axes) <= 2 for x in found for e in (*x.equations, *x.behind))
    text = next(f.text for f in seqc.compile("mesanet", backend="triton").files if f.name.endswith("triton_chunkwise.py"))
    assert text.count("tiles.solve(") == 3 and "(b_tokens, b_K, b_K)" not in text and "(b_s, b_K, b_K)" not in text


def test_systems_along_an_axis_in_blocks_are_solved_together() -> None:
    """A program has the systems of its block: a loop over all of them would write those of the first block everywhere."""
    lead = leading(chunked=False)
    H = ops.var("H", ("@t", "@b", "@h", "J", "K", "K'"))
    q = ops.var("q", ("@t", "@b", "@h", "K"))
    equations = (Equation("o", ops.solve(H, q, "K", "K'")), Equation("z", ops.exp(q)))
    outputs = tuple(Equation(e.name, ops.var(e.name, e.value.axes)) for e in equations)
    (launch,) = flat(launches(Program("p", (H, q), (Map(equations),), outputs), lead)[1])
    leaves = {x.name: x for x in (H, q, *(e.value for e in outputs))}
    text = print_launch(Writer(launch, leaves, {}, {}, Sizes(H.axes, lead), needs, meaning))
    assert launch.split == ("J",) and "tiles.solve(" in text and "n_J):" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ("atlas", "rotary"))
def test_a_loop_s_programs_have_a_head_each(name: str) -> None:
    """A state without heads that takes in a sum over all of them has a loop of its own: with the others one program would see all heads
    (1.1 MB of shared memory for atlas)."""
    made, points, lead = programs(seqc.check(name), RECURRENT).backward, Points(seqc.check(name), RECURRENT), leading(chunked=False)
    loops = [x for x in flat(launches(made, lead)[1]) if x.loop is not None]
    assert len({"@h" in x.grid for x in loops}) == 2  # the backward runs the forward again: it has loops of its own
    assert all(("@h" in x.grid) == any("@h" in k.init.axes for k in x.loop.carried) for x in loops if x.loop)
    assert_equal(points.run(as_cut(made, lead), {}), points.run(made, {}))


@pytest.mark.parametrize("name", ("retnet", "linear_attention", "gated_deltanet", "gla", "kda"))
def test_a_loop_of_a_matrix_has_blocks_and_no_product_without_an_axis_of_it(name: str) -> None:
    """What every block would compute alike is made before, where a kernel before the loop can."""
    made = programs(seqc.check(name), CHUNKWISE)
    for program in (made.forward, made.backward):
        found = flat(launches(program, LEAD)[1])
        for i, launch in enumerate(found):
            if launch.loop is not None:
                work = [n for n in walk(*launch.values) if n.op.name in ("contract", "decayed") and len(n.args) > 1]
                alike = [n for n in work if not {"K", "V"} & {*n.axes} and {"K", "V"} & {a for x in n.args for a in x.axes}]
                assert launch.split and (i == 0 or all(sum(a not in LEAD for a in n.axes) < 2 for n in alike))


def test_a_loop_takes_what_follows_from_its_results_and_nothing_made_after_it() -> None:
    state, each = ("@b", "@h", "K", "V"), ("@c", "@b", "@h", "t", "V")
    S, query, g = ops.var("S", state), ops.var("q", ("@c", "@b", "@h", "t", "K")), ops.var("g", ("@c", "@b", "@h", "t"))
    loop = Carry("@c", False, (Carried("S", ops.var("S@0", state), ops.mul(ops.number(2), S), "S@T"),), (Equation("S_start", S),))
    o = Equation("o", ops.contract((query, ops.var("S_start", ("@c", *state))), each))
    w, later = Equation("w", ops.exp(g)), ops.var("w", g.axes)
    read = ops.var("o", each)
    for of, taken in ((g, ["o", "y"]), (later, ["o"])):
        y = Equation("y", ops.mul(read, of))
        _, behind = cuts._fused([loop, Map((o,)), Map((w,)), Map((y,))], {}, LEAD)
        assert [e.name for e in behind[0]] == taken


@pytest.mark.slow
def test_a_map_of_many_products_is_cut_in_few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """s4's scan has Maps of 58 products; each pair of a product taken out and one put in was tried (more than ten minutes and 22 GB)."""
    tried, cut = list[int](), parts._cut

    def counted(graph: parts._Graph, first: int) -> tuple[int, tuple[Expr, ...]]:
        tried.append(len(graph.work))
        return cut(graph, first)

    monkeypatch.setattr(parts, "_cut", counted)
    parts._best.cache_clear()
    launches(programs(layer_of("s4"), SCAN).backward, leading(chunked=True))
    assert max(tried) > 2 * parts.EXCHANGES
    assert len(tried) < 1000
