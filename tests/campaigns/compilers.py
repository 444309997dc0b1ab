"""The code-generation tests on every Triton that the project supports.

Each has an environment of its own, which takes all other packages from the one that runs this.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.options import Options

TRITONS = ["3.6.0", "3.7.1", "3.8.0", "3.9.0"]
KERNELS = Path(__file__).resolve().parents[1] / "kernels"


def run(options: Options) -> dict[str, Any]:
    """Return a row for each Triton: how many tests passed and failed; with --long the slow too."""
    if options.steps is not None or options.seconds is not None:
        raise ValueError("compilers: every test runs once; no --steps and no --seconds")
    rows = []
    for version in options.chosen(TRITONS):
        with tempfile.TemporaryDirectory() as folder:
            passed, failed = _test(environment(Path(folder), version), slow=options.long)
        print(*(f"FAILED on Triton {version}: {name}" for name in failed), sep="\n", flush=True)
        rows.append({"Triton": version, "passed": passed, "failed": len(failed)})
    return {"rows": rows}


def environment(folder: Path, version: str) -> Path:
    """Make an environment with this Triton and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", f"triton=={version}"]
    subprocess.run([python, *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(str(Path(torch.__file__).parents[1]))
    return python


def _test(python: Path, *, slow: bool) -> tuple[int, list[str]]:
    """Return how many tests passed, and the names of those that failed."""
    report = python.parents[1] / "report.xml"
    words = ["-m", "pytest", "-q", *["--slow"] * slow, f"--junitxml={report}"]
    subprocess.run([python, *words, *KERNELS.glob("test_*_codegen.py")], cwd=KERNELS.parents[1])
    cases = [*ElementTree.parse(report).iter("testcase")]
    failed = [x.get("name", "") for x in cases if {"failure", "error"} & {part.tag for part in x}]
    skipped = [x for x in cases if x.find("skipped") is not None]
    return len(cases) - len(failed) - len(skipped), failed
