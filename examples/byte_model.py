"""A byte-level language model around any layer that seqc compiles: embeddings, pre-norm residual blocks, a head.

Beside a byte's own embedding, the last 2, 3, ... bytes together pick rows of hashed tables. A row costs a look-up, not a
matrix product, so a small model learns spellings cheaply and its blocks are left with what reaches further back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS = 256
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio as a signed number: multiplicative hashing

# What forward hands over: the last bytes, and each layer's own state.
State = tuple[Tensor, list[dict[str, object]]]


def option(default: int | float, text: str) -> int | float:
    """A field with a default and the text of its command-line option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelConfig:
    """The model around the layer."""

    model: int = option(256, "width")
    layers: int = option(2, "blocks")
    mlp: int = option(1024, "width of the gated MLP")
    ngram: int = option(5, "longest context in bytes that a hashed table embeds, 1 for no tables")
    table_bits: int = option(16, "log2 of the rows of each table")
    table_width: int = option(64, "columns of each table")


def hashed(window: Tensor, bits: int) -> Tensor:
    """Rows of bytes [..., n], n < 8, as numbers below 2^bits. Windows of two bytes do not collide in 16 bits."""
    key = torch.zeros_like(window[..., 0])
    for byte in window.unbind(-1):
        key = key << 8 | byte
    return key * GOLDEN >> (64 - bits) & ((1 << bits) - 1)


class ByteEmbedding(nn.Module):
    """Bytes [B, n + T], of which the first n only give context, to vectors [B, T, model]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bits = config.table_bits
        self.context = config.ngram - 1
        self.byte = nn.Embedding(SYMBOLS, config.model)
        self.tables = nn.ModuleList(nn.Embedding(1 << self.bits, config.table_width, sparse=True) for _ in range(self.context))
        self.mix = nn.Linear(self.context * config.table_width, config.model, bias=False) if self.context else None
        nn.init.normal_(self.byte.weight, std=0.5)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.byte(tokens[:, self.context :])
        if self.mix is None:
            return x
        windows = tokens.unfold(1, self.context + 1, 1)
        rows = [table(hashed(windows[..., -n:], self.bits)) for n, table in enumerate(self.tables, start=2)]
        return x + self.mix(torch.cat(rows, -1))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, model: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(model, hidden, bias=False)
        self.up = nn.Linear(model, hidden, bias=False)
        self.down = nn.Linear(hidden, model, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, mix: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.mix_norm = nn.RMSNorm(config.model)
        self.mix = mix
        self.mlp_norm = nn.RMSNorm(config.model)
        self.mlp = GatedMLP(config.model, config.mlp)

    def forward(self, x: Tensor, state: dict[str, object]) -> tuple[Tensor, dict[str, object]]:
        y, state = self.mix(self.mix_norm(x), state=state)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state

    def step(self, x: Tensor, state: dict[str, object]) -> tuple[Tensor, dict[str, object]]:
        y, state = self.mix.step(self.mix_norm(x), state)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state


class ByteModel(nn.Module):
    """Bytes [B, T] to the next byte's logits [B, T, 256], and the state to go on from."""

    def __init__(self, layer: type[nn.Module], sizes: dict[str, int], config: ModelConfig) -> None:
        super().__init__()
        self.embedding = ByteEmbedding(config)
        self.blocks = nn.ModuleList(Block(layer(config.model, **sizes), config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.model)
        self.head = nn.Linear(config.model, SYMBOLS, bias=False)
        nn.init.zeros_(self.head.weight)

    def init_state(self, batch: int) -> State:
        """The state before the first byte."""
        return torch.zeros(batch, self.embedding.context, dtype=torch.long), [block.mix.init_state(batch) for block in self.blocks]

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        past, states = state
        tokens = torch.cat((past, tokens), 1)
        x, new = self.embedding(tokens), []
        for block, block_state in zip(self.blocks, states, strict=True):
            x, block_state = block(x, block_state)
            new.append(block_state)
        return self.head(self.norm(x)).float(), (tokens[:, tokens.shape[1] - past.shape[1] :], new)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One byte of each sequence [B], through each layer's own `step`."""
        past, states = state
        tokens = torch.cat((past, token[:, None]), 1)
        x, new = self.embedding(tokens)[:, 0], []
        for block, block_state in zip(self.blocks, states, strict=True):
            x, block_state = block.step(x, block_state)
            new.append(block_state)
        return self.head(self.norm(x)).float(), (tokens[:, 1:], new)


def detached(state: object) -> object:
    """The same state, cut from the graph that made it."""
    match state:
        case Tensor():
            return state.detach()
        case dict():
            return {name: detached(part) for name, part in state.items()}
        case list() | tuple():
            return type(state)(detached(part) for part in state)
    return state
