"""gpt2.data.hub: the data sets that have names, from a stand-in of the hub."""

import gzip
import importlib.util
import io
import json
import socket
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from gpt2.data.documents import SPLITS
from gpt2.data.prepare import prepare
from gpt2.data.shards import read_header
from tests.gpt2.data.hub_stand_in import COMMIT, hub
from tests.gpt2.stand_ins import run_forked

WIKITEXT = " \n = Title {} = \n \n The game ran in {} . \n \n = = Section = = \n \n It ended . \n"


def parquet(texts: list[str]) -> bytes:
    import pyarrow as pa  # comes with datasets
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=100)
    return buffer.getvalue()


def wikitext_rows(articles: range) -> list[str]:
    """The hub's rows: a line each, with its line end, and nothing for a blank line."""
    lines = "".join(WIKITEXT.format(i, i) for i in articles).splitlines(keepends=True)
    return [line if line.strip() else "" for line in lines]


# In a process of its own: the hub's address is read when its library is imported.
PREPARE = """
import sys
from gpt2.data.prepare import Arguments, Path, main
from gpt2.data.sources import open_source

for name in sys.argv[2:]:
    main(Arguments(data=name, vocab_size=300, cache_dir=Path(sys.argv[1])))
    for read in open_source(name, cache_dir=Path(sys.argv[1])).splits.values():
        shares = [list(read(share=share, of=3)) for share in range(3)]
        assert sum(shares, []) == list(read())
        print(name, [len(share) for share in shares])
"""


DOCUMENTS = {
    "tinystories": [448, 3, 2],  # 450 stories: one in 200 for test
    "wikitext-2": [9, 2, 1],
    "openwebtext": [2098, 1, 1],
}


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="needs the library datasets: pip install -e '.[hub]'",
)
def test_data_sets_are_streamed_from_the_hub_and_then_need_no_network(tmp_path, monkeypatch):
    stories = [f"Story {i}. " * (i % 7 + 1) for i in range(450)]
    repositories = {
        "roneneldan/TinyStories": {
            "README.md": b"",
            "data/train-00000-of-00002.parquet": parquet(stories[:250]),
            "data/train-00001-of-00002.parquet": parquet(stories[250:]),
            "data/validation-00000-of-00001.parquet": parquet(["Held out."] * 3),
        },
        "Salesforce/wikitext": {
            "README.md": b"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
            + b"".join(
                b"  - split: %s\n    path: wikitext-2-raw-v1/%s-*\n" % (split, split)
                for split in (b"train", b"validation", b"test")
            )
            + b"---\n",
            "wikitext-2-raw-v1/train-00000-of-00001.parquet": parquet(wikitext_rows(range(9))),
            "wikitext-2-raw-v1/validation-00000-of-00001.parquet": parquet(wikitext_rows(range(2))),
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet(wikitext_rows(range(1))),
        },
        "Skylion007/openwebtext": {
            "plain_text/train/0000.parquet": parquet([f"Page {i}." for i in range(2100)])
        },
    }
    with hub(repositories) as (address, _):
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = run_forked("-c", PREPARE, str(tmp_path), *DOCUMENTS, **places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"revision {COMMIT[:8]}") == 3
    assert "tinystories [0, 250, 200]" in done.stdout
    for name, documents in DOCUMENTS.items():
        (folder,) = tmp_path.glob(f"{name}-*")
        infos = [read_header(folder / f"{split}-00000.bin") for split in SPLITS]
        assert [info.counts.documents for info in infos] == documents
        if name == "wikitext-2":
            assert [info.counts.text_bytes for info in infos] == [
                sum(len(WIKITEXT.format(i, i)) for i in range(n)) for n in (9, 2, 1)
            ]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["source"]["revision"] == COMMIT
    # A snapshot on disk gives the same text of the splits that it names.
    for name, repository, splits in [
        ("wikitext-2", "Salesforce/wikitext", SPLITS),
        ("tinystories", "roneneldan/TinyStories", ["valid"]),
    ]:
        for file, content in repositories[repository].items():
            path = tmp_path / "snapshots" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder,) = tmp_path.glob(f"{name}-*")
        tokenizer = str(folder / "tokenizer.json")
        found = prepare(
            str(tmp_path / "snapshots" / name), tokenizer=tokenizer, cache_dir=tmp_path / "disk"
        )
        for split in splits:
            shards = [read_header(f / f"{split}-00000.bin") for f in (folder, found.folder)]
            assert shards[0].sha256 == shards[1].sha256
    monkeypatch.setitem(sys.modules, "datasets", None)
    prepared = prepare("tinystories", vocab_size=300, cache_dir=tmp_path)
    assert any("reused" in note for note in prepared.notes)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train_000000.bin"])
def test_a_damaged_file_that_is_fetched_again_is_right(tmp_path, tokenizer_file, name):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")
    if name.endswith(".gz"):
        rows = "".join(json.dumps({"text": f"Story {i}."}) + "\n" for i in range(90))
        content = gzip.compress(rows.encode(), mtime=0)
    else:
        content = np.array([20240520, 1, 900], "<i4").tobytes().ljust(1024, b"\0")
        content += np.resize(np.array([*range(30, 40), 319], "<u2"), 900).tobytes()
    options = {"tokenizer": str(tokenizer_file), "cache_dir": tmp_path / "cache"}
    with hub({"owner/set": {name: content}}) as (address, _):

        def fetch() -> Path:
            return Path(
                huggingface_hub.hf_hub_download(
                    "owner/set", name, repo_type="dataset", local_dir=tmp_path / "set",
                    endpoint=address, force_download=True,
                )
            )  # fmt: skip

        path = fetch()
        right = prepare(str(path), **options)
        path.write_bytes(content[:-9])
        with pytest.raises(ValueError, match=rf"{name}.*[Ff]etch it again"):
            prepare(str(path), **options)
        assert fetch() == path
    again = prepare(str(path), **options)
    assert again.fingerprint == right.fingerprint
    stream = again.splits["train"]
    assert (stream.read(0, len(stream)) == right.splits["train"].read(0, len(stream))).all()


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[hub\]'.*--data path/to/tinystories"):
        prepare("tinystories", cache_dir=tmp_path)


@pytest.mark.parametrize("network", ["refused", "silent", "no such host", "no such data set"])
def test_without_the_network_the_way_round_is_told_in_time(tmp_path, monkeypatch, network):
    # Whole, before the clock starts: importing it can take seconds.
    pytest.importorskip("huggingface_hub.hf_api", reason="pip install -e '.[hub]'")
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    with socket.socket() as silent, hub({}) as (empty, _):
        silent.bind(("127.0.0.1", 0))
        if network == "silent":
            silent.listen()  # connections open, and nothing ever answers
        port = silent.getsockname()[1]
        others = {"no such host": "http://hub.invalid", "no such data set": empty}
        address = others.get(network, f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"cannot give roneneldan/TinyStories.*--data path/to"):
            prepare("tinystories", cache_dir=tmp_path)
        assert time.monotonic() - start < 5
