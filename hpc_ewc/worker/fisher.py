"""The Fisher stage inside a job: `torchrun … -m hpc_ewc.worker fisher DIR`.

The diagonal Fisher of the base model on the questions of [fisher], and the anchor, which is the base model itself.
Sums are kept in `partial/` every few minutes and when the job is asked to stop; a later attempt goes on from there,
on a CPU with as many ranks to the same bits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.stage import Stage

if TYPE_CHECKING:
    import torch

    from hpc_ewc.data.questions import QuestionBatches
    from hpc_ewc.ewc import FisherAccumulator, FisherSums
    from hpc_ewc.train.watchdog import Watchdog

SAVE_EVERY_S = 300.0
"""Between two saves of the sums: what a killed job loses at most."""


def main(argv: Sequence[str]) -> int:
    """Estimate the Fisher that DIR describes, or go on with it; 0 when it is done or was asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker fisher")
    parser.add_argument("dir", help="folder of the artefact, with stage.json and config.toml")
    stage = Stage(parser.parse_args(argv).dir, kind="fisher")
    stage.listen()
    if stage.is_done():
        return 0
    with stage.attempt():
        import torch.distributed as dist

        from hpc_ewc.train import process_group
        from hpc_ewc.train.watchdog import Watchdog

        timeout_s = stage.config.train.watchdog_s
        watchdog = Watchdog(timeout_s, lambda message: stage.fail(TimeoutError(message)))
        try:
            with process_group.report_lost_peer(stage.dir.failed):
                device = process_group.join(2 * timeout_s + 60)
                job = FisherJob(stage, device, watchdog)
                job.say("done" if job.run() else f"stopped after example {job.position}; submit again to go on")
                dist.destroy_process_group()
        finally:
            watchdog.close()
    return 0


class FisherJob:
    """One estimate on this rank; every rank of the job makes one, with the process group up.

    Args:
        stage: of this Fisher.
        device: of this rank.
        watchdog: told at each batch.
    """

    def __init__(self, stage: Stage, device: torch.device, watchdog: Watchdog) -> None:
        import torch
        import torch.distributed as dist

        from hpc_ewc.data.tokenizer import load_tokenizer
        from hpc_ewc.model.load import find_model, load_model
        from hpc_ewc.model.mesh import build_mesh

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
        self.position = 0
        self.started_at = time.monotonic()
        self.started_from = 0

    def run(self) -> bool:
        """Estimate to the end and save, or stop when a rank is asked to; True when all is written."""
        from hpc_ewc.ewc import FisherAccumulator, NonFiniteExampleError
        from hpc_ewc.train import process_group

        sums = self._resume()
        questions = self._questions()
        batches = iter(questions)
        saved_at, saved_position = time.monotonic(), self.position
        options: dict[str, Any] = {name: getattr(self.config, name) for name in ("labels", "method", "samples", "seed")}
        options["on_nonfinite"] = self.config.on_nonfinite
        with FisherAccumulator(self.model, start=sums, **options) as fisher:
            while True:
                due = time.monotonic() - saved_at >= SAVE_EVERY_S
                stop, due = process_group.any_rank([self.stage.stop_requested(), due])
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
                self.position += self.config.batch_size * self.world_size
                self._report(min(self.position, questions.total), questions.total, fisher)
        self._finish(fisher)
        return True

    def _questions(self) -> QuestionBatches:
        from hpc_ewc.data.questions import question_batches

        return question_batches(
            self.config,
            self.stage.inputs.get("questions") or None,
            self.tokenizer,
            rank=self.rank,
            world_size=self.world_size,
            start=self.position,
        )

    def _report(self, done: int, total: int, fisher: FisherAccumulator) -> None:
        rate = (done - self.started_from) / max(1e-9, time.monotonic() - self.started_at)
        eta_s = (total - done) / rate if rate > 0 else float("nan")
        self.stage.progress(done, total, "example", rate=rate, eta_s=eta_s, skipped=fisher.sums.skipped)

    # ------------------------------------------------------------------------------------------ sums on disk

    def _partials(self) -> list[Path]:
        """Folders of sums, newest first; the name of each is the number of examples it has read."""
        folder = self.stage.dir.fisher_partial
        return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)

    def _save(self, sums: FisherSums) -> None:
        from hpc_ewc.ewc import save_fisher_sums

        self.watchdog.beat("saving sums")
        folder = self.stage.dir.fisher_partial / f"{self.position:08d}"
        save_fisher_sums(folder, sums, {"key": self.stage.key, "position": self.position})
        if self.rank == 0:
            for older in self._partials():
                if older < folder:
                    shutil.rmtree(older, ignore_errors=True)

    def _resume(self) -> FisherSums | None:
        """Sums of an earlier attempt, or None; one that is damaged is said to be, and left aside."""
        from hpc_ewc.ewc import load_fisher_sums
        from hpc_ewc.ewc.sharding.ranks import gather_objects

        for folder in gather_objects(self._partials())[0]:
            try:
                sums, facts = load_fisher_sums(folder, self.model)
                if facts["key"] != self.stage.key:
                    raise ArtefactError(f"{folder}: sums of key {facts['key']}, not {self.stage.key}")
            except ArtefactError as error:
                self.say(f"not going on from {folder.name}: {error}")
                continue
            self.position = self.started_from = facts["position"]
            self.say(f"going on after example {self.position}")
            return sums
        return None

    def say(self, text: str) -> None:
        """A line of the job's log, from rank 0."""
        if self.rank == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    # ------------------------------------------------------------------------------------------ the end

    def _finish(self, fisher: FisherAccumulator) -> None:
        import torch
        import torch.distributed as dist

        from hpc_ewc.ewc import save_ewc_state
        from hpc_ewc.train.manifest import training_facts

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
            summary = records.read_json(stage.dir.manifest_json)["summary"]
            stage.finish(
                written,
                examples=estimate.examples,
                skipped=estimate.skipped,
                trace=summary["trace"],
                mean=summary["mean"],
                zero_fraction=summary["zeros"] / summary["parameters"],
            )
            shutil.rmtree(stage.dir.fisher_partial, ignore_errors=True)
        dist.barrier()


def _with_sources(error: Any, questions: QuestionBatches) -> InputError:
    """The error, saying where its examples come from; `samples` goes to failed.json."""
    where = ", ".join(questions.describe(example) for example in error.samples[:8])
    told = InputError(f"{error}; they come from {where}")
    told.samples = error.samples  # type: ignore[attr-defined]
    return told
