"""From a text to a finished piece of work: models, figures, comparisons, report and a picture.

    python -m gpt2.assignment --data stories.txt --minutes 30 --author "Your Name"

One folder comes of it, whose README.md says what is in it. The same command goes on where an
interrupted one ended, however it ended. Needs the extra `report`; the picture needs `demo` too, and
a Chromium or Chrome.
"""

import dataclasses
import io
import json
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpt2.compare_decoding.__main__ as decoding
import gpt2.compare_sizes.__main__ as sizes
import gpt2.evaluate.__main__ as evaluation
import gpt2.report.__main__ as report
from gpt2.assignment.picture import take_picture
from gpt2.assignment.plan import Shape, plan_shape
from gpt2.assignment.readme import write_readme
from gpt2.common.files import atomic_write, write_json
from gpt2.common.json_files import from_json, read_json_object
from gpt2.config import TrainConfig
from gpt2.data.prepare import prepare
from gpt2.report.pdf import find_typst
from gpt2.training.run_training import hold

_PLAN = "plan.json"
_ANYTIME = {"device", "cache_dir"}  # may be given anew when the command goes on


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """From a text to a finished piece of work: tokenizer, three sizes, figures, report, picture."""

    data: str = "tinystories"
    """What train.py's --data takes."""
    out: str = "submission"
    """Folder for all of it; the same command goes on with one that was interrupted."""
    minutes: float = 30.0
    """Time for all of it: sizes and length of training are chosen by the speed measured."""
    vocab_size: int = 32000
    """Size of the vocabulary to learn, <|endoftext|> included."""
    author: str | None = None
    """Name under the report's title."""
    prompt: str = "Once upon a time"
    """Text that the demo page continues in the picture."""
    seed: int = 1337
    """Seed of initialisation, batches and samples."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    cache_dir: str = "data"
    """Where the tokenizer and tokenised text are kept and found again."""


@dataclass(frozen=True)
class State:
    """The content of plan.json: what was asked, what was planned, and which parts are done."""

    asked: dict[str, Any]
    shape: Shape
    done: list[str]


def main(arguments: Arguments) -> None:
    start = time.perf_counter()
    find_typst()
    out = Path(arguments.out)
    _check_folder(out)
    with hold(out):
        state = _begun(arguments, out) or _planned(arguments, out, start)
        print(state.shape, flush=True)
        model = out / "sizes" / state.shape.sizes[-1]
        parts: dict[str, Callable[[], None]] = {
            "sizes": partial(sizes.main, _sizes(arguments, state.shape)),
            "evaluation": partial(_evaluate, arguments, model, out / "evaluation.json"),
            "decoding": partial(decoding.main, _decoding(arguments, model, out)),
            "report": partial(report.main, _report(arguments, model, out)),
            "picture": partial(_picture, arguments, model, out / "demo.png"),
            "README": partial(write_readme, out, model, state.asked),
        }
        for number, (name, make) in enumerate(parts.items(), 1):
            if name not in state.done:
                print(f"\n##### {name} ({number} of {len(parts)})", flush=True)
                make()
                state = dataclasses.replace(state, done=[*state.done, name])
                write_json(out / _PLAN, dataclasses.asdict(state))
    minutes = (time.perf_counter() - start) / 60
    print(f"\ndone in {minutes:.1f} minutes; {out / 'README.md'} says what is where")


def _check_folder(out: Path) -> None:
    """Refuse a folder of something else before anything, a lock included, is written to it."""
    if not out.is_dir() or (out / _PLAN).exists():
        return
    if others := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
        raise ValueError(f"--out {out} holds something else ({others[0]}): choose another")


def _begun(arguments: Arguments, out: Path) -> State | None:
    """The state of a folder that was begun; ValueError if something else was asked for then."""
    path = out / _PLAN
    if not path.exists():
        return None
    try:
        state = from_json(State, read_json_object(path))
    except ValueError as error:
        raise ValueError(f"{path} does not hold the plan of an assignment: {error}") from error
    for name, value in dataclasses.asdict(arguments).items():
        if name not in _ANYTIME and state.asked.get(name) != value:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{out} was begun with {option} {state.asked.get(name)} and not {value}: give the "
                "same to go on with it, or choose another --out"
            )
    return state


def _planned(arguments: Arguments, out: Path, start: float) -> State:
    prepared = prepare(
        arguments.data, vocab_size=arguments.vocab_size, cache_dir=Path(arguments.cache_dir)
    )
    print("\n".join(prepared.notes), flush=True)
    asked = TrainConfig(**_shared(arguments), out=str(out / "sizes"))
    left = 60 * arguments.minutes - (time.perf_counter() - start)
    state = State(dataclasses.asdict(arguments), plan_shape(asked, prepared, seconds=left), [])
    if state.shape.minutes > left / 60:
        print(f"no plan fits what is left of {arguments.minutes:g} minutes: this is the smallest")
    write_json(out / _PLAN, dataclasses.asdict(state))
    return state


def _shared(arguments: Arguments) -> dict[str, Any]:
    """Settings of the trainings. Compiling would take minutes of the time for each size."""
    names = ("data", "vocab_size", "seed", "device", "cache_dir")
    return {name: getattr(arguments, name) for name in names} | {"compile": False}


def _sizes(arguments: Arguments, shape: Shape) -> sizes.Arguments:
    out = str(Path(arguments.out) / "sizes")
    return sizes.Arguments(
        **_shared(arguments), sizes=tuple(shape.sizes), tokens=shape.tokens, out=out
    )


def _evaluate(arguments: Arguments, model: Path, path: Path) -> None:
    """Score the test split once more, each token after at least half a context."""
    context = read_json_object(model / "config.json")["model"]["block_size"]
    written = io.StringIO()
    with redirect_stdout(written):
        evaluation.main(
            evaluation.Arguments(
                str(model),
                stride=context // 2,
                json=True,
                device=arguments.device,
                cache_dir=arguments.cache_dir,
            )
        )
    with atomic_write(path) as file:
        file.write(written.getvalue().encode())
    print(f"{path}: perplexity {json.loads(written.getvalue())['perplexity']:.2f}")


def _decoding(arguments: Arguments, model: Path, out: Path) -> decoding.Arguments:
    return decoding.Arguments(
        str(model),
        prompts=max(10, min(100, int(2 * arguments.minutes))),
        out=str(out / "decoding"),
        seed=arguments.seed,
        device=arguments.device,
        cache_dir=arguments.cache_dir,
    )


def _report(arguments: Arguments, model: Path, out: Path) -> report.Arguments:
    return report.Arguments(
        (str(model),),
        out=str(out / "report.pdf"),
        author=arguments.author,
        decoding=str(out / "decoding/decoding.json"),
        sizes=str(out / "sizes/sizes.json"),
    )


def _picture(arguments: Arguments, model: Path, path: Path) -> None:
    """A picture that cannot be taken is said, and nothing else fails for it."""
    try:
        take_picture(model, arguments.prompt, path, device=arguments.device)
        print(path)
    except ValueError as error:
        print(f"no picture of the demo page: {error}")


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
