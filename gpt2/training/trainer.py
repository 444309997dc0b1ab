"""The training loop: steps, measurements, checkpoints, and what to do when something goes wrong."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.common.devices import peak_flops
from gpt2.common.distributed import all_reduce_max, say, world
from gpt2.common.files import atomic_write
from gpt2.common.progress import progress_bar
from gpt2.config import PORTABLE, Settings
from gpt2.data.batches import Batches
from gpt2.data.shards import TokenStream
from gpt2.evaluate.perplexity import evaluate
from gpt2.model import GPT
from gpt2.runs.checkpoint import (
    Checkpoint,
    LossSum,
    TrainerState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    load_weights,
    prune,
    save_checkpoint,
)
from gpt2.runs.metrics import Fingerprint, Logs, plot_loss
from gpt2.runs.random_state import random_states, set_random_states
from gpt2.training.estimate import flops_per_token
from gpt2.training.kernel_check import check_kernels
from gpt2.training.machine import Machine, interpreted
from gpt2.training.monitor import Interval, catching, finite, progress_line
from gpt2.training.optim import (
    build_optimizers,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from gpt2.training.out_of_memory import (
    OutOfMemory,
    UpdateOutOfMemory,
    first_line,
    is_out_of_memory,
    oom_advice,
    smaller_micro_batch,
    what_to_lower,
)
from gpt2.training.parallel import check_parallel, distribute_like, full_tensors, wrap
from gpt2.training.recovery import StepGuard, diverged_at_the_end
from gpt2.training.step import StepResult, train_step

MicroBatch = tuple[Tensor, Tensor]
PLOT_SECONDS = 10.0  # between two drawings of loss.png: each takes a good part of a second


class Trainer:
    """A model in training: everything that a checkpoint holds, and the loop that moves it on."""

    def __init__(
        self,
        settings: Settings,
        model: GPT,
        machine: Machine,
        train: TokenStream,
        valid: TokenStream,
        *,
        folder: Path,
        tokenizer_hash: str,
        bos_id: int,
        data_hash: str = "",
        sample: Callable[[GPT], Mapping[str, str]] | None = None,
    ) -> None:
        """Put a new run together; `restore` moves it to where a checkpoint stands.

        Args:
            settings: of the run.
            model: the model, on its device.
            machine: device, compute type and compilation.
            train: tokens to train on.
            valid: tokens to validate on.
            folder: the run folder.
            tokenizer_hash: goes into checkpoints, so that weights never meet another vocabulary.
            bos_id: the id that stands before a text.
            data_hash: goes into checkpoints, so that no run goes on with another text.
            sample: writes texts by a model, each by its name, for --sample-every.

        Raises:
            ValueError: too little text, or settings that these processes cannot train together.
        """
        self.settings, self.model, self.machine = settings, model, machine
        self.valid, self.folder, self.bos_id = valid, folder, bos_id
        self.tokenizer_hash, self.data_hash, self._sample = tokenizer_hash, data_hash, sample
        self.world = world()
        check_parallel(settings, machine.dtype)
        self.batches = Batches(
            train,
            seq_len=settings.seq_len,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=self.world.rank,
            size=self.world.size,
        )
        self.tokens_per_step = settings.seq_len * settings.sequences_per_step
        self.steps = settings.steps or self._steps_of_epochs()
        if settings.log_attention:
            model.watch_logits()
        self.wrapped_model = wrap(
            model, settings.parallel, compile=machine.compile, device=machine.device
        )
        self.optimizers = build_optimizers(
            model,
            lr=settings.lr,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            betas=(settings.beta1, settings.beta2),
            dtype=machine.dtype,
        )
        self.scaler = (
            torch.amp.GradScaler(machine.device.type) if machine.dtype == torch.float16 else None
        )
        self.step = 0
        self.val_loss = self.best_val_loss = math.inf
        self.guard = StepGuard(settings, folder)
        self._interval = Interval(LossSum())
        self._last_saved_step = -1
        self._plotted = time.monotonic()

    def _steps_of_epochs(self) -> int:
        assert self.settings.epochs is not None
        windows = self.settings.epochs * self.batches.windows_per_epoch
        return max(1, round(windows * self.batches.seq_len / self.tokens_per_step))

    # --- the loop ---

    def fit(self) -> int | None:
        """Train until the last step. Return None, or the number of the signal that ended it early.

        SIGINT, SIGTERM and SIGHUP finish the current step, save a checkpoint and return; a second
        one kills.

        Raises:
            Diverged: too many steps in a row were skipped, or the last validation loss is not
                finite.
            OutOfMemory: with the estimate and what to lower.
        """
        main = self.world.main
        logs = None
        if main:
            logs = Logs(self.folder, track=self.settings.track, after_step=self.step)
        bar = progress_bar(
            main, total=self.steps, initial=self.step, unit="step", dynamic_ncols=True
        )
        ended_by = 0
        try:
            with catching() as caught, oom_advice(self._advice):
                while self.step < self.steps and not ended_by:
                    due = self.step + 1
                    result, lr, sample = self.next_step()
                    ended_by = int(all_reduce_max(torch.tensor(max(caught, default=0))))
                    bar.update(self.step - bar.n)
                    if self.step == due:
                        self._measure(result, lr, sample, logs, bar)
                    elif logs:  # rolled back
                        logs.go_back(self.step)
                if not ended_by or self.step == self.steps:
                    if not math.isfinite(self.val_loss):
                        raise diverged_at_the_end(self.folder)
                    return None
                if self._last_saved_step != self.step:
                    self.save(None)
                return ended_by
        finally:
            bar.close()
            if logs:
                logs.close()

    def next_step(self) -> tuple[StepResult, float, MicroBatch]:
        """Take a step; where memory runs out, again in smaller micro-batches if --auto-batch."""
        position = self.batches.state_dict()
        self._interval.start_step()
        while True:
            try:
                return self._try_step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    if self.machine.compile and _compiler_failed(error):
                        raise ValueError(
                            f"torch.compile failed: {first_line(error)}; train with --no-compile"
                        ) from error
                    raise
                self._halve_micro_batch(error)
            # Not before here, as the exception held on to all tensors of the step.
            self.batches.load_state_dict(position)
            if self.machine.device.type == "cuda":
                torch.cuda.empty_cache()

    def _try_step(self) -> tuple[StepResult, float, MicroBatch]:
        settings = self.settings
        micro_batches = [self._next_micro_batch(size) for size in self._micro_batch_sizes()]
        begun = settings.extended_at
        lr = learning_rate(
            max(0, self.step - begun),
            steps=self.steps - begun,
            warmup_steps=settings.warmup_steps,
            lr=settings.lr,
            min_lr=settings.min_lr,
        )
        set_learning_rate(self.optimizers, lr)
        result = train_step(
            self.wrapped_model,
            self.optimizers,
            micro_batches,
            clip=settings.clip,
            autocast=self.machine.autocast(),
            scaler=self.scaler,
            max_loss=self.guard.max_loss,
        )
        self.step += 1
        spike = self.guard.is_spike(result, self.step)
        if not (spike and settings.on_spike == "rollback" and self._roll_back()):
            self.guard.count(result, self.step, spike=spike)
            if not result.skipped:
                self._interval.add(result.loss)
        return result, lr, micro_batches[0]

    def _micro_batch_sizes(self) -> list[int]:
        """Sequences of this process in each micro-batch of a step."""
        own, size = self.settings.sequences_per_step // self.world.size, self.settings.batch_size
        return [min(size, own - i) for i in range(0, own, size)]

    def _next_micro_batch(self, size: int) -> MicroBatch:
        x, y = self.batches.next(size)
        device = self.machine.device
        if device.type == "cuda":  # pinned, so that the copy does not wait for the GPU
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    def _measure(
        self, result: StepResult, lr: float, sample: MicroBatch, logs: Logs | None, bar: Any
    ) -> None:
        """Log, check, evaluate and save after a step, as far as each is due."""
        settings, last = self.settings, self.step == self.steps
        metrics: dict[str, Any] = {"step": self.step}
        if self.step % settings.log_every == 0 or last:
            metrics |= self._pace(result, lr)
            if "loss" in metrics:
                pace = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_s']:,.0f} tok/s"
                bar.set_postfix_str(pace, refresh=False)
        if settings.check_kernels and self.step % settings.check_kernels == 0:
            scale = 1.0 if self.scaler is None else self.scaler.get_scale()
            metrics |= check_kernels(
                self.model, *sample, machine=self.machine, step=self.step, loss_scale=scale
            )
        evaluating = self.step % settings.eval_every == 0 or last
        if evaluating:
            metrics["val_loss"] = self.val_loss = self._validate()
        if logs and len(metrics) > 1:
            logs.write(**metrics)
        if logs and evaluating:
            say(progress_line(metrics, steps=self.steps, epoch=self.batches.epoch))
            if time.monotonic() - self._plotted > PLOT_SECONDS:
                plot_loss(self.folder)
                self._plotted = time.monotonic()
        if logs and settings.sample_every and self.step % settings.sample_every == 0:
            self._write_samples()
        best = metrics.get("val_loss", math.inf) < self.best_val_loss
        if best:
            self.best_val_loss = metrics["val_loss"]
        if best or last or self.step % settings.checkpoint_every == 0:
            self.save(metrics.get("val_loss"))

    def _pace(self, result: StepResult, lr: float) -> dict[str, Any]:
        """Return the measurements of the interval that ends here, and begin the next."""
        metrics: dict[str, Any] = self._interval.measures(self.tokens_per_step)
        if not metrics:
            return {}
        metrics |= {
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens": self.step * self.tokens_per_step,
            "skipped": self.guard.skipped,
        }
        if self.settings.log_attention:
            logits = all_reduce_max(self.model.largest_logits()).tolist()
            metrics["max_logit"] = max(map(max, logits))
            for layer, heads in enumerate(logits):
                metrics |= {f"max_logit/{layer}.{head}": x for head, x in enumerate(heads)}
        peak = peak_flops(self.machine.device)
        if peak is not None:
            flops = flops_per_token(self.model.config, self.batches.seq_len)
            metrics["mfu_exact"] = metrics["tokens_per_s"] * flops / peak
        return metrics

    def _write_samples(self) -> None:
        """Write samples/step-000100.txt, or whatever this step is."""
        assert self._sample is not None
        with self._portable(), self.machine.autocast():
            self.model.eval()
            texts = self._sample(self.model)
            self.model.train()
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"step-{self.step:06d}.txt") as file:
            content = "\n".join(f"--- {name}\n{text}\n" for name, text in texts.items())
            file.write(content.encode())

    @contextmanager
    def _portable(self) -> Iterator[None]:
        """Compute by PyTorch's kernels meanwhile, where ours are interpreted."""
        chosen = {name: getattr(self.model.config, name) for name in PORTABLE}
        slow = interpreted(self.machine.device, self.model.config)
        if slow:
            self.model.use(**PORTABLE)
        yield
        if slow:
            self.model.use(**chosen)

    def _validate(self) -> float:
        with self._portable():
            loss = evaluate(
                self.model,
                self.valid,
                bos_id=self.bos_id,
                batch_size=self.batches.batch_size,
                max_tokens=self.settings.eval_tokens,
                autocast=self.machine.autocast(),
                here=self.world,
            ).loss
        if not math.isfinite(loss):
            say(
                f"step {self.step}: the validation loss is {loss}: activations overflow "
                f"{self.machine.dtype}, or a kernel is wrong (--check-kernels tells)"
            )
        return loss

    # --- recovery ---

    def _roll_back(self) -> bool:
        """Restore the last checkpoint, if there is one, but go on with the text after this step."""
        if not list_checkpoints(self.folder / "checkpoints"):
            return False
        position, spiked = self.batches.state_dict(), self.step
        rollbacks = self.guard.count_rollback()
        self.restore(load_newest(self.folder / "checkpoints")[0])
        self.batches.load_state_dict(position)
        self.guard.rollbacks = rollbacks
        say(f"rolled back to step {self.step}, and past the text up to step {spiked}")
        return True

    def _halve_micro_batch(self, error: BaseException) -> None:
        """After an out-of-memory error: repeat the step in smaller micro-batches, or give up."""
        smaller = smaller_micro_batch(self.settings)
        in_update = isinstance(error, UpdateOutOfMemory)
        if not self.settings.auto_batch or smaller is None or in_update:
            raise OutOfMemory(
                f"out of memory on {self.machine.device} in step {self.step + 1}"
                f"{', in the update of the weights' if in_update else ''}; {self._advice()} "
                f"({first_line(error)})"
            ) from error
        before, (size, count) = self.settings.batch_size, smaller
        self.settings = dataclasses.replace(self.settings, batch_size=size, grad_accum=count)
        self.batches.batch_size = size
        for parameter in self.model.parameters():
            parameter.grad = None
        say(
            f"out of memory: going on with micro-batches of {size} instead of {before}, "
            f"{count} a step"
        )

    def _advice(self) -> str:
        alone = self.world.size == 1
        lower = what_to_lower(self.settings, self.model.config, self.machine, alone=alone)
        return f"{lower}. The checkpoints in {self.folder} are intact."

    # --- checkpoints ---

    def save(self, val_loss: float | None) -> None:
        """Write a checkpoint of the current step, and delete those no longer to be kept.

        Every process must call it; the main one writes.
        """
        state = TrainerState(
            step=self.step,
            tokenizer_hash=self.tokenizer_hash,
            data_hash=self.data_hash,
            data=self.batches.state_dict(),
            metrics=Fingerprint.of(self.folder / "metrics.jsonl"),
            val_loss=finite(val_loss),
            best_val_loss=finite(self.best_val_loss),
            skipped=self.guard.skipped,
            skipped_in_a_row=self.guard.skipped_in_a_row,
            rollbacks=self.guard.rollbacks,
            recent_losses=list(self.guard.spikes.losses),
            interval=self._interval.losses,
            scaler=self.scaler.state_dict() if self.scaler else None,
            train_config=dataclasses.asdict(self.settings),
            model_config=dataclasses.asdict(self.model.config),
            torch=torch.__version__,
        )
        checkpoint = Checkpoint(
            model=full_tensors(self.model.state_dict()),
            optimizer=full_tensors(optimizer_tensors(self.model, self.optimizers)),
            rng=random_states(),
            state=state,
        )
        if self.world.main:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, checkpoint)
            prune(folder, self.settings.keep)
        self._last_saved_step = self.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, bit for bit.

        Raises:
            ValueError: it belongs to another tokenizer, model or data set.
        """
        state = checkpoint.state
        if state.tokenizer_hash != self.tokenizer_hash:
            raise ValueError(
                f"the checkpoint of step {state.step} was trained with another tokenizer than "
                f"{self.folder / 'tokenizer.json'}"
            )
        if (state.data_hash or self.data_hash) != self.data_hash:
            raise ValueError(
                f"the checkpoint of step {state.step} in {self.folder} was trained on another "
                f"text than {self.settings.data} is now: put that back, or start a new run (with "
                f"--init-from {self.folder} from these weights). If the text is the same, then "
                f"{self.settings.cache_dir}/checksums.json is damaged: delete it"
            )
        metrics = self.folder / "metrics.jsonl"
        if not state.metrics.begins(metrics):
            say(
                f"{metrics} is not what it was at step {state.step}: the curve of the steps "
                "until then may have gaps or wrong figures; training itself does not depend on it"
            )
        own = self.model.state_dict()
        weights = {
            name: distribute_like(tensor, own[name]) if name in own else tensor
            for name, tensor in checkpoint.model.items()
        }
        load_weights(self.model, weights, f"the checkpoint of step {state.step} in {self.folder}")
        load_optimizer_tensors(self.model, self.optimizers, checkpoint.optimizer)
        self.batches.load_state_dict(state.data)
        if self.scaler and state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.step = state.step
        self.best_val_loss = math.inf if state.best_val_loss is None else state.best_val_loss
        self.val_loss = math.inf if state.val_loss is None else state.val_loss
        self.guard = StepGuard(self.settings, self.folder, state)
        self._interval = Interval(state.interval)
        set_random_states(checkpoint.rng, seed=self.settings.seed)

    def best_model(self) -> tuple[GPT, int]:
        """Return the model with the weights of lowest validation loss, whole, and their step."""
        path = best_checkpoint(self.folder / "checkpoints")
        if path is None:
            return self.model, self.step
        model = self.model
        if self.world.size > 1:  # its weights may be sharded
            model = GPT(model.config).to(self.machine.device)
        checkpoint = load_checkpoint(path, weights_only=True)
        load_weights(model, checkpoint.model, str(path))
        return model, checkpoint.state.step


def _compiler_failed(error: BaseException) -> bool:
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds, and was loaded to compile

    return isinstance(error, BackendCompilerFailed)
