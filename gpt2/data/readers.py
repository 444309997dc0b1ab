"""Read local files: text as documents, tables (JSON lines, CSV, Parquet, Arrow) row by row.

One reading for training data, prompts and evaluation. Whatever the container, text is the same:
packed files are unpacked, byte order marks tell the encoding and are dropped, a line ends with
"\\n" where the file has "\\r\\n", and a row without text is no document.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, groupby
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar

from gpt2.common.json_files import parse_json
from gpt2.data.documents import PIECE_CHARS, Piece, is_wikitext, row_pieces, text_pieces

FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".tokens", ".raw"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TOKEN_FORMATS = {".bin": "bin", ".npy": "npy", ".ds": "ds"}  # see `gpt2.data.token_files`
_PACKED_BY_THEMSELVES = ("parquet", "arrow")
Record = tuple[dict[str, Any], str, int]  # a row, its place in words, stored bytes read for it
T = TypeVar("T")
Span = tuple[float, float]  # what begins from the one stored byte of a file to before the other
_WHOLE: Span = (0, inf)
LINE_BYTES = 1 << 25  # the longest line of JSON; in memory its objects may take 20 times that
_PAGE_BYTES = 1 << 26  # unpacked without a check of the ratio
_BOM = "\ufeff"
_consumed = attrgetter("consumed")
# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {
    b"version https://git-lfs": "git-lfs's place-holder: fetch it, with git lfs pull",
    b"PK\x03\x04": "a zip archive (or a document made of one): unpack it first",
    b"%PDF-": "a PDF: take its text out first, for example with pdftotext",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
}
# Which of four bytes are NUL in text of these encodings, with little beyond ASCII or much.
_NUL_BYTES = {
    (1, 3): "UTF-16LE", (0, 2): "UTF-16BE",
    (1, 2, 3): "UTF-32LE", (2, 3): "UTF-32LE", (0, 1, 2): "UTF-32BE", (0, 1): "UTF-32BE",
}  # fmt: skip


def _open_zstd(file: IO[bytes]) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ValueError("reading zstd needs pyarrow: pip install -e '.[hub]'") from error
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))


# By suffix: the name, the first bytes, and a function that unpacks an open file. A file of pzstd
# begins with a frame that is skipped.
PACKINGS: dict[str, tuple[str, tuple[bytes, ...], Callable[[IO[bytes]], Any]]] = {
    ".gz": ("gzip", (b"\x1f\x8b",), lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": ("bzip2", (b"BZh",), bz2.BZ2File),
    ".xz": ("xz", (b"\xfd7zXZ\0",), lzma.LZMAFile),
    ".zst": ("zstd", (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"), _open_zstd),
}


def split_suffix(path: Path) -> tuple[str, str]:
    """Split a file's name into stem and suffix; `.gz` and the like are part of the suffix."""
    packed = path.suffix if path.suffix.lower() in PACKINGS else ""
    plain = Path(path.name.removesuffix(packed))
    return plain.stem, plain.suffix + packed


def file_format(path: Path) -> str | None:
    """The format by a file's name, a value of `FORMATS` or `TOKEN_FORMATS`; None if it is no such
    file."""
    suffix = split_suffix(path)[1].lower()
    if suffix in TOKEN_FORMATS:
        return TOKEN_FORMATS[suffix]
    packed = path.suffix.lower() in PACKINGS
    kind = FORMATS.get(Path(f"x{suffix}").with_suffix("").suffix if packed else suffix)
    return None if packed and kind in _PACKED_BY_THEMSELVES else kind


def read_pieces(*paths: Path, share: int = 0, of: int = 1) -> Iterator[Piece]:
    """Read the documents of files in order, in pieces, with bounded memory.

    Tables that follow one another are one table, as an article of WikiText may span two. `consumed`
    counts bytes of a file as stored, so compressed ones of a packed file. A ValueError if a file is
    not of its format names the place in it.

    Of `of` shares, counted from 0, each has equally many stored bytes. Files of others are not
    read, nor are row groups of Parquet and batches of Arrow; of a stream, such as JSON lines, what
    comes before is passed by.
    """
    total = sum(path.stat().st_size for path in paths)
    start, stop = total * share // of, total * (share + 1) // of
    for is_text, group in groupby(paths, lambda path: file_format(path) == "text"):
        files = list(group)
        wikitext = not is_text and is_wikitext(chain.from_iterable(map(read_texts, files)))
        for part in [files] if wikitext else [[path] for path in files]:
            size = sum(path.stat().st_size for path in part)
            if start < size and stop > 0:
                span = (start, stop if stop < size else inf)
                if is_text:
                    yield from _within(text_pieces(read_blocks(part[0])), span, _consumed)
                elif wikitext:
                    rows = chain.from_iterable(map(read_texts, part))
                    yield from _within(row_pieces(rows, wikitext=True), span, _consumed)
                else:
                    yield from row_pieces(read_texts(part[0], span), wikitext=False)
            start, stop = start - size, stop - size


