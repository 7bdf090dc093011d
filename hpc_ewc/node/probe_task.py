"""The one job of `hpc-ewc doctor`: through submitit, setup lines, container and rendezvous, as every other job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.errors import StageError
from hpc_ewc.node import rendezvous
from hpc_ewc.node.commands import in_container
from hpc_ewc.node.environment import node_environment, node_folder
from hpc_ewc.node.task import SlurmContext, SlurmTask
from hpc_ewc.node.torchrun import POLL_S, WorkerProcess

PROBE = "hpc_ewc.worker.probe"


@dataclass(frozen=True)
class ProbeTask(SlurmTask):
    """What submitit calls on each node; `folder` is where the findings go, `nonce` a file that all nodes should see."""

    nonce: str = ""

    def __call__(self) -> str:
        """Look, then sum one tensor over all ranks of all nodes.

        Raises:
            StageError: one of them failed on this node.
        """
        here = SlurmContext.read()
        job = self.job(here.job_id)
        job.mkdir(parents=True, exist_ok=True)
        logs = rundir.node_logs(job, here.restart, here.node)
        with node_folder(self.scratch, f"{here.job_id}.{here.restart}") as scratch:
            environment = node_environment(self, here, rundir.stop_file(job, here.restart), scratch)
            arguments = ("-m", PROBE, "look", "--out", self.folder, "--nonce", self.nonce)
            run_to_end("look", in_container(self, arguments), environment, logs, here)
            if self.nodes * self.nproc_per_node > 1:
                with rendezvous.meet(here, job, self.host_suffix) as meeting:
                    if meeting is not None:
                        run_to_end("all-reduce", self._all_reduce(meeting), environment, logs, here)
        return "finished"

    def _all_reduce(self, meeting: Sequence[str]) -> tuple[str, ...]:
        torchrun = ("-m", "torch.distributed.run", *meeting, f"--nproc-per-node={self.nproc_per_node}")
        probe = ("-m", PROBE, "all-reduce", "--out", self.folder)
        return in_container(self, (*torchrun, "--max-restarts=0", *probe))


def run_to_end(name: str, command: Sequence[str], environment: dict[str, str], logs: Path, here: SlurmContext) -> None:
    """Wait for one worker of this node.

    Raises:
        StageError: it ended with another status than 0.
    """
    place = logs / name / "0"
    worker = WorkerProcess(command, environment, place, torchrun=False)
    while (status := worker.poll()) is None:
        time.sleep(POLL_S)
    if status:
        raise StageError(f"{name} ended with status {status} on {here.hosts[here.node]}: see {place}")
