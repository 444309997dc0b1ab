"""The training step that train.py runs and benchmarks time, and the loop around it.

A step takes k micro-batches, whose gradients are weighted by their tokens, so that it is exactly
the step of the one large batch: with n_i targets in micro-batch i and n in all, the loss is sum_i
(n_i / n) loss_i. A loss or gradient that is not finite never reaches the weights: the step is
skipped and counted, and too many in a row end the run.
"""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gpt2.checkpoint import (
    Checkpoint,
    best_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from gpt2.config import TrainConfig
from gpt2.data.batches import Batches
from gpt2.data.shards import TokenStream
from gpt2.estimate import flops_per_token, peak_flops
from gpt2.evaluate import evaluate
from gpt2.logs import Logs, plot_loss, say
from gpt2.machine import Machine
from gpt2.model import GPT
from gpt2.optim import (
    build_optimizers,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from gpt2.parallel import (
    check_parallel,
    gradients_meet,
    highest,
    parts_like,
    random_states,
    set_random_states,
    share,
    spread,
    summed,
    whole,
    whole_tensors,
    world,
)


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


@dataclass(frozen=True)
class StepResult:
    """Loss in nats per token, norm of the gradient before clipping, and whether weights changed."""

    loss: float
    grad_norm: float
    skipped: bool


def train_step(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    clip: float = 1.0,
    autocast: AbstractContextManager[object] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult:
    """One optimizer step on all micro-batches together, those of other processes included.

    Args:
        model: a GPT, compiled or not; its gradients must be None or zero, and are None afterwards.
        optimizers: stepped in order, with the learning rates that they hold.
        micro_batches: pairs x, y of shape (B, T), int64, on the model's device.
        clip: largest norm of the gradient; 0 leaves it as it is.
        autocast: context for the forward passes; None computes in fp32.
        scaler: loss scaling, for fp16.
    """
    counts = [(y >= 0).sum() for _, y in micro_batches]
    total = summed(torch.stack(counts).sum())
    loss_sum = torch.zeros((), device=total.device)
    processes = world().size  # they average their gradients, where the sum is wanted
    for i, ((x, y), count) in enumerate(zip(micro_batches, counts, strict=True)):
        with gradients_meet(model, now=i == len(micro_batches) - 1):
            with autocast or nullcontext():
                _, loss = model(x, y)
            part = loss * (count / total)
            loss_sum += part.detach()
            if processes > 1:
                part = part * processes
            (part if scaler is None else scaler.scale(part)).backward()
    summed(loss_sum)

    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    loss_value, norm_value = torch.stack([loss_sum, norm]).tolist()  # the one wait for the device
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    if finite:
        for optimizer in optimizers:
            optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_value, norm_value, skipped=not finite)


class Trainer:
    """A model in training: everything that a checkpoint holds, and the loop that moves it on."""

    def __init__(
        self,
        config: TrainConfig,
        model: GPT,
        machine: Machine,
        train: TokenStream,
        valid: TokenStream,
        *,
        folder: Path,
        tokenizer_hash: str,
        bos_id: int,
    ) -> None:
        """Put a new run together; `restore` makes it go on where a checkpoint stands.

        Args:
            config: with every setting of the preset filled in (`with_preset`).
            model: the model, on its device.
            machine: device, compute type and compilation.
            train: tokens to train on.
            valid: tokens to validate on.
            folder: the run folder.
            tokenizer_hash: goes into checkpoints, so that weights never meet another vocabulary.
            bos_id: the id that stands before a text.
        """
        assert config.seq_len
        assert config.batch_size
        assert config.grad_accum
        self.config, self.model, self.machine = config, model, machine
        self.valid, self.folder, self.bos_id = valid, folder, bos_id
        self.tokenizer_hash = tokenizer_hash
        self.world = world()
        check_parallel(config, machine.dtype)
        self.batches = Batches(
            train, seq_len=config.seq_len, batch_size=config.batch_size, seed=config.seed
        )
        self.tokens_per_step = config.seq_len * config.batch_size * config.grad_accum
        self.steps = config.steps or self._steps_of_epochs()
        self.called = spread(model, config.parallel, compile=machine.compile, device=machine.device)
        self.optimizers = build_optimizers(model, config)
        self.scaler = (
            torch.amp.GradScaler(machine.device.type) if machine.dtype == torch.float16 else None
        )
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.best_val_loss = math.inf
        self._saved = -1
        self._interval = {"loss": 0.0, "steps": 0}

    def _steps_of_epochs(self) -> int:
        assert self.config.epochs is not None
        windows = self.config.epochs * self.batches.windows_per_epoch
        return max(1, round(windows * self.batches.seq_len / self.tokens_per_step))

    def fit(self) -> int | None:
        """Train until the last step. Returns None, or the number of the signal that ended it early.

        SIGINT, SIGTERM and SIGHUP end the step at hand, save a checkpoint and return; a second one
        kills.

        Raises:
            Diverged: too many steps in a row were skipped.
        """
        config = self.config
        assert config.eval_every
        assert config.checkpoint_every
        logs = None
        if self.world.main:
            logs = Logs(self.folder, tensorboard=config.tensorboard, after_step=self.step)
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.world.main,
        )
        ended_by = 0
        clock = time.perf_counter()
        try:
            with _signals() as caught:
                while self.step < self.steps and not ended_by:
                    result, lr = self._next_step()
                    ended_by = highest(max(caught, default=0))
                    bar.update()
                    last = self.step == self.steps
                    log = self.step % config.log_every == 0 or last
                    evaluating = self.step % config.eval_every == 0 or last
                    metrics: dict[str, Any] = {"step": self.step}
                    if log and self._interval["steps"]:
                        steps = self._interval["steps"]
                        speed = steps * self.tokens_per_step / (time.perf_counter() - clock)
                        metrics |= self._measured(result, lr, speed)
                        bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed:,.0f} tok/s")
                    if evaluating:
                        metrics["val_loss"] = self._validate()
                    if logs and len(metrics) > 1:
                        logs.write(**metrics)
                    if logs and evaluating:
                        self._report(metrics)
                        plot_loss(self.folder)
                    best = metrics.get("val_loss", math.inf) < self.best_val_loss
                    if best:
                        self.best_val_loss = metrics["val_loss"]
                    if best or last or self.step % config.checkpoint_every == 0:
                        self.save(metrics.get("val_loss"))
                    if log or evaluating:
                        clock = time.perf_counter()  # evaluation and saving are not training time
                if not ended_by or self.step == self.steps:
                    return None
                if self._saved != self.step:
                    self.save(None)
                return ended_by
        finally:
            bar.close()
            if logs:
                logs.close()

    def _next_step(self) -> tuple[StepResult, float]:
        config = self.config
        assert config.lr
        assert config.min_lr is not None
        assert config.warmup_steps is not None
        device = self.machine.device
        drawn = [self.batches.next() for _ in range(config.grad_accum or 1)]
        micro_batches = []
        for x, y in share(drawn, self.world):
            if device.type == "cuda":  # pinned, so that the copy does not wait for the GPU
                x, y = x.pin_memory(), y.pin_memory()
            micro_batches.append((x.to(device, non_blocking=True), y.to(device, non_blocking=True)))
        lr = learning_rate(
            self.step,
            steps=self.steps,
            warmup_steps=config.warmup_steps,
            lr=config.lr,
            min_lr=config.min_lr,
        )
        set_learning_rate(self.optimizers, lr)
        result = train_step(
            self.called,
            self.optimizers,
            micro_batches,
            clip=config.clip,
            autocast=self.machine.autocast(),
            scaler=self.scaler,
        )
        self.step += 1
        self._count(result)
        return result, lr

    def _count(self, result: StepResult) -> None:
        if not result.skipped:
            self.skipped_in_a_row = 0
            self._interval["loss"] += result.loss
            self._interval["steps"] += 1
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        say(f"step {self.step}: skipped, as it is not finite ({what})")
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not finite "
                f"(last: {what}). No such step reached the weights, and the checkpoints in "
                f"{self.folder} are intact. Try a lower --lr, more --warmup-steps, or --dtype fp32."
            )

    def _measured(self, result: StepResult, lr: float, speed: float) -> dict[str, Any]:
        """The line of metrics of the interval that ends here, and the start of the next."""
        metrics = {
            "loss": self._interval["loss"] / self._interval["steps"],
            "lr": lr,
            "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
            "tokens": self.step * self.tokens_per_step,
            "tokens_per_s": speed,
            "skipped": self.skipped,
        }
        peak = peak_flops(self.machine.device)
        if peak is not None:
            flops = flops_per_token(self.model.config, self.batches.seq_len)
            metrics["mfu_exact"] = speed * flops / peak
        self._interval = {"loss": 0.0, "steps": 0}
        return metrics

    def _validate(self) -> float:
        return evaluate(
            self.model,
            self.valid,
            bos_id=self.bos_id,
            batch_size=self.batches.batch_size,
            max_tokens=self.config.eval_tokens,
            autocast=self.machine.autocast(),
        ).loss

    def _report(self, metrics: dict[str, Any]) -> None:
        parts = [f"step {self.step:>6,}/{self.steps:,}"]
        if "loss" in metrics:
            parts.append(f"train loss {metrics['loss']:.4f}")
        parts.append(f"val loss {metrics['val_loss']:.4f}")
        parts.append(f"epoch {self.batches.epoch:.2f}")
        if "loss" in metrics:
            parts.append(f"lr {metrics['lr']:.2e}")
            parts.append(f"{metrics['tokens_per_s']:,.0f} tok/s")
        if "mfu_exact" in metrics:
            parts.append(f"MFU {metrics['mfu_exact']:.1%} (exact FLOPs, data-sheet peak)")
        say(" | ".join(parts))

    def save(self, val_loss: float | None) -> None:
        """Write a checkpoint of the step at hand, and delete those no longer to be kept.

        Every process must call it; the main one writes.
        """
        state = {
            "step": self.step,
            "val_loss": val_loss,
            "best_val_loss": self.best_val_loss if math.isfinite(self.best_val_loss) else None,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "interval": self._interval,
            "data": self.batches.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "train_config": dataclasses.asdict(self.config),
            "model_config": dataclasses.asdict(self.model.config),
            "tokenizer_hash": self.tokenizer_hash,
            "torch": torch.__version__,
        }
        checkpoint = Checkpoint(
            model=whole_tensors(self.model.state_dict()),
            optimizer=whole_tensors(optimizer_tensors(self.model, self.optimizers)),
            rng=random_states(),
            state=state,
        )
        if self.world.main:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, checkpoint)
            prune(folder, self.config.keep)
        self._saved = self.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, bit for bit.

        Raises:
            ValueError: it belongs to another tokenizer, model or data set.
        """
        state = checkpoint.state
        if state["tokenizer_hash"] != self.tokenizer_hash:
            raise ValueError(
                f"the checkpoint of step {state['step']} was trained with another tokenizer than "
                f"the one in {self.folder}"
            )
        self.model.load_state_dict(parts_like(checkpoint.model, self.model.state_dict()))
        load_optimizer_tensors(self.model, self.optimizers, checkpoint.optimizer)
        self.batches.load_state_dict(state["data"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.skipped = state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        best = state["best_val_loss"]
        self.best_val_loss = math.inf if best is None else best
        self._interval = state["interval"]
        set_random_states(checkpoint.rng, seed=self.config.seed)

    def best_model(self) -> tuple[GPT, int]:
        """The model with the weights of lowest validation loss, all of it here, and their step."""
        path = best_checkpoint(self.folder / "checkpoints")
        if path is None:
            return self.model, self.step
        model = self.model  # alone it is at hand; else its weights may be cut
        if self.world.size > 1:
            model = GPT(model.config).to(self.machine.device)
        checkpoint = load_checkpoint(path, weights_only=True)
        model.load_state_dict(checkpoint.model)
        return model, int(checkpoint.state["step"])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that the first signal to end is put into; the second one acts as usual."""
    caught: list[int] = []
    names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for name in names:
            signal.signal(name, signal.SIG_DFL)
        say(
            f"{signal.Signals(number).name}: finishing this step and saving; once more ends at once"
        )

    before = [signal.signal(name, catch) for name in names]
    try:
        yield caught
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
