"""What a module says about wrong sizes and inputs: one error, which names the argument and what is needed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from layers import checked
from modules import MODEL, Package, build, cut, each, inputs, kinds, small_sizes


@each
def test_wrong_sizes(package: Package, name: str) -> None:
    layer = package(name).Layer
    sizes = small_sizes(checked(name).model)
    for size in ("heads", *sizes):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"^{size} is 1 or more, not {value}$"):
                layer(MODEL, **{**sizes, size: value})
        for wrong in (4.5, 4.0, "4", True):
            with pytest.raises(TypeError, match=f"^{size} is a whole number, 1 or more, not {wrong!r}$"):
                layer(MODEL, **{**sizes, size: wrong})
    with pytest.raises(ValueError, match=r"^model is 1 or more, not 0$"):
        layer(0, **sizes)
    with pytest.raises(TypeError, match=r"^model is a whole number, 1 or more, not None$"):
        layer(None, **sizes)
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        layer(MODEL, **sizes, width=3)


def test_a_computed_size_is_checked_too(package: Package) -> None:
    with pytest.raises(ValueError, match=r"^heads = 32 / 5 is not a whole number$"):
        package("mamba2").Layer(MODEL, P=5)
    with pytest.raises(TypeError, match=r"^P is a whole number, 1 or more, not 0\.5$"):
        package("mamba2").Layer(MODEL, P=0.5)


CU = torch.tensor([0, 5, 11])
WRONG: dict[str, tuple[Any, str, type[Exception]]] = {
    "width": (lambda x: {"x": x[..., :-1]}, "`{x}` has shape [1, 11, 15]; [B, T, model = 16] is needed", ValueError),
    "matrix": (lambda x: {"x": x[0]}, "`{x}` has shape [11, 16]; [B, T, model = 16] is needed", ValueError),
    "whole": (lambda x: {"x": x.long()}, "`{x}` is torch.int64; a floating-point tensor [B, T, model = 16] is needed", TypeError),
    "list": (lambda x: {"x": x.tolist()}, "`{x}` is a list; a floating-point tensor [B, T, model = 16] is needed", TypeError),
    "type": (
        lambda x: {"x": x.float()},
        "`{x}` is torch.float32, but the weights are torch.float64: convert one of them, or use torch.autocast",
        TypeError,
    ),
    "cu list": (lambda x: {"x": x, "cu_seqlens": [0, 11]}, "cu_seqlens is a list; a tensor [N + 1] of int32 or int64 is needed", TypeError),
    "cu float": (
        lambda x: {"x": x, "cu_seqlens": CU.double()},
        "cu_seqlens is torch.float64; a tensor [N + 1] of int32 or int64 is needed",
        TypeError,
    ),
    "cu matrix": (
        lambda x: {"x": x, "cu_seqlens": CU[None]},
        "cu_seqlens has shape [1, 3]; [N + 1] is needed: where N sequences end, after a 0",
        ValueError,
    ),
    "cu rows": (
        lambda x: {"x": x.expand(2, -1, -1), "cu_seqlens": CU},
        "`{x}` has B = 2; packed sequences stand in one row: [B, T, model = 16] with B = 1 is needed",
        ValueError,
    ),
}


@pytest.mark.parametrize("case", WRONG)
@each
def test_wrong_inputs(package: Package, name: str, case: str) -> None:
    layer = build(package, name)
    change, message, error = WRONG[case]
    x, *more = inputs(layer, name, batch=1, tokens=11)
    arguments = change(x)
    first = checked(name).model.project.inputs[0].name  # type: ignore[union-attr]
    if case == "type" and not any(isinstance(m, torch.nn.Linear) or type(m).__name__ == "Headwise" for m in layer.modules()):
        assert layer(arguments["x"])[0].dtype == torch.float32  # no map whose weights the input has to agree with
        return
    with pytest.raises(error, match=f"^{re.escape(message.format(x=first))}$"):
        layer(arguments.pop("x"), *more, **arguments)


@each
def test_wrong_inputs_of_a_step(package: Package, name: str) -> None:
    layer = build(package, name)
    x = inputs(layer, name, tokens=11)
    _, *more = cut(name, x, 0)
    with pytest.raises(ValueError, match=r"has shape \[2, 11, 16\]; \[B, model = 16\] is needed$"):
        layer.step(x[0], *more, layer.init_state(2))


def test_inputs_that_disagree(package: Package) -> None:
    layer = build(package, "rwkv7")
    x, v1 = inputs(layer, "rwkv7")
    assert [when for when, _ in kinds("rwkv7")] == ["token", "token"]
    with pytest.raises(ValueError, match=r"^`v1` has shape \[2, 11, 1, 3\]; \[B, T, heads = 1, V = 4\] is needed$"):
        layer(x, v1[..., :3])
    with pytest.raises(ValueError, match=r"^`v1` has T = 10, but `x` has 11$"):
        layer(x, v1[:, :10])
    with pytest.raises(ValueError, match=r"^`v1` has B = 1, but `x` has 2$"):
        layer(x, v1[:1])


def test_per_sequence_inputs_are_counted() -> None:
    """N is the number of rows, or that of the packed sequences."""
    from seqc.backends.torch.base import check_inputs

    layer, x, low = torch.nn.Linear(4, 4), torch.zeros(2, 5, 4), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^`low` has N = 3, but `x` has 2$"):
        check_inputs(layer, None, ("x", x, "B, T, model", (4,)), ("low", low, "N, K", (2,)))
    with pytest.raises(ValueError, match=r"^`low` has N = 3, but `cu_seqlens` has 2$"):
        check_inputs(layer, CU, ("x", x[:1], "B, T, model", (4,)), ("low", low, "N, K", (2,)))
    check_inputs(layer, CU, ("x", x[:1], "B, T, model", (4,)), ("low", low[:2], "N, K", (2,)), ("b", low, "3, 2", (3, 2)))


def test_autocast_takes_any_floating_point_type(package: Package) -> None:
    layer = build(package, "gated_deltanet", dtype=torch.float32)
    x = torch.zeros(1, 3, MODEL, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"use torch\.autocast"):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype == torch.bfloat16
