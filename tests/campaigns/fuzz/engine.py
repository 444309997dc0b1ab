"""The property that every reader keeps, and the search for files that break it.

An example is a valid file or folder with a change in its bytes or in what they mean. It must be
parsed to a sound result, or refused by one sentence that names the file, within 10 s of processor
time and 1 GiB of memory.
"""

import tempfile
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.fuzz.mutations import Files, hostile
from tests.campaigns.fuzz.targets import TARGETS, Target, write
from tests.campaigns.fuzz.watch import watched
from tests.campaigns.options import Budget, Options
from tests.campaigns.search import Found, search, search_each

# Examples in the short form; those that build a model take longer.
SHORT = dict.fromkeys(TARGETS, 60) | {"resume": 15, "run": 40, "demo": 20}
LONG_SECONDS = 780
_LONGEST_MESSAGE = 3000


class Broken(AssertionError):
    """The property does not hold; the message says what happened instead."""


def check(target: Target, files: Files) -> bool:
    """Parse the files; return whether they were accepted.

    Raises:
        Broken: neither accepted with a sound result, nor refused by a ValueError or OSError (those
            which `gpt2.common.cli.run_tool` shows as one sentence) that names the file; or it took
            too much time or memory.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "given"  # alone in its folder, which a link to ".." shows
        folder.mkdir()
        write(files, folder)
        try:
            with watched(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.parse(folder)
        except (ValueError, OSError) as error:
            _check_message(str(error), files, folder)
            return False
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Broken(f"{type(error).__name__} at {_place(error)}: {error!s:.300}") from error
        return True


def _check_message(message: str, files: Files, folder: Path) -> None:
    names = {part for path in files for part in Path(path).parts} | {str(folder)}
    if not any(name in message for name in names):
        raise Broken(f"a message that names no file: {message[:300]}")
    if len(message) > _LONGEST_MESSAGE:
        raise Broken(f"a message of many lines: {len(message):,} characters, {message[:300]}")


def _place(error: BaseException) -> str:
    """Return the innermost function of ours that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(part in f.filename for part in ("/gpt2/", "/bench/"))]
    innermost = (ours or [f for f in frames if f.filename.endswith("targets.py")] or frames)[-1]
    return f"{Path(innermost.filename).name}:{innermost.name}"


def fuzz(name: str, budget: Budget, seed: int) -> Found:
    """Search for files that break the reader of this name."""
    target = TARGETS[name]
    examples = hostile(target.make(), reseal=target.reseal)
    return search(f"fuzz/{name}", examples, partial(check, target), budget, seed=seed)


def run(options: Options) -> dict[str, Any]:
    """Fuzz the readers; return how many files each got and accepted, and how many ways it broke."""
    torch.set_num_threads(1)
    results = search_each(options, SHORT, LONG_SECONDS, fuzz)
    rows = [
        {"target": name, "tried": x.tried, "accepted": x.accepted, "broken": len(x.failures)}
        for name, x in results.items()
    ]
    return {"rows": rows}
