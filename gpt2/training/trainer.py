"""The training loop: steps, measurements, checkpoints, and what to do when something goes wrong.

A step that is not finite is skipped and counted, and too many in a row end the run; a spike of the
loss is met as `--on-spike` says; an interruption ends with a checkpoint.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt2.common.devices import peak_flops
from gpt2.common.distributed import all_reduce_max, say, world
from gpt2.config import TrainConfig
from gpt2.data.batches import Batches
from gpt2.data.shards import TokenStream
from gpt2.evaluate.perplexity import evaluate
from gpt2.model import GPT
from gpt2.runs.checkpoint import (
    Checkpoint,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    load_weights,
    prune,
    save_checkpoint,
)
from gpt2.runs.metrics import Logs, altered, fingerprint, plot_loss
from gpt2.runs.random_state import random_states, set_random_states
from gpt2.training.estimate import flops_per_token
from gpt2.training.kernel_check import check_kernels
from gpt2.training.machine import Machine
from gpt2.training.monitor import Interval, SpikeGuard, catching, finite, progress_line
from gpt2.training.optim import (
    build_optimizers,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from gpt2.training.out_of_memory import (
    OutOfMemory,
    first_line,
    is_out_of_memory,
    oom_advice,
    smaller_micro_batch,
    what_to_lower,
)
from gpt2.training.parallel import (
    check_parallel,
    distribute_tensors_like,
    full_tensors,
    shard,
    wrap,
)
from gpt2.training.step import StepResult, train_step


class Diverged(RuntimeError):
    """Too many steps were skipped in a row, or too often rolled back."""


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
        data_hash: str = "",
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
            data_hash: goes into checkpoints, so that no run goes on with another text.
        """
        assert config.seq_len
        assert config.batch_size
        assert config.grad_accum
        self.config, self.model, self.machine = config, model, machine
        self.valid, self.folder, self.bos_id = valid, folder, bos_id
        self.tokenizer_hash, self.data_hash = tokenizer_hash, data_hash
        self.world = world()
        check_parallel(config, machine.dtype)
        self.batches = Batches(
            train, seq_len=config.seq_len, batch_size=config.batch_size, seed=config.seed
        )
        self.tokens_per_step = config.seq_len * config.batch_size * config.grad_accum
        self.steps = config.steps or self._steps_of_epochs()
        self.wrapped_model = wrap(
            model, config.parallel, compile=machine.compile, device=machine.device
        )
        self.optimizers = build_optimizers(model, config)
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(self._begin_update)
        self.scaler = (
            torch.amp.GradScaler(machine.device.type) if machine.dtype == torch.float16 else None
        )
        self.spikes = SpikeGuard(config.spike_sigma)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.rollbacks = 0
        self.best_val_loss = math.inf
        self._last_saved_step = -1
        self._interval = Interval()

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
            OutOfMemory: with the estimate and what to lower.
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
        try:
            with catching() as caught, oom_advice(self._advice):
                while self.step < self.steps and not ended_by:
                    due = self.step + 1
                    self._interval.start_step()
                    result, lr = self._next_step()
                    ended_by = all_reduce_max(max(caught, default=0))
                    bar.update(self.step - bar.n)
                    if self.step != due:  # rolled back
                        if logs:
                            logs.go_back(self.step)
                        continue
                    last = self.step == self.steps
                    log = self.step % config.log_every == 0 or last
                    evaluating = self.step % config.eval_every == 0 or last
                    metrics: dict[str, Any] = {"step": self.step}
                    if log and (measures := self._measures(result, lr)):
                        metrics |= measures
                        bar.set_postfix_str(
                            f"loss {metrics['loss']:.3f}, {metrics['tokens_per_s']:,.0f} tok/s"
                        )
                    if config.check_kernels and self.step % config.check_kernels == 0:
                        metrics |= check_kernels(
                            self.model, *self._sample, machine=self.machine, step=self.step
                        )
                    if evaluating:
                        metrics["val_loss"] = self._validate()
                    if logs and len(metrics) > 1:
                        logs.write(**metrics)
                    if logs and evaluating:
                        say(progress_line(metrics, steps=self.steps, epoch=self.batches.epoch))
                        plot_loss(self.folder)
                    best = metrics.get("val_loss", math.inf) < self.best_val_loss
                    if best:
                        self.best_val_loss = metrics["val_loss"]
                    if best or last or self.step % config.checkpoint_every == 0:
                        self.save(metrics.get("val_loss"))
                if not ended_by or self.step == self.steps:
                    return None
                if self._last_saved_step != self.step:
                    self.save(None)
                return ended_by
        finally:
            bar.close()
            if logs:
                logs.close()

    def _begin_update(self, *_: Any) -> None:
        self._updating = True

    def _next_step(self) -> tuple[StepResult, float]:
        position = self.batches.state_dict()
        while True:
            self._updating = False
            try:
                return self._try_step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_micro_batch(error)
            # Not before here, as the exception held on to all tensors of the step.
            self.batches.load_state_dict(position)
            if self.machine.device.type == "cuda":
                torch.cuda.empty_cache()

    def _try_step(self) -> tuple[StepResult, float]:
        config = self.config
        assert config.lr
        assert config.min_lr is not None
        assert config.warmup_steps is not None
        device = self.machine.device
        drawn = [self.batches.next() for _ in range(config.grad_accum or 1)]
        micro_batches = []
        for x, y in shard(drawn, self.world):
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
        limit = self.spikes.limit
        result = train_step(
            self.wrapped_model,
            self.optimizers,
            micro_batches,
            clip=config.clip,
            autocast=self.machine.autocast(),
            scaler=self.scaler,
            max_loss=math.inf if config.on_spike == "warn" else limit,
        )
        self._sample = micro_batches[0]
        self.step += 1
        self._count(result, limit)
        return result, lr

    def _count(self, result: StepResult, limit: float) -> None:
        spike = limit < result.loss < math.inf
        if spike:
            say(
                f"step {self.step}: loss {result.loss:.4f} is a spike, above "
                f"{limit:.4f} ({self.config.spike_sigma:g} standard deviations)"
            )
            if self.config.on_spike == "rollback" and self._roll_back():
                return
        if not result.skipped:
            self.skipped_in_a_row = 0
            self.spikes.add(result.loss)
            self._interval.add(result.loss)
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        say(f"step {self.step}: skipped, as it is {'a spike' if spike else 'not finite'} ({what})")
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not "
                f"finite, or a spike (last: {what}). No such step reached the weights, and the "
                f"checkpoints in {self.folder} are intact. Try a lower --lr, more --warmup-steps, "
                "or --dtype fp32."
            )

    def _roll_back(self) -> bool:
        """Take the last checkpoint's weights, and go on with the text after the step at hand."""
        if not list_checkpoints(self.folder / "checkpoints"):
            return False
        position, rollbacks, spiked = self.batches.state_dict(), self.rollbacks + 1, self.step
        if rollbacks > self.config.max_skipped:
            raise Diverged(
                f"the loss spiked again after {self.rollbacks} rollbacks; the checkpoints in "
                f"{self.folder} are intact. Try a lower --lr, or --spike-sigma 0 to let it pass."
            )
        self.restore(load_newest(self.folder / "checkpoints")[0])
        self.batches.load_state_dict(position)
        self.rollbacks = rollbacks
        say(f"rolled back to step {self.step}, and past the text up to step {spiked}")
        return True

    def _halve_micro_batch(self, error: BaseException) -> None:
        """After an out-of-memory error: the same step in smaller micro-batches, or an error."""
        smaller = smaller_micro_batch(self.config)
        alone = self.world.size == 1
        # An update that got half-way cannot be done again, and micro-batches are no part of it.
        if not self.config.auto_batch or smaller is None or not alone or self._updating:
            raise OutOfMemory(
                f"out of memory on {self.machine.device} in step {self.step + 1}"
                f"{', in the update of the weights' if self._updating else ''}; {self._advice()} "
                f"({first_line(error)})"
            ) from error
        size, (batch_size, grad_accum) = self.config.batch_size, smaller
        self.config = dataclasses.replace(self.config, batch_size=batch_size, grad_accum=grad_accum)
        self.batches.batch_size = batch_size
        for parameter in self.model.parameters():
            parameter.grad = None
        say(
            f"out of memory: going on with micro-batches of {batch_size} instead of {size}, "
            f"{grad_accum} a step"
        )

    def _advice(self) -> str:
        alone = self.world.size == 1
        lower = what_to_lower(self.config, self.model.config, self.machine, alone=alone)
        return f"{lower}. The checkpoints in {self.folder} are intact."

    def _measures(self, result: StepResult, lr: float) -> dict[str, Any]:
        """The line of metrics of the interval that ends here, and the start of the next."""
        metrics: dict[str, Any] = self._interval.measures(self.tokens_per_step)
        if not metrics:
            return {}
        metrics |= {
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens": self.step * self.tokens_per_step,
            "skipped": self.skipped,
        }
        peak = peak_flops(self.machine.device)
        if peak is not None:
            flops = flops_per_token(self.model.config, self.batches.seq_len)
            metrics["mfu_exact"] = metrics["tokens_per_s"] * flops / peak
        return metrics

    def _validate(self) -> float:
        loss = evaluate(
            self.model,
            self.valid,
            bos_id=self.bos_id,
            batch_size=self.batches.batch_size,
            max_tokens=self.config.eval_tokens,
            autocast=self.machine.autocast(),
            here=self.world,
        ).loss
        if not math.isfinite(loss):
            say(
                f"step {self.step}: the validation loss is {loss}: activations overflow "
                f"{self.machine.dtype}, or a kernel is wrong (--check-kernels tells)"
            )
        return loss

    def save(self, val_loss: float | None) -> None:
        """Write a checkpoint of the step at hand, and delete those no longer to be kept.

        Every process must call it; the main one writes.
        """
        metrics = self.folder / "metrics.jsonl"
        state = {
            "step": self.step,
            "metrics": fingerprint(metrics),
            "val_loss": finite(val_loss),
            "best_val_loss": finite(self.best_val_loss),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
            "recent_losses": list(self.spikes.losses),
            "interval": self._interval.state_dict(),
            "data": self.batches.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "train_config": dataclasses.asdict(self.config),
            "model_config": dataclasses.asdict(self.model.config),
            "tokenizer_hash": self.tokenizer_hash,
            "data_hash": self.data_hash,
            "torch": torch.__version__,
        }
        checkpoint = Checkpoint(
            model=full_tensors(self.model.state_dict()),
            optimizer=full_tensors(optimizer_tensors(self.model, self.optimizers)),
            rng=random_states(),
            state=state,
        )
        if self.world.main:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, checkpoint)
            prune(folder, self.config.keep)
        self._last_saved_step = self.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, bit for bit.

        Raises:
            ValueError: it belongs to another tokenizer, model or data set.
        """
        state = checkpoint.state
        if state["tokenizer_hash"] != self.tokenizer_hash:
            raise ValueError(
                f"the checkpoint of step {state['step']} was trained with another tokenizer than "
                f"{self.folder / 'tokenizer.json'}"
            )
        if (state.get("data_hash") or self.data_hash) != self.data_hash:
            raise ValueError(
                f"the checkpoint of step {state['step']} in {self.folder} was trained on another "
                f"text than {self.config.data} is now: put that back, or start a new run (with "
                f"--init-from {self.folder} from these weights). If the text is the same, then "
                f"{self.config.cache_dir}/checksums.json is damaged: delete it"
            )
        metrics = self.folder / "metrics.jsonl"
        if "metrics" in state and altered(metrics, state["metrics"]):
            say(
                f"{metrics} is not what it was at step {state['step']}: the curve of the steps "
                "until then may have gaps or wrong figures; training itself does not depend on it"
            )
        weights = distribute_tensors_like(checkpoint.model, self.model.state_dict())
        load_weights(
            self.model, weights, f"the checkpoint of step {state['step']} in {self.folder}"
        )
        load_optimizer_tensors(self.model, self.optimizers, checkpoint.optimizer)
        self.batches.load_state_dict(state["data"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.skipped = state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.rollbacks = state.get("rollbacks", 0)
        self.spikes = SpikeGuard(self.config.spike_sigma, state.get("recent_losses", ()))
        best = state["best_val_loss"]
        self.best_val_loss = math.inf if best is None else best
        self._interval = Interval(state["interval"])
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
        load_weights(model, checkpoint.model, str(path))
        return model, int(checkpoint.state["step"])
