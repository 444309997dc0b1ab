"""Tokenise a large corpus on many machines, by the executors of datatrove: this one, Slurm or Ray.

    python -m gpt2.data.datatrove --data corpus --tokenizer t --tasks 64 --executor slurm

Each task encodes a share of the text, which is all that it reads (gpt2/data/shares.py). When all
are done a last task puts them together: it checks each share, makes what is missing, and writes
shards and manifest. The folder is byte for byte that of gpt2.data.prepare, and is opened under the
same name.

The machines must see one folder of text and one cache folder, which till the end needs room for
the ids twice. A task that failed is made again by the same command, which leaves out what is done;
datatrove's logs lie beside the shards.

Source: https://github.com/huggingface/datatrove
"""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gpt2.common.cpu import available_cores
from gpt2.data.job import SHARD_BYTES, Job
from gpt2.data.shares import finish, write_share

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Arguments:
    """Tokenise a corpus on many machines (extra datatrove, for Ray also ray)."""

    data: str
    """As for gpt2.data.prepare: a built-in name, or a file, folder or pattern of text."""
    tokenizer: str | None = None
    """As for gpt2.data.prepare. None: one is trained here on the text, before the tasks begin."""
    vocab_size: int = 32000
    """Tokens of the tokenizer trained on the text, where none is given."""
    cache_dir: Path = Path("data")
    """Folder for everything written, which all machines see."""
    tasks: int = 64
    """Shares of the work."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where tasks run: processes here, one a core; jobs of Slurm; or workers of the Ray cluster at
    RAY_ADDRESS, else of one started here."""
    partition: str | None = None
    """Slurm's partition."""
    time: str = "24:00:00"
    """Slurm's limit for a task."""


def main(arguments: Arguments, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Run the tasks, or with Slurm submit them.

    Args:
        shard_bytes: of text, after which a shard ends.

    Raises:
        ValueError: no such text, token files, no partition, or a library that is missing.
    """
    execute = _executor(arguments)
    job = Job(
        arguments.data,
        arguments.tokenizer,
        arguments.vocab_size,
        arguments.cache_dir.resolve(),
        shard_bytes=shard_bytes,
    )
    if job.source.token_files:
        raise ValueError(f"--data {arguments.data} holds token ids: there is nothing to tokenise")
    with job.lock():
        found = job.find()
        if found is None:
            _, tokenizer, folder = job.begin()
            tokenizer.save(folder / "tokenizer.json")
    print("\n".join(job.notes))
    if found is not None:
        print(f"{found[1]} is finished: there is nothing left to do")
        return
    options = {
        "data": arguments.data,
        "tokenizer": str(folder / "tokenizer.json"),
        "cache_dir": job.cache_dir,
        "progress": False,
        "shard_bytes": shard_bytes,
    }
    logs = folder / "datatrove"
    place = os.getcwd()
    shares = execute(
        [partial(write_share, place, options)],
        tasks=arguments.tasks,
        logging_dir=str(logs / f"{arguments.tasks}-tasks"),
    )
    last = execute(
        [partial(finish, place, options, arguments.tasks)],
        tasks=1,
        logging_dir=str(logs / f"{arguments.tasks}-tasks-finish"),
        depends=shares,
    )
    last.run()
    done = "submitted; they make" if arguments.executor == "slurm" else "done:"
    print(f"{arguments.tasks} tasks and the last one are {done} {folder}")


def _executor(arguments: Arguments) -> Callable[..., Any]:
    """The executor's class of datatrove, with the options that both steps have in common."""
    try:
        from datatrove.executor import (
            LocalPipelineExecutor,
            RayPipelineExecutor,
            SlurmPipelineExecutor,
        )
    except ImportError as error:
        raise ValueError(
            "gpt2.data.datatrove needs the library `datatrove`: pip install -e '.[datatrove]'"
        ) from error
    if arguments.executor == "slurm":
        if arguments.partition is None:
            raise ValueError("--executor slurm needs the name of a partition: --partition NAME")
        programs, code = (shlex.quote(str(p)) for p in (Path(sys.executable).parent, _ROOT))
        return partial(
            SlurmPipelineExecutor,
            time=arguments.time,
            partition=arguments.partition,
            env_command=f"export PATH={programs}:$PATH PYTHONPATH={code}:$PYTHONPATH",
        )
    if arguments.executor == "ray":
        try:
            import ray
        except ImportError as error:
            raise ValueError("--executor ray needs Ray: pip install ray") from error
        path = f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}})
        return RayPipelineExecutor
    return partial(LocalPipelineExecutor, workers=available_cores())


if __name__ == "__main__":
    from gpt2.common.cli import run_tool

    run_tool(main, Arguments)
