"""The workers of one node of a job on Slurm, from their start to their ends."""

from __future__ import annotations

import math
import time

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.node import rendezvous
from hpc_ewc.node.commands import plain_command, torchrun_command
from hpc_ewc.node.history import read_outcome
from hpc_ewc.node.task import SlurmContext, SlurmTask
from hpc_ewc.node.torchrun import POLL_S, WorkerProcess, uses_torchrun
from hpc_ewc.process import children, kill_tree

MEET_S, LEAVE_S = 5.0, 60.0
"""How long torchrun may be without ranks after a stop: while the nodes meet, and when the ranks have ended."""


class NodeWorkers:
    """What one node runs in one attempt: torchrun with its ranks, one plain worker, or one on each GPU.

    Args:
        task: of the job.
        here: this node.
        signals: that this process has had; its handler adds to them.
    """

    def __init__(self, task: SlurmTask, here: SlurmContext, signals: set[int]) -> None:
        self.task, self.here, self.signals = task, here, signals
        self.elements = task.elements[here.index]
        self.folder = task.job(here.job_id)
        self.stop_file = rundir.stop_file(self.folder, here.restart)
        self.exit_file = rundir.exit_file(self.folder, here.restart)
        self.logs = rundir.node_logs(self.folder, here.restart, here.node)
        # in a container the children are its runtime's: ranks see the stop file
        self.sees_ranks = not task.container.runtime
        self.had_ranks, self.idle_since = False, math.inf

    def run(self, environment: dict[str, str]) -> list[int]:
        """Their exit statuses, in the order of their ends; none where nothing was to be started any more.

        Raises:
            StageError: node 0 published no port.
        """
        if uses_torchrun(self.task.stage):
            return self._run_torchrun(environment)
        return self._run_plain(environment)

    def _run_torchrun(self, environment: dict[str, str]) -> list[int]:
        with rendezvous.meet(self.here, self.folder, self.task.host_suffix, self._is_over) as arguments:
            if arguments is None:
                return []
            command = torchrun_command(self.task, self.elements[0], arguments, self.logs)
            # torchrun's own words aside: the first thing in the job's log is to be the rank's own traceback
            worker = WorkerProcess(command, environment, rundir.torchrun_log(self.logs), self.sees_ranks)
            while (status := worker.poll()) is None:
                self._pass_on_stop(worker)
                time.sleep(POLL_S)
            return [status]

    def _is_over(self) -> bool:
        """Node 0 ended this attempt before the ranks met, or all are to stop."""
        return read_outcome(self.exit_file) is not None or self.stop_file.exists()

    def _run_plain(self, environment: dict[str, str]) -> list[int]:
        """As many side by side as there are slots; the next element as soon as one is free."""
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
                self._pass_on_stop(worker)
                if (status := worker.poll()) is not None:
                    statuses.append(status)
                    del running[slot]

    def _start(self, element: Element, environment: dict[str, str], slot: int) -> WorkerProcess:
        """One plain worker; beside others it sees one GPU, and has its share of the cores."""
        own = {}
        if len(self.elements) > 1:
            own["OMP_NUM_THREADS"] = str(max(1, self.task.cpus_per_task // self.task.slots))
            if self.task.gpus_per_node and "CUDA_VISIBLE_DEVICES" not in self.task.environment:
                visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES") or ""
                given = [name for name in visible.split(",") if name]
                given = given or [str(number) for number in range(self.task.gpus_per_node)]
                own["CUDA_VISIBLE_DEVICES"] = given[slot % len(given)]
        logs = self.logs / element.name / "0"
        return WorkerProcess(plain_command(self.task, element), environment | own, logs, torchrun=False)

    def _pass_on_stop(self, worker: WorkerProcess) -> None:
        """Pass on the wish to stop; where another node failed, nothing is worth saving: end at once."""
        if self.signals and read_outcome(self.exit_file) == "failed":
            kill_tree(worker.process.pid)
        elif self.stop_file.exists():
            if self.sees_ranks:
                worker.request_stop()
            if worker.torchrun and self._is_idle(worker):
                kill_tree(worker.process.pid)

    def _is_idle(self, worker: WorkerProcess) -> bool:
        """Torchrun waits for nodes that left, before it started its ranks or after they ended: minutes, for nothing.

        After they ended it is given longer: on node 0 it serves the store by which the others' ranks leave.
        """
        if children(worker.process.pid):
            self.had_ranks, self.idle_since = True, math.inf
        elif self.idle_since == math.inf:
            self.idle_since = time.monotonic()
        return time.monotonic() - self.idle_since > (LEAVE_S if self.had_ranks else MEET_S)
