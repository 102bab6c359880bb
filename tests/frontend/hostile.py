"""Broken and hostile texts, and what the front end makes of them: diagnostics, soon, in bounded memory, and nothing else.

`python tests/frontend/hostile.py --count 20000` runs as many as asked for and prints what went wrong, if anything did.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqc.compiler import check_source, judge
from seqc.diagnostics import SpecError
from seqc.source import Source

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2.0  # of processor time
TOKEN = re.compile(r"\s+|[A-Za-z_]\w*|\d+(?:\.\d+)?(?:e-?\d+)?|\"[^\"\n]*\"|#[^\n]*|->|<=|>=|==|.", re.S)
WORDS = """
    K V N n i S k q v x y h 0 1 2 -1 1e-3 0.5 1048576 1048577 99999999999999999999 1e400 ( ) [ ] , = + - * / @ ^ -> : < > == in by on at
    with to per like layer input param state memory let output retain learn update append fold for end slope link return project objective
    retention algorithm function start next window shift phase position sum mean max min norm softmax exp log sqrt abs solve outer diag eye
    transpose concat roll cumsum where lerp complex polar re im conj unit integer inf pi true false head heads depth depths learned empty
    uniform normal linear conv rmsnorm l2norm rope reshape first model group sequence " # ; $ % ' é 漢 \\ {
"""
POOL = (*WORDS.split(), "\n", "\t", "\x00", "")


@dataclass(frozen=True)
class Trouble:
    """A text that was not answered by diagnostics in time."""

    kind: str
    what: str
    text: str


def sources() -> dict[str, str]:
    found = [*sorted(ROOT.glob("specs/*.seq")), *sorted(ROOT.glob("tests/language/*.seq")), *sorted(ROOT.glob("tests/bad/*.seq"))]
    out = {}
    for path in found:
        try:
            out[path.stem] = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
    return out


def texts(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Names of files and their texts: mutated ones, spliced ones, generated ones."""
    rng, known = random.Random(seed), sources()
    names = list(known)
    for _ in range(count):
        name = rng.choice(names)
        match rng.randrange(10):
            case 0:
                yield name, generated(rng)
            case 1:
                yield name, spliced(known[name], known[rng.choice(names)], rng)
            case 2:
                yield name, extreme(known[name], rng)
            case _:
                yield name, mutated(known[name], rng)


