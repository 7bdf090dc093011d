"""The diagonal Fisher of the base model on the questions of [fisher], and the anchor, which is the base model itself.

Sums are saved in `partial/` every few minutes and when the job is asked to stop; a later attempt resumes from them, to
the same bits on a CPU with as many ranks.
"""

from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist

from hpc_ewc import records
from hpc_ewc.data.questions import QuestionBatches, question_batches
from hpc_ewc.data.tokenizer import load_tokenizer
from hpc_ewc.errors import ArtefactError
from hpc_ewc.ewc import (
    FisherAccumulator,
    FisherSums,
    NonFiniteExampleError,
    load_fisher_sums,
    save_ewc_state,
    save_fisher_sums,
)
from hpc_ewc.ewc.sharding.ranks import gather_objects
from hpc_ewc.model.load import find_model, load_model
from hpc_ewc.model.mesh import build_mesh
from hpc_ewc.schemas import FisherSummary
from hpc_ewc.stage import Stage
from hpc_ewc.train.manifest import training_facts
from hpc_ewc.train.process_group import any_rank, distributed_job
from hpc_ewc.train.watchdog import Watchdog

SAVE_EVERY_S = 300.0
"""Between two saves of the sums: a killed job loses at most this time."""


def estimate(stage: Stage) -> None:
    """Estimates to the end, or until the job is asked to stop. Every rank of the job calls it."""
    with distributed_job(stage) as (device, watchdog):
        job = FisherJob(stage, device, watchdog)
        job.say("done" if job.run() else f"stopped after example {job.position}; resubmit to resume")


class FisherJob:
    """One estimate on this rank; every rank of the job builds one, after the process group.

    Args:
        stage: of this Fisher.
        device: of this rank.
        watchdog: gets a beat at each batch.
    """

    def __init__(self, stage: Stage, device: torch.device, watchdog: Watchdog) -> None:
        self.stage, self.device, self.watchdog = stage, device, watchdog
        self.config = stage.config.fisher
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.base = find_model(stage.inputs["model"], stage.config.model.revision)
        self.base_hash = ThreadPoolExecutor(1).submit(lambda: records.model_hash(self.base) if self.rank == 0 else "")
        self.tokenizer = load_tokenizer(self.base)
        watchdog.beat("loading the model")
        # TF32 leaves squares right to 1e-3; bf16 gradients, squared, are off by some 2 %
        torch.set_float32_matmul_precision("high")
        self.mesh = build_mesh(device.type)
        self.model = load_model(
            self.base, self.mesh, dtype="float32", attention=stage.config.model.attention, loss="full"
        )
        self.position = self.started_from = 0
        self.started_at = time.monotonic()

    def run(self) -> bool:
        """Estimates to the end and saves, or stops when a rank is asked to; returns whether all is written."""
        config = self.config
        sums = self._resume()
        questions = question_batches(
            config,
            self.stage.inputs.get("questions") or None,
            self.tokenizer,
            rank=self.rank,
            world_size=self.world_size,
            start=self.position,
        )
        batches = iter(questions)
        saved_at, saved_position = time.monotonic(), self.position
        with FisherAccumulator(
            self.model,
            labels=config.labels,  # type: ignore[arg-type]  # the configuration has checked these three
            method=config.method,  # type: ignore[arg-type]
            samples=config.samples,
            seed=config.seed,
            on_nonfinite=config.on_nonfinite,  # type: ignore[arg-type]
            start=sums,
        ) as fisher:
            while True:
                due = time.monotonic() - saved_at >= SAVE_EVERY_S
                stop, due = any_rank([self.stage.stop_requested(), due])
                if (stop or due) and self.position > saved_position:
                    self._save(fisher.sums)
                    saved_at, saved_position = time.monotonic(), self.position
                if stop and self.position < questions.total:
                    return False
                self.watchdog.beat(f"in the batch after example {self.position}")
                try:
                    if not fisher.add([batch for batch in [next(batches, None)] if batch is not None]):
                        break
                except NonFiniteExampleError as error:
                    raise _with_sources(error, questions) from None
                self.position += config.batch_size * self.world_size
                self._report(min(self.position, questions.total), questions.total, fisher)
        self._finish(fisher)
        return True

    def _report(self, done: int, total: int, fisher: FisherAccumulator) -> None:
        rate = (done - self.started_from) / max(1e-9, time.monotonic() - self.started_at)
        eta_s = (total - done) / rate if rate > 0 else float("nan")
        self.stage.progress(done, total, "example", rate=rate, eta_s=eta_s, skipped=fisher.sums.skipped)

    # ------------------------------------------------------------------------------------------ sums on disk

    def _partials(self) -> list[Path]:
        """Returns the folders of sums, newest first; each is named after the number of examples in its sums."""
        folder = self.stage.dir.fisher_partial
        return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)

    def _save(self, sums: FisherSums) -> None:
        self.watchdog.beat("saving sums")
        folder = self.stage.dir.fisher_partial / f"{self.position:08d}"
        save_fisher_sums(folder, sums, {"key": self.stage.key, "position": self.position})
        if self.rank == 0:
            for older in self._partials():
                if older < folder:
                    shutil.rmtree(older, ignore_errors=True)

    def _resume(self) -> FisherSums | None:
        """Returns the newest sums of an earlier attempt, or None; damaged ones are named in the log and skipped."""
        for folder in gather_objects(self._partials())[0]:
            try:
                sums, facts = load_fisher_sums(folder, self.model)
                if facts["key"] != self.stage.key:
                    raise ArtefactError(f"{folder}: sums of key {facts['key']}, not {self.stage.key}")
            except ArtefactError as error:
                self.say(f"not resuming from {folder.name}: {error}")
                continue
            self.position = self.started_from = facts["position"]
            self.say(f"resuming after example {self.position}")
            return sums
        return None

    def say(self, text: str) -> None:
        """Prints a line in the job's log, on rank 0."""
        if self.rank == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    # ------------------------------------------------------------------------------------------ the end

    def _finish(self, fisher: FisherAccumulator) -> None:
        self.watchdog.beat("saving the Fisher")
        estimate = fisher.mean()
        anchor = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        config, stage = self.config, self.stage
        facts = training_facts(stage, self.model.origin, self.mesh, self.device) | {
            "stage": stage.name,
            "run": stage.run,
            "dataset": config.source,
            "subset": config.subset,
            "split": config.split,
            "prompt": config.prompt,
            "tokens": config.tokens,
            "labels": config.labels,
            "samples": estimate.samples,
            "seed": config.seed,
            "method": config.method,
            "examples": estimate.examples,
            "skipped": estimate.skipped,
            "model_hash": self.base_hash.result(),
            "tokenizer_hash": self.tokenizer.hash,
        }
        written = save_ewc_state(stage.dir.path, estimate, anchor, facts, getattr(torch, config.dtype))
        if self.rank == 0:
            found = records.read_json(stage.dir.manifest_json)["summary"]
            summary: FisherSummary = {
                "examples": estimate.examples,
                "skipped": estimate.skipped,
                "trace": found["trace"],
                "mean": found["mean"],
                "zero_fraction": found["zeros"] / found["parameters"],
            }
            stage.finish(written, **summary)
            shutil.rmtree(stage.dir.fisher_partial, ignore_errors=True)
        dist.barrier()


def _with_sources(error: NonFiniteExampleError, questions: QuestionBatches) -> NonFiniteExampleError:
    """Returns the error with the origins of its examples; failed.json lists its `samples`."""
    where = ", ".join(questions.describe(example) for example in error.samples[:8])
    return NonFiniteExampleError(f"{error}; they come from {where}", error.samples)
