"""What each kernel issues per element, on every target, by every Triton, beside others' kernels.

The figures are read from machine code (`tests.kernels.codegen`). Instructions are those that a lane
issues for one element, or for one score of attention: of a whole tile or one on the diagonal, of
the loop over rows or both passes of the loss, or of a whole program where it has no such loop.

The bound is the least time that a multiprocessor needs for 1,000 elements, in clocks: the largest
of what the instructions take to be issued and what the products, exponentials and bytes of the
operation take, whoever computes it, on the card named in `CARDS`.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import kernels.cross_entropy as loss_kernels
import kernels.gelu as gelu
import kernels.swiglu as swiglu
from kernels._attention.tiles import choose_tiles
from kernels._common.rows import THREADS
from kernels._norm import operators as norm
from tests.campaigns import peers
from tests.campaigns.compilers import TRITONS, environment
from tests.campaigns.options import Options
from tests.kernels import test_attention_codegen as attention
from tests.kernels import test_fused_codegen as fused
from tests.kernels.codegen import Code, compile_for

HEAD, LENGTH, WIDTH, INNER, GATED, VOCABULARY = 64, 1024, 768, 3072, 2048, 50304


class Card(NamedTuple):
    """What a multiprocessor does in a clock, by the maker's figures; an exponential takes 1/16."""

    name: str
    products: int
    """Multiplications with addition of 16-bit numbers, summed in float32."""
    lanes: int
    """Lanes for which an instruction is issued."""
    bytes: float
    """Its share of the bandwidth of memory."""


CARDS = {
    "sm_80": Card("A100", 1024, 128, 13.4),
    "sm_86": Card("RTX 3090", 256, 128, 6.7),
    "sm_90": Card("H100", 2048, 128, 13.9),
    "sm_100": Card("B200", 4096, 128, 29.2),
    "sm_120": Card("RTX 5090", 256, 128, 4.4),
    "gfx942": Card("MI300X", 1024, 64, 8.3),
}


class Work(NamedTuple):
    """What an element takes at least: products, exponentials, bytes."""

    products: int = 0
    exponentials: int = 0
    bytes: float = 0


OPERATIONS = {
    "attention forward, whole tile": Work(2 * HEAD, 1),
    "attention forward, diagonal tile": Work(2 * HEAD, 1),
    "attention backward, whole tile": Work(5 * HEAD, 1),
    "attention backward, diagonal tile": Work(5 * HEAD, 1),
    "attention backward in two passes, whole tile": Work(7 * HEAD, 2),
    "LayerNorm forward": Work(bytes=4),
    "LayerNorm backward": Work(bytes=6),
    "RMSNorm forward": Work(bytes=4),
    "RMSNorm backward": Work(bytes=6),
    "RMSNorm and addition forward": Work(bytes=8),
    "RMSNorm and addition backward": Work(bytes=8),
    "GELU forward": Work(0, 1, 4),
    "GELU backward": Work(0, 1, 6),
    "SwiGLU forward": Work(0, 1, 6),
    "SwiGLU backward": Work(0, 1, 10),
    "cross-entropy and its gradient": Work(0, 2, 4),
}


@dataclass(frozen=True)
class Part:
    """Loops of a kernel, by their place among those with products, or all, from short to long; or
    all of a kernel. `elements` are what a program computes in one turn of them."""

    kernel: str
    loops: slice | None
    elements: float

    def count(self, code: Code) -> float | None:
        """Return the instructions of a lane per element; None without such a loop."""
        if self.loops is None:
            instructions = code.instructions
        else:
            loops = code.products if any(code.matrix.values()) else code.loops
            turns = sorted(loop.instructions for loop in loops)
            instructions = sum(turns[self.loops])
        lanes = 64 if code.target == "gfx942" else 32
        return instructions * lanes * code.warps / self.elements or None


class Kernel(NamedTuple):
    """Launched by `call`, of which `parts` add up to one of OPERATIONS."""

    operation: str
    of: str
    call: Callable[..., None]
    args: tuple[Any, ...]
    parts: tuple[Part, ...]


WHOLE, DIAGONAL, LONGEST = slice(0, 1), slice(1, 2), slice(-1, None)


