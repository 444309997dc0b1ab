"""The content of a report through Typst: PDF/A-2b of at most five pages, the same bytes each time.

The text is handed over as JSON, so that nothing in it is markup. Only the fonts inside Typst are
used, and PDF/A refuses a character that none of them has: such characters are found out before and
shown as their code points.
"""

import copy
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAX_PAGES = 5
_SHORTEST, _LONGEST = 80, 4000  # characters of a sample: what must remain, about a page
_TEMPLATE = Path(__file__).with_name("report.typ")
_FONT = "New Computer Modern"
_ESCAPE = "\x1b"  # encloses a code point; never part of a text that was made printable
_INVISIBLE = ("C", "Zl", "Zp")  # categories of control, format, unassigned and separator characters
_LONG_WORD = re.compile(r"(\S{40,})")


class Layout(NamedTuple):
    """Type size in points, margins in centimetres."""

    size: float
    margin: float


_LAYOUTS = (Layout(10, 2.4), Layout(9.5, 2.2), Layout(9, 1.9))  # the first that fits is taken


def typeset(content: dict[str, Any], figures: Mapping[str, bytes]) -> tuple[bytes, int]:
    """Typeset a report.

    Args:
        content: see content.py.
        figures: file name -> SVG.

    Returns:
        The PDF, and its number of pages.

    Raises:
        ValueError: Typst is not installed, or there is too much for five pages even when the
            samples are cut short.
    """
    typst = _typst()
    missing = _missing_characters(typst, content)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "report.typ").write_text(_TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
        for name, svg in figures.items():
            (root / name).write_bytes(svg)

        def compiler(layout: Layout, shown: int) -> Any:
            page = _printable(shorten(content, shown, missing), missing)
            page |= {"size": layout.size, "margin": layout.margin}
            (root / "content.json").write_text(json.dumps(page), encoding="utf-8")
            return typst.Compiler(root / "report.typ", root=root, ignore_system_fonts=True)

        def pages(layout: Layout, shown: int) -> int:
            return int(compiler(layout, shown).query("<pages>", field="value", one=True))

        layout, shown, count = _best_fit(content, pages)
        pdf = compiler(layout, shown).compile(
            format="pdf", pdf_standards="a-2b", timestamp=content["timestamp"]
        )
        return pdf, count


def _typst() -> Any:
    try:
        import typst
    except ImportError:
        raise ValueError("the report needs the typst package: pip install -e '.[report]'") from None
    return typst


def _best_fit(
    content: dict[str, Any], pages: Callable[[Layout, int], int]
) -> tuple[Layout, int, int]:
    """The layout, how many characters of each sample are shown, and the pages that this takes."""
    longest = max(len(item["text"]) for b in _samples(content) for item in b["items"])
    high = min(longest, _LONGEST)
    for layout in _LAYOUTS:
        if (count := pages(layout, high)) <= MAX_PAGES:
            return layout, high, count
    if (count := pages(layout, _SHORTEST)) > MAX_PAGES:
        raise ValueError(
            f"the report has {count} pages, and at most {MAX_PAGES} are allowed, even with "
            f"samples of {_SHORTEST} characters: leave out some of the runs or result files"
        )
    low = _SHORTEST
    while high - low > 100:
        middle = (low + high) // 2
        if (wanted := pages(layout, middle)) <= MAX_PAGES:
            low, count = middle, wanted
        else:
            high = middle
    return layout, low, count


def _samples(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in content["sections"]:
        yield from (block for block in section["blocks"] if block["kind"] == "samples")


def shorten(content: dict[str, Any], shown: int, missing: set[str]) -> dict[str, Any]:
    """A copy whose samples have `shown` characters at most, with notes on what was changed."""
    content = copy.deepcopy(content)
    for block in _samples(content):
        block["notes"] = []
        if missing.intersection("".join(_texts(block))):
            block["notes"].append(
                "Characters that cannot be seen, or that the fonts lack, stand as code points."
            )
        cut = [i for i in block["items"] if len(i["text"]) > shown]
        for item in cut:
            item["text"] = item["text"][:shown].rstrip() + " [...]"
        if cut:
            block["notes"].append(
                f"{len(cut)} of {len(block['items'])} samples are cut after {shown} characters, at "
                f"[...], to keep to {MAX_PAGES} pages; the Markdown version has all of them."
            )
    return content


def _missing_characters(typst: Any, content: dict[str, Any]) -> set[str]:
    """The characters of the content that cannot be seen, or that the fonts lack."""
    used = {c for text in _texts(content) for c in text if not c.isascii() or not c.isprintable()}
    hidden = {c for c in used if unicodedata.category(c).startswith(_INVISIBLE)} - {"\n"}
    return hidden | set(_without_glyph(typst, sorted(used - hidden - {"\n"})))


def _without_glyph(typst: Any, characters: list[str]) -> Iterator[str]:
    """Those that PDF/A refuses, by halving: most often all are there."""
    if not characters or _has_glyphs(typst, characters):
        return
    if len(characters) == 1:
        yield characters[0]
        return
    middle = len(characters) // 2
    yield from _without_glyph(typst, characters[:middle])
    yield from _without_glyph(typst, characters[middle:])


def _has_glyphs(typst: Any, characters: Iterable[str]) -> bool:
    source = f'#set text(font: "{_FONT}")\n#sys.inputs.characters'
    compiler = typst.Compiler(
        source.encode(),
        ignore_system_fonts=True,
        sys_inputs={"characters": " ".join(characters)},
    )
    try:
        compiler.compile(format="pdf", pdf_standards="a-2b", timestamp=0)
    except typst.TypstError:
        return False
    return True


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("typst", "latex"):
                yield from _texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)


def _printable(node: Any, missing: set[str]) -> Any:
    """A copy in which missing characters are code points and long words can be broken."""
    if isinstance(node, dict):
        return {
            key: value if key in ("typst", "latex") else _printable(value, missing)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_printable(value, missing) for value in node]
    if not isinstance(node, str):
        return node

    def visible(text: str) -> str:
        return "".join(f"{_ESCAPE}U+{ord(c):04X}{_ESCAPE}" if c in missing else c for c in text)

    words = _LONG_WORD.split(node.replace("\r\n", "\n").replace("\t", "    "))
    for place in range(1, len(words), 2):  # the long ones: zero-width spaces let a line end there
        long = words[place]
        words[place] = "\u200b".join(visible(long[i : i + 8]) for i in range(0, len(long), 8))
    return "".join(w if place % 2 else visible(w) for place, w in enumerate(words))
