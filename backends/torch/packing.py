"""Packed rows: several sequences behind each other in one, in batches of similar length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .signature import Signature, Value, boundaries

Span = tuple[Tensor, Tensor]  # of a batch of sequences: where each begins and ends


@dataclass(frozen=True)
class Rows:
    """The sequences of a packed row: where each ends, and how much padding stands before each, none if its first chunk begins with it."""

    ends: list[int]
    begins: list[int]

    def length(self, r: int) -> int:
        return self.ends[r + 1] - self.ends[r]

    def batches(self) -> list[list[int]]:
        """Sequences with tokens, in batches of similar length, so that padding at most doubles the work."""
        found: dict[int, list[int]] = {}
        for r in range(len(self.begins)):
            if self.length(r):
                found.setdefault((self.length(r) + self.begins[r] - 1).bit_length(), []).append(r)
        return [found[k] for k in sorted(found)]

    def sizes(self, sizes: dict[str, int], rows: list[int]) -> dict[str, int]:
        return {**sizes, "@B": len(rows), "@N": len(rows), "@T": max(self.begins[r] + self.length(r) for r in rows)}

    def span(self, rows: list[int], device: torch.device) -> Span:
        begin = torch.tensor([self.begins[r] for r in rows], device=device)
        return begin, begin + torch.tensor([self.length(r) for r in rows], device=device)

    def gather(self, value: Value, x: Tensor, rows: list[int]) -> Tensor:
        """A batch of sequences, padded on both sides."""
        if value.lead.startswith("N"):
            return x[rows]
        if "T" not in value.lead:
            return x
        longest = max(self.begins[r] + self.length(r) for r in rows)
        if value.repeat:
            place = torch.arange(longest, device=x.device)
            return x[0, torch.stack([self.ends[r] + (place - self.begins[r]).clamp(0, self.length(r) - 1) for r in rows])]
        out = x.new_zeros((len(rows), longest, *x.shape[2:]))
        for i, r in enumerate(rows):
            out[i, self.begins[r] : self.begins[r] + self.length(r)] = x[0, self.ends[r] : self.ends[r + 1]]
        return out

    def scatter(self, value: Value, y: Tensor, out: Tensor, rows: list[int]) -> None:
        if value.lead.startswith("N"):
            out[rows] = y
        elif "T" not in value.lead:
            out += y
        else:
            for i, r in enumerate(rows):
                out[0, self.ends[r] : self.ends[r + 1]] = y[i, self.begins[r] : self.begins[r] + self.length(r)]


def packed_rows(signature: Signature, tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None, sizes: dict[str, int]) -> Rows | None:
    """The sequences of a packed row; None where all are of one length, and all begin where their first chunk does."""
    begins = [0] * sizes["@N"]
    if signature.blocks:
        at = next(i for i, v in enumerate(signature.arguments) if v.name == "position" and v.whole)
        begins = (tensors[at].detach().round().long() % signature.chunk).tolist()
    if cu_seqlens is not None:
        return Rows(boundaries(cu_seqlens, sizes["@T"]), begins)
    return Rows([n * sizes["@T"] for n in range(sizes["@N"] + 1)], begins) if any(begins) else None