def _within(items: Iterator[T], span: Span, consumed: Callable[[T], int]) -> Iterator[T]:
    """Of things that follow one another in a file, those that begin in a span of it."""
    place = 0
    for item in items:
        if place >= span[1]:
            return
        if place >= span[0]:
            yield item
        place += consumed(item)


def read_blocks(path: Path) -> Iterator[tuple[str, int]]:
    """Read a text file in blocks, each with the number of stored bytes read for it.

    Raises:
        ValueError: it is no text; says what it is, or where it is not UTF-8.
    """
    with _unpacked(path) as (file, stored):
        encoding = _encoding(path, file)
        decoder = codecs.getincrementaldecoder(encoding)()
        read = offset = 0
        kept = ""
        block = b"?"
        while block:
            block = file.read(PIECE_CHARS)
            waiting = len(decoder.getstate()[0])  # bytes of a character cut by the block before
            try:
                text = kept + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                where = f"byte {offset - waiting + error.start:,}"
                raise _undecodable(path, where, encoding, error) from error
            if offset == 0:
                text = text.removeprefix(_BOM)
            offset += len(block)
            kept = "\r" if block and text.endswith("\r") else ""  # half of a line end, perhaps
            yield text.removesuffix(kept).replace("\r\n", "\n"), stored.tell() - read
            read = stored.tell()


def read_records(
    path: Path, columns: list[str] | None = None, span: Span = _WHOLE
) -> Iterator[Record]:
    """Read the rows of a table; blank lines are none.

    Args:
        path: CSV, Parquet or Arrow by its name, else JSON lines.
        columns: read no others, where they can be left out; each must be there once.
        span: leave out the rows that begin elsewhere.

    Raises:
        ValueError: the file is not of its format; names the line or row.
    """
    kind = file_format(path)
    if kind in ("csv", "tsv"):
        records = _csv_records(path, "," if kind == "csv" else "\t", columns or [])
        yield from _within(records, span, lambda record: record[2])
    elif kind in _PACKED_BY_THEMSELVES:
        yield from _arrow_records(path, kind == "parquet", columns, span)
    else:
        yield from _json_records(path, span)


