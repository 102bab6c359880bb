"""Every spec in every README checks, is in the canonical layout, and compiles where a form computes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seqc.compiler import check_source, compile_checked, judge
from seqc.forms import Applies
from seqc.frontend.format import format_file
from seqc.frontend.library import shipped_layers
from seqc.options import Options
from seqc.source import Source

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
BLOCK = re.compile(r"^```seq\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPECS = [
    pytest.param(text, id=f"{page.parent.name}-{i}")
    for page in PAGES
    for i, text in enumerate(BLOCK.findall(page.read_text("utf-8")))
    if re.search(r"^layer ", text, re.MULTILINE)
]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.slow
@pytest.mark.parametrize("text", SPECS)
def test_specs_compile(text: str) -> None:
    checked = check_source(Source("<readme>", text))
    if any(isinstance(v, Applies) for v in judge(checked).values()):
        assert compile_checked(checked, Options()).certificate.ok


@pytest.mark.parametrize("text", SPECS)
def test_specs_are_canonical(text: str) -> None:
    assert format_file(Source("<readme>", text)) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = CODE.sub("", page.read_text("utf-8"))
    assert not [target for target in LINK.findall(prose) if not (page.parent / target).exists()]


def test_the_first_page_shows_what_is_generated(request: pytest.FixtureRequest) -> None:
    page = ROOT / "README.md"
    text = page.read_text("utf-8")
    (shown,) = re.findall(r"^```python\n(def forward.*?)^```", text, re.MULTILINE | re.DOTALL)
    checked = check_source(Source("fast_weights.seq", BLOCK.findall(text)[0]))
    files = {f.name: f.text for f in compile_checked(checked, Options()).files}
    made = files["chunkwise.py"].partition("def forward")[2].partition("\n\n\ndef backward")[0]
    if request.config.getoption("--update-golden"):
        page.write_text(text.replace(shown, f"def forward{made}\n"), "utf-8")
    else:
        assert shown == f"def forward{made}\n", "run `make golden`"


def test_catalog_is_complete() -> None:
    page = (ROOT / "specs/README.md").read_text("utf-8")
    assert not [name for name in shipped_layers() if f"`{name}`" not in page]


@pytest.mark.slow
def test_the_library_lists_the_forms_of_every_layer() -> None:
    page = (ROOT / "specs/README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\(\w+\.seq\) \| .* \| ([^|]*) \|$", page, re.MULTILINE))
    found = {}
    for path in sorted((ROOT / "specs").glob("*.seq")):
        verdicts = judge(check_source(Source(path.name, path.read_text("utf-8"))))
        found[path.stem] = ", ".join(n for n, v in verdicts.items() if isinstance(v, Applies))
    assert listed == found
