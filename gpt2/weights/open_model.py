"""One way to open a trained model, for every tool.

run = open_model("runs/demo")           # a run folder of `python train.py`
run = open_model("demo")                # the model that ships with this code
run = open_model("path/to/folder")      # Hugging Face's GPT-2 format
run = open_model("gpt2")                # a model of the Hugging Face hub
"""

from pathlib import Path

from gpt2.common.devices import choose_device
from gpt2.common.json_files import read_json_object
from gpt2.runs.run import Run, load_run, read_config_file
from gpt2.tokenizer import Tokenizer
from gpt2.weights.pretrained import SHIPPED, find_pretrained, fit_vocabulary


def open_model(name: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Run:
    """Open a model for evaluation or generation.

    Args:
        name: as for `find_pretrained`: a run folder, "demo", a folder in Hugging Face's GPT-2
            format, or a model of the hub.
        checkpoint: "best", "last" or the number of a step, as for `load_run`. Only a run folder
            has more than the best.
        device: "auto", or where to put the model.

    Raises:
        ValueError: there is no such model or checkpoint, or its files are damaged or do not fit
            together.
    """
    found = find_pretrained(name)
    if found.is_run:
        return load_run(found.folder, checkpoint=checkpoint, device=device)
    if checkpoint != "best":
        raise ValueError(
            f"--checkpoint {checkpoint}: {name} is no run folder and holds a single set of "
            "weights; leave --checkpoint out"
        )
    where, _ = choose_device(device)
    tokenizer = Tokenizer.load(found.folder)
    remedy = "put the tokenizer there that it was trained with"
    model_config = fit_vocabulary(found, tokenizer, f"the tokenizer in {found.folder}", remedy)
    config, step = None, None
    if found.folder == SHIPPED:
        config, _ = read_config_file(SHIPPED / "run.json")
        step = read_json_object(SHIPPED / "result.json")["step"]
    model = found.build(model_config).to(where).eval()
    return Run(str(name), found.folder, model, tokenizer, config, step)
