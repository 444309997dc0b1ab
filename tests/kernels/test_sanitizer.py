"""NVIDIA's compute-sanitizer over every kernel, on random cases.

memcheck sees reads and writes outside of what was allocated, racecheck hazards in shared memory,
synccheck barriers that not all threads reach. Uninitialised memory needs no tool: the guards of
`tests.campaigns.stress` fill it with NaN. Here tensors have no guards, which would hide what a
tool sees.

A run takes a minute or so; `pytest tests/kernels/test_sanitizer.py --slow` runs them all.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.campaigns.stress.campaign import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck")
CASES = 6
STRESS = """
from hypothesis import Phase
from tests.campaigns.options import Budget
from tests.campaigns.stress.campaign import stress

budget, phases = Budget({1}, None), [Phase.generate]
found = stress("{0}", budget, guarded=False, phases=phases)
assert not found.failures, found.failures
"""
FOUND = 86  # the status when a tool has found something
SUMMARY = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazard",
    "synccheck": r"ERROR SUMMARY: (\d+) error",
}


def sanitizer() -> str | None:
    """Find the program, on the path or in the toolkit's folder."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [os.environ.get("PATH", os.defpath), str(toolkit / "bin")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def kernel_names() -> list[str]:
    """Return the names of all Triton kernels of the project."""
    sources = sorted((ROOT / "kernels").rglob("*.py"))
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    return re.findall(r"@triton\.jit.*\ndef (\w+_kernel)\(", text)


def sanitize(program: str, tool: str, names: Sequence[str], command: Sequence[str]) -> str | None:
    """Run a Python command under a tool that watches these kernels; return what is wrong."""
    watched = [word for name in names for word in ("--kernel-name", f"kernel_substring={name}")]
    done = subprocess.run(
        [
            program, "--tool", tool, "--target-processes", "application-only",
            "--report-api-errors", "no", "--error-exitcode", str(FOUND), *watched,
            sys.executable, *command,
        ],
        cwd=ROOT,
        # Memory from PyTorch's cache would be one block to the tool, whatever lies in it.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    counts = [int(count) for count in re.findall(SUMMARY[tool], done.stdout)]
    # A program that died early leaves a clean summary, a tool that failed leaves none.
    clean = done.returncode == 0 and counts and not any(counts)
    return None if clean else f"status {done.returncode}\n{done.stdout[-4000:]}"


@pytest.fixture
def program() -> str:
    found = sanitizer()
    if found is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    return found


def test_the_stress_under_a_tool_runs():
    exec(STRESS.format("swiglu", 2))


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_cuda_a_tool_finds_nothing(operator, tool, program):
    wrong = sanitize(program, tool, kernel_names(), ["-c", STRESS.format(operator, CASES)])
    assert wrong is None, wrong


PLANTED = """
import torch, triton, triton.language as tl

@triton.jit
def planted_kernel(x_ptr, offset):
    tl.store(x_ptr + offset + tl.arange(0, 16), 0.0)

planted_kernel[(1,)](torch.zeros(1000, device="cuda"), 2000)
torch.cuda.synchronize()
"""


@pytest.mark.cuda
@pytest.mark.slow
def test_cuda_a_planted_write_out_of_bounds_is_found(program, tmp_path):
    """Else nothing found would mean nothing."""
    script = tmp_path / "planted.py"  # Triton reads a kernel's source from its file
    script.write_text(PLANTED)
    wrong = sanitize(program, "memcheck", ["planted_kernel"], [str(script)])
    assert wrong is not None
    assert "Invalid __global__ write" in wrong


# ---- how a tool's answer is read, with a stand-in for it


def _stand_in(folder: Path, says: str, status: int = 0) -> str:
    path = folder / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\"\necho '========= {says}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("tool", "says", "status", "clean"),
    [
        ("memcheck", "ERROR SUMMARY: 0 errors", 0, True),
        ("memcheck", "ERROR SUMMARY: 2 errors", FOUND, False),
        ("memcheck", "ERROR SUMMARY: 1 error", 0, False),
        ("memcheck", "ERROR SUMMARY: 0 errors", 1, False),
        ("memcheck", "Internal Sanitizer Error", 0, False),
        ("racecheck", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, True),
        ("racecheck", "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 0, False),
        ("racecheck", "ERROR SUMMARY: 0 errors", 0, False),
    ],
)
def test_a_summary_is_believed_with_the_status_only(tool, says, status, clean, tmp_path):
    wrong = sanitize(_stand_in(tmp_path, says, status), tool, ["norm_fwd_kernel"], ["-m", "x"])
    assert (wrong is None) == clean


def test_every_kernel_is_named():
    names = kernel_names()
    assert len(names) == len(set(names))
    launched = set()
    for source in (ROOT / "kernels").rglob("*.py"):
        launched |= set(re.findall(r"\b(\w+_kernel)\[", source.read_text(encoding="utf-8")))
    assert launched == set(names)
