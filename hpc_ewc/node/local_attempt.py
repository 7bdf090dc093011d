"""A job of the local executor, run by submitit in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.node.attempt import Attempt
from hpc_ewc.node.environment import node_environment
from hpc_ewc.node.worker_process import WorkerProcess
from hpc_ewc.process import Process


@dataclass(frozen=True)
class LocalTask:
    """The function that submitit calls; plain values only, so that its pickle can be read anywhere."""

    command: tuple[str, ...]
    """The worker's command line, torchrun included."""
    job_id: str
    folder: str
    """runs/NAME/jobs/<job_id>."""
    environment: dict[str, str] = field(default_factory=dict)
    torchrun: bool = False
    owner: Process | None = None
    """The submit command in the foreground: the job stops when it is gone."""

    def __call__(self) -> int:
        """Run the worker to its end and return its exit status, which alone decides nothing: see outcome.py."""
        return LocalAttempt(self).run()


class LocalAttempt(Attempt):
    """The only attempt of a local job."""

    def __init__(self, task: LocalTask) -> None:
        super().__init__(Path(task.folder), restart=0)
        self.task, self.parent = task, os.getppid()

    def run(self) -> int:
        self.handle_signals()
        status = 0
        if not self.stop_file.exists():  # a stop can be requested while the job is being started
            environment = node_environment(self.task.environment, self.task.job_id, self.stop_file)
            # torchrun keeps what its ranks print under ranks/; the output of one plain worker goes to the same place
            logs = None if self.task.torchrun else rundir.rank_logs(self.job) / "attempt_0" / "0"
            status = self.run_worker(self.task.command, environment, logs, torchrun=self.task.torchrun)
        self.write_exit(status)
        return status

    def forward_stop(self, worker: WorkerProcess) -> None:
        owner = self.task.owner
        if owner is not None and (not owner.is_alive() or os.getppid() != self.parent):
            self.request_stop("submit is gone")
        super().forward_stop(worker)
