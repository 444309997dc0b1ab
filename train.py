"""Train a GPT-2 class language model from raw text.

python train.py                                   the demo: a small model on a small text
python train.py --data my.txt --preset mini       your own text
python train.py --resume runs/my.txt-mini         go on, bit for bit, after an interruption
python train.py --help                            everything that can be chosen
"""

import sys
import time

import tyro

from gpt2.common.distributed import broadcast, destroy_process_group, process_group, say
from gpt2.config import TrainConfig
from gpt2.training.build import begin, build, plan, prepare_data
from gpt2.training.out_of_memory import OutOfMemory, oom_advice
from gpt2.training.results import report
from gpt2.training.trainer import Diverged

LOWER = (
    "choose a smaller --preset, or a lower --batch-size or --seq-len; a run that has begun goes on "
    "with --resume"
)


def main() -> int:
    """Exit status: 0 done, 2 a mistake or fault (with its message), 128 + n ended by signal n."""
    start = time.perf_counter()
    config = tyro.cli(TrainConfig, description=__doc__)
    try:
        with process_group() as world, oom_advice(lambda: LOWER):
            run = broadcast(lambda: plan(config))
            prepared = prepare_data(run)
            trainer = build(run, prepared)
            with run.claim():
                begin(run, prepared, trainer)
                signal_number = trainer.fit()
                destroy_process_group()
                if signal_number is not None:
                    say(f"saved step {trainer.step:,} of {trainer.steps:,}; to go on:")
                    say(f"python train.py --resume {run.folder}")
                    return 128 + signal_number
                if world.main:
                    report(trainer, prepared)
    except (ValueError, OSError, Diverged, OutOfMemory) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after the steps, where it is not caught
        return 130
    say(f"done in {time.perf_counter() - start:.0f} s; everything is in {run.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
