"""Token files that other programs made: where the ids lie in each, and of what type they are.

    nanoGPT       train.bin, val.bin: ids alone
    llm.c         *.bin: 256 int32, of which the first three are magic, version, number of ids
    Megatron      x.bin: ids alone; x.idx: type, lengths of the sequences, documents
    datatrove     *.ds: ids alone; *.ds.metadata: size of an id, number of ids; *.ds.index
    litdata       chunk-*.bin: number of items, offsets, ids; index.json: type, chunks
    NumPy         *.npy, and what dolma writes by that name: ids alone
    this program  *.bin, see `gpt2.data.shards`

Nothing of a file is run, and no pickle is opened. Sizes and counts are checked here, the ids by
`count_ids`.

Sources:
    https://github.com/karpathy/nanoGPT/blob/master/data/openwebtext/prepare.py
    https://github.com/karpathy/llm.c/blob/master/dev/data/data_common.py
    https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/datasets/indexed_dataset.py
    https://github.com/huggingface/datatrove/blob/main/src/datatrove/pipeline/tokens/tokenizer.py
    https://github.com/Lightning-AI/litData/blob/main/src/litdata/streaming/writer.py
    https://github.com/allenai/dolma/blob/main/python/dolma/tokenizer/memmap_writer.py
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2.common.files import read_bytes
from gpt2.common.json_files import read_json_object
from gpt2.config import TokenType
from gpt2.data.readers import refuse_others
from gpt2.data.shards import HEADER_BYTES, MAGIC, read_header

LLM_C_BYTES = 1024  # of the header
LLM_C: dict[int, tuple[int, np.dtype]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}  # magic: version, type
_OTHER_MAGICS = {
    20240522: "multiple-choice questions of llm.c",
    278895051: "a file of NeMo Automodel",
}
MEGATRON_MAGIC = b"MMIDIDX\0\0"
MEGATRON_TYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"), 2: np.dtype("i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"),
    5: np.dtype("<i8"), 8: np.dtype("<u2"),
}  # fmt: skip
_LITDATA_TYPES: dict[str, np.dtype] = {
    **dict.fromkeys(("numpy:2", "tensor:15", "tensor:16"), np.dtype("<i4")),
    **dict.fromkeys(("numpy:3", "tensor:17", "tensor:18"), np.dtype("<i8")),
    **dict.fromkeys(("numpy:5", "tensor:20"), np.dtype("<u2")),
    "numpy:6": np.dtype("<u4"),
}
_INDEX_BYTES = 1 << 32  # the largest index that is read
_BLOCK = 1 << 22  # ids looked at together
_ENOUGH = 64  # ids that tell 16 bits from 32


class _Layout(NamedTuple):
    """Where the ids of a file lie: `tokens` of them from byte `start` on."""

    dtype: np.dtype
    start: int
    tokens: int
    tokenizer_hash: str | None = None  # of the tokenizer, where the file says it


def map_ids(
    path: Path, token_type: TokenType | None, *, tokenizer_hash: str | None = None
) -> NDArray[np.integer]:
    """Map the ids of a token file into memory, (tokens,) of an integer type, read-only.

    Args:
        path: the file; what belongs to it lies beside it.
        token_type: of the ids in a file that does not say it.
        tokenizer_hash: a file that says what tokenizer made it must say this one.

    Raises:
        ValueError: it is cut short, holds more than it says, is of no known layout, or does not
            say the type of its ids and `token_type` is None; says what to do.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(LLM_C_BYTES)
    found = _find_layout(path, head, size)
    if found is None:
        refuse_others(path, head)
        found = _without_header(path, size, token_type)
    elif token_type and found.dtype != np.dtype(token_type):
        raise ValueError(
            f"{path} says that its ids are {found.dtype.name}: leave out --token-type {token_type}"
        )
    end = found.start + found.tokens * found.dtype.itemsize
    if size != end:
        problem = "it is cut short" if size < end else "there is more in it than that"
        raise ValueError(
            f"{path} has {size:,} bytes, and the {found.tokens:,} ids ({found.dtype.name}) that "
            f"are said to be in it end at {end:,}: {problem}. Fetch it again"
        )
    if not found.tokens:
        raise ValueError(f"{path} holds no ids: leave it out, or fetch it again")
    if tokenizer_hash and found.tokenizer_hash not in (None, tokenizer_hash):
        raise ValueError(
            f"{path} was made with the tokenizer {found.tokenizer_hash:.8}, not with "
            f"{tokenizer_hash:.8}: give the tokenizer.json that was written beside it"
        )
    ids = np.memmap(path, found.dtype, mode="r", offset=found.start, shape=(found.tokens,))
    if token_type == "uint16" and _is_wider(ids):
        raise ValueError(
            f"{path}: every second id is 0, as in 32-bit ids that are read as 16-bit ones: give "
            "--token-type uint32"
        )
    return ids


