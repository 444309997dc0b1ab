"""The tokenizer against its peers: training (Hugging Face `tokenizers`), encoding (tiktoken).

    GPT2_TEST_DATA=<folder> pytest bench/bench_tokenizer.py --benchmark-only

The folder holds `wikitext-2/wiki.train.tokens.gz`. Ours and its peers run in turn, round by round,
in one process. pytest-benchmark times ours; the peers' medians and the ratios are in extra_info.
"""

import gzip
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.pretokens import available_cores, cut
from gpt2.tokenizer import Tokenizer

VOCAB_SIZE = 32_000


@pytest.fixture(scope="module")
def text() -> str:
    folder = os.environ.get("GPT2_TEST_DATA")
    if not folder:
        pytest.skip("real data: set GPT2_TEST_DATA to a folder with wikitext-2/")
    path = Path(folder) / "wikitext-2/wiki.train.tokens.gz"
    return gzip.decompress(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def articles(text: str) -> list[str]:
    """Paragraphs, 0.9 kB on average: a paragraph of this data ends with a blank line."""
    return text.split("\n \n")


@pytest.fixture(scope="module")
def tokenizer(text: str) -> Tokenizer:
    return Tokenizer.train([text], VOCAB_SIZE)


def measure_in_turn(
    benchmark: Any,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    *,
    megabytes: float,
    rounds: int,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in peers}

    def run_peers() -> None:
        for name, peer in peers.items():
            start = time.perf_counter()
            peer()
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=run_peers, rounds=rounds, warmup_rounds=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info["cores"] = available_cores()
    benchmark.extra_info["ours, MB/s"] = round(megabytes / median, 2)
    for name, seconds in times.items():
        peer_median = statistics.median(seconds)
        benchmark.extra_info[f"{name}, s"] = round(peer_median, 3)
        benchmark.extra_info[f"ours / {name}, time"] = round(median / peer_median, 3)


@pytest.mark.parametrize("vocab_size", [4096, VOCAB_SIZE])
def bench_train(benchmark: Any, text: str, vocab_size: int) -> None:
    """Hugging Face's trainer is fed pieces of 64 kB, which keep its threads busiest."""
    from tokenizers import ByteLevelBPETokenizer

    pieces = list(cut(text, 1 << 16))

    def hugging_face() -> Any:
        peer = ByteLevelBPETokenizer()
        peer.train_from_iterator(
            pieces, vocab_size, special_tokens=["<|endoftext|>"], show_progress=False
        )
        return peer

    measure_in_turn(
        benchmark,
        lambda: Tokenizer.train([text], vocab_size),
        {f"tokenizers {version('tokenizers')}": hugging_face},
        megabytes=len(text.encode()) / 1e6,
        rounds=5,
    )


@pytest.mark.parametrize("documents", ["paragraphs", "one text"])
def bench_encode(
    benchmark: Any, text: str, articles: list[str], tokenizer: Tokenizer, documents: str
) -> None:
    """Bulk encoding by tiktoken, ours and its own two ways of doing it on all cores."""
    texts = articles if documents == "paragraphs" else [text]
    encoding = tokenizer._encoding
    cores = available_cores()

    def batch() -> list[list[int]]:
        return encoding.encode_ordinary_batch(texts, num_threads=cores)

    def to_numpy() -> list[np.ndarray]:
        with ThreadPoolExecutor(cores) as pool:
            encode = lambda text: encoding.encode_to_numpy(text, disallowed_special=())  # noqa: E731
            return list(pool.map(encode, texts))

    name = f"tiktoken {version('tiktoken')}"
    measure_in_turn(
        benchmark,
        lambda: tokenizer.encode_documents(texts),
        {f"{name} encode_ordinary_batch": batch, f"{name} encode_to_numpy": to_numpy},
        megabytes=len(text.encode()) / 1e6,
        rounds=7,
    )


def bench_encode_with_gigatoken(benchmark: Any, text: str, articles: list[str]) -> None:
    pytest.importorskip("gigatoken", reason="the optional extra `fast` is not installed")
    fast = Tokenizer.train([text], VOCAB_SIZE)
    slow = Tokenizer.train([text], VOCAB_SIZE)
    benchmark.extra_info["engine"] = fast.use_fastest(articles[:1000])
    measure_in_turn(
        benchmark,
        lambda: fast.encode_documents(articles),
        {"encode_documents with tiktoken": lambda: slow.encode_documents(articles)},
        megabytes=len(text.encode()) / 1e6,
        rounds=7,
    )
