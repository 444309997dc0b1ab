"""The search led by coverage: atheris (libFuzzer) chooses the bytes from which an example is drawn.

libFuzzer never returns, and wants the code instrumented when it is imported. So each target has a
process of its own, which writes its counts to a file from time to time.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.campaigns.fuzz.engine import Tally

ROOT = Path(__file__).resolve().parents[3]
_EVERY = 1.0  # seconds between two writings of the counts
_LONGEST = 1 << 14  # bytes that an example is drawn from


def search_guided(name: str, *, seconds: float, number: int, out: Path) -> "Tally":
    """Try examples of a target for some time; those that break are saved in `out`.

    Raises:
        ValueError: atheris is not installed, or its process failed.
    """
    from tests.campaigns.fuzz.engine import Tally

    if importlib.util.find_spec("atheris") is None:
        raise ValueError(
            "--engine atheris needs the package atheris, which has wheels for Linux: "
            "pip install atheris. Without it: --engine hypothesis"
        )
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        job = [name, str(seconds), str(number), str(counts), str(out.resolve())]
        done = subprocess.run(
            [sys.executable, "-m", "tests.campaigns.fuzz.guided", *job],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode or not counts.is_file():
            raise ValueError(f"atheris ended with {done.returncode}: {done.stderr[-1000:]}")
        tried, accepted, broken = json.loads(counts.read_text())
    return Tally(tried, accepted, {kind: (count, "", {}) for kind, count in broken.items()})


def _run(name: str, seconds: str, number: str, counts: str, out: str) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["gpt2", "bench"]):
        from tests.campaigns.fuzz.engine import Tally, property_of, save
    tally = Tally()
    test: Any = property_of(name, tally, fail=False)
    draw = test.hypothesis.fuzz_one_input
    written = 0.0

    def one(data: bytes) -> None:
        nonlocal written
        draw(data)
        if time.monotonic() - written > _EVERY:
            save(name, tally, Path(out))
            broken = {kind: count for kind, (count, *_) in tally.broken.items()}
            Path(counts).write_text(json.dumps([tally.tried, tally.accepted, broken]))
            written = time.monotonic()

    options = [f"-max_total_time={max(2, round(float(seconds)))}", f"-seed={int(number) + 1}"]
    options += [f"-max_len={_LONGEST}", "-len_control=0", "-rss_limit_mb=0", "-timeout=120"]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _run(*sys.argv[1:])
