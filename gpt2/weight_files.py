"""The tensors of a folder of weights: safetensors or PyTorch's .bin, whole or in shards.

Reading runs no code: of pickles only what `torch.load(weights_only=True)` allows.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# In the order in which transformers looks for them.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_COPY_ANEW = "copy or download it anew (a text file of some 130 bytes is git-lfs's place-holder)"


def has_weights(folder: Path, names: tuple[str, ...] = SAFETENSORS + PICKLES) -> bool:
    return any((folder / name).is_file() for name in names)


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
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        # Plain names: no path leads out of the folder.
        stray = [name for name in names if name != Path(name).name or name == index.name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r}): {_COPY_ANEW}") from error
    if stray:
        raise ValueError(f"{index} names {stray[0]!r}, which is no file beside it")
    paths = [index.parent / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is missing; {index.name} names {len(paths)} shards")
    return paths


def _read_safetensors(path: Path) -> Iterator[tuple[Path, str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield path, name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut off or not a safetensors file ({error}): {_COPY_ANEW}"
        ) from error


def _read_pickle(path: Path) -> Iterator[tuple[Path, str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is never run "
            f"({str(error).splitlines()[0]}): {_COPY_ANEW}, or take a .safetensors file"
        ) from error
    # Bytes that are no pickle can make the reader fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is cut off or not a PyTorch file ({error!r:.200}): {_COPY_ANEW}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors")
    for name in list(content):
        tensor = content.pop(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor: is this a training "
                "checkpoint? Only weights can be loaded"
            )
        yield path, str(name), tensor