def _find_layout(path: Path, head: bytes, size: int) -> _Layout | None:
    """Find what the file, or one beside it, says of its ids; None if nothing does."""
    if path.suffix == ".npy":
        return _numpy(path) if head.startswith(b"\x93NUMPY") else None
    if path.suffix == ".ds":
        return _datatrove(path)
    if path.with_suffix(".idx").is_file():
        return _megatron(path)
    if (path.parent / "index.json").is_file():
        return _litdata(path)
    if head.startswith(MAGIC):
        info = read_header(path)
        return _Layout(info.dtype, HEADER_BYTES, info.tokens, info.tokenizer_hash)
    magic, version, tokens = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
    if magic in _OTHER_MAGICS:
        raise ValueError(f"{path} is {_OTHER_MAGICS[magic]}, which is not read: leave it out")
    if magic not in LLM_C:
        return None
    if version != LLM_C[magic][0] or tokens < 0:
        raise ValueError(
            f"{path} has llm.c's magic {magic} with version {version} and {tokens:,} ids; read is "
            f"version {LLM_C[magic][0]}. Fetch it again, or write it anew"
        )
    return _Layout(LLM_C[magic][1], LLM_C_BYTES, tokens)


def _without_header(path: Path, size: int, token_type: TokenType | None) -> _Layout:
    if token_type is None:
        raise ValueError(
            f"{path} has no header that says of what type its ids are: give --token-type uint16 "
            "(as nanoGPT and dolma write them) or --token-type uint32"
        )
    dtype = np.dtype(token_type).newbyteorder("<")
    if size % dtype.itemsize:
        raise ValueError(
            f"{path} has {size:,} bytes, which is no whole number of {token_type} ids: give the "
            "type that they have (--token-type), or fetch it again if it is cut short"
        )
    return _Layout(dtype, 0, size // dtype.itemsize)


def _is_wider(ids: NDArray[np.integer]) -> bool:
    first = ids[:_BLOCK]
    return len(first) >= _ENOUGH and not first[1::2].any() and bool(first[::2].any())


def _numpy(path: Path) -> _Layout:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file ({error}): fetch it again") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, not one row of integers: write "
            "the ids with numpy.save(path, ids.reshape(-1).astype('uint32'))"
        )
    return _Layout(array.dtype, array.offset, len(array))


def _datatrove(path: Path) -> _Layout | None:
    """The layout by x.ds.metadata, and the number of ids by x.ds.index too, where these are."""
    metadata, index = Path(f"{path}.metadata"), Path(f"{path}.index")
    if not metadata.is_file():
        return None
    lines = read_bytes(metadata, limit=_BLOCK).decode("utf-8", "replace").split("\n")
    width = lines[0].rpartition("|")[2]
    if width not in ("2", "4") or len(lines) < 2 or not lines[1].isdecimal():
        raise ValueError(
            f"{metadata} does not tell the size of an id and the number of ids, as datatrove "
            "writes it: fetch it again, or remove it and give --token-type"
        )
    tokens = int(lines[1])
    if index.is_file():
        ends = _column(index, read_bytes(index, limit=_INDEX_BYTES), "<u8")
        if (ends[-1] if len(ends) else 0) != tokens or (np.diff(ends.astype(np.int64)) < 0).any():
            raise ValueError(
                f"{index} does not fit {metadata}, which says {tokens:,} ids: they are of two "
                "files, or damaged. Fetch both again"
            )
    return _Layout(np.dtype(f"<u{width}"), 0, tokens)


