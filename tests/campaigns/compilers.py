"""The code-generation tests on every Triton that the project supports, each in its own environment.

An environment takes everything but Triton from the one that runs the campaign. The tests compile
for GPUs on the CPU, and call Triton only, not PyTorch.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.options import Options

ROOT = Path(__file__).resolve().parents[2]
TRITONS = ["3.6.0", "3.7.1", "3.8.0", "3.9.0"]


def run(options: Options) -> dict[str, Any]:
    """Return a row for each Triton: how many tests passed and failed; with --long the slow too."""
    if options.steps is not None or options.seconds is not None:
        raise ValueError("compilers: every test is run once; leave out --steps and --seconds")
    rows, failed = [], []
    for version in options.chosen(TRITONS):
        with tempfile.TemporaryDirectory() as folder:
            names, passed = _test(_environment(Path(folder), version), options.long)
        rows.append({"Triton": version, "passed": passed, "failed": len(names)})
        failed += [f"{version}: {name}" for name in names]
        print(*failed, sep="\n", flush=True)
    return {"rows": rows, "failed tests": failed}


def _environment(folder: Path, version: str) -> Path:
    """Make an environment with this Triton, before the packages of this process on its path."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", f"triton=={version}"]
    subprocess.run([python, *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "this.pth").write_text(str(Path(torch.__file__).parents[1]))
    return python


def _test(python: Path, slow: bool) -> tuple[list[str], int]:
    """Return the names of the tests that failed, and how many passed."""
    report = python.parents[1] / "report.xml"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    files = ["tests/kernels/test_attention_codegen.py", "tests/kernels/test_fused_codegen.py"]
    subprocess.run([python, *words, *["--slow"] * slow, *files], cwd=ROOT, check=False)
    cases = [*ElementTree.parse(report).iter("testcase")]
    bad = [f"{case.get('name')}" for case in cases if case.find("failure") is not None]
    bad += [f"{case.get('name')}" for case in cases if case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return bad, len(cases) - skipped - len(bad)
