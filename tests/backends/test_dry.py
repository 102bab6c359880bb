"""A GPU that is not there: launches and what kernels need, by kernels written here; which operations of PyTorch count, and for how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

import seqc  # noqa: E402
from seqc.backends.triton import dry as dry_module  # noqa: E402
from seqc.backends.triton import launching, tiles  # noqa: E402
from seqc.backends.triton.dry import Launch, NotCompiled, dry, forward_and_backward, idle  # noqa: E402
from seqc.backends.triton.operations import Operations, size  # noqa: E402
from seqc.backends.triton.targets import TARGETS  # noqa: E402

every = pytest.mark.parametrize("name", [n if n == "sm_90" else pytest.param(n, marks=pytest.mark.slow) for n in TARGETS])


@triton.jit
def double(x, y, n, b: tl.constexpr):
    tl.static_assert(b >= 32, "a tile of less than 32")
    i = tl.program_id(0) * b + tl.arange(0, b)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def product(x, y, z, b: tl.constexpr):
    i, j = tl.arange(0, b)[:, None], tl.arange(0, b)[None, :]
    tl.store(z + i * b + j, tl.dot(tl.load(x + i * b + j), tl.load(y + i * b + j)))


@triton.jit
def long_product(x, y, z, n, b: tl.constexpr):
    i, j = tl.arange(0, b)[:, None], tl.arange(0, b)[None, :]
    total = tl.zeros((b, b), tl.float32)
    for k in range(0, n, b):
        total += tl.dot(tl.load(x + i * n + k + j), tl.load(y + (k + i) * b + j))
    tl.store(z + i * b + j, total)


@triton.jit
def generated_product(x, y, z, b: tl.constexpr):
    i, j = tl.arange(0, b)[:, None], tl.arange(0, b)[None, :]
    tl.store(z + i * b + j, tiles.dot(tl.load(x + i * b + j), tl.load(y + i * b + j), "bf16"))


@triton.jit
def in_tiles(x, y, z, n_k, n_j: tl.constexpr, b_j: tl.constexpr):
    i, j = tl.arange(0, b_j)[:, None], tl.arange(0, b_j)[None, :]
    total = tl.zeros((b_j, b_j), tl.float32)
    for k in range(0, n_k, b_j):
        total += tl.dot(tl.load(x + i * n_k + k + j), tl.load(y + (k + i) * n_j + j))
    tl.store(z + i * n_j + j, total)


tuned = triton.autotune([triton.Config({}, num_stages=n) for n in (16, 4, 2)], key=[])(long_product)


@pytest.mark.slow
def test_a_product_of_large_tiles_is_compiled() -> None:
    """As a tile of three axes it would have 128 * 128 * 128 numbers, more than Triton allows, even where that is not taken."""
    x, y, z = torch.ones(3, 128, 128, dtype=torch.bfloat16)
    with dry(TARGETS["sm_90"]) as launches:
        generated_product[(1,)](x, y, z, b=128)
    (found,) = launches
    assert found.binary is not None and found.binary.products > 0


@every
def test_a_launch_is_noted_and_computes_nothing(name: str) -> None:
    x, y = torch.ones(100), torch.zeros(100)
    with dry(TARGETS[name]) as launches:
        double[(2,)](x, y, 100, b=64)
        double[(4,)](x, x, 100, b=32, num_warps=1)
    assert not y.any() and x.eq(1).all()
    first, second = launches
    assert (first.name, first.grid, first.warps, first.bytes) == ("double", (2, 1, 1), 4, 800)
    assert (second.grid, second.warps, second.bytes) == ((4, 1, 1), 1, 400)  # one tensor, given twice
    for x in launches:
        assert x.binary is not None and 0 < x.binary.registers < 64
        assert (x.binary.stack, x.binary.spills, x.binary.shared, x.binary.products) == (0, 0, 0, 0)


@every
def test_products_and_shared_memory(name: str) -> None:
    x = torch.ones(64, 64, dtype=torch.bfloat16)
    with dry(TARGETS[name]) as launches:
        product[(1,)](x, x.clone(), torch.empty(64, 64), b=64)
    launch = next(launch for launch in launches if launch.binary)
    assert launch.binary is not None and launch.binary.products > 0 and launch.binary.shared >= 64 * 64 * 2
    assert launch.bytes == 64 * 64 * (2 + 2 + 4)


def test_spills() -> None:
    x = torch.ones(64, 64, dtype=torch.bfloat16)
    with dry(TARGETS["sm_90"]) as launches:
        kernel = product[(1,)](x, x, torch.empty(64, 64), b=64, num_warps=1, maxnreg=48)
        (launch,) = launches
        assert launch.binary is not None and launch.binary.registers <= 48 and launch.binary.stack > 0 and launch.binary.spills > 0
        assert launching.spilled(kernel) == launch.binary.stack // 4


@pytest.mark.slow
def test_of_an_autotuned_kernel_one_launch_counts_and_it_fits() -> None:
    x = torch.ones(64, 1024, dtype=torch.bfloat16)
    for tried in (1, 2, 3):
        with dry(TARGETS["sm_80"], tried) as launches:
            tuned[(1,)](x, x.T, torch.empty(64, 64), 1024, b=64)
        tuned.cache.clear()
        (launch,) = launches
        assert launch.binary is not None
        assert (launch.binary.shared > TARGETS["sm_80"].shared) == (launch.stages == 16) == (tried == 1)


@triton.jit(do_not_specialize=["n_B"])
def counted(x, y, n_B, n_j: tl.constexpr, b_j: tl.constexpr):
    j = tl.arange(0, b_j)
    tl.store(y + j, tl.load(x + j, mask=j < n_j) * n_B, mask=j < n_j)


@pytest.mark.slow
def test_a_kernel_is_found_again_where_triton_would_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other counts the same; of another type, length, or alignment another."""
    rows = SimpleNamespace(table=None, tokens=0, even=True, dtype=torch.float32)
    looked, real = [], type(counted).run
    monkeypatch.setattr(type(counted), "run", lambda self, *a, **k: looked.append(k["warmup"]) or real(self, *a, **k))
    x, other, half = torch.ones(65), torch.ones(64), torch.ones(64, dtype=torch.float16)

    def needed(x: torch.Tensor, n: int, count: int) -> int:
        """How often Triton was asked for a kernel."""
        del looked[:]
        launching.launch(counted, launching.Cut((("j",),)), 1, (x, x), rows, n_B=count, n_j=n)
        return len(looked)

    with dry(TARGETS["sm_90"]) as launches:
        assert needed(x[:64], 64, 3) == 2 and needed(x[:64], 64, 16) == 0 and needed(other, 64, 1) == 0
        assert needed(x[:64], 32, 3) == 2 and needed(half, 64, 3) == 2 and needed(x[1:], 64, 3) == 1
        assert needed(x[1:], 64, 3) == 1 and needed(x[:64], 64, 2**31) == 1 and needed(x[:64], 64, 3) == 0
        assert needed(x[:64], 16, 2**31) == 2 and needed(x[:64], 16, 3) == 1 and needed(x[:64], 16, 3) == 0
        assert needed(x[1:], 16, 3) == 1 and needed(half, 16, 3) == 2 and needed(x[:64], 16, 5) == 0 and needed(x[:64], 16, 5) == 0
        assert needed(torch.empty(2**29), 64, 3) == 1  # AMD's kernels have other instructions for less than 2 GiB
        launching.launch(product, launching.Cut(()), 1, (half, half, other), rows, b=16)  # a kernel without counts
        launching.launch(product, launching.Cut(()), 1, (half, half, other), rows, b=16)
    assert [x.name for x in launches if x.binary] == [*["counted"] * 17, *["product"] * 2]
    assert [x.bytes for x in launches if x.binary] == [256, 256, 256, 256, 128, *[256] * 8, 128, 256, 256, 2**31, 384, 384]


