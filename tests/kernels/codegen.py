"""Compile kernels for any GPU, on a machine that has none, and examine the machine code.

`compile_for` calls a launching function in a process without the interpreter, under a driver that
reports the wanted target. Every kernel that the call would launch is compiled exactly as it would
be there (specialisation, tile choice and options included), and none is run. The report counts
what decides speed: registers, spills, shared memory, tensor-core instructions and whether they wait
for each other, 16-byte loads, and the instructions of each loop, read from the machine code with
the tools that Triton ships.

A process that runs tests keeps one compiling process, which gets each call when a test needs it.
Processes beside each other thus never wait for one another, and find what the others compiled in
Triton's cache.
"""

import functools
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).parents[2]

SHARED_LIMIT = {
    "sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10,
    "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10, "gfx942": 64 << 10,
}  # fmt: skip
"""Shared memory that one program may have, in bytes; the keys are the targets we compile for."""

TENSOR_CORE = {
    "sm_80": "HMMA", "sm_86": "HMMA", "sm_89": "HMMA", "sm_90": "HGMMA",
    "sm_100": "tcgen05.mma", "sm_120": "HMMA", "gfx942": "MFMA",
}  # fmt: skip
"""The matrix instruction that a good kernel uses on each target, as named in `Code.matrix`."""


@dataclass(frozen=True)
class Loop:
    """An innermost loop of the machine code: what a warp issues each time."""

    instructions: int
    matrix: int
    """Matrix instructions, of any kind."""
    waits: int
    """Instructions that wait for the products of a warp group (HGMMA)."""
    barriers: int
    """Instructions that wait for all warps of the program."""
    wide_stores: int


