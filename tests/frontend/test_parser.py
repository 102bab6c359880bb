"""The grammar, the parse and its limits."""

from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqc.diagnostics import SpecError
from seqc.frontend import ast, grammar
from seqc.frontend.lines import CLAUSES, RESERVED, STATEMENTS
from seqc.frontend.parser import parse, parse_text, read_source
from seqc.frontend.tree import RULES

ROOT = Path(__file__).parents[2]
SPECS = sorted([*ROOT.glob("specs/**/*.seq"), *ROOT.glob("tests/language/*.seq")])
NUMBERS = [("1e-3", Fraction(1, 1000)), ("0.1", Fraction(1, 10)), ("2.5E+2", Fraction(250)), ("7", Fraction(7))]
PIECES = ["", "(", "]", "\n", "for i in n\n", "end", " = ", "**", "\u00e9", '"', "update ", "2", ",", "project x -> y\n"]
HEADER = "seqc 1\nlayer toy(K = 2)\n"


def codes(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_text(text)
    return [error.code for error in caught.value.diagnostics]


def value(text: str) -> ast.Expr:
    """The expression of a `let`."""
    (layer,) = parse_text(f"{HEADER}let a = {text}\n").definitions
    (let,) = layer.body
    assert isinstance(let, ast.Let)
    return let.value


def shape(e: object) -> str:
    """An expression with every grouping in brackets."""
    match e:
        case ast.Binary(op, left, right):
            return f"({shape(left)}{op}{shape(right)})"
        case ast.Negate(inner):
            return f"(-{shape(inner)})"
        case ast.Call(function, args, named):
            return f"{shape(function)}({','.join([*map(shape, args), *(f'{n.id}={shape(v)}' for n, v in named)])})"
        case ast.Index(base, items):
            return f"{shape(base)}[{','.join(map(shape, items))}]"
        case ast.Ref(name):
            return name
        case ast.Number(text=text):
            return text
    raise AssertionError(e)


def test_grammar_is_strict() -> None:
    parser = grammar.build(grammar.grammar_text(), strict=True)
    rules = {rule.alias or rule.origin.name for rule in parser.rules}
    inlined = {"statement", "definition", "expr", "sum", "product", "unary", "power", "postfix", "atom", "argument"}
    assert {name for name in rules if not name.startswith("_")} - inlined == set(RULES)


def test_31_words_are_reserved() -> None:
    assert len(RESERVED) == 31
    for word in (*STATEMENTS, *CLAUSES):
        assert codes(f"{HEADER}let {word} = 1\n")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_parse(path: Path) -> None:
    file = parse(read_source(path))
    assert file.edition == 1
    assert path.stem in {definition.name.id for definition in file.definitions}
    for definition in file.definitions:
        assert definition.span.text.startswith(("layer", "objective", "retention", "algorithm", "function"))
        for statement in definition.body:
            assert "\n\n" not in statement.span.text and statement.span.text == statement.span.text.strip()


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("-x^2", "(-(x^2))"), ("2^-x", "(2^(-x))"), ("a^b^c", "(a^(b^c))"), ("a - b - c", "((a-b)-c)"), ("a / b * c", "((a/b)*c)"),
        ("a * -b", "(a*(-b))"), ("a @ b @ c", "((a@b)@c)"), ("a + b <= c * d", "((a+b)<=(c*d))"), ("(a + b) * c", "((a+b)*c)"),
        ("sum[K](x)", "sum[K](x)"), ("k[i][0]", "k[i][0]"), ("start(M, C)(q)", "start(M,C)(q)"), ("f(a, n = -1)", "f(a,n=(-1))"),
        ("--x", "(-(-x))"),
    ],
)  # fmt: skip
def test_precedence(text: str, grouped: str) -> None:
    assert shape(value(text)) == grouped


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_numbers_are_exact(text: str, number: Fraction) -> None:
    found = value(text)
    assert isinstance(found, ast.Number) and (found.value, found.text) == (number, text)


def test_spans() -> None:
    text = f"{HEADER}  update  S = (a + b) * f(x)  # remark\n  output  S\n"
    (layer,) = parse_text(text).definitions
    update = layer.body[0]
    assert isinstance(update, ast.Update) and isinstance(update.value, ast.Binary)
    assert update.span.text == "update  S = (a + b) * f(x)"
    assert [part.span.text for part in (update.name, update.value.left, update.value.right)] == ["S", "(a + b)", "f(x)"]


def test_clauses() -> None:
    text = HEADER + "\n".join((
        "input x[K] in (0, 1] per layer, y in unit in integer", "memory M(z[K]) = z @ W with W[n: K, K] = learned",
        "state m like W in complex = 0",
        "learn M by descent(rate = 1) on l2(M(x), y) at start(M, 4)", "append x to a, y to b", "fold s = s + x by tree", "output s",
    ))
    (layer,) = parse_text(text).definitions
    inputs, deep, state, learn, append, fold, output = layer.body
    assert isinstance(inputs, ast.Inputs) and isinstance(deep, ast.DeepMemory) and isinstance(state, ast.Declare)
    x, y = inputs.signals
    assert (x.domains[0].open_low, x.domains[0].open_high, [scope.id for scope in x.scopes]) == (True, False, ["layer"])
    assert [domain.kind for domain in y.domains] == ["unit", "integer"]
    assert (deep.tensors[0].axes[0].name, deep.tensors[0].axes[0].index) == ("K", "n")
    assert state.tensors[0].like is not None and state.tensors[0].domains[0].kind == "complex"
    assert isinstance(learn, ast.Learn) and learn.point is not None and shape(learn.point) == "start(M,4)"
    assert isinstance(append, ast.Append) and [target.id for _, target in append.items] == ["a", "b"]
    assert isinstance(fold, ast.Fold) and fold.order is not None and fold.order.id == "tree"
    assert isinstance(output, ast.Output) and output.value is None