def read_texts(path: Path, span: Span = _WHOLE) -> Iterator[tuple[str, int]]:
    """Read the field "text" of the rows of a table, empty where it is null, as `read_records`."""
    for row, place, consumed in read_records(path, ["text"], span):
        text = row.get("text", 0)
        if text is not None and not isinstance(text, str):
            found = "is no string" if "text" in row else "is missing"
            keys = ", ".join(f"{key!a:.40}" for key in list(row)[:10]) or "none"
            raise ValueError(f'{path}, {place}: the field "text" {found}. Keys found: {keys}.')
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{path}, {place}: the text holds half a surrogate pair "
                f"({error.object[error.start]!a}), which is no Unicode character. Write the pair "
                "whole, or drop it."
            ) from error
        yield text or "", consumed


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Any, IO[bytes]]]:
    """Open a file, and unpack it if its name or its first bytes say so.

    Yields:
        The unpacked file, with `peek` and `readline`, and the one that is stored.
    """
    packing = PACKINGS.get(path.suffix.lower())
    try:
        with open(path, "rb") as stored:
            head = stored.peek()
            if packing is None:
                packing = next((p for p in PACKINGS.values() if head.startswith(p[1])), None)
            elif not head.startswith(packing[1]):
                refuse_others(path, head)
                raise ValueError(
                    f"{path} is no {packing[0]} file, although its name says so: name it for what "
                    "it is, or fetch it again"
                )
            if packing is None:
                yield stored, stored
            else:
                with packing[2](stored) as file:
                    yield file, stored
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if packing is not None and not getattr(error, "filename", None):
            raise ValueError(
                f"{path} is not a whole {packing[0]} file ({error}): fetch it again"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _encoding(path: Path, file: Any) -> str:
    """Tell the encoding of a text by its first bytes, UTF-8 without a mark; refuse what is none."""
    head = file.peek(1 << 12)
    refuse_others(path, head)
    if any(head.startswith(packing[1]) for packing in PACKINGS.values()):
        raise ValueError(f"{path} is packed twice: unpack it once")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    text = head.decode(encoding, errors="ignore")
    if text.count("\0") * 8 > len(text):
        raise ValueError(
            f"{path} is no text: more than one in eight of its first characters is NUL (U+0000)"
            f"{_unmarked(head)}"
        )
    return encoding


def _unmarked(content: bytes) -> str:
    """What to do with bytes among which are NULs, by the places where most of them are."""
    counts = [content[place::4].count(0) for place in range(4)]
    places = tuple(place for place in range(4) if 2 * counts[place] > max(counts))
    if name := _NUL_BYTES.get(places):
        return f", as in {name} without a byte order mark. If it is that: iconv -f {name} -t UTF-8"
    return ", as in binary files"


def refuse_others(path: Path, head: bytes) -> None:
    """Raise a ValueError if a file that begins so is of a well-known kind that holds no text."""
    for first, kind in _OTHERS.items():
        if head.startswith(first):
            raise ValueError(f"{path} is no text but {kind}")


def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Number, UTF-8 bytes and stored size of each line; only line feeds end one."""
    with _unpacked(path) as (file, stored):
        encoding = _encoding(path, file)
        readline = file.readline
        if encoding != "utf-8":
            decoded = io.TextIOWrapper(file, encoding, newline="\n")

            def readline(limit: int) -> bytes:
                return decoded.readline(limit).encode("utf-8", "surrogatepass")

        read = 0
        for number, line in enumerate(iter(lambda: readline(LINE_BYTES + 1), b""), start=1):
            if len(line) > LINE_BYTES:
                raise ValueError(
                    f"{path}, line {number:,}: longer than {LINE_BYTES >> 20} MiB, which is more "
                    "than is read at once. Cut the document, or give it as .txt."
                )
            plain = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, plain, stored.tell() - read
            read = stored.tell()


def _json_records(path: Path, span: Span) -> Iterator[Record]:
    start, stop = span
    begin = end = consumed = 0
    for number, line, size in _lines(path):
        begin, end = end, end + size
        if begin >= stop:
            return
        if begin < start:
            continue
        consumed += size
        where = f"{path}, line {number:,}"
        try:
            row = parse_json(line) if line.strip() else None
        except UnicodeDecodeError as error:
            raise _undecodable_line(path, number, error) from error
        except ValueError as error:
            raise ValueError(
                f"{where}: not JSON ({error}). Each line must be one object."
            ) from error
        if line.strip():
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a {type(row).__name__}; expected an object")
            yield row, f"line {number:,}", consumed
            consumed = 0


def _csv_records(path: Path, delimiter: str, columns: list[str]) -> Iterator[Record]:
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for number, line, size in _lines(path):
            consumed += size
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _undecodable_line(path, number, error) from error

    csv.field_size_limit(LINE_BYTES)
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in rows:
            if names is None:
                names = row
                _check_columns(path, names, columns)
            elif row:  # else a blank line
                if len(row) != len(names):
                    raise ValueError(f"{len(row)} fields, and the header has {len(names)}")
                yield dict(zip(names, row, strict=True)), f"line {rows.line_num:,}", consumed
                consumed = 0
    except (csv.Error, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}, line {rows.line_num:,}: not CSV ({error})") from error


def _check_columns(path: Path, names: list[str], columns: list[str]) -> None:
    for column in columns:
        if names.count(column) != 1:
            found = ", ".join(name[:40] for name in names[:10])
            number = "several columns" if column in names else "no column"
            raise ValueError(f'{path}: {number} "{column}". Columns: {found}.')


def _arrow_records(
    path: Path, is_parquet: bool, columns: list[str] | None, span: Span
) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs pyarrow: pip install -e '.[hub]', or give .txt or .jsonl"
        ) from error
    kind = "Parquet" if is_parquet else "Arrow"
    with open(path, "rb") as stored:
        head = stored.read(1 << 7)
    if not head.startswith(b"PAR1" if is_parquet else b"ARROW1"):
        refuse_others(path, head)
    try:
        with ExitStack() as stack:
            if is_parquet:
                file = stack.enter_context(pq.ParquetFile(path))
                _check_text_columns(path, file.schema_arrow, columns)
                _check_packing(path, file.metadata)
                groups = _parquet_groups(file, path.stat().st_size, columns)
            else:
                file = stack.enter_context(_open_arrow(path))
                _check_text_columns(path, file.schema, columns)
                groups = _arrow_groups(file)
            seen, end = 0, 0.0
            for n_rows, per_row, batches in groups:
                begin, end = end, end + n_rows * per_row
                if end < span[0]:
                    seen += n_rows
                    continue
                rows = chain.from_iterable(_rows(batch, columns) for batch in batches)
                for number, row in enumerate(rows):
                    place, after = begin + number * per_row, begin + (number + 1) * per_row
                    seen += 1
                    if place >= span[1]:
                        return
                    if place < span[0]:
                        continue
                    for column in columns or []:
                        if row[column] and len(row[column]) > LINE_BYTES:
                            raise ValueError(
                                f"{path}, row {seen:,}: longer than {LINE_BYTES:,} characters, "
                                "which is more than is read at once. Cut the document."
                            )
                    yield row, f"row {seen:,}", int(after) - int(place)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error!s:.500}") from error


def _open_arrow(path: Path) -> Any:
    """Open an Arrow file, or a stream of `datasets`, without reading it into memory."""
    import pyarrow as pa

    stored = pa.memory_map(str(path))
    if stored.size() >= 6 and stored.read_at(6, 0) == b"ARROW1":
        return pa.ipc.open_file(stored)
    return pa.ipc.open_stream(stored)


def _parquet_groups(
    file: Any, size: int, columns: list[str] | None
) -> Iterator[tuple[int, float, Iterable[Any]]]:
    """Of each row group the number of rows, stored bytes a row, and its batches, not yet read."""
    for group in range(file.num_row_groups):
        # Few rows at a time: one long text can be packed as that of many rows.
        batches = file.iter_batches(batch_size=4, row_groups=[group], columns=columns)
        n_rows = file.metadata.row_group(group).num_rows
        yield n_rows, size / file.metadata.num_rows, batches


def _rows(batch: Any, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    batch.validate(full=True)  # an Arrow file's offsets are not checked when it is read
    names = columns or batch.schema.names
    for scalars in zip(*(batch.column(name) for name in names), strict=True):
        yield {name: value.as_py() for name, value in zip(names, scalars, strict=True)}


def _arrow_groups(file: Any) -> Iterator[tuple[int, float, Iterable[Any]]]:
    """Of each batch, mapped into memory, what `_parquet_groups` has of a row group."""
    seekable = hasattr(file, "num_record_batches")
    for batch in map(file.get_batch, range(file.num_record_batches)) if seekable else file:
        yield len(batch), batch.nbytes / max(len(batch), 1), [batch]


def _check_text_columns(path: Path, schema: Any, columns: list[str] | None) -> None:
    """Check that each of `columns` is there once and holds strings."""
    import pyarrow as pa

    _check_columns(path, schema.names, columns or [])
    for column in columns or []:
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            raise ValueError(f'{path}: the column "{column}" holds no strings.')


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


def _undecodable_line(path: Path, number: int, error: UnicodeDecodeError) -> ValueError:
    return _undecodable(path, f"line {number:,}, its byte {error.start:,}", "utf-8", error)


def _undecodable(path: Path, where: str, encoding: str, error: UnicodeDecodeError) -> ValueError:
    """The error of a text that cannot be decoded; the remedy depends on the bytes that are seen."""
    what = f"{path} is not {encoding.upper()}: {where} (0x{error.object[error.start]:02x})"
    if encoding != "utf-8":
        return ValueError(f"{what}: {error.reason}. The file is damaged, or cut off: copy it anew")
    if b"\0" in error.object:
        return ValueError(f"{what}: {error.reason}. It has NUL bytes{_unmarked(error.object)}")
    return ValueError(
        f"{what}: {error.reason}. Convert the file from what it was written in, for example with: "
        "iconv -f WINDOWS-1252 -t UTF-8"
    )