def ours(target: str) -> Iterator[Kernel]:
    def kernel(operation: str, call: Any, args: tuple[Any, ...], *parts: Part) -> Kernel:
        return Kernel(operation, "kernels", call, args, parts)

    tiles = choose_tiles(target, HEAD, LENGTH, 2)
    fwd, dq, dkv = (tile.block_m * tile.block_n for tile in tiles)
    for place, loops in (("whole", WHOLE), ("diagonal", DIAGONAL)):
        for name, part in (
            ("forward", Part("attention_fwd", loops, fwd)),
            ("backward", Part("attention_bwd_dkv", loops, dkv)),
        ):
            yield kernel(f"attention {name}, {place} tile", attention.launch, (HEAD, LENGTH), part)
    yield kernel(
        "attention backward in two passes, whole tile", attention.launch, (HEAD, LENGTH, True),
        Part("attention_bwd_dq", WHOLE, dq), Part("attention_bwd_dkv", WHOLE, dkv),
    )  # fmt: skip
    forward = norm.plan_rows(WIDTH, 2, norm.FWD_VALUES, norm.FWD_THREADS)
    backward = norm.plan_rows(WIDTH, 2, norm.BWD_VALUES, norm.BWD_THREADS)
    for name, added, centred in (
        ("LayerNorm", False, True),
        ("RMSNorm", False, False),
        ("RMSNorm and addition", True, False),
    ):
        args = (WIDTH, added, centred)
        for way, part in (
            ("forward", Part("norm_fwd", None, WIDTH * forward.rows)),
            ("backward", Part("norm_bwd", LONGEST, WIDTH * backward.rows)),
        ):
            yield kernel(f"{name} {way}", fused.norms, args, part)
    for operation, part in (
        ("GELU forward", Part("gelu_fwd", LONGEST, THREADS * gelu.FWD_VALUES)),
        ("GELU backward", Part("gelu_bwd", LONGEST, THREADS * gelu.BWD_VALUES)),
        ("SwiGLU forward", Part("swiglu_fwd", None, THREADS * swiglu.VALUES)),
        ("SwiGLU backward", Part("swiglu_bwd", None, THREADS * swiglu.VALUES)),
    ):
        yield kernel(operation, fused.activations, (INNER, GATED), part)
    block = loss_kernels.LOADS * loss_kernels.THREADS * 8
    yield kernel(
        "cross-entropy and its gradient", fused.loss, (VOCABULARY, VOCABULARY - 47),
        Part("cross_entropy", slice(-2, None), block),
    )  # fmt: skip


def of_peers(folder: str) -> Iterator[Kernel]:
    for operation, part in (
        ("attention forward, whole tile", Part("attn_fwd", WHOLE, 128 * 64)),
        ("attention forward, diagonal tile", Part("attn_fwd", DIAGONAL, 128 * 64)),
        # Of dk and dv, and of dq; on the diagonal with half as many rows or keys.
        ("attention backward, whole tile", Part("attn_bwd", slice(2, 4), 32 * 128)),
        ("attention backward, diagonal tile", Part("attn_bwd", slice(0, 2), 16 * 128)),
    ):
        call = peers.tutorial_attention
        yield Kernel(operation, "tutorial", call, (folder, HEAD, LENGTH), (part,))
    for operation, name in (
        ("LayerNorm forward", "_layer_norm_fwd"), ("LayerNorm backward", "_layer_norm_bwd_dx"),
    ):  # fmt: skip
        part = Part(name, None, WIDTH)
        yield Kernel(operation, "tutorial", peers.tutorial_norm, (folder, WIDTH), (part,))
    for operation, operator, width, loops in (
        ("LayerNorm", "layer_norm", WIDTH, LONGEST),
        ("RMSNorm", "rms_norm", WIDTH, LONGEST),
        ("RMSNorm and addition", "fused_add_rms_norm", WIDTH, LONGEST),
        ("GELU", "geglu", INNER, None),
        ("SwiGLU", "swiglu", GATED, None),
    ):
        for way, part in (
            ("forward", Part("forward", None, width)), ("backward", Part("backward", loops, width)),
        ):  # fmt: skip
            args = (folder, operator, width)
            yield Kernel(f"{operation} {way}", "Liger", peers.liger, args, (part,))
    # Two turns of blocks of 2^15.
    part = Part("cross_entropy", slice(-2, None), VOCABULARY / 2)
    args = (folder, "cross_entropy", VOCABULARY)
    yield Kernel("cross-entropy and its gradient", "Liger", peers.liger, args, (part,))


