"""A report's facts through report.typ: PDF/A-2b of at most five pages, the same bytes each time.

The facts are handed over as JSON, so that nothing in them is markup. Only the fonts inside Typst
are used, and PDF/A refuses a character that none of them has: such characters are found beforehand
and shown as their code points.
"""

import copy
import datetime
import json
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2.report.text import mapped

MAX_PAGES = 5
_FILES = [Path(__file__).with_name(name) for name in ("report.typ", "references.bib")]
_FONT = "New Computer Modern"
_ESCAPE = "\x1b"  # encloses a code point; never part of a text that was made printable
_INVISIBLE = ("C", "Zl", "Zp")  # categories of control, format, unassigned and separator characters
_LONG_WORD = re.compile(r"(\S{40,})")
# Type size (points), margin (cm), characters of a sample at most. The first is taken that fits and
# whose last page is as full as _SPARSE; if there is none that shows as much, the first that fits.
_SHORTEST, _SPARSE = 80, 0.35
_PAGE_LINES, _LINE = 60, 100  # lines of samples on a page, characters in a line, about
_LAYOUTS = [(size, 2.2, 4000) for size in (10.75, 10.5, 10.25, 10, 9.5)] + [
    (9, 1.9, shown) for shown in (4000, 2800, 2000, 1400, 1000, 700, 500, 350, 250, 150, _SHORTEST)
]


def typeset(facts: dict[str, Any], figures: Mapping[str, bytes]) -> tuple[bytes, int]:
    """Typeset facts (see facts.py) with figures (SVG by file name): the PDF, and its pages.

    Raises:
        ValueError: Typst is not installed, or there is too much for five pages even when the
            samples are cut short.
    """
    typst = find_typst()
    missing = _missing_characters(typst, facts)
    finished = datetime.datetime.fromisoformat(facts["finished"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path in _FILES:
            shutil.copy(path, root)
        for name, svg in figures.items():
            (root / name).write_bytes(svg)
        best: tuple[bytes, int, int] | None = None
        for size, margin, shown in _LAYOUTS:
            if best is not None and shown < best[2]:
                break
            page = _printable(shorten(facts, shown, missing), missing)
            page |= {"size": size, "margin": margin, "shown": shown, "max_pages": MAX_PAGES}
            (root / "facts.json").write_text(json.dumps(page), encoding="utf-8")
            compiler = typst.Compiler(root / "report.typ", root=root, ignore_system_fonts=True)
            end = compiler.query("<end>", field="value", one=True)
            pages, filled = json.loads(end)
            if pages <= MAX_PAGES and (best is None or filled >= _SPARSE):
                pdf = compiler.compile(
                    format="pdf", pdf_standards="a-2b", timestamp=int(finished.timestamp())
                )
                best = pdf, pages, shown
                if filled >= _SPARSE:
                    break
    if best is not None:
        pdf, pages, _ = best
        return pdf, pages
    raise ValueError(
        f"the report has {pages} pages, and at most {MAX_PAGES} are allowed, even with samples of "
        f"{_SHORTEST} characters: leave out some of the runs or result files"
    )


def find_typst() -> Any:
    """Import the package that typesets; ValueError if it is not installed."""
    try:
        import typst
    except ImportError:
        raise ValueError("the report needs the typst package: pip install -e '.[report]'") from None
    return typst


def shorten(facts: dict[str, Any], shown: int, missing: set[str]) -> dict[str, Any]:
    """Copy the facts with samples of at most `shown` characters, and a note of what was changed."""
    facts = copy.deepcopy(facts)
    for group in (facts["samples"], (facts["sizes"] or {}).get("samples")):
        if group is not None:
            group["replaced"] = bool(missing.intersection("".join(_texts(group))))
            for item in group["items"]:
                item["split"] = _lines(item["text"][:shown]) > _PAGE_LINES / 2
            cut = [item for item in group["items"] if len(item["text"]) > shown]
            group["cut"] = str(len(cut))
            for item in cut:
                item["text"] = item["text"][:shown].rstrip() + " [...]"
    return facts


def _lines(text: str) -> int:
    return sum(1 + len(line) // _LINE for line in text.splitlines())


def _missing_characters(typst: Any, facts: dict[str, Any]) -> set[str]:
    """The characters of the facts that are invisible or that the fonts lack."""
    used = {c for text in _texts(facts) for c in text if not c.isascii() or not c.isprintable()}
    hidden = {c for c in used if unicodedata.category(c).startswith(_INVISIBLE)} - {"\n"}
    return hidden | set(_without_glyph(typst, sorted(used - hidden - {"\n"})))


def _without_glyph(typst: Any, characters: list[str]) -> Iterator[str]:
    """Yield the characters that PDF/A refuses, found by halving: most often there are none."""
    if not characters or _has_glyphs(typst, characters):
        return
    if len(characters) == 1:
        yield characters[0]
        return
    middle = len(characters) // 2
    yield from _without_glyph(typst, characters[:middle])
    yield from _without_glyph(typst, characters[middle:])


def _has_glyphs(typst: Any, characters: list[str]) -> bool:
    source = f'#set text(font: "{_FONT}")\n#sys.inputs.characters'
    compiler = typst.Compiler(
        source.encode(), ignore_system_fonts=True, sys_inputs={"characters": " ".join(characters)}
    )
    try:
        compiler.compile(format="pdf", pdf_standards="a-2b", timestamp=0)
    except typst.TypstError:
        return False
    return True


def _texts(node: Any) -> Iterator[str]:
    """Yield all strings in JSON but the keys."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)


def _printable(facts: dict[str, Any], missing: set[str]) -> Any:
    """Copy the facts with missing characters as code points, and breakable long words."""

    def visible(text: str) -> str:
        return "".join(f"{_ESCAPE}U+{ord(c):04X}{_ESCAPE}" if c in missing else c for c in text)

    def printable(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        words = _LONG_WORD.split(value.replace("\r\n", "\n").replace("\t", "    "))
        for place, word in enumerate(words):
            # Zero-width spaces let a line end in one of the long words, which are at odd places.
            parts = [word[i : i + 8] for i in range(0, len(word), 8)] if place % 2 else [word]
            words[place] = "\u200b".join(map(visible, parts))
        return "".join(words)

    return mapped(facts, printable)