def _column(path: Path, content: bytes, dtype: str) -> NDArray[np.integer]:
    if len(content) % np.dtype(dtype).itemsize:
        raise ValueError(f"{path} has {len(content):,} bytes: it is cut short. Fetch it again")
    return np.frombuffer(content, dtype)


def _megatron(path: Path) -> _Layout:
    index = path.with_suffix(".idx")
    content = read_bytes(index, limit=_INDEX_BYTES)
    problem = ""
    if len(content) < 34 or content[:9] != MEGATRON_MAGIC:
        problem = "does not begin as an index of Megatron does"
    else:
        version, sequences, documents = (
            int.from_bytes(content[at : at + 8], "little") for at in (9, 18, 26)
        )
        dtype = MEGATRON_TYPES.get(content[17])
        columns = 34 + sequences * 12 + documents * 8
        if version != 1 or dtype is None:
            problem = f"has version {version} and type {content[17]}; read are version 1, integers"
        elif len(content) not in (columns, columns + sequences):
            problem = f"has {len(content):,} bytes, and its counts need {columns:,}"
    if problem:
        raise ValueError(f"{index} {problem}: fetch it again, or write it anew")
    assert dtype is not None
    lengths = np.frombuffer(content, "<i4", sequences, 34).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    starts = np.frombuffer(content, "<i8", documents, 34 + 12 * sequences)
    ends = np.cumsum(lengths)
    if (lengths < 0).any() or (offsets != (ends - lengths) * dtype.itemsize).any():
        raise ValueError(
            f"{index}: the sequences do not follow one another in {path.name}, from its beginning "
            "on: the index is damaged, or of another file. Fetch both again"
        )
    if documents and (starts[0] or starts[-1] != sequences or (np.diff(starts) < 0).any()):
        raise ValueError(
            f"{index}: the documents do not begin and end with the {sequences:,} sequences: it is "
            "damaged. Fetch it again"
        )
    return _Layout(dtype, 0, int(ends[-1]) if sequences else 0)


def _litdata(path: Path) -> _Layout:
    index = path.parent / "index.json"
    content = read_json_object(index)
    try:
        config = content["config"]
        (chunk,) = [chunk for chunk in content["chunks"] if chunk["filename"] == path.name]
        (form,) = config["data_format"]
        dtype = _LITDATA_TYPES.get(str(form).removeprefix("no_header_"))
        items, packed = int(chunk["chunk_size"]), config["compression"] or config["encryption"]
        said = chunk["dim"]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{index} does not describe {path.name} as litdata does ({error!r:.100}): fetch both "
            "again, or remove index.json if it is of other files"
        ) from error
    if dtype is None or packed:
        what = f"in {packed!r:.40}" if packed else f"as {form!r:.40}"
        raise ValueError(
            f"{index}: its chunks are written {what}; read are plain integers of litdata's "
            "TokensLoader: write them anew by litdata.optimize with item_loader=TokensLoader() "
            "and without compression or encryption"
        )
    start = 4 * (items + 2)
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(start), "<u4")
    if len(head) * 4 != start or head[0] != items or head[1] != start or (head[2:] < head[1]).any():
        raise ValueError(
            f"{path} does not begin with the {items:,} items that {index} lists: it is cut short, "
            "or of another data set. Fetch it again"
        )
    tokens = (int(head[-1]) - start) // dtype.itemsize
    if said not in (None, tokens):
        raise ValueError(
            f"{index} lists {said:,} ids in {path.name}, which says {tokens:,}: they do not "
            "belong together. Fetch both again"
        )
    return _Layout(dtype, start, tokens)


def count_ids(path: Path, ids: NDArray[np.integer], vocab_size: int) -> NDArray[np.int64]:
    """Count how often each id occurs, (vocab_size,); every id is checked.

    Raises:
        ValueError: an id that is not below `vocab_size`.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        if block.min() < 0 or block.max() >= vocab_size:
            wrong = block.min() if block.min() < 0 else block.max()
            raise ValueError(
                f"{path} holds, as {block.dtype.name}, the id {wrong}, which is not in the "
                f"vocabulary of {vocab_size:,} tokens. Give the tokenizer that made the file "
                "(--tokenizer), and the type of its ids if it does not say it (--token-type)"
            )
        counts += np.bincount(block.astype(np.int64, copy=False), minlength=vocab_size)
    return counts