def measure(kernel: Kernel, target: str) -> str:
    """Compile a kernel and say what it issues, in how many registers, and the bound."""
    try:
        compiled = compile_for(target, kernel.call, *kernel.args)
    except AssertionError as error:
        return f"- does not compile: {str(error).strip().splitlines()[-1]}"[:100]
    found = [
        (code, part.count(code))
        for part in kernel.parts
        for code in compiled
        if part.kernel in code.kernel
    ]
    assert len(found) == len(kernel.parts), (kernel, [code.kernel for code in compiled])
    counts = [count for _, count in found if count is not None]
    if len(counts) < len(found):
        return "- without a loop of its own"
    card, work, total = CARDS[target], OPERATIONS[kernel.operation], sum(counts)
    clocks = {
        "issue": total / card.lanes,
        "products": work.products / card.products,
        "exponentials": work.exponentials / 16,
        "memory": work.bytes / card.bytes,
    }
    bound = max(clocks, key=lambda name: clocks[name])
    codes = [code for code, _ in found]
    words = [
        f"{total:.2f} instructions",
        f"{max(code.registers for code in codes)} registers",
        f"{min(code.programs_per_sm for code in codes)} programs",
        *[f"{sum(code.spills for code in codes)} spills"] * any(code.spills for code in codes),
        *["serialised"] * any(code.serialised for code in codes),
        f"{1000 * clocks[bound]:.0f} clocks by {bound}",
    ]
    return ", ".join(words)


def main(folder: str, *targets: str) -> None:
    """Print the rows of the Triton that is installed, as JSON."""
    rows = []
    for target in targets or CARDS:
        for kernel in (*ours(target), *(of_peers(folder) if folder else ())):
            rows.append([kernel.operation, kernel.of, target, measure(kernel, target)])
            print(*rows[-1], file=sys.stderr, flush=True)
    print(json.dumps(rows))


def run(options: Options) -> dict[str, Any]:
    """Return a row for each operation, owner and target, with what each Triton makes of it; of
    others' kernels, the newest."""
    if options.steps is not None or options.seconds is not None:
        raise ValueError("instructions: every kernel is compiled once; no --steps and no --seconds")
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    versions = options.chosen(TRITONS)
    for version in versions:
        with tempfile.TemporaryDirectory() as made:
            python = environment(Path(made), version)
            words = ["-m", __name__, options.peers if version == versions[-1] else ""]
            done = subprocess.run([python, *words], stdout=subprocess.PIPE, text=True, check=True)
        for operation, owner, target, figures in json.loads(done.stdout):
            rows.setdefault((operation, owner, target), {})[version] = figures
    return {
        "rows": [
            {"kernel": operation, "of": owner, "target": target, **figures}
            for (operation, owner, target), figures in rows.items()
        ]
    }


def summaries(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Return a table of what ours and the leanest of the others issue on each target, by the newest
    Triton, and one of ours on sm_90 by every Triton."""
    versions = [*rows[0]][3:]
    newest = versions[-1]
    counts: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        count = row[newest].split()[0]
        if count != "-" or row["of"] == "kernels":
            counts.setdefault((row["kernel"], row["target"]), []).append(count)

    def cell(operation: str, target: str) -> str:
        ours, *others = counts[operation, target]
        return " / ".join([ours, *sorted(others, key=float)[:1]])

    return [
        [
            {"kernel": operation, **{target: cell(operation, target) for target in CARDS}}
            for operation in OPERATIONS
        ],
        [
            {"kernel": row["kernel"]}
            | {version: row[version].split()[0] for version in versions}
            | {f"by {newest}": row[newest].partition(", ")[2]}
            for row in rows
            if (row["of"], row["target"]) == ("kernels", "sm_90")
        ],
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
