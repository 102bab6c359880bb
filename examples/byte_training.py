"""One training run of a byte-level model: the text as streams, the optimizers, a step, a checkpoint, the held-out measure."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from byte_checkpoint import load_checkpoint, save_checkpoint
from byte_model import SYMBOLS, ByteModel, ModelConfig, State, detached, option
from torch import Tensor, nn
from torch.nn import functional as F

import seqc

WARMUP = 0.02  # of the run
CLIP = 1.0


@dataclass(frozen=True)
class Config:
    """What a run is made of; kept in its checkpoint."""

    spec: str
    data: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    chunk: int = option(16, "tokens per chunk of the layer's chunkwise form")
    batch: int = option(16, "streams read side by side")
    segment: int = option(128, "bytes of a stream per step; gradients end there, the state goes on")
    matrix_rate: float = option(0.02, "learning rate of the blocks' matrices (Muon)")
    rate: float = option(0.004, "learning rate of embedding, head, convolutions and vectors (AdamW)")
    table_rate: float = option(0.02, "learning rate of the hashed tables (SparseAdam)")
    decay: float = option(0.05, "weight decay")
    precision: str = "auto"
    seed: int = option(0, "of weights, order of documents and samples")


def load_layer(spec: str, sizes: dict[str, int], chunk: int) -> type[nn.Module]:
    """The spec's module. Raises SystemExit where the spec has none, or one that needs more than x."""
    package = seqc.load(spec, sizes=sizes, chunk_size=chunk)
    layer = getattr(package, "Layer", None)
    if layer is None:
        raise SystemExit(f"{spec} has no project section, so there is no layer to train")
    more = [p.name for p in inspect.signature(layer.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
    if more:
        raise SystemExit(f"{spec} projects from {', '.join(more)} beside x; this example trains layers that take x alone")
    return layer


def streams(text: np.ndarray, rows: int, seed: int | None = None) -> Tensor:
    """The text as parallel rows [rows, length]; with a seed its documents (each ends with a zero byte) are shuffled first."""
    if seed is not None:
        documents = np.split(text, np.flatnonzero(text == 0) + 1)
        text = np.concatenate([documents[i] for i in np.random.default_rng(seed).permutation(len(documents))])
    length = len(text) // rows
    if not length:
        raise SystemExit(f"{len(text)} bytes of text are too few for {rows} streams")
    return torch.from_numpy(text[: rows * length].reshape(rows, length).astype(np.int64))


def segment(rows: Tensor, step: int, length: int) -> tuple[Tensor, Tensor]:
    """The inputs and targets of a step; the rows are read round and round."""
    at = (torch.arange(length + 1) + step * length) % rows.shape[1]
    window = rows[:, at]
    return window[:, :-1], window[:, 1:]


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean bits per byte."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def optimizers(model: ByteModel, config: Config) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the blocks' matrices, SparseAdam for the hashed tables, AdamW for the rest."""
    tables = list(model.embedding.tables.parameters())
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in tables + matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    wide, narrow = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim < 2]
    groups = [{"params": wide, "weight_decay": config.decay}, {"params": narrow, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=config.decay, ns_steps=4))
    if tables:
        found.append(torch.optim.SparseAdam(tables, lr=config.table_rate, betas=(0.9, 0.99)))
    return found


def rate_factor(progress: float) -> float:
    """The learning rate's share at a point of the run: a short rise, then a straight line to zero."""
    return min(1.0, progress / WARMUP + 0.05, (1 - progress) / (1 - WARMUP))


def autocast(precision: str) -> torch.autocast:
    """bfloat16 matrix products where the processor has them, if `auto`."""
    processor = torch.cpu.get_capabilities()
    fast = processor.get("avx512_bf16", False) or processor.get("amx_bf16", False)
    return torch.autocast("cpu", torch.bfloat16, enabled=fast if precision == "auto" else precision == "bfloat16")


class Trainer:
    """The model, its optimizers and the place in the text: everything that a checkpoint holds."""

    def __init__(self, config: Config, text: np.ndarray) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = ByteModel(load_layer(config.spec, config.sizes, config.chunk), config.sizes, config.model)
        self.optimizers = optimizers(self.model, config)
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.rows = streams(text, config.batch, config.seed)
        self.state: State = self.model.init_state(config.batch)
        self.step = 0
        self.elapsed = 0.0

    def train_step(self, progress: float) -> float:
        """One segment of every stream; returns its bits per byte."""
        self._set_rates(rate_factor(progress))
        inputs, targets = segment(self.rows, self.step, self.config.segment)
        with autocast(self.config.precision):
            logits, state = self.model(inputs, self.state)
        loss = loss_of(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse], CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.state = detached(state)
        self.step += 1
        return loss.item()

    def _set_rates(self, factor: float) -> None:
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def save(self, path: Path) -> None:
        """Everything that the run goes on from."""
        tree = {"config": asdict(self.config), "step": self.step, "elapsed": self.elapsed, "state": self.state}
        save_checkpoint(path, tree | {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]})

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same configuration."""
        tree = load_checkpoint(path)
        self.model.load_state_dict(tree["model"])
        for optimizer, saved in zip(self.optimizers, tree["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed, self.state = tree["step"], tree["elapsed"], tree["state"]


def saved_config(path: Path) -> Config:
    """The configuration that a checkpoint was made with."""
    values = load_checkpoint(path)["config"]
    return Config(**values | {"model": ModelConfig(**values["model"])})


@torch.no_grad()
def evaluate(model: ByteModel, text: np.ndarray, config: Config, rows: int = 32) -> float:
    """Bits per byte of the text, cut into `rows` streams that are read from their first byte to their last with the state carried.

    A stream's first byte is predicted from a zero byte, which is what ends a document.
    """
    length = -(-len(text) // rows)
    padded = torch.full((rows * length,), -100, dtype=torch.long)
    padded[: len(text)] = torch.from_numpy(text.astype(np.int64))
    targets = padded.view(rows, length)
    inputs = torch.cat((torch.zeros(rows, 1, dtype=torch.long), targets[:, :-1].clamp(min=0)), 1)
    state, total = model.init_state(rows), 0.0
    for start in range(0, length, config.segment):
        part = slice(start, start + config.segment)
        with autocast(config.precision):
            logits, state = model(inputs[:, part], state)
        total += F.cross_entropy(logits.flatten(0, 1), targets[:, part].flatten(), ignore_index=-100, reduction="sum").item()
    return total / math.log(2) / len(text)


@torch.no_grad()
def sample(model: ByteModel, prompt: bytes, length: int, temperature: float = 0.7, seed: int = 0) -> bytes:
    """The prompt and what the model writes after it, byte by byte through `step`."""
    generator = torch.Generator().manual_seed(seed)
    state, logits = model.init_state(1), torch.zeros(1, SYMBOLS)
    for byte in prompt:
        logits, state = model.step(torch.tensor([byte]), state)
    written = bytearray(prompt)
    for _ in range(length):
        chosen = torch.multinomial(torch.softmax(logits[0] / temperature, -1), 1, generator=generator)
        written.append(chosen.item())
        logits, state = model.step(chosen, state)
    return bytes(written)
