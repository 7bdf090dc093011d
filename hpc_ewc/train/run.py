"""A training from its folder: load, resume, step, checkpoint, export, finish; or stop and go on later."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from hpc_ewc.stage import Stage
from hpc_ewc.train import process_group
from hpc_ewc.train.checkpoint import Checkpoints
from hpc_ewc.train.manifest import training_facts
from hpc_ewc.train.metrics import Console, cut_back, flop_per_token, memory_gb, objective, peak_tflops
from hpc_ewc.train.optimizer import build_optimizer, learning_rate_at, optimizer_state, set_step_count
from hpc_ewc.train.plan import make_plan
from hpc_ewc.train.regularizer import build_regularizer, updates_in_one_pass
from hpc_ewc.train.trainer import NonFiniteLossError, Trainer
from hpc_ewc.train.watchdog import Watchdog


class Run:
    """One training on this rank, from where it stands to its end or to a wish to stop. Every rank makes one.

    Args:
        stage: of this training.
        device: of this rank; the process group is up.
        watchdog: told at each step.
    """

    def __init__(self, stage: Stage, device: torch.device, watchdog: Watchdog) -> None:
        self.stage, self.device, self.watchdog = stage, device, watchdog
        experiment = stage.config
        self.config = experiment.train
        self.rank = dist.get_rank()
        self.tokens = read_tokens(stage.inputs["tokens"])
        self.plan = make_plan(self.config, len(self.tokens))
        self.base = find_model(stage.inputs["model"], experiment.model.revision)
        # Beside training: hashing 5 GB takes seconds that no rank need wait for.
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
        prepare_layers(self.model, self.config.activation_checkpointing, self.config.compile)
        self.parameters = dict(self.model.named_parameters())
        regularizer = build_regularizer(self.model, self.parameters, experiment.ewc, stage.inputs.get("fisher"))
        optimizer = build_optimizer(self.parameters, self.config)
        self.trainer = Trainer(self.model, self.parameters, optimizer, regularizer, experiment.ewc, self.config, device)
        self.trainer.describe = self.tokens.describe
        if updates_in_one_pass(experiment.ewc, device):
            self.trainer.fused_adamw = regularizer.fused_adamw(optimizer)
        self.flop = flop_per_token(self.model.config, experiment.data.sequence_length)
        self.peak = peak_tflops(device)
        attempt = f"{stage.job_id}.{stage.restart}"
        keep, keep_every = self.config.keep_checkpoints, self.config.keep_every
        self.checkpoints = Checkpoints(stage.dir, stage.key, attempt, keep, keep_every)
        self.console = Console(self.rank, self.plan.steps)
        self.done, self.tokens_seen, self.loss, self.seconds = 0, 0, float("nan"), 0.0
        self._resume()
        if scale := regularizer.scale():
            self.console.say(
                f"λ = {experiment.ewc.strength:g}, tr F = {scale['fisher_trace']:.4g}, "
                f"λ·tr F/P = {scale['scaled_mean']:.4g}"
            )
        facts = training_facts(stage, self.model.origin, self.mesh, device) | scale
        if self.rank == 0:
            stage.write_manifest(
                facts | {"flop_per_token": self.flop, "steps": self.plan.steps, "from_step": self.done}
            )

    # ------------------------------------------------------------------------------------------ begin

    def _check_vocabulary(self) -> None:
        own = (self.model.origin.tokenizer_hash, self.model.config.vocab_size)
        if own != (self.tokens.tokenizer_hash, self.tokens.vocab_size):
            raise InputError(
                f"{self.stage.inputs['tokens']}: was tokenised with another tokenizer or vocabulary than those of "
                f"{self.base}; submit the experiment again"
            )

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside its position; tensors, read and written in place."""
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return {"model": weights, "optimizer": optimizer_state(self.trainer.optimizer, self.parameters)}

    def _resume(self) -> None:
        self.watchdog.beat("reading a checkpoint")
        position = self.checkpoints.load_newest(self._state())
        if position is not None:
            self.done, self.tokens_seen = position["step"], position["tokens"]
            self.loss, self.seconds = position["loss"], position["seconds"]
            set_step_count(self.trainer.optimizer, self.done)
            self.console.say(f"going on after step {self.done} of {self.plan.steps}")
        else:
            self.trainer.optimizer.state.clear()
        if self.rank == 0:
            cut_back(self.stage.dir.metrics, self.done)

    # ------------------------------------------------------------------------------------------ steps

    def train(self) -> bool:
        """Step until the end or until a rank is asked to stop; True when the run is finished."""
        try:
            with self._build_loader() as loader:
                self._train(loader)
        except NonFiniteLossError:  # raised by all ranks together: the checkpoint that is being written is a good one
            self.checkpoints.finish()
            raise
        self.checkpoints.finish()
        return self.done >= self.plan.steps

    def _build_loader(self) -> StepLoader:
        return StepLoader(
            self.tokens,
            seed=self.config.seed,
            global_batch_size=self.config.global_batch_size,
            local_batch_size=self.config.local_batch_size,
            rank=self.rank,
            world_size=dist.get_world_size(),
            start_step=self.done,
            steps=self.plan.steps,
            attend_across_documents=self.config.attend_across_documents,
            pin_memory=self.device.type == "cuda",
        )

    def _train(self, loader: StepLoader) -> None:
        batches = iter(loader)
        saved_at, ran_from = time.monotonic(), self.done
        stop, _ = self._agree(saved_at)
        while self.done < self.plan.steps and not stop:
            waited_s = loader.waited_s
            batch = next(batches)
            self._one_step(batch, loader.waited_s - waited_s)
            # Exports come before a checkpoint of the same step: to go on from it means that they are there.
            if self.done in self.plan.exports:
                self._export()
            stop, due = self._agree(saved_at)
            if due or stop or self.done == self.plan.steps:
                self.watchdog.beat(f"saving step {self.done}")
                if self.done > ran_from:
                    self._save()
                saved_at = time.monotonic()
            self.stage.progress(self.done, self.plan.steps, "step", loss=self.loss, eta_s=self._eta_s())

    def _agree(self, saved_at: float) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is due: what one rank sees holds for all."""
        due = time.monotonic() - saved_at >= self.config.checkpoint_every_s
        every = self.config.keep_every
        due = due or (every is not None and self.done > 0 and self.done % every == 0)
        stop, due, writing = process_group.any_rank(
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
        # `step` waits for the device once; what it queued after that counts in the next step's time
        step_s = time.monotonic() - started + waited_s
        self.done = batch.step + 1
        self.tokens_seen += batch.scored_tokens
        self.seconds += step_s
        if self.done % self.config.log_every == 0 or self.done == self.plan.steps:
            line = {"grad_norm": grad_norm, "learning_rate": rate, "tokens_per_s": batch.scored_tokens / step_s}
            self._log(line | {"step_time_s": step_s, "loader_wait_s": waited_s})

    def _log(self, measured: dict[str, float]) -> None:
        held = self.trainer.regularizer.measure(measured["learning_rate"])
        if self.rank != 0:
            return
        line: dict[str, Any] = {"step": self.done, "tokens": self.tokens_seen, "loss": self.loss}
        line |= held._asdict() | measured
        if self.peak is not None:
            tflops = measured["tokens_per_s"] * self.flop / dist.get_world_size() / 1e12
            line |= {"tflops_per_s": tflops, "mfu": tflops / self.peak}
        line |= {"memory_gb": memory_gb(self.device), "restart": self.stage.restart}
        try:
            records.append_line(self.stage.dir.metrics, line)
        except OSError as error:
            raise StageError(
                f"{self.stage.dir.metrics}: cannot be written: {error}; the last good checkpoint is as it was: make "
                "room or give permission, and submit again to go on from it"
            ) from error
        self.console.step(self.done, line, self._eta_s())

    def _eta_s(self) -> float:
        return (self.plan.steps - self.done) * self.seconds / max(1, self.done)

    # ------------------------------------------------------------------------------------------ outputs

    def _save(self) -> None:
        position = {"tokens": self.tokens_seen, "loss": self.loss, "seconds": self.seconds}
        state = self._state()
        if self.done == self.plan.steps and not self.config.keep_optimizer:
            state.pop("optimizer")
        self.checkpoints.start(state, self.done, **position)

    def _export(self) -> None:
        self.watchdog.beat(f"exporting step {self.done}")
        experiment, stage = self.stage.config, self.stage
        facts = {
            "run": stage.run,
            "step": self.done,
            "fraction": self.plan.exports[self.done],
            "tokens": self.tokens_seen,
            "coordinates": stage.coordinates,
            "train_key": stage.key,
            "base_hash": self._base_hash.result(),
            "base_model": experiment.model.path,
            "strength": experiment.ewc.strength,
        }
        export_model(self.model, stage.dir.export(self.done), facts)

    def outputs(self) -> list[Path]:
        """Files of every export and the metrics: what done.json vouches for."""
        files = [path for folder in self.stage.dir.exports.iterdir() for path in folder.iterdir() if path.is_file()]
        return [self.stage.dir.metrics, self.stage.dir.manifest_json, *sorted(files)]

    def finish(self) -> None:
        """Write done.json. Every rank calls it."""
        held = self.trainer.regularizer.measure(0.0)
        summary = {
            "steps": self.done,
            "tokens": self.tokens_seen,
            "loss": self.loss,
            "seconds": self.seconds,
            "gpu_hours": self.seconds / 3600 * dist.get_world_size() if self.device.type == "cuda" else 0.0,
            "penalty": held.penalty,
            "distance": held.distance,
            **self.trainer.regularizer.summary(),
        }
        if self.rank == 0:
            went = objective(list(records.read_lines(self.stage.dir.metrics)))
            if went.overshot:
                self.console.say(f"warning: {went}")
            self.stage.finish(self.outputs(), **summary, overshot=went.overshot)
            if not self.config.keep_optimizer:
                self.checkpoints.drop_before(self.done)
        dist.barrier()


@record
def train(stage: Stage) -> None:
    """Run the training of `stage` to its end, or until it is asked to stop; every rank of the job calls it.

    `record` hands an exception to torchrun, which reports that of the first rank.

    Raises:
        HpcEwcError: what stopped it, for failed.json.
    """
    timeout_s = stage.config.train.watchdog_s
    watchdog = Watchdog(timeout_s, lambda message: stage.fail(TimeoutError(message)))
    try:
        with process_group.report_lost_peer(stage.dir.failed):
            device = process_group.join(2 * timeout_s + 60)
            run = Run(stage, device, watchdog)
            if run.train():
                watchdog.beat("finishing")
                run.finish()
            else:
                run.console.say(f"stopped after step {run.done} of {run.plan.steps}; submit again to go on")
            dist.destroy_process_group()
    finally:
        watchdog.close()
