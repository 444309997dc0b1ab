"""Vocabulary files: Hugging Face's `tokenizer.json` (read, write) and GPT-2's own pair (read).

Both spell bytes as printable characters: bytes that print in Latin-1 as themselves, the others as
U+0100, U+0101, ... in order. A file is refused, with the reason, if for any text its ids here could
differ from those of its own library.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tiktoken.load import read_file_cached

from gpt2.common.files import atomic_write, read_bytes
from gpt2.common.json_files import MAX_BYTES, read_json_object
from gpt2.tokenizer.bpe import BYTE_ORDER, END_OF_TEXT

_N_PRINTABLE = 188  # the bytes at the head of BYTE_ORDER
_BYTE_TO_CHAR = {
    byte: chr(byte if rank < _N_PRINTABLE else 0x100 + rank - _N_PRINTABLE)
    for rank, byte in enumerate(BYTE_ORDER)
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHAR_TO_BYTE = {char: byte for byte, char in _BYTE_TO_CHAR.items()}
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # OpenAI's, Hugging Face's
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_GPT2_FILES = {  # with their SHA-256
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
# As OpenAI published it, and as tiktoken has it.
_GPT2_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
}
_NEEDED = (
    f"Needed: byte-level BPE with GPT-2's split and {END_OF_TEXT}. Copy the file anew, or train a "
    "tokenizer (Tokenizer.train)."
)


class Vocabulary(NamedTuple):
    """A byte-level BPE vocabulary: the id of each token, and the merges in order of rank."""

    ids: dict[bytes, int]  # without special tokens
    merges: list[tuple[bytes, bytes]]
    special_tokens: dict[str, int]


def read_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Read a vocabulary, see `gpt2.tokenizer.Tokenizer.load`."""
    path = Path(path)
    if (path / "tokenizer.json").is_file():
        return _read_tokenizer_json(path / "tokenizer.json")
    folder = path if path.is_dir() else path.parent
    for names in _PAIRS:
        if path.name in names or path.is_dir():
            encoder, merges = (folder / name for name in names)
            if encoder.is_file() and merges.is_file():
                return _read_pair(encoder, merges)
    if path.is_file() and path.name not in {name for names in _PAIRS for name in names}:
        return _read_tokenizer_json(path)
    if str(path) == "gpt2":  # which this package is called too, so a folder counts by its content
        return _gpt2()
    raise ValueError(
        f"no tokenizer at {path}: give a tokenizer.json, a folder with a tokenizer.json or with "
        "GPT-2's encoder.json and vocab.bpe, or gpt2, which fetches these"
    )


def _gpt2() -> Vocabulary:
    """GPT-2's own vocabulary; tiktoken fetches it once, checks its SHA-256 and keeps it."""
    with TemporaryDirectory() as folder:
        for name, sha256 in _GPT2_FILES.items():
            try:
                content = read_file_cached(_GPT2_URL + name, sha256)
            # Any of several libraries may fail here; whichever it is, the advice is the same.
            except Exception as error:
                raise ValueError(
                    f"GPT-2's vocabulary cannot be fetched ({str(error)[:200]}): copy here a "
                    "folder with its tokenizer.json, or encoder.json and vocab.bpe, and name that"
                ) from error
            (Path(folder) / name).write_bytes(content)
        return _read_pair(*(Path(folder) / name for name in _PAIRS[0]))


def write_tokenizer_json(path: str | os.PathLike[str], vocabulary: Vocabulary) -> None:
    """Write a tokenizer.json atomically: to `path` if it ends in .json, else into that folder."""
    path = Path(path)
    path = path if path.suffix == ".json" else path / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(to_tokenizer_json(vocabulary).encode("utf-8"))


