"""The campaigns: searches that find in minutes or hours what pytest has no time for.

    python -m tests.campaigns faults                        kill, starve and damage training runs
    python -m tests.campaigns fuzz --seconds 600 --seed 7   hostile files for every reader
    python -m tests.campaigns soak --long                   20,000 steps, while nothing may grow
    python -m tests.campaigns stress --only rms_norm        random arguments for the kernels
    python -m tests.campaigns compilers --long              machine code by every supported Triton
    python -m tests.campaigns instructions --peers FOLDER   what it issues, beside others' kernels
    python -m tests.campaigns budget --long                 right kernels on 1,000 seeds
    python -m tests.campaigns tables                        the committed results, into the READMEs

tests/README.md describes them. Compilers, faults, instructions and soak need Linux.
"""

import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2.common.cli import run_tool
from gpt2.common.files import write_json
from tests.campaigns.options import Options

ROOT = Path(__file__).resolve().parents[2]
READMES = (ROOT / "tests" / "README.md", ROOT / "kernels" / "README.md")
RESULTS = Path(__file__).resolve().parent / "results"
_MODULES = {
    "budget": "tests.campaigns.budget",
    "compilers": "tests.campaigns.compilers",
    "faults": "tests.campaigns.faults.cases",
    "fuzz": "tests.campaigns.fuzz.engine",
    "instructions": "tests.campaigns.instructions",
    "soak": "tests.campaigns.soak",
    "stress": "tests.campaigns.stress.campaign",
}


def main(options: Options) -> None:
    if options.campaign == "tables":
        for readme in READMES:
            readme.write_text(with_tables(readme), encoding="utf-8")
        return
    if not torch.cuda.is_available():  # must precede the first import of triton
        os.environ.setdefault("TRITON_INTERPRET", "1")
    began = time.monotonic()
    result = {
        "command": options.command(),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
        **importlib.import_module(_MODULES[options.campaign]).run(options),
        "seconds": round(time.monotonic() - began),
    }
    if options.out:
        write_json(options.out, result)
    print(table(result["rows"]))
    if failures(result["rows"]):
        sys.exit(1)


def failures(rows: Sequence[dict[str, Any]]) -> int:
    """Count what was lost, broken, failed or not kept."""
    bad = ("lost", "broken", "failed")
    count = sum(row.get(key, 0) for row in rows for key in bad)
    return count + sum(not row.get("kept", True) for row in rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of the same keys as Markdown."""
    lines = [[*rows[0]], ["---:" if _is_number(x) else "---" for x in rows[0].values()]]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if _is_number(value) else str(value)


def with_tables(path: Path) -> str:
    """Return a README with its blocks between markers made from the committed results."""
    readme = path.read_text(encoding="utf-8")
    for name in re.findall("<!-- /(.*) -->", readme):
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        rows = result["rows"]
        if name == "fuzz":
            tried = sum(row["tried"] for row in rows)
            block = f"{tried:,} damaged files were given to {len(rows)} readers, and "
            block += f"{failures(rows) or 'none'} broke one."
        elif name == "instructions":
            tables = importlib.import_module(_MODULES[name]).summaries(rows)
            block = "\n\n".join(map(table, tables))
        else:
            block = table(rows)
        block += f"\n\nFrom `{result['command']}`, in `tests/campaigns/results/{name}.json`."
        marked = rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)"
        readme = re.sub(marked, lambda _, new=block: new, readme, flags=re.DOTALL)
    return readme


if __name__ == "__main__":
    run_tool(main, Options)
