"""Train a GPT-2 class language model from raw text.

python train.py                                   the demo: a small model on a small text
python train.py --data my.txt --preset mini       your own text
python train.py --resume runs/my.txt-mini         go on, bit for bit, after an interruption
python train.py --help                            everything that can be chosen
"""

import sys

from gpt2.common.cli import given_options, run_tool
from gpt2.config import TrainConfig, decided_by_preset
from gpt2.training.out_of_memory import OutOfMemory
from gpt2.training.recovery import Diverged
from gpt2.training.run_training import run_training


def main(config: TrainConfig) -> None:
    """Exit status: 0 done, 2 a mistake or fault (with its message), 128 + n ended by signal n."""
    signal_number = run_training(config, given_options(TrainConfig))
    if signal_number is not None:
        sys.exit(128 + signal_number)


if __name__ == "__main__":
    run_tool(
        main,
        TrainConfig,
        description=__doc__,
        failures=(Diverged, OutOfMemory),
        decided=decided_by_preset(),
    )
