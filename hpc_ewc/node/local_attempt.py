"""A job of the local executor, run by submitit in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpc_ewc.node.node_attempt import NodeAttempt
from hpc_ewc.node.task import JobContext, JobTask
from hpc_ewc.node.worker_process import WorkerProcess
from hpc_ewc.process import Process


@dataclass(frozen=True)
class LocalTask(JobTask):
    """The task of a local job; its token is its id too."""

    owner: Process | None = None
    """The submit command in the foreground: the job stops when it is gone."""

    def __call__(self) -> int:
        """Run the worker to its end and return its exit status, which alone decides nothing: see outcome.py."""
        return LocalAttempt(self, os.getppid()).run()


class LocalAttempt(NodeAttempt):
    """The only attempt of a local job."""

    def __init__(self, task: LocalTask, parent: int) -> None:
        super().__init__(task, JobContext(task.token))
        self.owner, self.parent = task.owner, parent

    def run(self) -> int:
        self.handle_signals()
        (status,) = self.run_workers() or [0]
        self.write_exit(status)
        return status

    def forward_stop(self, worker: WorkerProcess) -> None:
        if self.owner is not None and (not self.owner.is_alive() or os.getppid() != self.parent):
            self.request_stop("submit is gone")
        super().forward_stop(worker)