def test_a_kernel_is_loaded_once_and_its_launches_are_told_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, x = SimpleNamespace(table=None, tokens=0, even=True, dtype=torch.float32), torch.ones(32)
    made, told, hook = [], [], triton.knobs.runtime.launch_enter_hook

    class Noted:
        def __init__(self, *_: object) -> None:
            made.append(self)

        def __call__(self, *arguments: object) -> None:
            told.append(arguments[7])

    monkeypatch.setattr(dry_module, "Idle", Noted)
    with idle(TARGETS["sm_90"]):
        for count in (3, 5, 7):
            if count == 7:
                hook.add(print)
            launching.launch(counted, launching.Cut((("j",),)), 1, (x, x), rows, n_B=count, n_j=8)
        hook.remove(print)
    assert len(made) == 1 and told[1:] == [None, hook]


@pytest.mark.slow
def test_a_launch_takes_what_fits() -> None:
    """As many stages as a block has memory for; where one is too many, shorter blocks; of what no block has memory for, the least."""
    x, rows = torch.ones(256, 256), SimpleNamespace(table=None, tokens=0, even=True, dtype=torch.float32)
    found = {}
    for kib in (1024, 60, 30, 1):
        with dry(replace(TARGETS["sm_80"], shared=kib * 1024)) as launches:
            launching.launch(in_tiles, launching.Cut((("j", "j"),), split=("j",)), 1, (x, x, x), rows, n_k=256, n_j=128)
        (launch,) = launches
        assert launch.binary is not None
        found[kib] = (launch.stages, launch.binary.shared <= kib * 1024, launch.grid[0])
    assert found == {1024: (3, True, 2), 60: (2, True, 2), 30: (1, True, 4), 1: (1, False, 8)}


