"""Read local files as documents: plain text and JSON lines, also gzipped, and Parquet."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2.common.json_files import parse_json
from gpt2.data.documents import PIECE_CHARS, Piece, document_pieces, text_pieces

FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".tokens", ".raw"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".parquet": "parquet",
}
LINE_BYTES = 1 << 25  # the longest line of JSON; in memory its objects may take 20 times that
_PAGE_BYTES = 1 << 26  # unpacked without a check of the ratio
_BOM = "\ufeff"


def split_suffix(path: Path) -> tuple[str, str]:
    """Split a file's name into stem and suffix; `.gz` is part of the suffix."""
    name = path.name
    packed = name[-3:] if name.lower().endswith(".gz") else ""
    plain = Path(name.removesuffix(packed))
    return plain.stem, plain.suffix + packed


def file_format(path: Path) -> str | None:
    """The format by a file's name: "text", "jsonl" or "parquet"; None if it is no such file."""
    suffix = split_suffix(path)[1].lower()
    kind = FORMATS.get(suffix.removesuffix(".gz"))
    return None if kind == "parquet" and suffix.endswith(".gz") else kind


def read_pieces(path: Path) -> Iterator[Piece]:
    """Read the documents of a file in order, in pieces, with bounded memory.

    `consumed` counts bytes of the file as stored, so compressed ones of a .gz. A ValueError if the
    file is not of its format names the place in it.
    """
    kind = file_format(path)
    assert kind is not None
    if kind == "parquet":
        yield from _read_parquet(path)
        return
    try:
        with open(path, "rb") as stored:
            if path.name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=stored) as unpacked:
                    yield from _read_stream(path, kind, unpacked, stored)
            else:
                yield from _read_stream(path, kind, stored, stored)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_stream(
    path: Path, kind: str, file: BinaryIO | gzip.GzipFile, stored: BinaryIO
) -> Iterator[Piece]:
    if kind == "text":
        yield from text_pieces(_decoded_blocks(path, file, stored))
        return
    read = 0
    for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), start=1):
        if len(line) > LINE_BYTES:
            raise ValueError(
                f"{path}, line {number:,}: longer than {LINE_BYTES >> 20} MiB, which is more than "
                "is read at once. Cut the document, or give it as .txt."
            )
        consumed, read = stored.tell() - read, stored.tell()
        yield from document_pieces(_json_text(path, number, line), consumed)


def _decoded_blocks(
    path: Path, file: BinaryIO | gzip.GzipFile, stored: BinaryIO
) -> Iterator[tuple[str, int]]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = offset = 0
    while True:
        block = file.read(PIECE_CHARS)
        waiting = len(decoder.getstate()[0])  # bytes of a character cut by the block before
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, f"byte {offset - waiting + error.start:,}", error) from error
        if offset == 0:
            text = text.removeprefix(_BOM)
        offset += len(block)
        yield text, stored.tell() - read
        read = stored.tell()
        if not block:
            return


def _json_text(path: Path, number: int, line: bytes) -> str:
    """The "text" of a line of JSON; empty for a blank line."""
    where = f"{path}, line {number:,}"
    if not line.strip():
        return ""
    try:
        row = parse_json(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"line {number:,}, its byte {error.start:,}", error) from error
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}). Each line must be one object.") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a {type(row).__name__}; expected an object with a "text".')
    text = row.get("text")
    if not isinstance(text, str):
        found = "is no string" if "text" in row else "is missing"
        keys = ", ".join(f"{key!a:.40}" for key in list(row)[:10]) or "none"
        raise ValueError(f'{where}: the field "text" {found}. Keys found: {keys}.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the text holds half a surrogate pair ({text[error.start]!a}), which is no "
            "Unicode character. Write the pair whole, or drop it."
        ) from error
    return text


def _read_parquet(path: Path) -> Iterator[Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs pyarrow: pip install -e '.[hub]', or give .txt or .jsonl"
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count("text") != 1:
                columns = ", ".join(name[:40] for name in names[:10])
                number = "several columns" if "text" in names else "no column"
                raise ValueError(f'{path}: {number} "text". Columns: {columns}.')
            kind = file.schema_arrow.field("text").type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                raise ValueError(f'{path}: the column "text" holds no strings.')
            _check_packing(path, file.metadata)
            per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            seen = 0
            # Few rows at a time: one long text can be packed as that of many rows.
            for batch in file.iter_batches(batch_size=4, columns=["text"]):
                for text in (value.as_py() for value in batch.column(0)):
                    if text and len(text) > LINE_BYTES:
                        raise ValueError(
                            f"{path}, row {seen + 1:,}: longer than {LINE_BYTES:,} characters, "
                            "which is more than is read at once. Cut the document."
                        )
                    consumed = int((seen + 1) * per_row) - int(seen * per_row)
                    seen += 1
                    yield from document_pieces(text or "", consumed)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error!s:.500}") from error


def _check_packing(path: Path, metadata: Any) -> None:
    """Refuse a file that unpacks to far more than text would, before it fills the memory."""
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            size = column.total_uncompressed_size
            if size > _PAGE_BYTES and size > 200 * column.total_compressed_size:
                raise ValueError(
                    f"{path}: row group {group} unpacks from {column.total_compressed_size:,} "
                    f"bytes to {size:,}, which no text does"
                )


def _not_utf8(path: Path, where: str, error: UnicodeDecodeError) -> ValueError:
    bad = error.object[error.start]
    return ValueError(
        f"{path} is not UTF-8: {where} (0x{bad:02x}): {error.reason}. Convert the file, for "
        "example with: iconv -f LATIN1 -t UTF-8"
    )
