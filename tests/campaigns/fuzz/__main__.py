"""The fuzzer: everything that parses bytes of unknown origin, given files that are almost right.

    python -m tests.campaigns.fuzz                             a minute for all targets together
    python -m tests.campaigns.fuzz --minutes 10 --seed 7       longer, with other examples
    python -m tests.campaigns.fuzz --only tokenizer            the targets with this in their name
    python -m tests.campaigns.fuzz --engine atheris            led by coverage; pip install atheris
    python -m tests.campaigns.fuzz --replay fuzz/tokenizer-1   an example that broke, again

An example is a valid file or folder with a change in its bytes or in what they mean. It must be
parsed to a sound result, or refused by one sentence that names the file, within 10 s of processor
time and 1 GiB of memory. Ends with status 1 when an example broke that.
"""

import itertools
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from gpt2.common.cli import run_tool
from gpt2.common.files import write_json
from tests.campaigns.fuzz.engine import Tally, check_folder, save, search
from tests.campaigns.fuzz.guided import search_guided
from tests.campaigns.fuzz.targets import TARGETS

_ROUND = 50  # examples between two looks at the clock


@dataclass(frozen=True)
class Arguments:
    """Feed hostile files to everything that parses them."""

    minutes: float = 1.0
    """Time for all targets together."""
    only: str = ""
    """Only the targets whose name contains this."""
    seed: int = 0
    """Chooses the examples."""
    engine: Literal["hypothesis", "atheris"] = "hypothesis"
    """hypothesis draws examples at random; atheris prefers those that reach new code."""
    out: str = "fuzz"
    """Folder for examples that broke."""
    result: str | None = None
    """Write the counts here as JSON."""
    replay: str | None = None
    """Try one folder of --out again, and do nothing else."""


def campaign(arguments: Arguments) -> dict[str, Any]:
    """Try examples of each target for its share of the time; return the counts."""
    torch.set_num_threads(1)
    names = [name for name in TARGETS if arguments.only in name]
    if not names:
        raise ValueError(f"no target contains {arguments.only!r}: choose from {', '.join(TARGETS)}")
    out = Path(arguments.out)
    share = 60 * arguments.minutes / len(names)
    rows = []
    for name in tqdm(names, desc="targets", disable=not sys.stderr.isatty()):
        began = time.monotonic()
        if arguments.engine == "atheris":
            tally = search_guided(name, seconds=share, number=arguments.seed, out=out)
        else:
            tally = Tally()
            for number in itertools.count(arguments.seed << 32):
                search(name, tally, examples=_ROUND, number=number)
                if time.monotonic() - began > share:
                    break
            for folder in save(name, tally, out):
                print(f"BROKEN: {folder.with_suffix('.txt').read_text().strip()} [{folder}]")
        broken = sum(count for count, *_ in tally.broken.values())
        rows.append(
            {"target": name, "tried": tally.tried, "accepted": tally.accepted, "broken": broken}
        )
        tqdm.write(
            f"{name}: {tally.tried:,} tried, {tally.accepted:,} of them accepted, {broken} broken, "
            f"{time.monotonic() - began:.0f} s"
        )
    return {
        "command": _command(arguments),
        "system": platform.platform(terse=True),
        "rows": rows,
    }


def _command(arguments: Arguments) -> str:
    words = [
        "python -m tests.campaigns.fuzz",
        f"--minutes {arguments.minutes:g}",
        f"--seed {arguments.seed}",
    ]
    if arguments.only:
        words.append(f"--only {arguments.only}")
    if arguments.engine != "hypothesis":
        words.append(f"--engine {arguments.engine}")
    return " ".join(words)


def replay(folder: Path) -> None:
    """Parse an example again, and say what came of it."""
    name = folder.name.rpartition("-")[0]
    if name not in TARGETS or not folder.is_dir():
        raise ValueError(f"{folder} is no folder that this command wrote, such as fuzz/tokenizer-1")
    files = {path.relative_to(folder).as_posix(): b"" for path in folder.rglob("*")}
    accepted = check_folder(TARGETS[name], folder.resolve(), dict(files))
    print(f"{folder}: {'parsed' if accepted else 'refused, as it should be'}")


def main(arguments: Arguments) -> None:
    if arguments.replay:
        replay(Path(arguments.replay))
        return
    result = campaign(arguments)
    if arguments.result:
        write_json(arguments.result, result)
    total = sum(row["tried"] for row in result["rows"])
    broken = sum(row["broken"] for row in result["rows"])
    print(f"{total:,} examples, {broken} broken")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, Arguments)
