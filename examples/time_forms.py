"""Times every form of layers, forward and backward, on random inputs at a few lengths.

    python examples/time_forms.py specs/deltaproduct.seq specs/gla.seq --lengths 64 256
"""

from __future__ import annotations

import argparse
import inspect
import time
from pathlib import Path
from statistics import median

import torch

import seqc

REPEATS = 3


def seconds(layer: torch.nn.Module, form: str, x: torch.Tensor) -> float:
    """The median time of a forward and a backward."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        y, _ = layer(x, form=form)
        y.sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def takes_only_x(layer: type[torch.nn.Module]) -> bool:
    """Whether the module is computed from one stream."""
    given = [p for p in inspect.signature(layer.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return len(given) == 2


def main() -> None:
    """Prints one line per spec, form and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", type=Path)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256])
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'layer':<20} {'form':<12} {'tokens':>7} {'ms':>9}   {device}, width {args.width}, batch 1")
    for spec in args.specs:
        package = seqc.load(spec)
        if not takes_only_x(package.Layer):
            print(f"{spec.stem:<20} takes more than one stream; left out")
            continue
        layer = package.Layer(args.width).to(device)
        for form in package.FORMS:
            for length in args.lengths:
                x = torch.randn(1, length, args.width, device=device, requires_grad=True)
                print(f"{spec.stem:<20} {form:<12} {length:>7} {1e3 * seconds(layer, form, x):>9.1f}")


if __name__ == "__main__":
    main()