@dataclass(frozen=True)
class Code:
    """One compiled kernel."""

    kernel: str
    target: str
    key: str
    """Equal for launches that share one compiled kernel."""
    warps: int
    registers: int
    """Per thread (NVIDIA) or vector registers per lane (AMD)."""
    spills: int
    """Instructions that store to or load from local memory."""
    shared: int
    """Bytes of shared memory per program."""
    matrix: dict[str, int]
    """Matrix instructions by name: HMMA, HGMMA, tcgen05.mma, MFMA."""
    wide_loads: int
    """Instructions that load 16 bytes per thread from global memory, or by TMA."""
    narrow_loads: int
    """The others that load from global memory."""
    wide_stores: int
    """Instructions that store 16 bytes per thread to global memory."""
    instructions: int = 0
    waits: int = 0
    """Instructions that wait for the products of a warp group (HGMMA)."""
    loops: tuple[Loop, ...] = ()
    """In the order of the machine code."""

    @property
    def products(self) -> list[Loop]:
        """The loops with matrix instructions."""
        return [loop for loop in self.loops if loop.matrix]

    @property
    def serialised(self) -> bool:
        """Whether ptxas makes every HGMMA wait for the one before (its warnings C7510 to C7515)."""
        parts = [(self.matrix.get("HGMMA", 0), self.waits)]
        parts += [(loop.matrix, loop.waits) for loop in self.loops]
        return any(waits >= matrix > 1 for matrix, waits in parts)

    @property
    def programs_per_sm(self) -> int:
        """How many programs a multiprocessor holds by registers and shared memory."""
        if self.target == "gfx942":
            waves = 4 * min(512 // (-(-self.registers // 8) * 8), 8)
            return min(waves // self.warps, SHARED_LIMIT["gfx942"] // max(self.shared, 1))
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        pool = SHARED_LIMIT[self.target] + 1024
        return min(65536 // registers, pool // (self.shared + 1024), 64 // self.warps)


@functools.cache
def compile_for(target: str, launch: Callable[..., None], *args: Any) -> list[Code]:
    """Compile every kernel that a call would launch on a target, in the order launched.

    `launch` is a function of a module that launches kernels on CPU tensors; `args` JSON values.
    """
    child = _compiling_process()
    child.stdin.write(json.dumps([target, launch.__module__, launch.__name__, args]) + "\n")
    child.stdin.flush()
    line = child.stdout.readline()
    assert line, f"the compiling process ended with status {child.wait()} at {launch}"
    report = json.loads(line)
    assert isinstance(report, list), report
    return [
        Code(**code | {"loops": tuple(Loop(**loop) for loop in code["loops"])}) for code in report
    ]


@functools.cache
def _compiling_process() -> Any:
    """Start the process that compiles for this one; it ends when its input does."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.kernels.codegen"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, env=environment, text=True)


def _main() -> None:
    """In the child: make each call under a driver that compiles for its target and runs nothing.

    Each line of the input is a call, and each line of the output its report, or what went wrong.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from kernels._common.launch import _architecture

    names = list(SHARED_LIMIT)

    class CompileOnly:
        """The part of Triton's driver interface that compiling needs; one "device" per target."""

        target = ""

        def get_current_target(self) -> GPUTarget:
            nvidia, _, arch = self.target.partition("sm_")
            return GPUTarget("hip", nvidia, 64) if nvidia else GPUTarget("cuda", int(arch), 32)

        def get_current_device(self) -> int:
            return names.index(self.target)

        def get_current_stream(self, device: int) -> int:
            return 0

    driver = CompileOnly()
    triton.runtime.driver.set_active(driver)
    run = JITFunction.run
    compiled: list[Any] = []
    examined: dict[Any, Code] = {}

    def warm_up(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert kwargs.get("enable_fp_fusion") or not kernel.fn.__module__.startswith("kernels.")
        compiled.append(run(kernel, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = warm_up
    reports, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        driver.target, module, name, args = json.loads(line)
        _architecture.cache_clear()
        compiled.clear()
        report: Any
        try:
            getattr(importlib.import_module(module), name)(*args)
            new = [kernel for kernel in dict.fromkeys(compiled) if kernel not in examined]
            examine = _examine_nvidia if driver.target.startswith("sm_") else _examine_amd
            examined |= zip(new, examine(new, driver.target), strict=True)
            report = [asdict(examined[kernel]) for kernel in compiled]
        except Exception:
            report = traceback.format_exc()
        print(json.dumps(report), file=reports, flush=True)


def _examine_nvidia(kernels: list[Any], target: str) -> list[Code]:
    """Disassemble all kernels at once, as the tool takes longer to begin than for a kernel."""
    if not kernels:
        return []
    texts, registers = zip(*(_machine_code(k.asm["cubin"]) for k in kernels), strict=True)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    arch = target.replace("sm_", "SM") + "a" * (target in ("sm_90", "sm_100", "sm_120"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(texts))
        file.flush()
        command = [tool, "--binary", arch, file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line for line in sass.splitlines() if line.lstrip().startswith("/*"))
    parts = ["\n".join(islice(lines, len(text) // 16)) for text in texts]
    assert next(lines, None) is None, "an instruction has 16 bytes and a line"
    return [
        _examine_sass(kernel, target, number, part)
        for kernel, number, part in zip(kernels, registers, parts, strict=True)
    ]


def _machine_code(cubin: bytes) -> tuple[bytes, int]:
    """The code of the one kernel of an ELF file, and the registers that a thread of it has."""
    (place,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<2I4Q", cubin, place + i * size) for i in range(count)]

    def section(name: bytes) -> bytes:
        at = sections[names][4]
        (found,) = (s for s in sections if cubin.startswith(name, at + s[0]))
        return cubin[found[4] : found[4] + found[5]]

    # EIATTR_REGCOUNT: its mark, 8 bytes, of which 4 for the kernel.
    (registers,) = re.findall(rb"\x04\x2f\x08\0.{4}(.{4})", section(b".nv.info\0"), re.DOTALL)
    return section(b".text."), int.from_bytes(registers, "little")


def _examine_sass(kernel: Any, target: str, registers: int, sass: str) -> Code:
    wide = len(re.findall(r"\b(?:LDG|LDGSTS)\.E\.[\w.]*128|UTMALDG|UBLKCP", sass))
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    code = [(int(address, 16), line) for address, line in lines if not line.startswith("NOP")]
    return Code(
        kernel=kernel.metadata.name,
        target=target,
        key=kernel.hash,
        warps=kernel.metadata.num_warps,
        registers=registers,
        spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        shared=kernel.metadata.shared,
        matrix={
            "HMMA": len(re.findall(r"\bHMMA\.", sass)),
            "HGMMA": len(re.findall(r"\bHGMMA\.", sass)),
            "tcgen05.mma": kernel.asm["ptx"].count("tcgen05.mma."),
        },
        wide_loads=wide,
        narrow_loads=len(re.findall(r"\b(?:LDG|LDGSTS)\.E", sass)) - wide,
        wide_stores=_count(code, WIDE_STORE),
        instructions=len(code),
        waits=_count(code, WAIT),
        loops=_loops(code),
    )


WIDE_STORE = r"\bSTG\.E\.[\w.]*128|\b(?:global|buffer)_store_dwordx4\b"
WAIT = r"\bWARPGROUP\.DEPBAR\b"


def _count(code: list[tuple[int, str]], pattern: str) -> int:
    return sum(re.search(pattern, line) is not None for _, line in code)


def _loops(code: list[tuple[int, str]]) -> tuple[Loop, ...]:
    """The loops of machine code (address, instruction) that have no other inside."""
    ends: dict[int, int] = {}  # of the last jump back to each address
    for place, (address, line) in enumerate(code):
        jump = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", line)
        # Jumps over a few instructions of 16 bytes wait for a barrier; if they stand after the end,
        # a jump back into the kernel follows.
        waited = any("TRYWAIT" in before for _, before in code[max(place - 2, 0) : place])
        if jump and not waited and int(jump[1], 16) < address - 8 * 16:
            ends[int(jump[1], 16)] = address
    inner = [
        (start, end)
        for start, end in ends.items()
        if not any(start < other < end for other in ends)
    ]
    bodies = [[x for x in code if start <= x[0] <= end] for start, end in sorted(inner)]
    return tuple(
        Loop(
            instructions=len(body),
            matrix=_count(body, r"\b(?:HGMMA|HMMA|UTC\w*MMA|v_mfma_\w+)\b"),
            waits=_count(body, WAIT),
            barriers=_count(body, r"\bBAR\.|\bs_barrier\b"),
            wide_stores=_count(body, WIDE_STORE),
        )
        for body in bodies
    )


def _examine_amd(kernels: list[Any], target: str) -> list[Code]:
    return [_examine_assembly(kernel, target) for kernel in kernels]


def _examine_assembly(kernel: Any, target: str) -> Code:
    assembly = kernel.asm["amdgcn"]
    loads = re.findall(r"\b(?:global|buffer)_load_(\w+)", assembly)

    def note(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", assembly)[0])

    # As NVIDIA's: instructions at addresses 16 bytes apart, and jumps to addresses.
    lines = re.findall(r"^(\.L\w+:|\t[a-z]\w+.*)", assembly.rpartition("s_endpgm")[0], re.MULTILINE)
    code: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    for line in lines:
        if line.startswith("."):
            labels[line[:-1]] = 16 * len(code)
        else:
            branch = re.match(r"\ts_c?branch\w*\s+(\.\w+)", line)
            known = branch and branch[1] in labels
            code.append((16 * len(code), f"BRA 0x{labels[branch[1]]:x}" if known else line))
    return Code(
        kernel=kernel.metadata.name,
        target=target,
        key=kernel.hash,
        warps=kernel.metadata.num_warps,
        registers=note("vgpr_count"),
        spills=note("vgpr_spill_count"),
        shared=kernel.metadata.shared,
        matrix={"MFMA": assembly.count("v_mfma_")},
        wide_loads=loads.count("dwordx4"),
        narrow_loads=len(loads) - loads.count("dwordx4"),
        wide_stores=_count(code, WIDE_STORE),
        instructions=len(code),
        loops=_loops(code),
    )


if __name__ == "__main__":
    _main()