def to_tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text of a tokenizer.json."""
    ids = {_spell(token): id for token, id in vocabulary.ids.items()} | vocabulary.special_tokens
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    added = [
        {
            "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for content, id in vocabulary.special_tokens.items()
    ]  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(ids.items(), key=lambda item: item[1])),
        "merges": [[_spell(left), _spell(right)] for left, right in vocabulary.merges],
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level,
        # GPT-2's own. It adds no tokens; for want of any, transformers would write another kind.
        "post_processor": {**byte_level, "add_prefix_space": True, "trim_offsets": False},
        "decoder": byte_level, "model": model,
    }  # fmt: skip
    return json.dumps(tokenizer, ensure_ascii=False) + "\n"


def _spell(token: bytes) -> str:
    return "".join([_BYTE_TO_CHAR[byte] for byte in token])


def _unspell(token: str) -> bytes:
    return bytes([_CHAR_TO_BYTE[char] for char in token])


def _read_pair(encoder: Path, merges: Path) -> Vocabulary:
    try:
        text = read_bytes(merges, limit=MAX_BYTES).decode("utf-8-sig")
        lines = [line.removesuffix("\r") for line in text.split("\n")]
    except UnicodeDecodeError as error:
        raise _refusal(merges, f"it is not UTF-8 ({error})") from error
    if lines[0].startswith("#version"):
        del lines[0]
    pairs = [line.partition(" ")[::2] for line in lines if line]
    ids = _read_json(encoder)
    special_tokens = {token: id for token, id in ids.items() if token == END_OF_TEXT}
    added = encoder.with_name("added_tokens.json")  # of transformers before version 5
    if added.is_file():
        special_tokens |= _read_json(added)
    return _check(encoder, ids | special_tokens, pairs, special_tokens)


def _read_tokenizer_json(path: Path) -> Vocabulary:
    tokenizer = _read_json(path)
    try:
        objection = _objection(tokenizer)
        special_tokens = {
            token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []
        }
        vocab = tokenizer["model"]["vocab"]
        fresh = itertools.count(len(vocab))
        assigned = {t: vocab[t] if t in vocab else next(fresh) for t in special_tokens}
        merges = [
            pair.partition(" ")[::2] if isinstance(pair, str) else (pair[0], pair[1])
            for pair in tokenizer["model"]["merges"]
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise _refusal(path, f"it is not a tokenizer.json ({error!r:.200})") from error
    if objection:
        raise _refusal(path, objection)
    if assigned != special_tokens:  # of those in the file it takes no notice
        raise _refusal(path, "its library gives other ids to its added tokens")
    return _check(path, vocab | special_tokens, merges, special_tokens)


def _objection(tokenizer: dict[str, Any]) -> str | None:
    """The reason why a tokenizer.json gives other ids than this program would, if there is one."""
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE":
        return f"its model is {reprlib.repr(model['type'])}, not BPE"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"its model has {option}={reprlib.repr(model[option])}"
    if changes := _steps(tokenizer.get("normalizer"), "normalizers"):
        return f"it has a normalizer: {reprlib.repr(changes[0])}"
    splits = _steps(tokenizer["pre_tokenizer"], "pretokenizers")
    if not _split_as_gpt2(splits):
        return f"its pre_tokenizer is not that of GPT-2: {reprlib.repr(splits)}"
    for after in _steps(tokenizer.get("post_processor"), "processors"):
        if _adds_tokens(after):
            return f"its post_processor adds tokens to every text ({reprlib.repr(after)})"
    for token in tokenizer.get("added_tokens") or []:
        for option in ("single_word", "lstrip", "rstrip"):
            if token.get(option):
                content = reprlib.repr(token["content"])
                return f"its added token {content} has {option}: what is beside it decides"
    return None


def _steps(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """List what a part of a tokenizer.json does, one after another; a Sequence is its members."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for member in part[members] for step in _steps(member, members)]


