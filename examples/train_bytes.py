"""Trains a small byte-level language model whose mixing layers are compiled from a spec.

    python examples/train_bytes.py --spec specs/deltaproduct.seq --heads 2 -s K=32 --minutes 5 --baseline
    python examples/train_bytes.py --spec specs/gla.seq --data book.txt --layers 2 -s K=32 --out runs/book
    python examples/train_bytes.py --out runs/book --resume --minutes 10

The text is the Python standard library's own sources unless --data names a file. The bytes run in parallel streams, and
each segment starts from the state that the segment before it left. The learning rate falls to zero as the time runs out.
The last 2 to 5 bytes also pick rows of hashed n-gram tables, which most of the parameters are in; --ngram 1 does without.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not burn a core that another program could use

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from byte_baseline import bits_per_byte
from byte_data import Split, load_split
from byte_model import ModelConfig
from byte_training import Config, Trainer, evaluate, sample, saved_config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"
SAVE_EVERY = 60.0  # seconds
PROMPT = b"def read(self, size=-1):\n"


def size(text: str) -> tuple[str, int]:
    """NAME=N. Raises ValueError for anything else."""
    name, number = text.split("=")
    return name, int(number)


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the configuration has an option of its name."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--spec", default="specs/deltaproduct.seq", help="the layer: a .seq file, or a name that seqc knows")
    found.add_argument("--data", help="a file to learn, its last tenth held out")
    found.add_argument("-s", "--size", type=size, action="append", default=[], metavar="NAME=N", help="a size of the layer, such as K=32")
    found.add_argument("--heads", type=int, help="the same as -s heads=N")
    for field in (*fields(ModelConfig), *fields(Config)):
        if isinstance(field.default, int | float):
            name = "--" + field.name.replace("_", "-")
            found.add_argument(name, type=type(field.default), default=field.default, help=f"{field.metadata['help']} ({field.default})")
    found.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of matrix products (auto)")
    found.add_argument("--minutes", type=float, default=5.0, help="wall clock for training, from the program's start (5)")
    found.add_argument("--steps", type=int, help="train for so many steps instead")
    found.add_argument("--threads", type=int, help="processor threads")
    found.add_argument("--out", type=Path, help="the run's folder (runs/SPEC)")
    found.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with its configuration")
    found.add_argument("--baseline", action="store_true", help="also measure the order-4 Witten-Bell model on the same bytes")
    found.add_argument("--sample", type=int, default=400, metavar="BYTES", help="bytes to write at the end (400)")
    return found


def config_of(args: argparse.Namespace) -> Config:
    """The configuration that the options describe."""
    values = vars(args)
    sizes = dict(args.size)
    if args.heads:
        sizes["heads"] = args.heads
    model = ModelConfig(**{f.name: values[f.name] for f in fields(ModelConfig)})
    plain = {f.name: values[f.name] for f in fields(Config) if f.name not in ("sizes", "model")}
    return Config(**plain, model=model, sizes=sizes)


def prepared(args: argparse.Namespace) -> tuple[Trainer, Split]:
    """A new run or the one that --out holds, and its text."""
    checkpoint = args.out / CHECKPOINT
    config = saved_config(checkpoint) if args.resume else config_of(args)
    split = load_split(Path(config.data) if config.data else None)
    trainer = Trainer(config, split.train)
    if args.resume:
        trainer.load(checkpoint)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / LOG).unlink(missing_ok=True)
    return trainer, split


def progress_bar(console: Console) -> Progress:
    columns = ("step {task.fields[step]}", BarColumn(), TimeRemainingColumn(), "{task.fields[bits]:.3f} bits/byte")
    return Progress(*(c if not isinstance(c, str) else TextColumn(c) for c in columns), console=console)


def train(trainer: Trainer, args: argparse.Namespace, began: float, console: Console) -> None:
    """Steps until the time or the number of steps is reached; logs every step and saves on the way."""
    before, saved = trainer.elapsed, time.monotonic()
    with progress_bar(console) as bar, (args.out / LOG).open("a", buffering=1, encoding="utf-8") as log:
        task, mean = bar.add_task("train", total=1.0, step=trainer.step, bits=8.0), None
        while (done := _progress(trainer, args)) < 1:
            bits = trainer.train_step(done)
            trainer.elapsed = before + time.monotonic() - began
            mean = bits if mean is None else 0.95 * mean + 0.05 * bits
            log.write(json.dumps({"step": trainer.step, "seconds": round(trainer.elapsed, 2), "bits": round(bits, 5)}) + "\n")
            bar.update(task, completed=done, step=trainer.step, bits=mean)
            if time.monotonic() - saved > SAVE_EVERY:
                trainer.save(args.out / CHECKPOINT)
                saved = time.monotonic()
    trainer.save(args.out / CHECKPOINT)


def _progress(trainer: Trainer, args: argparse.Namespace) -> float:
    if args.steps is not None:
        return trainer.step / args.steps if args.steps else 1.0
    return trainer.elapsed / (60 * args.minutes)


def timed(call: Callable[[], float]) -> tuple[float, float]:
    """What a call returns, and how many seconds it took."""
    began = time.monotonic()
    value = call()
    return value, time.monotonic() - began


def report(trainer: Trainer, split: Split, args: argparse.Namespace, console: Console) -> None:
    """The held-out measure, the baseline's if asked for, and a sample."""
    config = trainer.config
    seen = trainer.step * config.batch * config.segment
    console.print(f"{trainer.step} steps, {seen:,} bytes read in {trainer.elapsed:.0f} s, load average {os.getloadavg()[0]:.1f}")
    bits, took = timed(lambda: evaluate(trainer.model, split.heldout, config))
    console.print(f"held out: {bits:.4f} bits per byte over {len(split.heldout):,} bytes ({took:.0f} s)")
    if args.baseline:
        bits, took = timed(lambda: bits_per_byte(split.train, split.heldout))
        console.print(f"order-4 Witten-Bell, same bytes, counts of all {len(split.train):,} training bytes: {bits:.4f} ({took:.0f} s)")
    if args.sample:
        text = sample(trainer.model, PROMPT, args.sample, seed=config.seed)
        console.print(text.decode("utf-8", "replace"), markup=False, highlight=False)


def main(argv: list[str] | None = None) -> None:
    began = time.monotonic()
    args = parser().parse_args(argv)
    args.out = args.out or Path("runs") / Path(args.spec).stem
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    console = Console()
    trainer, split = prepared(args)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(f"{trainer.config.spec}: {parameters:,} parameters; {split.origin}: {len(split.train):,} bytes to learn")
    train(trainer, args, began, console)
    report(trainer, split, args, console)


if __name__ == "__main__":
    main()
