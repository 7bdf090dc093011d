"""The one job of `hpc-ewc doctor`: through submitit, setup lines, container and rendezvous, as every other job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ewc.errors import StageError
from hpc_ewc.launch import rendezvous
from hpc_ewc.launch.slurm_job import SlurmAttempt
from hpc_ewc.launch.slurm_node import in_container, node_folder
from hpc_ewc.launch.slurm_task import SlurmTask
from hpc_ewc.launch.torchrun import POLL_S, WorkerProcess

PROBE = "hpc_ewc.worker.probe"


@dataclass(frozen=True)
class ProbeTask(SlurmTask):
    """What submitit calls on each node; `folder` is where the findings go, `nonce` a file that all nodes should see."""

    nonce: str = ""

    def __call__(self) -> str:
        return ProbeAttempt(self, self.nonce).run()


class ProbeAttempt(SlurmAttempt):
    """One node's part."""

    def __init__(self, task: SlurmTask, nonce: str) -> None:
        super().__init__(task)
        self.nonce = nonce

    def run(self) -> str:
        """Look, then sum one tensor over all ranks of all nodes.

        Raises:
            StageError: one of them failed here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with node_folder(self.task.scratch, f"{self.here.job_id}.{self.here.restart}") as scratch:
            environment = self._environment(scratch)
            arguments = ("-m", PROBE, "look", "--out", self.task.folder, "--nonce", self.nonce)
            self._run_to_end("look", in_container(self.task, arguments), environment)
            if self.task.nodes * self.task.nproc_per_node > 1:
                with rendezvous.meet(self.here, self.folder, self.task.host_suffix) as meeting:
                    if meeting is not None:
                        self._run_to_end("all-reduce", self._all_reduce(meeting), environment)
        return "finished"

    def _all_reduce(self, meeting: Sequence[str]) -> tuple[str, ...]:
        torchrun = ("-m", "torch.distributed.run", *meeting, f"--nproc-per-node={self.task.nproc_per_node}")
        probe = ("-m", PROBE, "all-reduce", "--out", self.task.folder)
        return in_container(self.task, (*torchrun, "--max-restarts=0", *probe))

    def _run_to_end(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        logs = self._logs() / name / "0"
        worker = WorkerProcess(command, environment, logs, torchrun=False)
        while (status := worker.poll()) is None:
            time.sleep(POLL_S)
        if status:
            raise StageError(f"{name} ended with status {status} on {self.here.hosts[self.here.node]}: see {logs}")
