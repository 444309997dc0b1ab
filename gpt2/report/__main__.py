"""`python -m gpt2.report RUN... --out report.pdf`: the report as PDF and as Markdown."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from gpt2.report.result_files import Decoding


@dataclass(frozen=True)
class Arguments:
    """Report on a finished run as a PDF of at most five pages, and as Markdown beside it."""

    run: Positional[tuple[str, ...]]
    """The run folder to report on, and any others to compare with it."""
    out: str | None = None
    """PDF to write, with the same content as .md and the figures in a folder beside it. None:
    report.pdf in the run folder."""
    title: str | None = None
    """Title. None: made of the run's size and data."""
    author: str | None = None
    """Name under the title."""
    decoding: str | None = None
    """The decoding.json of `python -m gpt2.compare_decoding`. None: that in the run folder, where
    there is one."""
    sizes: str | None = None
    """The sizes.json of `python -m gpt2.compare_sizes`."""
    bench: str | None = None
    """Results of a benchmark, bench/results/<device>/<date>-<commit>.json."""
    cache_dir: str | None = None
    """Where the tokenised data of the run lies. None: where it was when the run was trained."""


def main(arguments: Arguments) -> None:
    from gpt2.common.files import atomic_write
    from gpt2.report.content import gather
    from gpt2.report.figures import draw
    from gpt2.report.markdown import to_markdown
    from gpt2.report.pdf import typeset
    from gpt2.report.result_files import read_bench, read_sizes
    from gpt2.report.sources import read_run

    if not arguments.run:
        raise ValueError("name a run folder, such as runs/python-docs-demo")
    cache_dir = Path(arguments.cache_dir) if arguments.cache_dir else None
    runs = [read_run(Path(folder), cache_dir) for folder in arguments.run]
    out = Path(arguments.out) if arguments.out else runs[0].folder / "report.pdf"
    if out.suffix != ".pdf" or out.is_dir():
        raise ValueError(f"--out {out}: name a file that ends in .pdf")
    bench = read_bench(Path(arguments.bench)) if arguments.bench else None
    decoding = _decoding(arguments.decoding, runs[0].folder)
    sizes = read_sizes(Path(arguments.sizes)) if arguments.sizes else None
    content = gather(
        runs,
        decoding=decoding,
        sizes=sizes,
        bench=bench,
        title=arguments.title,
        author=arguments.author,
    )
    figures = draw(runs, decoding, sizes)
    pdf, pages = typeset(content, figures)
    folder = out.with_name(f"{out.stem}_files")
    text = to_markdown(content, figures=folder.name)
    files = {out: pdf, out.with_suffix(".md"): text.encode("utf-8", errors="replace")}
    files |= {folder / name: svg for name, svg in figures.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            with atomic_write(path) as file:
                file.write(data)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    print(f"{out}: {pages} pages; the same as {out.with_suffix('.md')}")


def _decoding(path: str | None, run: Path) -> "Decoding | None":
    """What was asked for, or what lies in the run folder, if anything does."""
    from gpt2.report.result_files import read_decoding

    if path is not None:
        return read_decoding(Path(path))
    own = run / "decoding/decoding.json"
    return read_decoding(own) if own.is_file() else None


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
