"""One way to open a model, for every tool: a run folder, or the model that ships with this code."""

from pathlib import Path

from gpt2.common.devices import choose_device
from gpt2.common.json_files import read_json_object
from gpt2.runs.run import Run, load_run, read_config_file
from gpt2.tokenizer import Tokenizer
from gpt2.weights.pretrained import load_pretrained

SHIPPED = Path(__file__).parents[1] / "pretrained_demo"


def open_model(name: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Run:
    """Open a model for evaluation or generation.

    Args:
        name: a run folder; or "demo", the model that ships with this code.
        checkpoint: of a run folder, as for `load_run`.
        device: "auto", or where to put the model.

    Raises:
        ValueError: not a run folder, no such checkpoint, or a damaged one; the message says which.
    """
    if str(name) == "demo" and not Path("demo/config.json").exists():
        return _shipped(device)
    return load_run(name, checkpoint=checkpoint, device=device)


def _shipped(device: str) -> Run:
    """The model in gpt2/pretrained_demo, in Hugging Face's format beside its run's records."""
    config, _ = read_config_file(SHIPPED / "run.json")
    step = read_json_object(SHIPPED / "result.json")["step"]
    where, _ = choose_device(device)
    model = load_pretrained(SHIPPED).to(where)
    return Run(SHIPPED, config, model, Tokenizer.load(SHIPPED / "tokenizer.json"), step)