@pytest.mark.parametrize(
    "text",
    ["a +\n  b", "a\n  + b", "f(\n a,\n b\n)", "f(a\n# remark\n, b)", "a\n\n  @ b", "\n a"],
)
def test_statements_go_on(text: str) -> None:
    assert value(text)


def test_keyword_ends_a_statement() -> None:
    assert codes(f"{HEADER}let a = f(1\nlet b = (2\noutput b\n") == ["unclosed-bracket", "unclosed-bracket"]
    assert codes(f"{HEADER}let a = 1 +\nlet b = 2 *\noutput b\n") == ["missing-operand", "missing-operand"]


def test_all_errors_are_reported() -> None:
    text = f"{HEADER}input q[64]\nupdte z = 1\nlet a = b c\nfor i in K\nlet a = 2 ** 3\noutput a\nproject x -> y\n q = f(x\n y = 2x\n"
    with pytest.raises(SpecError) as caught:
        parse_text(text)
    found = [(error.code, error.primary.span.line) for error in caught.value.diagnostics if error.primary]
    assert found == [
        ("number-as-axis", 3), ("unknown-statement", 4), ("missing-operator", 5), ("missing-end", 6), ("foreign-operator", 7),
        ("unclosed-bracket", 10), ("missing-operator", 11),
    ]


def test_line_ends_and_marks() -> None:
    text = (ROOT / "specs/gla.seq").read_text("utf-8")
    dos = text.replace("\n", "\r\n")
    assert len(parse_text(dos).definitions) == 1
    assert codes(text.replace("\n", "\r"))[0] == "bad-character"


def test_unreadable_files(tmp_path: Path) -> None:
    def refused(name: str, data: bytes | None = None) -> str:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SpecError) as caught:
            parse(read_source(tmp_path / name))
        return caught.value.diagnostics[0].code

    assert refused("missing.seq") == "unreadable-file"
    assert refused(".") == "unreadable-file"
    assert refused("\0.seq") == "unreadable-file"
    assert refused("bytes.seq", b"seqc 1\n\xff\xfe") == "not-utf8"
    assert refused("large.seq", b"#" * 65537) == "file-too-large"
    assert refused("empty.seq", b"") == "empty-file"
    assert refused("zeros.seq", bytes(100)) == "bad-character"
    (tmp_path / "mark.seq").write_bytes(b"\xef\xbb\xbfseqc 1\nfunction f(a) = a\n")
    assert parse(read_source(tmp_path / "mark.seq")).definitions


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "(" * 60000, ")" * 60000, "\n" * 60000, "a+" * 30000, "-" * 1990 + "a", "a^" * 990 + "a", "f(a)" * 400, "%\n" * 30000, "1" * 60000,
        "1e999999999",
        "\nfor i in 2" * 5000, "\nend" * 10000, "\nupdate S = (" * 5000, '"' * 60000, "\n y = f(\n" + "a=1\n" * 15000, "\t" * 60000 + "%",
        "a,\n" * 20000,
    ],
    ids=range(17),
)  # fmt: skip
def test_hostile_texts_are_refused_soon(text: str) -> None:
    """Processor time, whatever else runs; each takes well under a second, and what is quadratic takes minutes."""
    begin = time.process_time()
    assert codes(f"{HEADER}let a = {text}")
    assert time.process_time() - begin < 10


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_give_diagnostics_only(data: bytes) -> None:
    with pytest.raises(SpecError):
        parse_text(data.decode("utf-8", "replace"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_specs_give_diagnostics_only(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SPECS)).read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 30)))
        text = text[:begin] + data.draw(st.sampled_from(PIECES)) + text[end:]
    try:
        parse_text(text)
    except SpecError as error:
        assert error.diagnostics


@pytest.mark.slow
def test_table_is_cached(tmp_path: Path) -> None:
    script = (
        "from seqc.frontend.parser import parse_text; import seqc.frontend.grammar as g\n"
        "parse_text('seqc 1\\nfunction f(a) = a'); print(g.build.__name__)"
    )

    def run(folder: Path, check: str = "") -> str:
        command = [sys.executable, "-c", check + script]
        done = subprocess.run(command, env={"SEQC_CACHE_DIR": str(folder)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(tmp_path)
    (table,) = tmp_path.iterdir()
    never = "import seqc.frontend.grammar as g\ndef never(*a): raise AssertionError('built again')\ng.build = never\n"
    assert "never" in run(tmp_path, never)
    for data in (b"", b"not a table", table.read_bytes()[:500]):
        table.write_bytes(data)
        run(tmp_path)
        assert "never" in run(tmp_path, never)
    assert [table] == list(tmp_path.iterdir())
    # A folder that cannot be made costs time only.
    run(table / "below a file")
