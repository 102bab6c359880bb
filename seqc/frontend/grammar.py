"""seq.lark -> the parser's table, kept between processes in the user's cache folder."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import lark
import platformdirs
from lark.lexer import BasicLexer, LexerThread
from lark.parsers.lalr_interactive_parser import InteractiveParser

CACHE_VARIABLE = "SEQC_CACHE_DIR"


def grammar_text() -> str:
    """The text of seq.lark."""
    return files("seqc.grammar").joinpath("seq.lark").read_text("utf-8")


def build(text: str, strict: bool = False) -> lark.Lark:
    """A grammar's text -> its parser; `strict` refuses conflicts and overlapping terminals."""
    return lark.Lark(text, start="file", parser="lalr", lexer="basic", keep_all_tokens=True, maybe_placeholders=False, strict=strict)


@cache
def load() -> lark.Lark:
    """The parser of this process: from the cache folder where it is there, else built and put there."""
    text = grammar_text()
    path = cache_folder() / f"grammar-{_key(text)}.bin"
    return _read(path) or _write(path, build(text))


def accepted(parser: InteractiveParser) -> frozenset[str]:
    """The types of the tokens that could come next."""
    return frozenset(parser.accepts())  # type: ignore[no-untyped-call]


@cache
def _lexer() -> BasicLexer:
    conf = copy.copy(load().lexer_conf)
    # The table was made from valid terminals, and every token is wanted, comments too.
    conf.skip_validation, conf.ignore = True, []
    return BasicLexer(conf)


def tokens(text: str) -> Iterator[lark.Token]:
    """All tokens of a text, space and comments among them."""
    found: Iterator[lark.Token] = LexerThread.from_text(_lexer(), text).lex(None)  # type: ignore[no-untyped-call]
    return found


def snapshot(parser: InteractiveParser) -> InteractiveParser:
    """A parser in the same state. Trees are shared, so what is read after an error has a meaning for messages only."""
    taken: InteractiveParser = parser.copy(deepcopy_values=False)  # type: ignore[no-untyped-call]
    return taken


def cache_folder() -> Path:
    """Where tables are kept: $SEQC_CACHE_DIR, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("seqc"))


def _key(text: str) -> str:
    """What the table depends on: the grammar, lark and Python."""
    parts = (text, lark.__version__, sys.implementation.cache_tag or "", os.fspath(Path(lark.__file__)))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> lark.Lark | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, body = data[:32], data[32:]
    # A file cut short or changed is built again, not trusted.
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        return lark.Lark.load(io.BytesIO(body))
    except Exception:
        return None


def _write(path: Path, parser: lark.Lark) -> lark.Lark:
    """Keeps the parser's table at `path`; a folder that cannot be written costs time, nothing else."""
    buffer = io.BytesIO()
    parser.save(buffer)
    body = buffer.getvalue()
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and moved, so that another process reads the whole table or none.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            aside = file.name
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(aside, path)
    except OSError:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
    return parser