def _split_as_gpt2(steps: list[dict[str, Any]]) -> bool:
    """Tell whether text is split by GPT-2's pattern: ByteLevel's own, or given to a Split before
    it; applied to a pre-token, ByteLevel's changes nothing."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return False
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))
    split = steps[0]
    if len(steps) > 2 or split["type"] != "Split":
        return False
    return split["pattern"].get("Regex") in _GPT2_PATTERNS and _keeps_matches(split)


def _keeps_matches(split: dict[str, Any]) -> bool:
    """Tell whether a Split whose pattern matches all of a text makes each match a piece."""
    if split["behavior"] == "Removed":
        return bool(split["invert"])
    return split["behavior"] in ("Isolated", "MergedWithPrevious", "MergedWithNext")


def _adds_tokens(post_processor: dict[str, Any]) -> bool:
    if post_processor["type"] == "TemplateProcessing":
        return any("SpecialToken" in piece for piece in post_processor["single"])
    return post_processor["type"] != "ByteLevel"


def _check(
    path: Path,
    spelled_ids: Mapping[str, int],
    spelled_merges: Iterable[tuple[str, str]],
    special_tokens: dict[str, int],
) -> Vocabulary:
    """Convert printable characters to bytes, and check every property that encoding relies on."""
    if END_OF_TEXT not in special_tokens:
        raise _refusal(path, f"{END_OF_TEXT} is not among its special tokens")
    stray = [t for t in special_tokens if not isinstance(t, str) or not t or _SURROGATE.search(t)]
    if stray:
        raise _refusal(path, f"its special token {reprlib.repr(stray[0])} is no text")
    numbers = list(spelled_ids.values())
    if {type(id) for id in numbers} != {int} or sorted(numbers) != list(range(len(numbers))):
        raise _refusal(path, f"its ids are not 0 to {len(numbers) - 1}, each once")
    try:
        spelled_merges = list(spelled_merges)
        # An added token may be one of the model's too: "hello", which is then looked for in text.
        made = {left + right for left, right in spelled_merges} | _CHAR_TO_BYTE.keys()
        ids = {
            _unspell(token): id
            for token, id in spelled_ids.items()
            if token not in special_tokens or (token in made and token.isascii())
        }
        merges = [(_unspell(left), _unspell(right)) for left, right in spelled_merges]
    except (KeyError, TypeError) as error:
        raise _refusal(path, f"a token is none of byte-level BPE ({error!r:.200})") from error
    bytes_too = [token for token in special_tokens if token in made and not token.isascii()]
    if bytes_too:
        raise _refusal(path, f"its added token {bytes_too[0]!r:.100} is also that of other bytes")
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise _refusal(path, f"it has no token for byte {missing[0]}")
    merged_ids = [ids.get(left + right, -1) for left, right in merges]
    if -1 in merged_ids or any(part not in ids for pair in merges for part in pair):
        raise _refusal(path, "a merge has parts or a result that are not in the vocabulary")
    if len(merges) != len(ids) - 256 or merged_ids != sorted(set(merged_ids)):
        raise _refusal(path, "its merges are not one for each longer token, in the order of ids")
    unmade = _unreachable(merges)
    if unmade is not None:
        raise _refusal(path, f"its merges never make the token {unmade!r:.100} from its bytes")
    return Vocabulary(ids, merges, special_tokens)


def _unreachable(merges: list[tuple[bytes, bytes]]) -> bytes | None:
    """The first token of the vocabulary that its own merges would not produce, if there is one.

    An encoder that looks tokens up (tiktoken's) would find it where one that follows the merges
    (Hugging Face's) would not. A token is sound if no earlier merge joins a symbol on each side of
    the border between its two parts. So undo the merges that made the symbols at the border, the
    latest first, and test whether the exposed symbols would have merged across it before.
    """
    rank = {pair: k for k, pair in enumerate(merges)}
    made_by = {left + right: k for k, (left, right) in enumerate(merges)}
    for k, pair in enumerate(merges):
        (left, right), limit = pair, k
        while rank.get((left, right), k) >= limit:
            made_left, made_right = made_by.get(left, -1), made_by.get(right, -1)
            if max(made_left, made_right) >= limit:  # a part comes later than the whole
                return pair[0] + pair[1]
            if made_left > made_right:
                left, limit = merges[made_left][1], made_left
            elif made_right >= 0:
                # Equal pairs merge from left to right: at the border before inside the right part.
                right, limit = merges[made_right][0], made_right + 1
            else:
                break
        else:
            return pair[0] + pair[1]
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"cannot use this tokenizer: {error}. {_NEEDED}") from error


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"cannot use the tokenizer {path}: {reason}. {_NEEDED}")
