"""What comes with seqc: layers with their papers and forms, and the library of their parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seqc.frontend import library
from seqc.frontend.ast import Definition, Layer
from seqc.frontend.parser import parse


@dataclass(frozen=True)
class Item:
    """A text that is shipped. forms: those that compute it; None for a part of a layer."""

    name: str
    doc: str
    forms: tuple[str, ...] | None

    def as_json(self) -> dict[str, Any]:
        """The item as plain data."""
        return asdict(self)


def catalog(kind: str) -> tuple[Item, ...]:
    """The shipped texts of a kind: `layers`, or a folder of the library."""
    if kind == "layers":
        return tuple(_layer(name) for name in library.shipped_layers())
    singular = next(word for word, folder in library.FOLDERS.items() if folder == kind)
    return tuple(_part(singular, name) for name in library.names(singular, None))


def _layer(name: str) -> Item:
    from seqc.compiler import check_source, judge
    from seqc.forms import Applies
    from seqc.locate import find

    checked = check_source(find(name)[0])
    return Item(name, _line(checked.model.doc), tuple(n for n, v in judge(checked).items() if isinstance(v, Applies)))


def _part(kind: str, name: str) -> Item:
    found = library.find(kind, name, None)
    assert found is not None
    definition = next(d for d in parse(found.source).definitions if isinstance(d, (Definition, Layer)))
    return Item(name, _line(definition.doc), None)


def _line(doc: tuple[str, ...]) -> str:
    return doc[0].strip('"') if doc else ""
