"""Runs are kept as they come, and shown with what is computed for GPUs."""

import json
from pathlib import Path

from bench import expected


def test_runs_are_kept_and_not_repeated_and_their_table_names_the_text_alone(
    tmp_path, monkeypatch, capsys
):
    commands = []

    def run(command, **_):
        commands.append(command)
        if "train.py" in command:
            out = Path(command[command.index("--out") + 1])
            out.mkdir()
            result = {
                "machine": {"device": "a CPU", "dtype": "float32"},
                "data": {"name": "wikitext-2"},
                "val_loss": 4.5,
                "test": {"perplexity": 91.26, "bits_per_byte": 1.87},
                "finished": "2026-11-29T00:00:00+00:00",
            }
            (out / "result.json").write_text(json.dumps(result))
        return type("Done", (), {"stdout": b'{"word_perplexity": 2345.67}'})

    monkeypatch.setattr(expected.subprocess, "run", run)
    command = "train.py --data /some/where/wikitext-2 --steps 3"
    out = tmp_path / "new" / "expected.json"
    for _ in range(2):
        expected.main(expected.Arguments(out, (command,)))
    assert len(commands) == 2
    assert "/some/where/wikitext-2" in commands[0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    cells = [cell.strip() for cell in lines[-1].split("|")]
    assert cells[1:3] == ["`train.py --data wikitext-2 --steps 3`", "a CPU, float32"]
    assert cells[4:-1] == ["4.500", "91.3", "1.870", "2,345.7"]


def test_the_least_time_on_a_gpu_is_that_of_all_steps():
    rows = {line.split("|")[1].strip(" `"): line for line in expected.computed()}
    assert rows.keys() >= {"mini", "gpt2", "gpt2-xl"}
    assert "| 2,621 M |" in rows["gpt2"]  # 20,000 steps of 16 x 8 x 1,024 tokens
    # `bench.estimate --preset gpt2 --batch-size 16 --grad-accum 8 --device h100`: 228.85 ms a step.
    assert rows["gpt2"].endswith(" 1.3 h |")
    assert "does not fit" in rows["gpt2-xl"]
