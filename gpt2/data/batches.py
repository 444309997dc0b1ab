"""Windows of tokens, shuffled for training.

Training cuts the stream into windows of `seq_len` targets. Neighbours share one token, the last
target of one being the first input of the next, so every token is a target once an epoch but for
the first, and the fewer than `seq_len` left over. Epoch 0 cuts from the start of the stream; each
later epoch cuts from a random place, so that contexts begin elsewhere and other tokens are left
over, and runs on past the end of the stream into its beginning: a document ends there, and another
begins.

The order is one permutation per epoch, drawn from (seed, epoch). So the position is three integers,
and going to any of them costs the drawing of one permutation: 4 bytes and some 50 ns a window (35
MB and half a second for the 9 billion tokens of OpenWebText in windows of 1,024).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.data.shards import TokenStream

IGNORE = -100  # the target that the loss leaves out


class Batches:
    """An endless, seekable sequence of training batches, or one process's shard of it.

    A batch may reach over the end of an epoch; within an epoch no window is left out or repeated.
    Of `size` processes, the one of `rank` r gets windows r, r + size, r + 2 size, ... of the
    sequence. After the same number of windows all of them stand at the same position, which does
    not depend on how many they are as long as a step takes a multiple of `size` windows.

    Args:
        stream: the tokens of a split.
        seq_len: T, inputs (and targets) in a window.
        batch_size: B, windows in a batch.
        seed: fixes the order and the cuts of every epoch.
        rank, size: of this process, and the number of processes.

    Raises:
        ValueError: the stream has fewer than `seq_len + 1` tokens.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        if seq_len < 1 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"seq_len ({seq_len}) and batch_size ({batch_size}) must be at least 1, "
                f"seed ({seed}) at least 0"
            )
        if len(stream) < seq_len + 1:
            raise ValueError(
                f"the training text is too short: one window of --seq-len {seq_len} needs "
                f"{seq_len + 1:,} tokens and there are {len(stream):,}. Give more text, or lower "
                "--seq-len."
            )
        self.stream = stream
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.rank, self.size = rank, size
        self.windows_per_epoch = (len(stream) - 1) // seq_len
        self._go_to(seed, 0, 0)

    @property
    def epoch(self) -> float:
        """Epochs served so far, with the fraction of the current one."""
        return self._epoch + self._index / self.windows_per_epoch

    def next(self, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Read this process's next batch.

        Args:
            batch_size: another B, for this batch alone.

        Returns:
            x and y of shape (B, T), int64, on the CPU; y is x shifted by one.
        """
        windows = np.empty((batch_size or self.batch_size, self.seq_len + 1), dtype=np.int64)
        for row in windows:
            starts = [self._next_start() for _ in range(self.size)]
            row[:] = self._read(starts[self.rank])
        both = torch.from_numpy(windows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch: seed, epoch, and index of its first window there."""
        return {"seed": self._seed, "epoch": self._epoch, "index": self._index}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a position taken by `state_dict`, in a time that does not depend on it.

        Raises:
            ValueError: the position does not exist in this stream with this `seq_len`.
        """
        seed, epoch, index = (state.get(key, -1) for key in ("seed", "epoch", "index"))
        if seed < 0 or epoch < 0 or not 0 <= index <= self.windows_per_epoch:
            raise ValueError(
                f"data position {dict(state)} does not exist: an epoch here has "
                f"{self.windows_per_epoch:,} windows of {self.seq_len} tokens. The run was made "
                "with other data or another --seq-len."
            )
        self._go_to(seed, epoch, index)

    def _go_to(self, seed: int, epoch: int, index: int) -> None:
        rng = np.random.default_rng((seed, epoch))
        self._seed, self._epoch, self._index = seed, epoch, index
        self._phase = 0 if epoch == 0 else int(rng.integers(len(self.stream)))
        self._order = np.arange(self.windows_per_epoch, dtype=np.uint32)
        rng.shuffle(self._order)

    def _next_start(self) -> int:
        """Where the next window begins."""
        if self._index == self.windows_per_epoch:
            self._go_to(self._seed, self._epoch + 1, 0)
        window = int(self._order[self._index])
        self._index += 1
        return (self._phase + window * self.seq_len) % len(self.stream)

    def _read(self, start: int) -> NDArray[np.int64]:
        stop, length = start + self.seq_len + 1, len(self.stream)
        if stop <= length:
            return self.stream.read(start, stop)
        return np.concatenate([self.stream.read(start, length), self.stream.read(0, stop - length)])
