"""The report: what it says comes from the run's files, and whatever they hold stays text."""

import dataclasses
import json
import re
import sys
from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfReader

from gpt2.config import TrainConfig, model_config, settle
from gpt2.report.__main__ import Arguments, main
from gpt2.report.facts import gather
from gpt2.report.figures import draw
from gpt2.report.findings import IMPROVEMENT, STRENGTH, WEAKNESS, discuss
from gpt2.report.pdf import MAX_PAGES, shorten, typeset
from gpt2.report.result_files import read_bench, read_decoding, read_sizes
from gpt2.report.sources import Data, Split, read_run
from gpt2.runs.run import write_config
from gpt2.tokenizer import Tokenizer

TEXT = "the cat sat on the mat and the dog ran over the hill to see the cat. " * 20
HOSTILE = (
    '#panic("evaluated") #import "x" $ *bold* _it_ = Heading\n= Heading\n</script> <b> @ref <lab>'
    " \\ [x](y) | a | b | ~ // /* `c`\n```\nfence\n````\n\U0001f600\U0001f468\u200d\U0001f469 "
    "\u4e2d\u6587 \x00\x07\x1b[31mU+41\x1b \u202eabc\u2028 \ttab  two spaces"
)


RESULT = {
    "step": 100, "val_loss": 4.1, "prompt": "The cat saw", "finished": "2025-03-04T05:06:07+00:00",
    "test": {
        "loss": 4.25, "perplexity": 70.1054, "bits_per_byte": 1.5432, "tokens": 12345,
        "bytes": 49382, "context": 128, "stride": 128,
    },
    "samples": {
        "greedy": " the dog and the dog and the dog and the dog ran home.",
        "nucleus (p = 0.9)": " a bird in the big tree, and then it ran home to its mother.",
    },
    "data": {
        "name": "tinystories", "held_out": "test: one in 20 documents",
        "splits": {
            name: {"tokens": n, "documents": 7, "bytes": 4 * n}
            for name, n in (("train", 1_000_000), ("valid", 50_000), ("test", 12345))
        },
    },
    "machine": {"device": "Some CPU, 2 cores", "dtype": "float32", "compile": True},
}  # fmt: skip


