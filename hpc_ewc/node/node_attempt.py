"""The workers of one node of a job, from start to end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.node import rendezvous
from hpc_ewc.node.attempt import POLL_S, Attempt
from hpc_ewc.node.commands import plain_command, torchrun_command, uses_torchrun
from hpc_ewc.node.environment import node_caches, node_environment, node_folder
from hpc_ewc.node.task import JobContext, JobTask
from hpc_ewc.node.worker_process import WorkerProcess
from hpc_ewc.process import children, kill_tree
from hpc_ewc.rundir import StageDir

RENDEZVOUS_IDLE_S, SHUTDOWN_IDLE_S = 5.0, 60.0
"""How long torchrun may have no ranks after a stop: during the rendezvous, and after its ranks have ended."""


class NodeAttempt(Attempt):
    """One attempt on one node: torchrun with its ranks, one plain worker, or one plain worker on each GPU."""

    def __init__(self, task: JobTask, context: JobContext) -> None:
        super().__init__(task.job(context.job_id), context.restart)
        self.task, self.context = task.at(context.index), context
        self.elements = task.elements[self.context.index]
        self.folder = StageDir(Path(self.task.folder))
        self.logs = rundir.node_logs(self.job, self.restart, self.context.node)
        # in a container the children are its runtime's own; the ranks see the stop file
        self.sees_ranks = not task.container.runtime
        self.had_ranks, self.idle_since = False, math.inf

    def run_workers(self) -> list[int]:
        """Run this node's workers and return their exit statuses in the order they ended; none after a stop.

        Raises:
            StageError: node 0 published no port, or slurm.scratch cannot be made.
        """
        with self.worker_environment() as environment:
            if self.stop_file.exists():
                return []
            if uses_torchrun(self.task.stage):
                return self._run_torchrun(environment)
            return self._run_plain(environment)

    @contextmanager
    def worker_environment(self) -> Iterator[dict[str, str]]:
        """Yield the workers' environment, with caches on the node's own disk that are removed at the end.

        Raises:
            StageError: slurm.scratch cannot be made.
        """
        with node_folder(self.task.scratch, f"{self.context.job_id}.{self.restart}") as scratch:
            environment = node_environment(self.task.environment, self.context.job_id, self.stop_file)
            caches = node_caches(scratch, self.task.stage, environment) if scratch else {}
            yield environment | caches

    def _run_torchrun(self, environment: dict[str, str]) -> list[int]:
        with rendezvous.rendezvous_arguments(self.context, self.job, self.task.host_suffix, self._is_over) as arguments:
            if arguments is None:
                return []
            command = torchrun_command(self.task, self.elements[0], arguments, self.logs)
            # torchrun's own output goes to a file: the job's log is to begin with the rank's traceback
            log = rundir.torchrun_log(self.logs)
            return [self.run_worker(command, environment, log, torchrun=self.sees_ranks)]

    def _is_over(self) -> bool:
        """Node 0 ended this attempt before the ranks met, or a stop was requested."""
        return read_outcome(self.exit_file) is not None or self.stop_file.exists()

    def _run_plain(self, environment: dict[str, str]) -> list[int]:
        """Run as many elements side by side as there are slots, and the next one as soon as a slot is free."""
        waiting = list(self.elements)
        running: dict[int, WorkerProcess] = {}
        statuses: list[int] = []
        while True:
            for slot in set(range(self.task.slots)) - running.keys():
                if waiting and not self.stop_file.exists():
                    running[slot] = self._start(waiting.pop(0), environment, slot)
            if not running:
                return statuses
            time.sleep(POLL_S)
            for slot, worker in list(running.items()):
                self.forward_stop(worker)
                if (status := worker.poll()) is not None:
                    statuses.append(status)
                    del running[slot]

    def _start(self, element: Element, environment: dict[str, str], slot: int) -> WorkerProcess:
        """Start one plain worker; beside others it sees one GPU and gets its share of the cores."""
        own = {}
        if len(self.elements) > 1:
            own["OMP_NUM_THREADS"] = str(max(1, self.task.cpus_per_task // self.task.slots))
            if self.task.gpus_per_node and "CUDA_VISIBLE_DEVICES" not in self.task.environment:
                visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES") or ""
                gpus = [name for name in visible.split(",") if name] or list(map(str, range(self.task.gpus_per_node)))
                own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        command, logs = plain_command(self.task, element), self.logs / element.name / "0"
        return WorkerProcess(command, environment | own, logs, torchrun=False)

    def forward_stop(self, worker: WorkerProcess) -> None:
        """Forward a stop; if another node failed there is nothing worth saving, and the workers are killed."""
        if self.signals and read_outcome(self.exit_file) == "failed":
            kill_tree(worker.pid)
        elif self.stop_file.exists():
            if self.sees_ranks:
                worker.request_stop()
            if worker.torchrun and self._is_idle(worker):
                kill_tree(worker.pid)

    def _is_idle(self, worker: WorkerProcess) -> bool:
        """Whether torchrun only waits, for minutes, for nodes that left before its ranks began or after they ended.

        After they ended it gets longer: on node 0 it serves the store through which the other ranks leave.
        """
        if children(worker.pid):
            self.had_ranks, self.idle_since = True, math.inf
        elif self.idle_since == math.inf:
            self.idle_since = time.monotonic()
        return time.monotonic() - self.idle_since > (SHUTDOWN_IDLE_S if self.had_ranks else RENDEZVOUS_IDLE_S)
