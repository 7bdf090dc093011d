"""One training, from its folder to its exports: load, resume, step, checkpoint, export, finish or stop."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from hpc_ewc import records
from hpc_ewc.data.dataset import read_tokens
from hpc_ewc.data.loader import StepBatch, StepLoader
from hpc_ewc.errors import InputError, StageError
from hpc_ewc.model.export import export_model
from hpc_ewc.model.layers import prepare_layers
from hpc_ewc.model.load import find_model, load_model
from hpc_ewc.model.mesh import build_mesh
from hpc_ewc.schemas import ExportFacts, MetricsLine, TrainSummary
from hpc_ewc.stage import Stage
from hpc_ewc.train.checkpoint import Checkpoints, State
from hpc_ewc.train.manifest import training_facts
from hpc_ewc.train.metrics import (
    Console,
    flop_per_token,
    memory_gb,
    objective,
    peak_tflops,
    truncate_metrics,
)
from hpc_ewc.train.optimizer import build_optimizer, learning_rate_at, optimizer_state, set_step_count
from hpc_ewc.train.plan import make_plan
from hpc_ewc.train.process_group import any_rank, distributed_job
from hpc_ewc.train.regularizer import build_regularizer, updates_in_one_pass
from hpc_ewc.train.trainer import NonFiniteLossError, Trainer
from hpc_ewc.train.watchdog import Watchdog


class Run:
    """One training on this rank, from its last checkpoint to its end or a request to stop. Every rank builds one.

    Args:
        stage: of this training.
        device: of this rank; the process group exists.
        watchdog: gets a beat at each step.

    Attributes:
        step: optimizer steps made.
        tokens: scored tokens of these steps, over all ranks.
        loss: of the last step.
        seconds: that these steps took.
    """

    def __init__(self, stage: Stage, device: torch.device, watchdog: Watchdog) -> None:
        self.stage, self.device, self.watchdog = stage, device, watchdog
        experiment = stage.config
        self.config = experiment.train
        self.rank = dist.get_rank()
        self.dataset = read_tokens(stage.inputs["tokens"])
        self.plan = make_plan(self.config, len(self.dataset))
        self.base = find_model(stage.inputs["model"], experiment.model.revision)
        # beside training: hashing 5 GB takes seconds
        self._base_hash = ThreadPoolExecutor(1).submit(lambda: records.model_hash(self.base) if self.rank == 0 else "")
        watchdog.beat("loading the model")
        self.mesh = build_mesh(device.type, self.config.dp_replicate)
        self.model = load_model(
            self.base,
            self.mesh,
            dtype=experiment.model.dtype,
            attention=experiment.model.attention,
            loss=experiment.model.loss,  # type: ignore[arg-type]  # the configuration has checked it
        )
        self._check_vocabulary()
        prepare_layers(self.model, self.config.activation_checkpointing, compile_layers=self.config.compile)
        self.parameters = dict(self.model.named_parameters())
        regularizer = build_regularizer(self.model, self.parameters, experiment.ewc, stage.inputs.get("fisher"))
        optimizer = build_optimizer(self.parameters, self.config)
        self.trainer = Trainer(self.model, self.parameters, optimizer, regularizer, experiment.ewc, self.config, device)
        self.trainer.describe = self.dataset.describe
        if updates_in_one_pass(experiment.ewc, device):
            self.trainer.fused_adamw = regularizer.fused_adamw(optimizer)
        self.flop = flop_per_token(self.model.config, experiment.data.sequence_length)
        self.peak = peak_tflops(device)
        attempt = f"{stage.job_id}.{stage.restart}"
        keep, keep_every = self.config.keep_checkpoints, self.config.keep_every
        self.checkpoints = Checkpoints(stage.dir, stage.key, attempt, keep, keep_every)
        self.console = Console(self.rank, self.plan.steps)
        self.step, self.tokens, self.loss, self.seconds = 0, 0, float("nan"), 0.0
        self._resume()
        if scale := regularizer.scale():
            self.console.say(
                f"λ = {experiment.ewc.strength:g}, tr F = {scale['fisher_trace']:.4g}, "
                f"λ·tr F/P = {scale['scaled_mean']:.4g}"
            )
        facts = training_facts(stage, self.model.origin, self.mesh, device) | scale
        facts |= {"flop_per_token": self.flop, "steps": self.plan.steps, "from_step": self.step}
        if self.rank == 0:
            stage.write_manifest(facts)

    # ------------------------------------------------------------------------------------------ begin

    def _check_vocabulary(self) -> None:
        own = (self.model.origin.tokenizer_hash, self.model.config.vocab_size)
        if own != (self.dataset.tokenizer_hash, self.dataset.vocab_size):
            raise InputError(
                f"{self.stage.inputs['tokens']}: was tokenised with another tokenizer or vocabulary than those of "
                f"{self.base}; submit the experiment again"
            )

    def _state(self) -> State:
        """Returns the tensors of a checkpoint, which are read and written in place."""
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return {"model": weights, "optimizer": optimizer_state(self.trainer.optimizer, self.parameters)}

    def _resume(self) -> None:
        self.watchdog.beat("reading a checkpoint")
        position = self.checkpoints.load_newest(self._state())
        if position is not None:
            self.step, self.tokens = position["step"], position["tokens"]
            self.loss, self.seconds = position["loss"], position["seconds"]
            set_step_count(self.trainer.optimizer, self.step)
            self.console.say(f"resuming after step {self.step} of {self.plan.steps}")
        else:
            self.trainer.optimizer.state.clear()
        if self.rank == 0:
            truncate_metrics(self.stage.dir.metrics, self.step)

    # ------------------------------------------------------------------------------------------ steps

    def train(self) -> bool:
        """Steps until the end or until a rank is asked to stop; returns whether the training is finished."""
        try:
            with self._build_loader() as loader:
                self._train(loader)
        except NonFiniteLossError:  # all ranks raise it together: the checkpoint being written is a good one
            self.checkpoints.finish()
            raise
        self.checkpoints.finish()
        return self.step >= self.plan.steps

    def _build_loader(self) -> StepLoader:
        return StepLoader(
            self.dataset,
            seed=self.config.seed,
            global_batch_size=self.config.global_batch_size,
            local_batch_size=self.config.local_batch_size,
            rank=self.rank,
            world_size=dist.get_world_size(),
            start_step=self.step,
            steps=self.plan.steps,
            attend_across_documents=self.config.attend_across_documents,
            pin_memory=self.device.type == "cuda",
        )

    def _train(self, loader: StepLoader) -> None:
        batches = iter(loader)
        saved_at, first_step = time.monotonic(), self.step
        stop, _ = self._agree(saved_at)
        while self.step < self.plan.steps and not stop:
            waited_s = loader.waited_s
            batch = next(batches)
            self._one_step(batch, loader.waited_s - waited_s)
            # an export comes before the checkpoint of its step: a training that resumes there has exported already
            if self.step in self.plan.exports:
                self._export()
            stop, due = self._agree(saved_at)
            if due or stop or self.step == self.plan.steps:
                self.watchdog.beat(f"saving step {self.step}")
                if self.step > first_step:
                    self._save()
                saved_at = time.monotonic()
            self.stage.progress(self.step, self.plan.steps, "step", loss=self.loss, eta_s=self._eta_s())

    def _agree(self, saved_at: float) -> tuple[bool, bool]:
        """Returns whether to stop and whether to save: true on all ranks if true on one. One all-reduce."""
        every = self.config.keep_every
        due = time.monotonic() - saved_at >= self.config.checkpoint_every_s
        due = due or (every is not None and self.step > 0 and self.step % every == 0)
        stop, due, writing = any_rank(
            [self.stage.stop_requested(), due, self.checkpoints.is_saving and not self.checkpoints.is_ready()]
        )
        if self.checkpoints.is_saving and not writing:
            self.checkpoints.finish()
        return stop, due and not writing

    def _one_step(self, batch: StepBatch, waited_s: float) -> None:
        self.watchdog.beat(f"in step {batch.step + 1}")
        started = time.monotonic()
        rate = learning_rate_at(batch.step, self.plan.steps, self.config)
        self.loss, grad_norm = self.trainer.step(batch, rate)
        # `step` waits for the device once; what it queues after that counts in the next step's time
        step_s = time.monotonic() - started + waited_s
        self.step = batch.step + 1
        self.tokens += batch.scored_tokens
        self.seconds += step_s
        if self.step % self.config.log_every and self.step != self.plan.steps:
            return
        stats = self.trainer.regularizer.measure(rate)
        tokens_per_s = batch.scored_tokens / step_s
        line: MetricsLine = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "penalty": stats.penalty,
            "distance": stats.distance,
            "largest_step": stats.largest_step,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "tokens_per_s": tokens_per_s,
            "step_time_s": step_s,
            "loader_wait_s": waited_s,
            "memory_gb": memory_gb(self.device),
            "restart": self.stage.restart,
        }
        if self.peak is not None:
            tflops = tokens_per_s * self.flop / dist.get_world_size() / 1e12
            line |= {"tflops_per_s": tflops, "mfu": tflops / self.peak}
        if self.rank == 0:
            self._log(line)

    def _log(self, line: MetricsLine) -> None:
        try:
            records.append_line(self.stage.dir.metrics, line)
        except OSError as error:
            raise StageError(
                f"{self.stage.dir.metrics}: cannot be written: {error}; the last checkpoint is intact: free space or "
                "give permission, and resubmit to resume from it"
            ) from error
        self.console.step(self.step, line, self._eta_s())

    def _eta_s(self) -> float:
        return (self.plan.steps - self.step) * self.seconds / max(1, self.step)

    # ------------------------------------------------------------------------------------------ outputs

    def _save(self) -> None:
        state = self._state()
        if self.step == self.plan.steps and not self.config.keep_optimizer:
            state.pop("optimizer")
        self.checkpoints.start(state, self.step, tokens=self.tokens, loss=self.loss, seconds=self.seconds)

    def _export(self) -> None:
        self.watchdog.beat(f"exporting step {self.step}")
        facts: ExportFacts = {
            "run": self.stage.run,
            "step": self.step,
            "fraction": self.plan.exports[self.step],
            "tokens": self.tokens,
            "coordinates": self.stage.coordinates,
            "train_key": self.stage.key,
            "base_hash": self._base_hash.result(),
            "base_model": self.stage.config.model.path,
            "strength": self.stage.config.ewc.strength,
        }
        export_model(self.model, self.stage.dir.export(self.step), facts)

    def outputs(self) -> list[Path]:
        """Returns the files of every export, the metrics and the manifest, which done.json lists with their hashes."""
        files = [path for folder in self.stage.dir.exports.iterdir() for path in folder.iterdir() if path.is_file()]
        return [self.stage.dir.metrics, self.stage.dir.manifest_json, *sorted(files)]

    def finish(self) -> None:
        """Writes done.json. Every rank calls it; an all-reduce or two, and a barrier."""
        stats = self.trainer.regularizer.measure(0.0)
        free = self.trainer.regularizer.summary()
        if self.rank == 0:
            result = objective(list(records.read_lines(self.stage.dir.metrics)))
            if result.overshot:
                self.console.say(f"warning: {result}")
            summary: TrainSummary = {
                "steps": self.step,
                "tokens": self.tokens,
                "loss": self.loss,
                "seconds": self.seconds,
                "gpu_hours": self.seconds / 3600 * dist.get_world_size() if self.device.type == "cuda" else 0.0,
                "penalty": stats.penalty,
                "distance": stats.distance,
                **free,
                "overshot": result.overshot,
            }
            self.stage.finish(self.outputs(), **summary)
            if not self.config.keep_optimizer:
                self.checkpoints.drop_before(self.step)
        dist.barrier()


@record
def train(stage: Stage) -> None:
    """Trains to the end, or until the job is asked to stop. Every rank of the job calls it.

    `record` hands an exception to torchrun, which reports that of the first rank.

    Raises:
        HpcEwcError: the reason it stopped, for failed.json.
    """
    with distributed_job(stage) as (device, watchdog):
        run = Run(stage, device, watchdog)
        if run.train():
            watchdog.beat("finishing")
            run.finish()
        else:
            run.console.say(f"stopped after step {run.step} of {run.plan.steps}; resubmit to resume")
