"""Data sets on the Hugging Face hub, streamed through the library `datasets` (the extra `hub`)."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from gpt2.common.files import write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.data.documents import Piece, Source, is_wikitext, row_pieces

_ADVICE = "Or give a local file or folder instead: --data path/to/{}.txt (or .jsonl, .parquet)"
_PATIENCE = 3.0  # seconds for the hub to answer; `datasets` itself would retry for 23


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub."""

    repository: str  # owner and name
    splits: dict[str, str]  # our names of its splits, each with the hub's
    holdout: int  # one document in this many is enough for each split taken from train
    config: str | None = None  # the configuration to load, None for the only one
    revision: str = "main"  # branch


HUB_DATASETS = {
    "tinystories": HubDataset(
        "roneneldan/TinyStories", {"train": "train", "valid": "validation"}, holdout=200
    ),
    "wikitext-2": HubDataset(
        "Salesforce/wikitext",
        {"train": "train", "valid": "validation", "test": "test"},
        holdout=20,
        config="wikitext-2-raw-v1",
    ),
    # The main branch holds a script, which `datasets` 4 refuses to run; the hub's own conversion
    # holds the same documents.
    "openwebtext": HubDataset(
        "Skylion007/openwebtext", {"train": "train"}, holdout=2000, revision="refs/convert/parquet"
    ),
}


def hub_source(name: str, *, cache_dir: Path) -> Source:
    """Open the hub data set `name`, at the revision that was newest when it was first opened.

    The revision is kept in `cache_dir`/NAME.hub.json, so that an interrupted preparation goes on
    with the same text, and a finished one is used again without a network.

    Raises:
        ValueError: the hub does not answer within some seconds, or does not have the data set.
    """
    dataset = HUB_DATASETS[name]
    pin = cache_dir / f"{name}.hub.json"
    revision = ""
    with suppress(ValueError):
        revision = from_json(str, read_json_object(pin).get("revision"))
    if not revision:
        _import_datasets(name)
        revision = _ask_revision(name)
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(pin, {"repository": dataset.repository, "revision": revision})
    identity = f"hub {dataset.repository} {dataset.config} {revision}"
    return Source(
        name=name,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        splits={split: partial(_read, name, revision, split) for split in dataset.splits},
        holdout=dataset.holdout,
        notes=(f"{name}: {dataset.repository} at revision {revision[:8]} of {dataset.revision}",),
        details={"kind": "hub", "repository": dataset.repository, "revision": revision},
    )


def _read(name: str, revision: str, split: str, share: int = 0, of: int = 1) -> Iterator[Piece]:
    """Read a split, or of `of` shares one, which has whole files; WikiText is all in the first."""
    dataset = HUB_DATASETS[name]
    load_dataset = _import_datasets(name).load_dataset
    _ask_revision(name)  # else a missing network is told late, by `datasets`
    where = {"split": dataset.splits[split], "revision": revision}
    try:
        rows = load_dataset(dataset.repository, dataset.config, **where, streaming=True)
        if of == 1:  # or the hub would be asked for the first rows twice
            yield from row_pieces(_texts(rows))
            return
        wikitext = is_wikitext(_texts(rows))
        if wikitext:
            files = [rows] if share == 0 else []
        else:
            n = rows.num_shards
            files = [rows.shard(n, i) for i in range(n * share // of, n * (share + 1) // of)]
        yield from row_pieces(chain.from_iterable(map(_texts, files)), wikitext=wikitext)
    # Any of several libraries may fail here; whichever it is, the advice is the same.
    except Exception as error:
        raise ValueError(
            f"--data {name}: reading {dataset.repository} from the hub failed: {error}. "
            "Run the same command again: finished shards are kept."
        ) from error


def _texts(rows: Iterable[Any]) -> Iterator[tuple[str, int]]:
    texts = (row["text"] or "" for row in rows)
    return ((text, len(text.encode("utf-8"))) for text in texts)


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"--data {name} is read from the Hugging Face hub, which needs the library `datasets`: "
            f"pip install -e '.[hub]'. {_ADVICE.format(name)}"
        ) from error
    return datasets


def _ask_revision(name: str) -> str:
    """The newest commit of a data set's branch; without a network an error soon, with advice."""
    from huggingface_hub import HfApi  # comes with `datasets`

    api, dataset = HfApi(), HUB_DATASETS[name]
    try:
        info = api.dataset_info(dataset.repository, revision=dataset.revision, timeout=_PATIENCE)
    # Any of several libraries may fail here; whichever it is, the advice is the same.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"--data {name}: the hub at {api.endpoint} cannot give {dataset.repository} "
            f"({reason}). {_ADVICE.format(name)}"
        ) from error
    return str(info.sha)
