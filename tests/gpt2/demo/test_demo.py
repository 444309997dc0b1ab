"""The demo: its computations, its server, and the real page in a headless browser."""

import json
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.config import TrainConfig
from gpt2.demo.__main__ import Arguments, main
from gpt2.demo.html import chart, column, header, visible
from gpt2.demo.model import Chance, facts, next_tokens, side_by_side, strategies
from gpt2.generate.sampling import Sampling
from gpt2.runs.run import Run, load_run
from gpt2.training.run_training import run_training
from tests.gpt2.stand_ins import ROOT, STORIES, start_python

PROMPT = "Story 7. The <b>&amp; ${1 + 1} {{x}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model trained for a moment."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "stories.txt").write_text(STORIES, encoding="utf-8")
    config = TrainConfig(
        data=str(folder / "stories.txt"), out=str(folder / "run"), cache_dir=str(folder / "data"),
        vocab_size=300, n_layer=1, n_head=2, n_embd=32, seq_len=64,
        batch_size=4, steps=40, eval_every=40, device="cpu", dtype="fp32",
    )  # fmt: skip
    assert run_training(config) is None
    return load_run(folder / "run", device="cpu")


def test_strategies_side_by_side_are_what_generate_writes(run, capsys):
    from gpt2.generate import __main__ as generate

    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 5, "top_p": 0.7}
    samplings = strategies(**settings)
    states = list(side_by_side(run, "Story 7. The", samplings, max_tokens=12, seed=3))
    for before, after in pairwise(states):
        assert all(after[name].startswith(before[name]) for name in samplings), "it streams"
    assert len(states) >= 12
    words = {"Greedy": "greedy", "Top-k": "top-k", "Nucleus": "top-p"}
    for name, strategy in words.items():
        options = {"strategy": strategy, "max_tokens": 12, "seed": 3, "device": "cpu"} | settings
        generate.main(generate.Arguments(str(run.folder), prompt=("Story 7. The",), **options))
        assert capsys.readouterr().out == f"Story 7. The{states[-1][name]}\n"
    assert len(set(states[-1].values())) > 1


def test_chances_are_the_models_and_what_is_left_under_each_strategy(run):
    samplings = strategies(temperature=0.5, top_k=3, top_p=0.6)
    del samplings["Greedy"]
    chances = next_tokens(run, "Story 7. The", samplings, count=300)
    ids = torch.tensor([run.tokenizer.encode("Story 7. The")])
    with torch.no_grad():
        logits = run.model.next_logits(ids)[0].double()
    p, order = logits.softmax(dim=-1).sort(descending=True)
    tokens = [run.tokenizer.decode_bytes([i]) for i in order.tolist()]
    assert [c.token for c in chances] == [t.decode(errors="backslashreplace") for t in tokens]
    assert [c.model for c in chances] == pytest.approx(p.tolist(), rel=1e-4)
    sharp = (logits / 0.5).softmax(dim=-1)[order]
    top_k = sharp[:3] / sharp[:3].sum()
    assert [c.under["Top-k"] for c in chances[:3]] == pytest.approx(top_k.tolist(), rel=1e-4)
    kept = int((sharp.cumsum(0) - sharp < 0.6).sum())
    nucleus = sharp[:kept] / sharp[:kept].sum()
    assert [c.under["Nucleus"] for c in chances[:kept]] == pytest.approx(nucleus.tolist(), rel=1e-4)
    assert not any(c.under["Top-k"] for c in chances[3:])
    assert not any(c.under["Nucleus"] for c in chances[kept:])
    assert len(next_tokens(run, "", samplings)) == 20, "of a new document"
    with pytest.raises(ValueError, match="context 64: shorten it"):
        next_tokens(run, "x y z " * 40, samplings)


