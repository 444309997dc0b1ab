"""The README's commands run as they stand there, made short by settings added at their end."""

import importlib.util
import io
import re
import shlex

import pytest

from tests.gpt2.stand_ins import ROOT, run_here, run_python

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_extra_that_is_named_exists():
    declared = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"'\.\[([a-z,]+)\]'", README):
        for name in extra.split(","):
            assert f"\n{name} = [" in declared, name


@pytest.mark.timeout(900)
def test_commands_run_in_their_order(tmp_path, monkeypatch, capfd):
    """The first in a process of its own, the others here."""
    for name in ("train.py", "gpt2", "kernels", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    story = "Once upon a time there was a fox. It met a hen, and they talked.\n"
    documents = [story * (3 + i % 5) for i in range(80)]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))  # for --interactive
    (tmp_path / "stories.txt").write_text("<|endoftext|>\n".join(documents))
    ran = 0
    for command in ["python train.py", *_commands()]:
        words = shlex.split(command.replace("--vocab-size 8000", "--vocab-size 300"))
        if words[0] != "python" or "wikitext-2" in words:  # needs the network
            continue
        if "gpt2.report" in words and importlib.util.find_spec("typst") is None:
            continue
        if "gpt2.compare_sizes" in words:
            words += ["--data", "stories.txt", "--vocab-size", "300"]
            words += ["--tokens", "1000", "--seq-len", "32", "--batch-size", "2"]
            words += ["--sizes", "1x8", "1x16"]
        if words[1] == "train.py" and "--resume" not in words:
            short = ["--steps", "2"]
            for name, value in (("--epochs", "0.01"), ("--steps", "2")):
                if name in words:
                    words[words.index(name) + 1] = value
                    short = []
            words += [*short, "--sample-tokens", "2", "--n-layer", "1", "--batch-size", "2"]
            words += ["--vocab-size", "300"]
        if "gpt2.generate" in words or "gpt2.compare_decoding" in words:
            words += ["--max-tokens", "3"]
        if not ran:
            assert run_python(*words[1:], cwd=tmp_path, timeout=None).returncode == 0
        else:
            assert not run_here(monkeypatch, tmp_path, *words[1:]), (command, *capfd.readouterr())
        ran += 1
    assert ran >= 10