class Cleared(dict[Any, Any]):
    """What another thread clears as soon as something is in it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_calls_alike_share_their_rows_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = seqc.load("linear_attention", backend="triton")
    rows = import_module(f"{layer.__name__}.triton_rows")
    signature, _ = layer.ops.OPERATOR.triton["chunkwise"]

    def found(batch: int, tokens: int, dtype: torch.dtype, ends: torch.Tensor | None = None) -> tuple[dict[str, int], Any]:
        values = [torch.zeros([{"B": batch, "N": batch, "T": tokens}.get(c, 2) for c in v.lead] + [16 for _ in v.axes], dtype=dtype)
                  for v in signature.arguments]  # fmt: skip
        sizes, made = rows._call(signature, tuple(values), ends)
        assert (sizes["@B"], sizes["@T"], made.tokens, made.dtype) == (batch, tokens, tokens, dtype)
        return sizes, made

    first = found(2, 65, torch.bfloat16)
    assert found(2, 65, torch.bfloat16)[1] is first[1] and first[1].even
    others = (found(2, 64, torch.bfloat16), found(3, 65, torch.bfloat16), found(2, 65, torch.float32))
    assert len({id(made) for _, made in (first, *others)}) == 4
    assert not found(1, 65, torch.bfloat16, torch.tensor([0, 65]))[1].even
    monkeypatch.setattr(rows, "CALLS", Cleared())
    assert found(2, 65, torch.bfloat16)[1] is not first[1]


class Spilling:
    """In place of a kernel: what a thread spills, by the lengths of blocks and the warps; -1: it does not fit."""

    arg_names = ("b_j",)

    def __init__(self, spills: dict[tuple[int, int], int]) -> None:
        self.spills, self.tried = spills, list[tuple[int, int, int]]()

    def warmup(self, grid: tuple[int], b_j: int, num_warps: int, num_stages: int = 0) -> SimpleNamespace:
        self.tried.append((b_j, num_warps, num_stages))
        assert grid == (2 * (128 // b_j) ** 2,)
        return SimpleNamespace(run=True, n_spills=self.spills.get((b_j, num_warps), 9))


def test_a_kernel_that_spills_is_tried_in_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "device", lambda: 0)
    monkeypatch.setattr(launching, "most_warps", lambda *_: 8)
    monkeypatch.setattr(launching, "fits", lambda kernel: kernel.n_spills >= 0)
    monkeypatch.setattr(triton, "JITFunction", Spilling)

    def chosen(spills: dict[tuple[int, int], int]) -> tuple[object, ...]:
        kernel = Spilling(spills)
        asked = launching.Asked(kernel, launching.Cut((("j", "j"),), split=("j", "j")), 2, (), (("j", 128),), torch.float32, {})
        blocks, options = asked.blocks_and_options(*launching.chosen(asked))
        return blocks, options["b_j"], options["num_warps"], len({*kernel.tried})

    assert chosen({(64, 8): 0}) == (4, 64, 8, 1)
    assert chosen({(64, 8): 3, (32, 4): 2, (32, 8): 0}) == (16, 32, 8, 3)
    assert chosen({(64, 8): 3, (32, 4): 2, (32, 8): -1}) == (16, 32, 4, 4)
    assert chosen({(64, 8): 3}) == (4, 64, 8, 4)
    assert chosen({(64, 8): -1, (32, 4): 0}) == (16, 32, 4, 4)
    assert chosen(dict.fromkeys(((64, 8), (32, 4)), -1))[:3] == (64, 16, 8)
    assert chosen(dict.fromkeys(((64, 8), (32, 4), (16, 4), (16, 8)), -1))[:3] == (64, 16, 8)


def test_blocks_of_a_tile_of_many_axes_are_as_short_as_it_needs() -> None:
    """A tile of 64 tokens, 16 levels and blocks of 16 keys and 16 values would have four times as many numbers as there are registers."""
    cut = launching.Cut((("t", "L", "K", "V"),), walked=("K", "V"))
    lengths, _, _ = launching.plan(cut, (("t", 64), ("L", 16), ("K", 64), ("V", 64)))
    assert lengths == {"b_t": 64, "b_L": 16, "b_K": 16, "b_V": 1}


def test_what_does_not_compile_is_named() -> None:
    x = torch.ones(8)
    with pytest.raises(NotCompiled, match=r"^double: a tile of less than 32$") as caught, dry(TARGETS["sm_90"]):
        double[(1,)](x, x, 8, b=16)
    assert caught.value.kernel == "double"
    with pytest.raises(ValueError, match="of the host"), dry(TARGETS["sm_90"]):
        raise ValueError("of the host")


def test_everything_is_as_before() -> None:
    before = (triton.runtime.driver._active, torch.cuda.get_device_properties, triton.runtime.Autotuner.prune_configs)
    with dry(TARGETS["gfx942"]):
        assert torch.cuda.get_device_properties(0).warp_size == 64
        assert triton.runtime.driver.active.get_current_target().arch == "gfx942"
    assert before == (triton.runtime.driver._active, torch.cuda.get_device_properties, triton.runtime.Autotuner.prune_configs)
    assert not triton.knobs.runtime.kernel_load_end_hook.calls and triton.knobs.runtime.jit_cache_hook is None


def test_a_kept_kernel_is_noted_in_the_run_that_launches_it() -> None:
    x = torch.ones(64)
    with dry(TARGETS["sm_90"]) as first:
        kept = double[(1,)](x, x, 64, b=64)
    with dry(TARGETS["sm_90"]) as second:
        kept[(3, 1, 1)](x, x, 64)
    assert len(first) == len(second) == 1 and second[0].grid == (3, 1, 1)


# --- Operations of PyTorch -----------------------------------------------------------------------------------------------


def noted(call: Callable[[], object]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with Operations(lambda name, moved: found.append((name, moved))):
        call()
    return found


X, H = torch.zeros(10, 4), torch.zeros(10, 4, dtype=torch.bfloat16)
Z = torch.zeros(10, 4, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "wanted"),
    (
        (lambda: X.to(torch.bfloat16), [("_to_copy", 160 + 80)]),
        (lambda: X.to(torch.float32), []),
        (lambda: X.contiguous(), []),
        (lambda: X.T.contiguous(), [("clone", 320)]),
        (lambda: X.T.reshape(4, 2, 5)[1:, None].expand(3, 6, 2, 5).unbind(), []),
        (lambda: X.reshape(5, 8).unflatten(1, (2, 4)).transpose(0, 1).detach(), []),
        (lambda: (X.new_empty(3), torch.empty_like(X), torch.empty(5)), []),
        (lambda: (X.new_zeros(3), torch.zeros_like(X), torch.ones(5)), [("new_zeros", 12), ("zeros_like", 160), ("ones", 20)]),
        (lambda: torch.zeros(0, 7), []),
        (lambda: X.copy_(H), [("copy_", 80 + 160)]),
        (lambda: X.zero_(), [("zero_", 160)]),
        (lambda: X.add_(H), [("add_", 160 + 80 + 160)]),
        (lambda: X + X, [("add", 160 + 160)]),
        (lambda: torch.zeros(1, 4).expand(10, 4) * X, [("zeros", 16), ("mul", 16 + 160 + 160)]),
        (lambda: torch.add(X, H, out=torch.empty(10, 4)), [("add", 160 + 80 + 160)]),
        (lambda: torch.cat((X, X[5:])), [("cat", 160 + 80 + 240)]),
        (lambda: X.sum(0), [("sum", 160 + 16)]),
        (
            lambda: torch.autograd.grad((Z * Z).sum(), Z),  # the adjoint of a sum is one number, wherever it is read
            [("mul", 320), ("sum", 164), ("ones_like", 4), ("mul", 4 + 320), ("mul", 4 + 320), ("add", 480)],
        ),
    ),
)  # fmt: skip
def test_what_counts(call: Callable[[], object], wanted: list[tuple[str, int]]) -> None:
    assert noted(call) == wanted


def test_a_registered_operator_is_what_it_does() -> None:
    @torch.library.custom_op("seqc_test_dry::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32).contiguous() * 2

    assert noted(lambda: twice(H)) == [("_to_copy", 240), ("mul", 320)]


def test_what_is_repeated_counts_once() -> None:
    assert size(torch.zeros(3, 1).expand(3, 50)) == 12 and size(torch.zeros(0, 3)) == 0 and size(torch.zeros(6)[::2]) == 12


# --- Forward and backward ------------------------------------------------------------------------------------------------


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y = torch.empty_like(x)
        double[(1,)](x, y, x.numel(), b=64)
        return y

    @staticmethod
    def backward(ctx: object, d: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return Double.forward(ctx, d.float()).to(d.dtype)


def test_both_phases_and_the_least_bytes() -> None:
    x, unused = torch.zeros(50, dtype=torch.bfloat16, requires_grad=True), torch.zeros(7, requires_grad=True)
    found = forward_and_backward(TARGETS["sm_90"], lambda: (Double.apply(x), None), (x, unused))
    assert [launch.name for launch in found.forward] == ["double"] and found.forward[0].bytes == 200
    assert [launch.name for launch in found.backward] == ["_to_copy", "double", "_to_copy"]
    assert [launch.bytes for launch in found.backward] == [300, 400, 300]
    assert found.backward[0] == Launch("_to_copy", 300)
    assert found.forward_ideal == 100 + 28 + 100 and found.backward_ideal == 100 + 28 + 100 + 100