def test_facts_name_the_model_and_its_training(run):
    assert facts(run) == {
        "parameters": f"{sum(p.numel() for p in run.model.parameters()) - 84 * 32:,}",
        "layers, heads, width": "1, 2, 32",
        "context": "64 tokens",
        "vocabulary": "300 tokens",
        "step": "40",
        "trained on": "10,240 tokens",
        "validation loss": facts(run)["validation loss"],
        "test": facts(run)["test"],
    }
    assert re.fullmatch(r"\d\.\d{3} \(perplexity \d+\.\d\)", facts(run)["validation loss"])
    test = {"loss": 2.5, "perplexity": 12.345, "bits_per_byte": 1.2345}
    result = {"step": run.step, "test": {**test, "tokens": 9, "context": 8, "stride": 8}}
    (run.folder / "result.json").write_text(json.dumps(result))
    assert facts(run)["test"] == "perplexity 12.3, 1.234 bits/byte"
    (run.folder / "result.json").write_text(json.dumps(result | {"step": run.step + 1}))
    assert "test" not in facts(run), "of other weights"


def test_text_is_never_markup_and_tokens_are_shown_to_the_last_space():
    evil = "<script>alert('x')</script>"
    pieces = [
        header(evil, {evil: evil}),
        column("Greedy", Sampling(), evil, evil),
        chart([Chance(evil, 0.5, {"Top-k": 0.5})], 300),
    ]
    assert all("<script" not in piece and "&lt;script&gt;" in piece for piece in pieces)
    assert visible(" a\n\t\0\x7f") == "\u2423a\u21b5\u21e5\u2400\u2421"


