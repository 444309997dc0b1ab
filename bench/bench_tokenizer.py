"""The tokenizer against its peers: training (Hugging Face `tokenizers`), encoding (tiktoken).

    GPT2_TEST_DATA=<folder> pytest bench/bench_tokenizer.py --benchmark-only

The folder holds `wikitext-2/wiki.train.tokens.gz`; the smoke profile reads the prose that ships
with Python instead, and the gpu profile leaves tokenizers out. Every variant does the whole text;
rates are megabytes of UTF-8 per second. Before it is timed, ours must give the ids of its peer, on
the beginning of the text.
"""

import functools
import gzip
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.clocks import Work
from bench.harness.measure import Case, Measure, Setting, Unavailable, Variant, WrongResult
from bench.harness.peers import missing
from gpt2.common.cpu import available_cores
from gpt2.data.python_docs import python_docs
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.pretokens import cut
from gpt2.tokenizer.tokenizer import END_OF_TEXT

DATA_VARIABLE = "GPT2_TEST_DATA"
CHECKED_VOCAB_SIZE = 1_000
CHECKED_CHARS = 500_000
PIECE_CHARS = 1 << 16  # keeps the threads of Hugging Face's trainer busiest


def cases(setting: Setting) -> list[Case]:
    if setting.profile == "gpu":
        return []
    source, sizes = ("python-docs", (4096,)) if setting.smoke else ("wikitext-2", (4096, 32_000))
    return [
        *(_training_case(source, size) for size in sizes),
        *(_encoding_case(source, sizes[-1], documents) for documents in ("paragraphs", "one text")),
    ]


def bench_tokenizer(case: Case, variant: str, measure: Measure) -> None:
    measure(case, variant)


def _training_case(source: str, vocab_size: int) -> Case:
    def check() -> float:
        text = _text(source)[:CHECKED_CHARS]
        theirs = _train_theirs([text], CHECKED_VOCAB_SIZE).encode(text).ids
        if Tokenizer.train([text], CHECKED_VOCAB_SIZE).encode(text) != theirs:
            raise WrongResult("ids differ from those of Hugging Face's trainer")
        return 0.0

    def build_ours() -> Work:
        text = _text(source)
        return Work(lambda: Tokenizer.train([text], vocab_size))

    def build_theirs() -> Work:
        pieces = list(cut(_text(source), PIECE_CHARS))
        return Work(lambda: _train_theirs(pieces, vocab_size))

    def variants() -> list[Variant]:
        no_peer = missing("tokenizers", extra="dev")
        rate = functools.partial(_rate, source)
        return [
            Variant("ours", build_ours, ours=True, metrics=rate, check=None if no_peer else check),
            Variant("tokenizers", build_theirs, skip=no_peer, metrics=rate),
        ]

    return Case(
        "tokenizer",
        {"task": "train", "text": source, "vocab_size": vocab_size, "cores": available_cores()},
        variants,
        clock="wall",
    )


def _encoding_case(source: str, vocab_size: int, documents: str) -> Case:
    def texts() -> list[str]:
        # A paragraph of this data ends with a blank line; they are 0.9 kB on average.
        text = _text(source)
        return text.split("\n \n") if documents == "paragraphs" else [text]

    def check(tokenizer: Tokenizer) -> float:
        some = [text[:CHECKED_CHARS] for text in texts()[:1000]]
        theirs = tokenizer._encoding.encode_ordinary_batch(some)
        ours = [ids.tolist() for ids in tokenizer.encode_documents(some)]
        if ours != theirs:
            raise WrongResult("ids differ from tiktoken's")
        return 0.0

    def variants() -> list[Variant]:
        cores = available_cores()
        trained = functools.cache(lambda: Tokenizer.train([_text(source)], vocab_size))

        def encode(text: str) -> np.ndarray:
            ids: np.ndarray = trained()._encoding.encode_to_numpy(text, disallowed_special=())
            return ids

        def variant(name: str, run: Callable[[list[str]], object], **options: Any) -> Variant:
            def build() -> Work:
                trained()
                given = texts()
                return Work(lambda: run(given))

            return Variant(name, build, metrics=functools.partial(_rate, source), **options)

        def in_threads(given: Sequence[str]) -> list[np.ndarray]:
            with ThreadPoolExecutor(cores) as pool:
                return list(pool.map(encode, given))

        return [
            variant(
                "ours", lambda given: trained().encode_documents(given),
                ours=True, check=lambda: check(trained()),
            ),
            variant(
                "tiktoken encode_ordinary_batch",
                lambda given: trained()._encoding.encode_ordinary_batch(given, num_threads=cores),
            ),
            variant("tiktoken encode_to_numpy", in_threads),
        ]  # fmt: skip

    return Case(
        "tokenizer",
        {
            "task": "encode", "text": source, "vocab_size": vocab_size, "documents": documents,
            "cores": available_cores(),
        },
        variants,
        clock="wall",
    )  # fmt: skip


def _train_theirs(pieces: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        pieces, vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    return tokenizer


def _rate(source: str, seconds: float) -> dict[str, float]:
    return {"mb_per_s": len(_text(source).encode()) / 1e6 / seconds}


@functools.cache
def _text(source: str) -> str:
    if source == "python-docs":
        return "\n \n".join(piece.text for piece in python_docs().splits["train"]())
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise Unavailable(f"real data: set {DATA_VARIABLE} to a folder with wikitext-2/")
    path = Path(folder) / "wikitext-2/wiki.train.tokens.gz"
    return gzip.decompress(path.read_bytes()).decode()
