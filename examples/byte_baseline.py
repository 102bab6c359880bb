"""The baseline of train_bytes.py: an order-4 byte context model with interpolated Witten-Bell smoothing.

After a context h of n bytes, seen c(h) times with t(h) distinct successors,

    P_n(b | h) = (c(h b) + t(h) P_{n-1}(b | h without its first byte)) / (c(h) + t(h)),    P_{-1}(b) = 1 / 256

and an unseen context leaves P_{n-1} as it is. The counts come from the whole training split and stay fixed.

    python examples/byte_baseline.py                the standard library's sources
    python examples/byte_baseline.py --data FILE    another file, its last tenth held out
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from byte_data import load_split

ORDER = 4


@dataclass(frozen=True)
class Table:
    """Counts after contexts of one length: sorted keys of context and byte, and of contexts, each with what was counted."""

    pairs: np.ndarray
    pair_counts: np.ndarray
    contexts: np.ndarray
    context_counts: np.ndarray
    distinct: np.ndarray


def windows(text: np.ndarray, order: int) -> np.ndarray:
    """For each position: the `order` bytes before it as one number, the nearest byte lowest. Bytes before the text are 0."""
    keys = np.zeros(len(text), np.int64)
    for back in range(1, order + 1):
        keys[back:] |= text[:-back].astype(np.int64) << (8 * (back - 1))
    return keys


def count(text: np.ndarray, order: int) -> Table:
    """Counts each byte of the text after the `order` bytes before it."""
    pairs, pair_counts = np.unique(windows(text, order) << 8 | text, return_counts=True)
    contexts, first = np.unique(pairs >> 8, return_index=True)
    distinct = np.diff(np.append(first, len(pairs)))
    return Table(pairs, pair_counts, contexts, np.add.reduceat(pair_counts, first), distinct)


def lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] is wanted, 0 where no key is."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def fit(text: np.ndarray, order: int = ORDER) -> tuple[Table, ...]:
    """One table for each context length from 0 to `order`."""
    return tuple(count(text, n) for n in range(order + 1))


def probabilities(tables: tuple[Table, ...], contexts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """P(symbol | context) for arrays of symbols and of their contexts, written as `windows` writes them."""
    p = np.full(len(symbols), 1 / 256)
    for order, table in enumerate(tables):
        context = contexts & ((1 << 8 * order) - 1)
        seen = lookup(table.pairs, table.pair_counts, context << 8 | symbols)
        total = lookup(table.contexts, table.context_counts, context)
        distinct = lookup(table.contexts, table.distinct, context)
        p = np.where(total > 0, (seen + distinct * p) / np.maximum(total + distinct, 1), p)
    return p


def bits_per_byte(train: np.ndarray, heldout: np.ndarray, order: int = ORDER) -> float:
    """The mean of -log2 P over the held-out bytes, counts from the training bytes."""
    tables = fit(train, order)
    return float(-np.log2(probabilities(tables, windows(heldout, order), heldout.astype(np.int64))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out bits per byte of an order-4 Witten-Bell byte model.")
    parser.add_argument("--data", type=Path, help="a file to learn instead of the standard library's sources")
    args = parser.parse_args()
    split = load_split(args.data)
    began = time.perf_counter()
    bits = bits_per_byte(split.train, split.heldout)
    took = time.perf_counter() - began
    print(f"{len(split.train):,} bytes counted, {len(split.heldout):,} held out: {bits:.4f} bits per byte ({took:.0f} s)")


if __name__ == "__main__":
    main()
