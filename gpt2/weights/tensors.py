"""The tensors of a folder of weights: safetensors or PyTorch's .bin, whole or in shards.

Reading runs no code from a file: pickles go through `torch.load(weights_only=True)`.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.common.json_files import read_json_object

# In the order in which transformers looks for them.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Pickle instructions that build a value of parts, but for REDUCE, which makes tensors: one may be
# there under two names. Of other values, torch.save of named tensors refers to none twice. A file
# that does may be a few bytes long, and its value may take for ever to compare or to print.
_BUILDING = {
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "EMPTY_LIST", "DICT", "EMPTY_DICT", "EMPTY_SET",
    "NEWOBJ", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
}  # fmt: skip
_PROTOCOL = 3  # the highest that torch.load(weights_only=True) knows; torch.save writes 2
_PICKLES = 5  # in a file of PyTorch before 1.6: three about the format, the content, the keys
LOADABLE = "only weights in float32, float16, bfloat16 or float64 can be loaded"
_COPY_ANEW = "copy or download it anew (a text file of some 130 bytes is git-lfs's place-holder)"


class _NoTensors(ValueError):
    """A pickle that is not read, and what to do."""


def has_weights(folder: Path, names: tuple[str, ...] = SAFETENSORS + PICKLES) -> bool:
    return any((folder / name).is_file() for name in names)


def stored_bytes(folder: Path) -> int:
    """The size of all files of weights in bytes; ValueError as for `read_tensors`."""
    return sum(path.stat().st_size for path in _files(folder))


def read_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield each tensor with its file and its name in it.

    Safetensors are read one by one, so that a large model is not held twice.

    Raises:
        ValueError: no weights, a missing shard, or a file that is damaged or holds something else.
    """
    for file in _files(folder):
        if file.suffix == ".bin":
            yield from _read_pickle(file)
        else:
            yield from _read_safetensors(file)


def _files(folder: Path) -> list[Path]:
    for name in SAFETENSORS + PICKLES:
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise ValueError(
        f"{folder} holds no weights: expected one of {', '.join(SAFETENSORS + PICKLES)}"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise ValueError(f"{index} is not an index of shards: {_COPY_ANEW}")
    names = sorted(set(weight_map.values()))
    # Plain names: no path leads out of the folder.
    stray = [n for n in names if n != Path(n).name or n == index.name or len(n) > 200]
    if stray:
        raise ValueError(f"{index} names {stray[0]!r:.200}, which is no file beside it")
    paths = [index.parent / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is missing; {index.name} names {len(paths)} shards")
    return paths


def _read_safetensors(path: Path) -> Iterator[tuple[Path, str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                dtype = file.get_slice(name).get_dtype()
                if dtype.startswith("F6_"):  # PyTorch has no such type
                    raise ValueError(
                        f"{path}: {name} holds quantised weights ({dtype}): {LOADABLE}"
                    )
                yield path, name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): {_COPY_ANEW}") from error


def _read_pickle(path: Path) -> Iterator[tuple[Path, str, Tensor]]:
    try:
        _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _NoTensors as error:
        raise ValueError(f"{path}: {error}, or take a .safetensors file") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is never run "
            f"({_reason(error)}): {_COPY_ANEW}, or take a .safetensors file"
        ) from error
    # Bytes that are no pickle make the reader fail in many ways.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a PyTorch file ({error!r:.200}): {_COPY_ANEW}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors")
    for name in list(content):
        tensor = content.pop(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: {name!r:.100} is a {type(tensor).__name__}, not a tensor: is this a "
                "training checkpoint? Only weights can be loaded"
            )
        yield path, str(name), tensor


def _reason(error: Exception) -> str:
    """What PyTorch's unpickler says at the end of its advice, or all of another message."""
    return str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]


def _check_pickles(path: Path) -> None:
    """Refuse a packed archive, and pickles that refer twice to one of their parts."""
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # as torch.load decides, whatever the file's end is
        if not zipped:
            file.seek(0)
            for _ in range(_PICKLES):
                _check_pickle(file)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members are packed, and torch.save packs none")
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    built: set[int | None] = set()
    last = ""
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name == "PROTO" and int(argument or 0) > _PROTOCOL:
            raise _NoTensors(
                f"its pickle is of protocol {argument}, and only {_PROTOCOL} and below are read "
                "without running code in them: save it again without pickle_protocol"
            )
        if instruction.name.endswith("PUT") and last in _BUILDING:
            built.add(argument)
        if instruction.name.endswith("GET") and argument in built:
            raise _NoTensors(
                "it refers twice to a list, tuple or dictionary, as named tensors never do: save "
                "model.state_dict()"
            )
        last = instruction.name
