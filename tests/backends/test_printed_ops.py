"""Every op of the table, printed, executed and held to the interpreter, on several layouts and broadcast patterns."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from op_examples import EXAMPLES, SIZES, Array, Example, draw, values
from printing import ORDERS, compare

from seqc.backends.torch.printer import FUNCTIONS, OPERATORS, Printer
from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask, make, variables
from seqc.ir.lift import lift
from seqc.ir.ops import TABLE, var
from seqc.ir.program import BATCH, HEADS, TOKENS
from seqc.ir.table import ROWS

UNPRINTED = {
    "complex": "no form carries complex values",
    "append": "no form carries a growing state",
    "drop_last": "no form carries a growing state",
    "implicit": "no form lowers an implicit step",
}
SPELLED = ("var", "const", "apply_inverse")  # where they stand, or as a product
BATCHES = {**SIZES, BATCH: 2, HEADS: 6}
PRINTED = [e for e in EXAMPLES if e.op not in UNPRINTED]
NAMES = [f"{e.op}-{i}" for i, e in enumerate(PRINTED)]
# Axes that leaves are given in front: both, none, one, in turn over the leaves.
LEADS = (((BATCH, HEADS),), ((BATCH, HEADS), ()), ((), (BATCH, HEADS)), ((HEADS,), (BATCH,)), ((BATCH,), (BATCH, HEADS), (HEADS,)))


def test_every_row_has_an_entry_or_a_reason() -> None:
    has = {
        row.name
        for row in ROWS
        if row.name in FUNCTIONS or row.name in OPERATORS or row.name in SPELLED or hasattr(Printer, f"_{row.name}")
    }
    assert has | set(UNPRINTED) == set(TABLE) and not has & set(UNPRINTED)


@pytest.mark.parametrize("name", UNPRINTED)
def test_what_has_no_entry_is_refused(name: str) -> None:
    example = next(e for e in EXAMPLES if e.op == name)
    with pytest.raises(InternalError, match=f"no entry for `{name}`"):
        compare(example.node, values(example), SIZES)


@pytest.mark.parametrize("named", ORDERS, ids="".join)
@pytest.mark.parametrize("example", PRINTED, ids=NAMES)
def test_printed_op(example: Example, named: tuple[str, ...]) -> None:
    compare(example.node, values(example), SIZES, named)


def spread_over(example: Example, leads: tuple[tuple[str, ...], ...], seed: int) -> tuple[Expr, dict[str, Array]]:
    """The example with leading axes on its leaves."""
    table, given, rng = {}, {}, np.random.default_rng(seed)
    for i, leaf in enumerate(example.leaves):
        lead = tuple(a for a in leads[i % len(leads)] if a not in leaf.axes and "@g" not in leaf.axes)
        table[leaf] = var(leaf.name, (*lead, *leaf.axes), leaf.type.dtype)
        copies = [draw(leaf, example, rng) for _ in range(int(np.prod([BATCHES[a] for a in lead])))]
        given[leaf.name] = np.stack(copies).reshape([BATCHES[a] for a in lead] + list(copies[0].shape))
    return lift((example.node,), table)[0], given


@pytest.mark.parametrize("leads", LEADS, ids=str)
@pytest.mark.parametrize(
    "example", [e for e in PRINTED if e.leaves], ids=[f"{e.op}-{i}" for i, e in enumerate(p for p in PRINTED if p.leaves)]
)
def test_printed_op_with_batch_axes(example: Example, leads: tuple[tuple[str, ...], ...]) -> None:
    e, given = spread_over(example, leads, 3)
    compare(e, given, BATCHES, ORDERS[1])


# --- Contractions --------------------------------------------------------------------------------------------------

B, H, K, V, P, J, T, S = BATCH, HEADS, "K", "V", "P", "J", TOKENS, "@s"
# axes of the first, axes of the second, axes that stay
CONTRACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "matrix": ((B, H, T, K), (B, H, K, V), (B, H, T, V)),
    "matrix, swapped": ((B, H, K, V), (B, H, T, K), (B, H, T, V)),
    "matrix, result transposed": ((B, H, T, K), (B, H, K, V), (B, H, V, T)),
    "matrix, first transposed": ((B, H, K, T), (B, H, K, V), (B, H, T, V)),
    "matrix, both summed over rows": ((B, H, T, K), (B, H, T, V), (B, H, K, V)),
    "gram": ((B, H, T, K), (B, H, S, K), (B, H, T, S)),
    "batch missing left": ((T, K), (B, H, K, V), (B, H, T, V)),
    "batch missing right": ((B, H, T, K), (H, K, V), (B, H, T, V)),
    "batch missing in the middle": ((B, T, K), (H, K, V), (B, H, T, V)),
    "batch crossed": ((B, K), (H, K), (B, H)),
    "matrix and vector": ((B, H, T, K), (B, H, K), (B, H, T)),
    "vector and matrix": ((B, H, K), (B, H, K, V), (B, H, V)),
    "vector without batch": ((K,), (B, H, K, V), (B, H, V)),
    "outer": ((B, H, K), (B, H, V), (B, H, K, V)),
    "outer, named order": ((V,), (K,), (V, K)),
    "outer with a batch": ((B, T, K), (B, T, V), (B, T, K, V)),
    "dot": ((B, H, K), (B, H, K), (B, H)),
    "dot over two": ((B, K, V), (B, K, V), (B,)),
    "everything": ((B, K, V), (B, K, V), ()),
    "sum over lead": ((B, H, T, K), (B, H, T, V), (K, V)),
    "sum over batch": ((B, H, K), (B, H, K), (H, K)),
    "sum over lead, elementwise": ((B, H, T, K), (B, H, T), (H, K)),
    "one side summed alone": ((B, T, K), (B, V), (B, V)),
    "one side summed beside a product": ((B, T, K, P), (B, K, V), (B, T, V)),
    "two summed": ((B, T, K, P), (B, K, P, V), (B, T, V)),
    "two free on one side": ((B, T, K, P), (B, P, V), (B, T, K, V)),
    "named batch axis": ((B, T, P, K), (B, P, K, V), (B, T, P, V)),
    "named batch axis behind": ((B, T, K, P), (B, K, V, P), (B, T, V, P)),
    "named batch axis, dot": ((B, P, K), (B, P, K), (B, P)),
    "square": ((B, K, "K'"), (B, "K'", V), (B, K, V)),
    "square of a square": ((B, K, "K'"), (B, "K'", "K~"), (B, K, "K~")),
    "axes of one size that differ in their marks": ((B, "K~~", "K~'"), (B, "K~'", "K~~", K), (B, "K~~", K)),
    "the same, the other way": ((B, "K~'", "K~~"), (B, "K~~", "K~'", K), (B, K, "K~'")),
    "tokens to tokens": ((B, T, S), (B, S, V), (B, T, V)),
    "shared and free": ((B, T, S), (B, T, V), (B, S, V)),
    "no lead": ((T, K), (K, V), (T, V)),
    "scalars": ((), (), ()),
    "scalar and matrix": ((), (B, K, V), (B, V)),
}  # fmt: skip


def leaf_values(e: Expr, sizes: dict[str, int], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    lengths = {"@s": sizes[TOKENS], **sizes}
    return {v.name: rng.standard_normal([lengths[ops.base(a)] for a in v.axes]) for v in e.args}


@pytest.mark.parametrize("named", ORDERS, ids="".join)
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_contraction(name: str, named: tuple[str, ...]) -> None:
    x, y, out = CONTRACTIONS[name]
    e = make(TABLE["contract"], (var("x", x), var("y", y)), out)
    for ones in ((), (K,), (V,), (TOKENS,), (B,), (K, V, TOKENS, P)):
        sizes = {**BATCHES, **dict.fromkeys(ones, 1)}
        sizes["@s"] = sizes[TOKENS]
        compare(e, leaf_values(e, sizes, 1), sizes, named)


@pytest.mark.parametrize("out", [(), (B,), (B, K), (B, V, K), (K,), (T, K)], ids=str)
def test_sum_of_one(out: tuple[str, ...]) -> None:
    e = make(TABLE["contract"], (var("x", (B, T, K, V)),), out)
    compare(e, leaf_values(e, BATCHES, 2), BATCHES, ORDERS[1])


def test_common_contractions_are_matrix_products() -> None:
    """What a GPU does fast is printed as `@`, not as einsum."""
    for name in ("matrix", "gram", "both summed over rows", "tokens to tokens", "batch missing left"):
        x, y, out = next(v for n, v in CONTRACTIONS.items() if n.endswith(name))
        e = make(TABLE["contract"], (var("x", x), var("y", y)), out)
        text = compare(e, leaf_values(e, BATCHES, 1), BATCHES)
        assert " @ " in text and "einsum" not in text, text


# --- Masks ---------------------------------------------------------------------------------------------------------

# row axis, column axis, per row, step, offset, per column: rows of tokens (6), of two micro-steps (12) and of three (18)
MASKS = (
    Mask("@t", "@s", 1, 1, 0, 1), Mask("@t", "@s", 1, 1, 1, 1), Mask("@r6", "@s6", 2, 1, 0, 2), Mask("@t", "@s6", 1, 2, 1, 1),
    Mask("@t", "@s6", 1, 2, 2, 1), Mask("@t", "@s6", 1, 1, 1, 2), Mask("@r6", "@s9", 2, 1, 0, 3), Mask("@t", "@s9", 1, 3, 2, 1),
    Mask("@t", "@s9", 1, 1, 0, 3),
)  # fmt: skip
EXTREMES = (0.1, 1.0, 20.0)
TOKEN_COUNTS = (1, 6, 16, 17, 33, 50)


def lengths(tokens: int) -> dict[str, int]:
    return {"@t": tokens, "@s": tokens, "@r6": 2 * tokens, "@s6": 2 * tokens, "@s9": 3 * tokens, "K": 3, BATCH: 2}


def running(axis: str, per: int, tokens: int, extreme: float, rng: np.random.Generator, lead: tuple[int, ...]) -> Array:
    """A sum of log decays, one per token, seen by the rows of the axis: what the masks assume."""
    logs = -extreme * rng.random((*lead, tokens, 3))
    return np.repeat(np.cumsum(logs, -2), per, -2)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("tokens", (1, 5, 17))
def test_masks(mask: Mask, tokens: int) -> None:
    e = make(TABLE["masked"], (var("x", (BATCH, mask.row, mask.column)),), mask)
    n = lengths(tokens)
    compare(e, {"x": np.random.default_rng(0).standard_normal([2, n[mask.row], n[mask.column]])}, n)


def decayed_operands(kind: str, mask: Mask) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    row, column = (BATCH, mask.row, "K"), (BATCH, mask.column, "K")
    square = (BATCH, mask.row, mask.column)
    return {"gram": (row, column, square), "rows": (square, column, row), "columns": (square, row, column)}[kind]


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("kind", ("gram", "rows", "columns"))
def test_decayed(kind: str, mask: Mask, extreme: float) -> None:
    """In all three shapes, below, at and beyond a block of rows, with decays whose product is far below any number."""
    x, y, out = decayed_operands(kind, mask)
    upper, lower = var("up", (BATCH, mask.row, "K")), var("low", (BATCH, mask.column, "K"))
    e = make(TABLE["decayed"], (var("x", x), var("y", y), upper, lower), (out, mask))
    for tokens in TOKEN_COUNTS:
        n, rng = lengths(tokens), np.random.default_rng(tokens)
        given = {name: rng.standard_normal([n[a] for a in axes]) for name, axes in (("x", x), ("y", y))}
        total = running("K", 1, tokens, extreme, rng, (2,))
        given["up"] = np.repeat(total, n[mask.row] // tokens, -2)
        given["low"] = np.repeat(total, n[mask.column] // tokens, -2)
        compare(e, given, n)


@pytest.mark.parametrize("kind", ("gram", "rows", "columns"))
@pytest.mark.parametrize("missing", ("x", "y", "up"))
def test_decayed_with_batch_axes_missing(kind: str, missing: str) -> None:
    mask = MASKS[1]
    x, y, out = decayed_operands(kind, mask)
    axes = {"x": x, "y": y, "up": (BATCH, "@t", "K"), "low": (BATCH, "@s", "K")}
    for name in (missing, *(("low",) if missing == "up" else ())):
        axes[name] = axes[name][1:]
    e = make(TABLE["decayed"], tuple(var(n, a) for n, a in axes.items()), (out, mask))
    n, rng = lengths(20), np.random.default_rng(0)
    given = {name: rng.standard_normal([n[a] for a in axes[name]]) for name in ("x", "y")}
    given["up"] = given["low"] = running("K", 1, 20, 1.0, rng, (2,) if missing != "up" else ())
    compare(e, given, n)


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_decay(mask: Mask, extreme: float) -> None:
    e = make(TABLE["decay"], (var("up", (BATCH, mask.row)), var("low", (BATCH, mask.column))), mask)
    for tokens in TOKEN_COUNTS:
        n = lengths(tokens)
        total = running("K", 1, tokens, extreme, np.random.default_rng(tokens), (2,))[..., 0]
        compare(e, {"up": np.repeat(total, n[mask.row] // tokens, -1), "low": np.repeat(total, n[mask.column] // tokens, -1)}, n)


@pytest.mark.parametrize(("first", "second"), list(product(("add", "sub", "mul", "div", "power", "neg"), repeat=2)))
def test_parentheses(first: str, second: str) -> None:
    """Nested operators in every pair, on either side."""

    def of(name: str, x: Expr, y: Expr) -> Expr:
        return make(TABLE[name], (x,) if name == "neg" else (x, y))

    a, b, c = var("a", (K,)), var("b", (K,)), var("c")
    given = {"a": np.array([1.5, 0.5]), "b": np.array([0.7, 2.0]), "c": np.asarray(1.25)}
    for e in (of(first, of(second, a, b), c), of(first, c, of(second, a, b))):
        with np.errstate(invalid="ignore"):
            if e.op.name != "power" or second not in ("neg", "sub"):
                compare(e, given, SIZES)


@pytest.mark.parametrize("outer", ("add", "sub", "mul", "div", "neg", "contract"))
@pytest.mark.parametrize("inner", ("mul", "div", "sub", "contract"))
def test_parentheses_around_matrix_products(outer: str, inner: str) -> None:
    """@ and * bind equally in Python and are read from the left."""
    x, y, z = var("x", (B, K, "K'")), var("y", (B, "K'", "K~")), var("z", (B, K, "K~"))
    product_ = ops.contract((x, y), z.axes)
    within = product_ if inner == "contract" else make(TABLE[inner], (z, product_))
    right = var("w", (B, "K~", "K'"))
    if outer == "contract":
        cases = [ops.contract((within, right), x.axes), ops.contract((ops.rename(right, {"K'": K, "K~": "K~"}), within), (B, K))]
    elif outer == "neg":
        cases = [make(TABLE["neg"], (within,))]
    else:
        cases = [make(TABLE[outer], (z, within)), make(TABLE[outer], (within, z))]
    rng = np.random.default_rng(3)
    for e in cases:
        given = {v.name: 1 + rng.random([BATCHES[ops.base(a)] for a in v.axes]) for v in variables(e)}
        compare(e, given, BATCHES)