def _run(folder: Path, result: dict | None = None, **options) -> Path:
    """A finished run folder; options as for TrainConfig."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "seq_len": 128, "attn": "sdpa"}
    settings = settle(TrainConfig(**{"data": "tinystories", "steps": 100} | shape | options))
    folder.mkdir()
    model = dataclasses.replace(model_config(settings, 300, 0), attn=settings.attn)
    write_config(folder, settings, model)
    Tokenizer.train([TEXT], 280, progress=False).save(folder / "tokenizer.json")
    lines = []
    for step in range(10, 101, 10):
        line = {"step": step, "loss": 5 - step / 100, "lr": 0.01, "grad_norm": 0.5}
        line |= {"tokens": step * 2048, "tokens_per_s": 4096.0, "skipped": 0}
        lines.append(json.dumps(line | ({} if step % 20 else {"val_loss": 5.1 - step / 100})))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _json(folder / "result.json", RESULT | (result or {}))
    return folder


def _json(path: Path, content: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _typeset(folder: Path, **options) -> tuple[bytes, str]:
    """The report of a run as PDF, and its text with single spaces."""
    pytest.importorskip("typst", reason="the extra `report`")
    runs = [read_run(folder)]
    pdf, pages = typeset(gather(runs, **options), draw(runs))
    text = _text(pdf)
    assert pages == text.count("\f") <= MAX_PAGES
    return pdf, text


def _text(pdf: bytes) -> str:
    """The words of a PDF with single spaces, a form feed after each page."""
    pages = PdfReader(BytesIO(pdf)).pages
    return "".join(" ".join(page.extract_text().split()) + "\f" for page in pages)


ALTERNATIVES = {
    "norm": "quicknorm", "norm_position": "post", "mlp": "swiglu", "positions": "sinusoidal",
    "tie": False, "bias": False, "window": 32, "attn": "triton", "optimizer": "adamw",
}  # fmt: skip
ONE = ("GELU", "tanh", "LayerNorm", "pre-norm", "places, and no length", "Press and Wolf",
       "whole context", "biases start at zero", "Muon", "Newton-Schulz")  # fmt: skip
OTHER = ("SwiGLU", "silu", "QuickNorm", "post-norm", "sinusoids", "has its own weights",
         "last 32 positions", "Our Triton kernel", "All parameters are trained by")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [({"optimizer": "muon"}, ONE, OTHER), (ALTERNATIVES, OTHER, ONE)],
    ids=["defaults", "alternatives"],
)
def test_figures_come_from_the_files_and_formulas_from_the_options(
    tmp_path, options, there, absent
):
    folder = _run(tmp_path / "run", **options)
    pdf, text = _typeset(folder)
    assert pdf == _typeset(folder)[0], "the same bytes every time"
    assert pdf.startswith(b"%PDF-1.7")
    assert re.search(rb"pdfaid:part>2<.*pdfaid:conformance>B<", pdf)
    assert b"2025-03-04T05:06:07" in pdf
    body, _, references = text.partition("References")
    for words in there:
        assert words in body, words
    for words in absent:
        assert words not in body, words
    for words in (
        "4 March 2025", "70.11", "4.2500", "1.5432", "12,345 tokens", "49,382 bytes",
        "training 7 1,000,000 4,000,000 4.00", "Some CPU, 2 cores", "compute type float32",
        "compiled yes", "204,800", "one in 20 documents", "The test split is held out of the",
        "time in steps 50 s",  # 100 steps of 2,048 tokens at 4,096 tokens per second
        "(Eldan and Li 2023)",
    ):  # fmt: skip
        assert words in body, words
    assert "Eldan R, Li Y (2023) TinyStories" in references
    assert ("Shazeer N (2020)" in references) == ("SwiGLU" in body), "only what is cited"


@pytest.mark.parametrize(
    ("init_from", "name"),
    [("demo", "demo"), ("owner/name", "owner/name"), ("/of/a/machine/first", "first")],
)
def test_a_run_from_trained_weights_says_so_and_counts_its_own_tokens_alone(
    tmp_path, init_from, name
):
    _, text = _typeset(_run(tmp_path / "run", init_from=init_from))
    assert f"was trained from the weights of {name} on 410 thousand tokens" in text
    assert f"Weights start as those of {name}, which were trained before" in text
    assert "tokens seen in this run 409,600" in text
    for words in ("random weights", "normal distribution", "/of/a", "tokens per parameter"):
        assert words not in text, words
    assert "of the training text was read" not in text


def test_hostile_text_stays_text(tmp_path):
    samples = {"greedy": HOSTILE, "x" * 200: "y" * 10_000, HOSTILE: HOSTILE}
    folder = _run(tmp_path / "run", result={"prompt": HOSTILE, "samples": samples})
    # Evaluated as markup it would panic; with a character that no font has PDF/A is refused.
    _, text = _typeset(folder, title=HOSTILE, author=HOSTILE)
    for words in ('#panic("evaluated")', "*bold* _it_", "<b> @ref <lab>", "U+0007", "U+202E"):
        assert words in text, words
    assert "stand as code points" in text


def test_long_samples_are_cut_and_it_is_said(tmp_path):
    samples = dict.fromkeys(("greedy", "top-k", "nucleus"), "word and more, " * 300)
    folder = _run(tmp_path / "run", result={"samples": samples})
    _, text = _typeset(folder)
    assert text.count("\f") == MAX_PAGES
    assert re.search(r"3 of 3 samples are cut after \d+ characters", text)
    cut = shorten(gather([read_run(folder)]), 500, set())["samples"]
    assert [len(item["text"]) for item in cut["items"]] == [len("[...]") + 500] * 3


def test_no_sample_is_split_and_the_last_page_is_not_nearly_empty(tmp_path):
    """Of this length the samples reach over the end of a page, and the references over the last."""
    samples = {
        name: " ".join(f"{name}{i}" for i in range(140)) for name in ("greedy", "topk", "topp")
    }
    folder = _run(tmp_path / "run", result={"samples": samples})
    _, text = _typeset(folder)
    *full, last, _ = text.split("\f")
    for name in samples:
        pages = {place for place, page in enumerate(full) if re.search(rf"{name}\d", page)}
        assert len(pages) == 1, name
    assert len(last) > 0.2 * max(map(len, full))


def test_what_cannot_fit_is_refused_not_cut_off(tmp_path):
    pytest.importorskip("typst", reason="the extra `report`")
    run = read_run(_run(tmp_path / "run"))
    other = dataclasses.replace(run, tokenizer_hash="another")  # so that no curves are compared
    with pytest.raises(ValueError, match=r"at most 5 are allowed.*leave out some of the runs"):
        typeset(gather([run] + [other] * 60), draw([run]))


MEASURES = {
    "perplexity": 20.0, "distinct_1": 0.3, "distinct_2": 0.7, "distinct_3": 0.9,
    "repetition_4": 0.01, "self_bleu_4": 0.1, "mean_words": 75.0, "ended": 0.05, "copied_8": None,
}  # fmt: skip


def write_decoding(path: Path) -> Path:
    rows = [
        {"name": "human", **MEASURES, "perplexity": 61.25, "distinct_2": 0.8},
        {"name": "greedy", **MEASURES, "distinct_2": 0.1, "repetition_4": 0.5},
        {"name": "min-p 0.1", **MEASURES, "sampling": {"min_p": 0.1}, "unknown": 1},
    ]
    about = {"data": "tinystories", "split": "test", "prompts": 40, "max_tokens": 96}
    names = [row["name"] for row in rows]
    texts = [{"prompt": f"Prompt {i}"} | {n: f" {n} text {i}" for n in names} for i in range(3)]
    return _json(path, about | {"rows": rows, "findings": ["Fluency: so and so."], "texts": texts})


def write_sizes(path: Path) -> Path:
    rows = [
        {
            "name": name, "parameters": parameters, "tokens": 1000, "seconds": 10.0 * parameters,
            "tokens_per_s": 100.0, "peak_memory_bytes": 3 << 20, "flops": flops,
            "test_loss": loss, "test_perplexity": 2.7**loss, "test_bits_per_byte": loss / 3,
            "val_curve": [[500, loss + 1], [1000, loss]], "samples": {"The cat": " saw a cat."},
        }
        for name, parameters, flops, loss in (("small", 10, 10**6, 3.0), ("large", 40, 10**7, 2.5))
    ]  # fmt: skip
    about = {"data": "stories", "tokens": 1000, "device": "Some GPU", "memory": "allocated"}
    about |= {"test": "5 tokens", "sampling": "nucleus sampling", "rows": rows}
    return _json(path, about)


def _bench(path: Path) -> Path:
    def row(T: int, variant: str, seconds: float | None) -> dict:
        return {
            "bench": "attention", "case": {"T": T, "pass": "forward", "window": None},
            "variant": variant, "ours": variant == "triton", "reason": None, "metrics": {},
            "status": "ok" if seconds else "failed",
            "seconds": {"median": seconds} if seconds else None,
        }  # fmt: skip

    rows = [row(128, "triton", 0.002), row(128, "sdpa", 0.001), row(128, "naive", 0.009)]
    rows += [row(1024, "triton", 0.004), row(1024, "sdpa", 0.006), row(2048, "triton", None)]
    limits = {"matmul_tflops": 700.0, "matmul_dtype": "bfloat16", "copy_gbps": 3900.0}
    about = {"device": "Some GPU", "date": "2026-11-21", "commit": "1234abc", "limits": limits}
    return _json(path, about | {"rows": rows})


def test_the_other_tools_files_are_reported(tmp_path):
    pytest.importorskip("typst", reason="the extra `report`")
    folder = _run(tmp_path / "run")
    write_decoding(folder / "decoding/decoding.json")
    made = {"sizes": write_sizes(tmp_path / "s.json"), "bench": _bench(tmp_path / "b.json")}
    files = {name: str(path) for name, path in made.items()}
    main(Arguments((str(folder), str(_run(tmp_path / "other", n_embd=64))), **files))
    text = _text((folder / "report.pdf").read_bytes())
    for words in (
        "human 61.2 0.300 0.800 0.900 1.0% 0.100 75 5% \u2013",
        "Fluency: so and so.", "50.0% of its runs of 4 words", "40 prompts",
        "(Nguyen et al. 2024)", "Prompt 1", "human text 1",
        "4.0 times the parameters and 4.0 times the time lower the test loss by 0.5000 nats",
        "small has the lowest validation loss", "3.0000",
        "attention: T 1,024, forward triton, 4 sdpa, 6 1.50",
        "attention: T 128, forward triton, 2 sdpa, 1 0.50",
        "In 1 of 2 cases", "1 of 6 rows failed", "n_embd 64 instead of 32",
    ):  # fmt: skip
        assert words in text, words
    for number in range(1, 5):
        assert f"Figure {number}:" in text


@pytest.mark.parametrize("reader", [read_decoding, read_sizes, read_bench])
def test_a_file_that_lacks_what_is_needed_is_refused(tmp_path, reader):
    make = {read_decoding: write_decoding, read_sizes: write_sizes, read_bench: _bench}[reader]
    content = json.loads(make(tmp_path / "file.json").read_text())
    reader(tmp_path / "file.json")
    del content["rows"][0][{read_bench: "seconds"}.get(reader, "name")]
    with pytest.raises(ValueError, match=r"file\.json does not hold .*(name|seconds)"):
        reader(_json(tmp_path / "file.json", content))
    (tmp_path / "file.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        reader(tmp_path / "file.json")


def test_findings_follow_the_numbers(tmp_path):
    run = read_run(_run(tmp_path / "run"))
    split = Split(tokens=20_000, documents=9, bytes=80_000)
    again = " ".join(f"one two three four five and{i}" for i in range(20))
    few = Data("little", "nothing: the source names its splits", {"train": split})
    for changes, kind, words in (
        ({"val_loss": 4.03, "val_curve": [(100, 4.03)]}, STRENGTH, "No sign of overfitting"),
        ({"val_loss": 4.6}, WEAKNESS, "0.600 nats above the training loss"),
        ({"val_loss": 4.6}, IMPROVEMENT, "gap of 0.600 nats"),
        ({"parameters": 10**6}, WEAKNESS, "0.20 tokens per parameter"),
        ({"parameters": 10**6}, IMPROVEMENT, "19.8 million more tokens (9,666 steps, 80.5 min"),
        ({"parameters": 10**3}, STRENGTH, "204.8 tokens per parameter"),
        ({"data": few}, WEAKNESS, "read 10.2 times"),
        ({}, WEAKNESS, "Only 20% of the training text was read"),
        ({"skipped": 3}, WEAKNESS, "3 of 100 steps were skipped"),
        ({"grad_norms": [0.5, 2.0]}, STRENGTH, "1 of 2 logged gradients"),
        ({"test": dataclasses.replace(run.test, loss=4.9)}, WEAKNESS, "0.800 nats above the val"),
        ({"parameters": 12_000}, WEAKNESS, "80% of the parameters are the embedding"),
        ({"samples": {"greedy": "a b c d " * 20}}, WEAKNESS, "d\u201d stands 20 times in a row"),
        ({"samples": {"greedy": again}}, WEAKNESS, "Greedy decoding loops: 32%"),
    ):
        found = discuss(dataclasses.replace(run, **changes))
        assert any(words in f.text for f in found if f.kind == kind), (words, found)
        assert all(re.search(r"\d", finding.text) for finding in found)


LOOP = (
    "the bird ran home " + "dog " * 8 + "and a few more words that are all of them new to it " * 2
)
CALM = " ".join(f"word{i}" for i in range(30))


@pytest.mark.parametrize(
    ("train", "val", "samples", "said", "unsaid"),
    [
        pytest.param(
            (5.0, 4.0, 3.98, 3.97), (4.1, 4.03, 4.02, 4.01), {"greedy": LOOP, "top-k": CALM},
            ["\u201cdog\u201d stands 8 times in a row", "Top-k decoding does not loop",
             "The run has converged under its schedule", "No sign of overfitting", "was stable"],
            ["Greedy decoding does not loop", "went wrong", "Overfitting:"], id="loops",
        ),
        pytest.param(
            (5.0, 4.0, 3.0, 2.0), (4.1, 4.02, 4.3, 4.6), {"greedy": CALM},
            ["Overfitting: the validation loss was lowest at step 50 and rose by 0.580 nats until "
             "step 100, the training loss went from 4.000 to 2.000, and 50% of the steps"],
            ["No sign of overfitting", "Train longer", "converged", "went wrong"], id="overfits",
        ),
        pytest.param(
            (5.0, 4.0, 6.0, 8.0), (4.1, 4.02, 8.1, 8.1), {"greedy": CALM},
            ["Training went wrong: ", "from 4.000 to 8.000", "a peak learning rate below 0.01"],
            ["Overfitting", "overfitting", "was stable", "converged", "Train longer"],
            id="diverges",
        ),
        pytest.param(
            (5.6, 5.6, 5.59, 5.58), (5.6, 5.6, 5.6, 5.59), {"greedy": "one two three four five"},
            ["Only 20% of the training text was read"],
            ["converged", "loop", "went wrong"], id="short",
        ),
        pytest.param(
            (5.0, 4.6, 4.3, 4.0), (5.0, 4.6, 4.3, 4.1), {"greedy": CALM},
            ["ended before it converged: from step 75 to 100 the validation loss still fell by "
             "0.200 nats"],
            ["has converged", "went wrong", "Overfitting:"], id="still falling",
        ),
    ],
)  # fmt: skip
def test_findings_of_planted_runs(tmp_path, train, val, samples, said, unsaid):
    steps = (25, 50, 75, 100)
    curve = list(zip(steps, val, strict=True))
    step, best = min(curve, key=lambda point: point[1])
    run = dataclasses.replace(
        read_run(_run(tmp_path / "run")), samples=samples, step=step, val_loss=best,
        train_curve=list(zip(steps, train, strict=True)), val_curve=curve,
    )  # fmt: skip
    found = " ".join(finding.text for finding in discuss(run))
    assert not [words for words in said if words not in found], found
    assert not [words for words in unsaid if words in found], found


def test_the_first_figure_shows_the_whole_curve(tmp_path):
    run = read_run(_run(tmp_path / "run"))
    steep = dataclasses.replace(run, train_curve=[(1, 11.0), (50, 3.0), (100, 2.5)])
    svg = draw([steep])["loss.svg"].decode()
    line = re.search(r'id="line2d_\d+">\s*<path d="([^"]*)"[^>]*stroke: #0072b2', svg, re.DOTALL)
    assert line is not None
    heights = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", line[1])]
    assert len(heights) == 3
    assert min(heights) > 0, "below the upper edge of the picture"


def test_time_is_that_of_the_steps_taken(tmp_path):
    folder = _run(tmp_path / "run")
    lines = [
        {"step": 10, "loss": 5, "lr": 1, "grad_norm": None, "tokens": 1000, "tokens_per_s": 50,
         "skipped": 0},
        {"step": 30, "loss": 5, "lr": 1, "grad_norm": 1, "tokens": 3000, "tokens_per_s": 100,
         "skipped": 4, "val_loss": 4},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_run(folder).seconds == 1000 / 50 + (2000 - 400) / 100


def test_a_run_that_does_not_say_what_its_data_are_says_so(tmp_path):
    folder = _run(tmp_path / "run", cache_dir=str(tmp_path / "cache"))
    unsaid = ("data", "machine", "finished")
    _json(folder / "result.json", {k: v for k, v in RESULT.items() if k not in unsaid})
    _, text = _typeset(folder)
    assert "does not record the sizes of its splits" in text
    assert "device not recorded" in text
    assert "compiled" not in text
    run = read_run(folder)
    split = {"tokens": 12345, "documents": 3, "text_bytes": 49382}
    manifest = {"source": {"name": "from-cache"}, "held_out": "test: some"}
    manifest |= {"splits": dict.fromkeys(("train", "valid", "test"), split)}
    (tmp_path / "cache").mkdir()
    path = tmp_path / f"cache/from-cache-{run.tokenizer_hash[:8]}/manifest.json"
    _json(path, manifest)
    data = gather([read_run(folder)])["data"]
    assert (data["name"], data["own"], data["how"]) == ("from-cache", ["validation"], "some")
    split["text_bytes"] += 1  # not the text that was scored
    _json(path, manifest)
    assert read_run(folder).data is None


def test_records_that_lack_what_is_needed_are_refused(tmp_path):
    folder = _run(tmp_path / "run")
    for change, message in (
        ({"data": {"name": "x", "held_out": "y", "splits": {}}}, "its splits must be train"),
        ({"step": "4"}, "step: '4' is no int"),
        ({"val_loss": float("nan")}, "val_loss: nan is no float"),
        ({"val_loss": 1e4}, "a loss above 700 has no perplexity"),
        ({"test": {}}, "test: no entry 'loss'"),
        ({"finished": "yesterday"}, "Invalid isoformat string"),
    ):
        _json(folder / "result.json", RESULT | change)
        with pytest.raises(ValueError, match=rf"result\.json does not hold .*{message}"):
            read_run(folder)
    _json(folder / "result.json", RESULT)
    line = {"step": 110, "loss": 4.0, "lr": 0.1, "tokens": 1, "skipped": 0}
    for speed in ({}, {"tokens_per_s": 0}, {"tokens_per_s": None}):
        _json(folder / "metrics.jsonl", line | speed)
        with pytest.raises(ValueError, match=r"metrics\.jsonl: .*tokens_per_s"):
            read_run(folder)
    lines = [line | {"tokens_per_s": 1.0, "skipped": 200}, {"step": 110, "val_loss": 4.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"metrics\.jsonl: .* training took -0\.8\d* seconds"):
        read_run(folder)


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("typst", reason="the extra `report`")
    folder = _run(tmp_path / "run")
    unfinished = _run(tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    (tmp_path / "file").touch()
    for arguments, words in (
        (Arguments((str(tmp_path),)), "is not a run folder"),
        (Arguments((str(unfinished),)), "training has not ended.*--resume"),
        (Arguments(()), "name a run folder"),
        (Arguments((str(folder),), out="report.txt"), "ends in .pdf"),
        (Arguments((str(folder),), out=str(tmp_path / "file/report.pdf")), "cannot be written"),
        (Arguments((str(folder),), decoding="none.json"), "none.json: there is no such file"),
    ):
        with pytest.raises(ValueError, match=words):
            main(arguments)
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[report\]'"):
        main(Arguments((str(folder),)))
    assert not (folder / "report.pdf").exists()