def test_mistakes_are_one_sentence(run, monkeypatch):
    def refuse(message: str, **changes: Any) -> None:
        settings: dict[str, Any] = {"run": str(run.folder), "port": _free_port()} | changes
        with pytest.raises(ValueError, match=message):
            main(Arguments(**settings))

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refuse(f"port {port} .* choose another --port", port=port)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "gradio", None)
        refuse(r"pip install -e '\.\[demo\]'")
    pytest.importorskip("gradio")
    refuse("nowhere does not exist: give a folder of a run", run="nowhere")
    refuse("no checkpoint '7'", checkpoint="7")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    """Where the command serves the page of `run`."""
    pytest.importorskip("gradio")
    port = _free_port()
    words = ["-m", "gpt2.demo", str(run.folder), "--device", "cpu", "--port", str(port)]
    process = start_python(*words, PYTHONUNBUFFERED="1")
    said = process.stdout.readline()
    try:
        assert f"http://127.0.0.1:{port}" in said
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ask(address: str, data: list[Any], session: str) -> tuple[bool, str]:
    """Post to the page's first function as anybody could: whether it ran, and what it said."""
    job = {"data": data, "fn_index": 0, "session_hash": session}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join",
        json.dumps(job).encode(),
        {"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).close()
    answers = f"{address}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(answers, timeout=60) as lines:
        for line in lines:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message["success"], json.dumps(message["output"])
    raise AssertionError("no answer")


_ASKED: list[Any] = ["Story", 1.0, 50, 0.9, 10, 1337]


def test_the_server_checks_what_it_is_sent(address):
    """Whatever the page allows: this is sent without it."""
    for number, (place, value, answer) in enumerate(
        (
            (4, 10**9, "greater than maximum value 400"),
            (1, -1.0, "less than minimum value 0.1"),
            (2, 0, "less than minimum value 1"),
            (3, 7, "greater than maximum value 1.0"),
            (5, -1, "less than minimum value 0"),
            (5, "x", ""),
            (1, float("nan"), ""),
            (0, "x y " * 100_000, "context 64: shorten it"),
            (0, "\ud800", "lone surrogate"),
        )
    ):
        data = [*_ASKED[:place], value, *_ASKED[place + 1 :]]
        ran, said = _ask(address, data, f"wrong-{number}")
        assert not ran, (place, said)
        assert answer in said
    ran, said = _ask(address, _ASKED, "right")
    assert ran, "it serves on"


def test_the_server_is_there_for_this_machine_alone_and_gives_no_files(address):
    port = int(address.rpartition(":")[2])
    if sys.platform == "linux":
        tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
        rows = [row.split() for t in tables if t.exists() for row in t.read_text().splitlines()[1:]]
        places = [place for _, place, _, state, *_ in rows if state == "0A"]  # that listen
        assert [p for p in places if p.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    for path in ("/gradio_api/file=/etc/passwd", f"/gradio_api/file={ROOT}/README.md"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address + path, timeout=30)


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    """A headless Chromium that has opened the page."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(120)
    try:
        chrome.get(address)
        yield chrome
    finally:
        chrome.quit()


def _wait(browser: Any, script: str) -> Any:
    """The value of a JavaScript expression, once it is true."""
    deadline = time.monotonic() + 90
    while not (value := browser.execute_script(f"return {script}")):
        assert time.monotonic() < deadline, f"never true: {script}"
        time.sleep(0.1)
    return value


def _type(browser: Any, selector: str, text: str) -> None:
    box = browser.find_element("css selector", selector)
    box.clear()
    box.send_keys(text)


_TOKENS = "[...document.querySelectorAll('#next th[scope=row]')].map(e => e.textContent)"
_MADE = "[...document.querySelectorAll('.story .made')].map(e => e.textContent)"


def test_the_page_opens_with_texts_in_it(browser):
    _wait(browser, f"{_MADE}.every(text => text) && !document.querySelector('.live')")


def test_the_page_streams_each_strategy_and_shows_the_distribution(browser, run):
    samplings = strategies()
    drawn = {name: s for name, s in samplings.items() if s.temperature}
    _wait(browser, f"{_TOKENS}.length == 20")
    _type(browser, "#prompt textarea", PROMPT)
    expected = [visible(c.token) for c in next_tokens(run, PROMPT, drawn)]
    _wait(browser, f"{_TOKENS}.join('|') == {json.dumps('|'.join(expected))}")

    browser.execute_script(
        f"window.seen = []; new MutationObserver(() => window.seen.push({_MADE})).observe("
        "document.body, {subtree: true, childList: true, characterData: true})"
    )
    browser.find_element("id", "generate").click()
    prompts = _MADE.replace("made", "prompt")
    begun = f"{prompts}.every(text => text == {json.dumps(PROMPT)}) && {_MADE}.every(text => text)"
    _wait(browser, f"{begun} && !document.querySelector('.live')")
    for state in side_by_side(run, PROMPT, samplings, max_tokens=100, seed=1337):
        final = [text.translate({13: 10, 0: None}) for text in state.values()]  # as HTML has it
    assert browser.execute_script(f"return {_MADE}") == final
    seen = browser.execute_script("return window.seen")
    for i, name in enumerate(samplings):
        lengths = {len(texts[i]) for texts in seen if len(texts) == 3}
        assert len(lengths) > 3, f"{name} came at once"
    shown = browser.execute_script(f"return {prompts}")
    assert shown == [PROMPT] * 3, "as text, not as markup or a template"


def test_stop_ends_all_of_them(browser, run):
    _type(browser, "#length input[type=number]", "400\t")
    browser.execute_script(  # by the page itself: the driver may take as long as the model
        "new MutationObserver((_, observer) => {"
        " if (document.querySelector('.live .made')?.textContent) {"
        " observer.disconnect(); document.querySelector('#stop').click(); }"
        "}).observe(document.body, {subtree: true, childList: true})"
    )
    browser.find_element("id", "generate").click()
    _wait(browser, "document.querySelector('.live .made')?.textContent")
    time.sleep(1)  # for what was on its way
    stopped = browser.execute_script(f"return {_MADE}")
    time.sleep(3)
    assert browser.execute_script(f"return {_MADE}") == stopped
    samplings = strategies()
    for state in side_by_side(run, PROMPT, samplings, max_tokens=400, seed=1337):
        whole = list(state.values())
    lengths = [(len(part), len(text)) for part, text in zip(stopped, whole, strict=True)]
    assert all(part < text for part, text in lengths), lengths


def test_the_page_says_what_the_model_is(browser, run):
    text = browser.execute_script("return document.querySelector('.facts').innerText")
    for name, value in facts(run).items():
        assert name in text
        assert value in text


def test_a_prompt_that_is_too_long_is_answered_by_a_sentence(browser):
    _type(browser, "#prompt textarea", "too long " * 30)
    _wait(browser, "document.querySelector('#next').innerText.includes('context 64: shorten it')")
    browser.find_element("id", "generate").click()
    _wait(browser, "document.body.innerText.split('context 64: shorten it').length > 2")


def test_the_page_asks_nobody_but_its_own_server(browser, address):
    """Run last: it looks at all that the page has asked for."""
    urls = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert urls
    assert [u for u in urls if not u.startswith((address, "data:", "blob:"))] == []
    severe = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert severe == []
    assert not browser.execute_script("return document.querySelector('footer')?.innerText")
