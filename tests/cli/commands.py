"""The command line, called in process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from seqc.cli import app

ENVELOPE = {"schema", "seqc", "command", "ok", "exit", "error", "diagnostics"}


def run(*arguments: str, stdin: str | None = None) -> Any:
    """A command's result; no traceback, whatever is wrong."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert "Traceback" not in result.output
    return result


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    assert set(data) >= ENVELOPE
    assert (data["command"], data["exit"], data["ok"]) == (arguments[0], code, code == 0)
    return data
