"""The property, and the search for examples that break it."""

import contextlib
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tests.campaigns.fuzz.mutations import Files, hostile
from tests.campaigns.fuzz.targets import TARGETS, Target, write
from tests.campaigns.fuzz.watch import Exceeded, watched

_LONGEST_MESSAGE = 3000


class Broken(AssertionError):
    """The property does not hold; the message says what happened instead."""


def check(target: Target, files: Files) -> bool:
    """Parse the files: whether they were accepted.

    Raises:
        Broken: neither accepted with a sound result, nor refused by a ValueError or OSError (those
            which `gpt2.common.cli.run_tool` shows as one sentence) that names the file; or it took
            too much time or memory.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        write(files, folder)
        return check_folder(target, folder, files)


def check_folder(target: Target, folder: Path, files: Files) -> bool:
    """`check` of files that lie there already."""
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
    """The innermost line of ours that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(part in f.filename for part in ("/gpt2/", "/bench/"))]
    innermost = (ours or [f for f in frames if f.filename.endswith("targets.py")] or frames)[-1]
    return f"{Path(innermost.filename).name}:{innermost.name}"


@dataclass
class Tally:
    """What came of a target's examples.

    Attributes:
        tried: examples.
        accepted: those of them that were parsed, to a sound result.
        broken: by what happened, how often; then the message and the files of the smallest one.
    """

    tried: int = 0
    accepted: int = 0
    broken: dict[str, tuple[int, str, Files]] = field(default_factory=dict)


def property_of(name: str, tally: Tally, *, fail: bool = True) -> Callable[[], None]:
    """A hypothesis test of one target that counts into `tally`.

    With `fail` it fails once for each kind of break, so that hypothesis looks for a smaller one;
    but not for a hang, which would be met in each attempt. Otherwise all is only counted.
    """
    target = TARGETS[name]
    known = set(tally.broken)

    @given(hostile(target.make(), reseal=target.reseal))
    def survives(files: Files) -> None:
        tally.tried += 1
        try:
            tally.accepted += check(target, files)
        except Broken as error:
            kind, _, message = str(error).partition(": ")
            count, *smallest = tally.broken.get(kind, (0, message, files))
            if not fail or kind in known or isinstance(error.__cause__, Exceeded):
                tally.broken[kind] = (count + 1, *smallest)  # type: ignore[assignment]
                return
            tally.broken[kind] = count + 1, message, files  # hypothesis ends with the smallest
            raise

    return survives


def search(name: str, tally: Tally, *, examples: int, number: int) -> None:
    """Try a round of examples of a target.

    Args:
        name: of the target.
        tally: counts, over the rounds.
        examples: in this round, at least (more where one broke, to find a smaller one).
        number: the seed of this round.
    """
    configured = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    test: Any = configured(seed(number)(property_of(name, tally)))
    with contextlib.suppress(Broken, Flaky):
        test()


def save(name: str, tally: Tally, out: Path) -> list[Path]:
    """Write each break as a folder `out`/NAME-1, ... to be tried again, and what happened beside
    it, as a .txt of the same name."""
    folders = []
    for number, (kind, (_, message, files)) in enumerate(tally.broken.items(), 1):
        folder = out / f"{name}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(files, folder)
        folder.with_suffix(".txt").write_text(f"{kind}: {message}\n", "utf-8", "backslashreplace")
        folders.append(folder)
    return folders
