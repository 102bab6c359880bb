"""What every command shares: results on stdout, what is said on stderr, one JSON document, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import typer

from seqc import __version__
from seqc.diagnostics import Diagnostic, InternalError, SpecError, as_json

DONE, WRONG, USAGE, BUG, FAILED = 0, 1, 2, 3, 4
SCHEMA = 1  # of every JSON document; raised when a key changes its meaning or goes


class BadUsage(Exception):
    """What was asked for cannot be done: the message says why."""


class CheckFailed(Exception):
    """A check that was asked for, or a proof, did not pass. The command has said so."""


@dataclass
class Terminal:
    """One run of a command. `document` is what `--json` prints; its keys beyond the envelope are the command's own."""

    command: str
    json: bool
    color: str
    document: dict[str, Any] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    shown: bool = False

    def result(self, text: str) -> None:
        """Prints a result, unless results are JSON."""
        if not self.json:
            sys.stdout.write(_printable(text, sys.stdout.encoding) + "\n")

    def say(self, text: str) -> None:
        """Prints a remark on stderr, unless results are JSON."""
        if not self.json:
            sys.stderr.write(_printable(text, sys.stderr.encoding) + "\n")

    def diagnose(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Shows diagnostics on stderr and keeps them for the JSON document."""
        found = tuple(diagnostics)
        self.diagnostics += found
        if found and not self.json:
            from seqc.console import render

            color = self.use_color(sys.stderr)
            gap = "\n" if self.shown else ""
            sys.stderr.write(_printable(gap + render(found, color=color, width=self.width()), sys.stderr.encoding) + "\n")
            self.shown = True

    def use_color(self, stream: Any) -> bool:
        """Whether a stream gets colour: as `--color` says, else as the stream and NO_COLOR do."""
        if self.color != "auto":
            return self.color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def width(self) -> int | None:
        """Columns of the terminal, None where there is none."""
        return shutil.get_terminal_size().columns if sys.stderr.isatty() else None

    @contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Shows what is being done while it is, on a terminal."""
        live = sys.stderr.isatty() and not self.json and os.environ.get("TERM") != "dumb"
        if live:
            sys.stderr.write(text)
            sys.stderr.flush()
        try:
            yield
        finally:
            if live:
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()


@contextmanager
def running(command: str, as_json_: bool, color: str) -> Iterator[Terminal]:
    """Runs a command's body: whatever happens becomes an exit code, and nothing a traceback."""
    terminal = Terminal(command, as_json_, color)
    try:
        yield terminal
    except (typer.Exit, KeyboardInterrupt, BrokenPipeError):
        raise
    except SpecError as error:
        terminal.diagnose(error.diagnostics)
        _end(terminal, WRONG)
    except CheckFailed:
        _end(terminal, FAILED)
    except BadUsage as error:
        _end(terminal, USAGE, str(error))
    except Exception as error:
        message, report = bug(command, error)
        terminal.document["report"] = str(report) if report else None
        _end(terminal, BUG, message)
    _end(terminal, DONE)


def _end(terminal: Terminal, code: int, message: str | None = None) -> NoReturn:
    if message is not None:
        terminal.say(f"error: {message}")
    if terminal.json:
        envelope = {"schema": SCHEMA, "seqc": __version__, "command": terminal.command, "ok": code == DONE, "exit": code, "error": message}
        whole = {**envelope, "diagnostics": [as_json(d) for d in terminal.diagnostics], **terminal.document}
        sys.stdout.write(json.dumps(whole, indent=2, default=str) + "\n")
    sys.stdout.flush()
    raise typer.Exit(code)


@contextmanager
def usage_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Where the arguments ask for JSON, an error in them is a document too, and not text on stderr."""
    try:
        yield
    except Exception as error:
        said = getattr(error, "format_message", None)  # of what typer raises for arguments that it cannot take
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if said is None or getattr(error, "exit_code", None) != USAGE or "--json" not in options:
            raise
        command = next((a for a in arguments if not a.startswith("-")), "seqc")
        _end(Terminal(command, True, "never"), USAGE, said())


def bug(command: str, error: BaseException) -> tuple[str, Path | None]:
    """The message for an exception that is seqc's own fault, and the file that holds what its authors need."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}seqc{os.sep}" in f.filename or "backends" in f.filename]
    stage = Path(frames[-1].filename).stem if frames else command
    said = str(error) if isinstance(error, InternalError) else f"{type(error).__name__}: {error}"
    message = f"this is a bug in seqc, in stage `{stage}` of `seqc {command}`: {said.splitlines()[0] if said else ''}"
    path = _report(command, error)
    where = f"\nA report is in {path}; please send it to the authors." if path else "\nNo report could be written."
    return message + where, path


def _report(command: str, error: BaseException) -> Path | None:
    """Writes the traceback into the cache folder; a folder that cannot be written costs the report only."""
    import platform
    import tempfile

    try:
        from seqc.frontend.grammar import cache_folder

        folder = cache_folder() / "reports"
        folder.mkdir(parents=True, exist_ok=True)
        head = f"seqc {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\ncommand: {command}\n\n"
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=f"{command}-", suffix=".txt", delete=False) as file:
            file.write(head + "".join(traceback.format_exception(error)))
        return Path(file.name)
    except Exception:
        return None


def _printable(text: str, encoding: str | None) -> str:
    """The text without what the stream cannot show."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