def mutated(text: str, rng: random.Random) -> str:
    """One to four changes of tokens, lines or characters."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        tokens = TOKEN.findall(text)
        if not tokens:
            return text
        at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        match rng.randrange(8):
            case 0:
                del tokens[at]
            case 1:
                tokens.insert(at, tokens[other])
            case 2:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 3 | 4:
                tokens[at] = rng.choice(POOL)
            case 5:
                words = [i for i, t in enumerate(tokens) if t[0].isalnum()]
                if words:
                    a, b = rng.choice(words), rng.choice(words)
                    tokens[a] = tokens[b]
            case 6:
                lines = "".join(tokens).splitlines(keepends=True)
                a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[a], lines[b] = lines[b], rng.choice((lines[a], "", lines[b]))
                tokens = lines
            case 7:
                tokens.insert(at, chr(rng.choice((0, 9, 13, 27, 127, 160, 0x200B, 0xFEFF, 0x1F600, rng.randrange(32, 0x2FFF)))))
        text = "".join(tokens)
    return text


def spliced(text: str, other: str, rng: random.Random) -> str:
    """The beginning of one text, the end of another, or lines of both in turn."""
    a, b = text.splitlines(keepends=True), other.splitlines(keepends=True)
    if rng.randrange(2):
        return "".join(a[: rng.randrange(len(a) + 1)] + b[rng.randrange(len(b) + 1) :])
    at = rng.randrange(len(a) + 1)
    return "".join(a[:at] + [rng.choice(b)] * rng.randrange(1, 3) + a[at:]) if b else text


def generated(rng: random.Random) -> str:
    """A header, and words in any order."""
    body = " ".join(rng.choice(POOL) for _ in range(rng.randrange(1, 120)))
    return f"seqc 1\n\nlayer made({rng.choice(('', 'K = 2', 'K = 2, V = K', 'n = 10^9'))})\n{body}\n"


def extreme(text: str, rng: random.Random) -> str:
    """Something far too large: brackets, sizes, repetitions, lines, names."""
    n = rng.choice((50, 63, 64, 65, 500, 5000))
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines) + 1)
    names = ", ".join(f"A{i}" for i in range(min(n, 200)))
    more = rng.choice(
        (
            f"  let     z = {'(' * n}1{')' * n}\n",
            f"  let     z = {'exp(' * n}1{')' * n}\n",
            f"  let     z = 1{' + 1' * n}\n",
            f"  let     z = {'-' * n}1\n",
            f"  let     z = 2{'^2' * min(n, 400)}\n",
            f"  let     z = sum[{'K, ' * n}K](1)\n",
            f"  let     z = concat[K]({', '.join(['1'] * n)})\n",
            "  for i in n\n    for j in n\n    end\n  end\n" * min(n, 60),
            f"  input   {'a' * n}\n",
            f"  state   s[{names}] = 0\n",
            f"# {'x' * n}\n" * min(n, 200),
            "\n" * n,
        )
    )
    if rng.randrange(3) == 0:
        return re.sub(r"= \d+", lambda m: f"= {rng.choice((0, 1, 2**20, 2**20 + 1, 10**30, 4096, 4097))}", text)
    return "".join([*lines[:at], more, *lines[at:]])


def answer(name: str, text: str, forms: bool = True) -> tuple[str, Trouble | None]:
    """What the front end says of a text: `ok`, `refused`, or trouble."""
    begin = time.process_time()
    try:
        try:
            checked = check_source(Source(f"{name}.seq", text))
            verdict = "ok"
            if forms:
                judge(checked)
        except SpecError as e:
            assert e.diagnostics
            verdict = "refused"
    except Exception as e:
        return "crash", Trouble("crash", f"{type(e).__name__}: {e}"[:300], text)
    took = time.process_time() - begin
    return verdict, None if took < SECONDS else Trouble("slow", f"{took:.1f} s", text)


def commands(count: int, seed: int, folder: Path) -> list[Trouble]:
    """`seqc compile` on texts in files, in a process each: exit code 0 or 1, no traceback, and nothing written where it fails."""
    troubles = []
    for i, (name, text) in enumerate(texts(count, seed)):
        place = folder / str(i)
        place.mkdir(parents=True)
        path = place / f"{name}.seq"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "seqc", "compile", path.name, "-o", "out"], cwd=place, capture_output=True, text=True)
        took = time.perf_counter() - begin
        left = sorted(p.name for p in place.rglob("*") if p != path)
        if done.returncode not in (0, 1) or "Traceback" in done.stdout + done.stderr:
            troubles.append(Trouble("command", f"exit {done.returncode}: {done.stderr[-300:]}", text))
        elif done.returncode and left:
            troubles.append(Trouble("command", f"exit {done.returncode}, and wrote {left}", text))
        elif done.returncode and took > 5 * SECONDS:  # a process starts first, on a machine that does other things
            troubles.append(Trouble("command", f"{took:.1f} s", text))
    return troubles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=0, help="how many to give to the command line, in processes of their own")
    parser.add_argument("--memory", type=int, default=4096, help="the most MiB that the process may take")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (options.memory << 20, options.memory << 20))
    said, troubles, slowest = Counter[str](), list[Trouble](), 0.0
    for name, text in texts(options.count, options.seed):
        begin = time.process_time()
        verdict, trouble = answer(name, text)
        slowest = max(slowest, time.process_time() - begin)
        said[verdict] += 1
        if trouble is not None:
            troubles.append(trouble)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{options.count} texts: {dict(said)}; slowest {slowest:.2f} s; at most {most} MiB")
    if options.commands:
        with tempfile.TemporaryDirectory() as folder:
            found = commands(options.commands, options.seed + 1, Path(folder))
        print(f"{options.commands} commands, {len(found)} in trouble")
        troubles += found
    kinds = Counter((t.kind, t.what[:60]) for t in troubles)
    for (kind, what), n in kinds.most_common(20):
        example = next(t for t in troubles if (t.kind, t.what[:60]) == (kind, what))
        print(f"--- {n} x {kind}: {example.what}\n{example.text[:3000]}")
    raise SystemExit(1 if troubles else 0)


if __name__ == "__main__":
    main()
