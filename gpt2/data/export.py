"""Write tokens for other trainers: llm.c's files, nanoGPT's, or Megatron's.

    python -m gpt2.data.export --data my.txt --format llm.c --out tokens

    llm.c       my_train_000000.bin, ..., my_val_000000.bin: also what modded-nanogpt reads
    nanogpt     train.bin, val.bin, test.bin
    megatron    train_text_document.bin and .idx, ...: --data-path takes the name without suffix

The tokenizer.json of the ids is written beside them. Layouts and sources are in
gpt2/data/token_files.py, which reads all of this back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import atomic_write
from gpt2.common.progress import progress_bar
from gpt2.config import TokenType
from gpt2.data.prepare import prepare
from gpt2.data.shards import TokenStream, id_dtype
from gpt2.data.token_files import LLM_C, LLM_C_BYTES, MEGATRON_MAGIC, MEGATRON_TYPES

_BLOCK = 1 << 22  # tokens in memory
_LLM_C_TOKENS = 100_000_000  # in a file
_SMALL = 65500  # vocabularies below it Megatron takes for those of 16 bits
_NAMES = {"train": "train", "valid": "val", "test": "test"}


def write_llm_c(folder: Path, name: str, split: str, stream: TokenStream, eot_id: int) -> None:
    """Write NAME_SPLIT_000000.bin, ..., of 100 million ids each, uint16 or uint32, with
    `<|endoftext|>` before each document."""
    dtype = id_dtype(stream.vocab_size)
    magic, version = next((m, v) for m, (v, of) in LLM_C.items() if of == dtype)
    last = int(stream.read(len(stream) - 1, len(stream))[0])
    total = len(stream) + (last != eot_id)
    for number, start in enumerate(range(0, total, _LLM_C_TOKENS)):
        stop = min(start + _LLM_C_TOKENS, total)
        header = np.zeros(LLM_C_BYTES // 4, dtype="<i4")
        header[:3] = magic, version, stop - start
        with atomic_write(folder / f"{name}_{split}_{number:06d}.bin") as file:
            file.write(header.tobytes())
            if start == 0:
                file.write(np.array([eot_id], dtype).tobytes())
            for ids in _blocks(stream, max(start - 1, 0), stop - 1):
                file.write(ids.astype(dtype).tobytes())


def write_nanogpt(folder: Path, name: str, split: str, stream: TokenStream, eot_id: int) -> None:
    """Write SPLIT.bin: the ids alone, uint16, with `<|endoftext|>` after each document.

    Raises:
        ValueError: the vocabulary does not fit 16 bits, which is all that nanoGPT reads.
    """
    dtype = id_dtype(stream.vocab_size)
    if dtype.itemsize != 2:
        raise ValueError(
            f"nanoGPT reads ids of 16 bits, and this vocabulary has {stream.vocab_size:,} tokens: "
            "choose --format llm.c or --format megatron"
        )
    with atomic_write(folder / f"{split}.bin") as file:
        for ids in _blocks(stream, 0, len(stream)):
            file.write(ids.astype(dtype).tobytes())


def write_megatron(folder: Path, name: str, split: str, stream: TokenStream, eot_id: int) -> None:
    """Write SPLIT_text_document.bin, ids alone, and .idx: a sequence for each document, which ends
    with `<|endoftext|>` as by Megatron's --append-eod."""
    code = 8 if stream.vocab_size < _SMALL else 4
    dtype = MEGATRON_TYPES[code]
    ends = []
    path = folder / f"{split}_text_document.bin"
    with atomic_write(path) as file:
        for start, ids in enumerate(_blocks(stream, 0, len(stream))):
            file.write(ids.astype(dtype).tobytes())
            ends.append(np.flatnonzero(ids == eot_id) + 1 + start * _BLOCK)
    bounds = np.unique(np.concatenate([[0], *ends, [len(stream)]]))
    lengths = np.diff(bounds)
    if lengths.max() > np.iinfo(np.int32).max:
        raise ValueError(
            f"a document has {lengths.max():,} tokens, more than Megatron's 32 bits count: choose "
            "--format llm.c or --format nanogpt"
        )
    with atomic_write(path.with_suffix(".idx")) as file:
        counts = np.array([len(lengths), len(bounds)], "<u8")  # sequences; documents and an end
        file.write(MEGATRON_MAGIC + np.array([1], "<u8").tobytes() + bytes([code]))
        file.write(counts.tobytes() + lengths.astype("<i4").tobytes())
        file.write((bounds[:-1] * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(bounds), dtype="<i8").tobytes())


WRITERS = {"llm.c": write_llm_c, "nanogpt": write_nanogpt, "megatron": write_megatron}


def _blocks(stream: TokenStream, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(start, stop, _BLOCK):
        yield stream.read(begin, min(begin + _BLOCK, stop))


@dataclass(frozen=True)
class Arguments:
    """Write tokenised data as token files of other trainers; it is prepared first, if need be."""

    data: str
    """What gpt2.data.prepare's --data takes, or a folder that it prepared."""
    format: Literal["llm.c", "nanogpt", "megatron"]
    """llm.c (modded-nanogpt too), nanogpt or megatron."""
    out: Path
    """Folder to write to, new or empty."""
    tokenizer: str | None = None
    """As for gpt2.data.prepare."""
    vocab_size: int = 32000
    """Tokens of the tokenizer trained on the text, where none is given."""
    token_type: TokenType | None = None
    """uint16 or uint32: the type of the ids in token files that do not say it."""
    cache_dir: Path = Path("data")
    """Folder of what is prepared."""


def main(arguments: Arguments) -> None:
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is no empty folder: name a new one")
    prepared = prepare(
        arguments.data,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        cache_dir=arguments.cache_dir,
        token_type=arguments.token_type,
    )
    print("\n".join(prepared.notes))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = prepared.tokenizer
    with progress_bar(True, prepared.splits.items(), f"writing {out}", unit="split") as bar:
        for split, stream in bar:
            write = WRITERS[arguments.format]
            write(out, prepared.name, _NAMES[split], stream, tokenizer.eot_id)
    tokenizer.save(out / "tokenizer.json")
    print(f"written for {arguments.format}, with tokenizer.json: {out}")


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
