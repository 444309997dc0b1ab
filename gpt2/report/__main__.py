"""`python -m gpt2.report RUN... --out report.pdf`: the report as a PDF."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gpt2.common.files import atomic_write
from gpt2.report.facts import gather
from gpt2.report.figures import draw
from gpt2.report.pdf import typeset
from gpt2.report.result_files import read_bench, read_decoding, read_sizes
from gpt2.report.sources import read_run
from gpt2.weights.pretrained import SHIPPED


@dataclass(frozen=True)
class Arguments:
    """Report on a finished run as a PDF of at most five pages."""

    run: Positional[tuple[str, ...]]
    """The run folder to report on, and any others to compare with it; `demo` is the model that
    ships with this code."""
    out: str | None = None
    """PDF to write. None: report.pdf in the run folder."""
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
    if not arguments.run:
        raise ValueError("name a run folder, such as runs/python-docs-demo")
    cache_dir = Path(arguments.cache_dir) if arguments.cache_dir else None
    runs = [read_run(_folder(name), cache_dir) for name in arguments.run]
    out = Path(arguments.out) if arguments.out else runs[0].folder / "report.pdf"
    if out.suffix != ".pdf" or out.is_dir():
        raise ValueError(f"--out {out}: name a file that ends in .pdf")
    found = runs[0].folder / "decoding/decoding.json"
    path = arguments.decoding or (found if found.is_file() else None)
    decoding = read_decoding(Path(path)) if path else None
    sizes = read_sizes(Path(arguments.sizes)) if arguments.sizes else None
    bench = read_bench(Path(arguments.bench)) if arguments.bench else None
    title, author = arguments.title, arguments.author
    facts = gather(runs, decoding, sizes, bench, title=title, author=author)
    pdf, pages = typeset(facts, draw(runs, decoding, sizes))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(pdf)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    print(f"{out}: {pages} pages")


def _folder(name: str) -> Path:
    shipped = name == "demo" and not Path("demo/config.json").is_file()
    return SHIPPED if shipped else Path(name)


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
