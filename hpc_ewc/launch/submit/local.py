"""Runs a graph on this machine, in the foreground: as many jobs at once as fit, the one that unblocks most first.

submitit's LocalExecutor starts a job; when to start it and how it ended is decided here: submitit would start all jobs
at once, end them after two minutes, and report `sys.exit(3)` as finished.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import REPORT, Element
from hpc_ewc.artefacts.completeness import Completeness, check_artefact
from hpc_ewc.artefacts.failure import describe_exit, last_error, record_failure
from hpc_ewc.artefacts.job_logs import tail
from hpc_ewc.artefacts.outcome import Outcome, decide_outcome, read_exit
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.plan.graph import Node, elements, priorities
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.show.display import Display
from hpc_ewc.launch.show.rows import Row, duration, read_progress
from hpc_ewc.launch.submit.local_job import LiveJob, start
from hpc_ewc.node.attempt import POLL_S, poll_until
from hpc_ewc.node.commands import uses_torchrun
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.local_attempt import LocalTask
from hpc_ewc.process import Process, kill_tree, process, signal_handler, this_process

CANCEL_POLL_S = 1.0
"""Time between two checks of the ledger for cancelled runs."""
SAVE_S = 60.0
"""Time that jobs get to save after a stop request, before they are killed."""
ENDED = ("done", "failed", "stopped", "blocked")


@dataclass
class NodeRun:
    """The state of one graph node in this submit."""

    node: Node
    state: str
    pending: list[Element] = field(default_factory=list)
    live: list[LiveJob] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    started: float | None = None
    note: str = ""


class LocalRun:
    """Runs the missing jobs of a plan.

    Args:
        plan: of the submit; its unfinished artefacts have their stage files.
        ledger: records every job.
        code: folder of the package for the jobs.
        display: shows progress.
    """

    def __init__(self, plan: Plan, ledger: Ledger, code: Path, display: Display) -> None:
        self.graph, self.profile, self.out = plan.graph, plan.profile, plan.out
        self.ledger, self.code, self.display = ledger, code, display
        self.runs = {name: self._node_run(node, plan.found[name]) for name, node in self.graph.nodes.items()}
        self.priority = priorities(self.graph, [name for name, run in self.runs.items() if run.state != "done"])
        self.free_gpus = list(range(self.profile.local.gpus))
        self.interrupts = 0
        self.count = 0
        self.stamp = time.strftime("%Y%m%d-%H%M%S")
        self.cancel_checked_at = 0.0
        self.report_token = ""

    def _node_run(self, node: Node, found: Completeness) -> NodeRun:
        if found.done:
            return NodeRun(node, "done")
        return NodeRun(node, "waiting", elements(node, found.missing or None), note=found.note)

    # ------------------------------------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Run the jobs to their end; False if INT, TERM or HUP stopped them. A second signal kills the jobs."""
        with signal_handler(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                while not self.interrupts:
                    self._collect_ended()
                    self._drop_cancelled()
                    self._block_dependants()
                    while (chosen := self._next_job()) is not None:
                        self._start(*chosen)
                    self.display.update(self.rows())
                    if not self._live():
                        break
                    time.sleep(POLL_S)
            finally:  # also after an error of our own: no job outlives its submit
                self._stop_all()
        return not self.interrupts

    def _live(self) -> list[LiveJob]:
        return [job for run in self.runs.values() for job in run.live]

    def _next_job(self) -> tuple[NodeRun, Element] | None:
        """The next job to start: of those that are ready and fit, the one that unblocks most, in graph order."""
        ready = [run for run in self.runs.values() if run.pending and self._is_ready(run.node) and self._fits(run.node)]
        if not ready:
            return None
        best = max(ready, key=lambda run: self.priority[run.node.id])
        return best, best.pending.pop(0)

    def _is_ready(self, node: Node) -> bool:
        """Whether its inputs are done; a report waits until all have ended, however."""
        needed = ENDED if node.stage == REPORT else ("done",)
        return all(self.runs[name].state in needed for name in node.depends)

    def _fits(self, node: Node) -> bool:
        live = self._live()
        cpus = sum(job.cpus for job in live) + self._cpus(node)
        return not live or (cpus <= self.profile.cpus and self._gpus(node) <= len(self.free_gpus))

    def _cpus(self, node: Node) -> int:
        """Cores of all its nodes, since all nodes are this machine."""
        return node.resources.cpus_per_task * node.resources.nodes

    def _gpus(self, node: Node) -> int:
        return min(node.resources.gpus_per_node * node.resources.nodes, self.profile.local.gpus)

    def _block_dependants(self) -> None:
        """Nodes that need a failed or stopped one do not start; the report does."""
        for run in self.runs.values():
            if run.state != "waiting" or run.node.stage == REPORT:
                continue
            lost = [name for name in run.node.depends if self.runs[name].state in ("failed", "blocked", "stopped")]
            if lost:
                stopped = all(self.runs[name].state == "stopped" for name in lost)
                run.state, run.note = ("stopped" if stopped else "blocked"), f"needs {lost[0]}"
                run.pending.clear()

    def _drop_cancelled(self) -> None:
        """Do not start runs that `hpc-ewc cancel` cancelled; their running jobs have stop files already."""
        if time.monotonic() - self.cancel_checked_at < CANCEL_POLL_S:
            return
        self.cancel_checked_at = time.monotonic()
        for name in self.ledger.read().cancelled & self.runs.keys():
            run = self.runs[name]
            run.pending.clear()
            if run.state == "waiting":
                run.state, run.note = "stopped", "cancelled"

    # ------------------------------------------------------------------------------------------ start

    def _start(self, run: NodeRun, element: Element) -> None:
        """Start one job; the ledger gets its intent before and its process after."""
        node, token = run.node, self._new_token()
        gpus = tuple(self.free_gpus[: self._gpus(node)])
        self.ledger.intent(token, node.stage, node.run, element.name)
        handle = start(self._task(node, element, token), gpus)
        folder = self.graph.root.job(token)
        job = LiveJob(token, element, folder, handle, process(int(handle.job_id)), self._cpus(node), gpus)
        self.ledger.submitted(token, token, job.process)
        self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in gpus]
        run.live.append(job)
        run.state, run.note = "running", ""
        run.started = run.started or job.started

    def _new_token(self) -> str:
        """A new job's name, never given twice: pids are given again, and a stop file must not reach another job."""
        while True:
            self.count += 1
            token = f"{self.stamp}-{self.count:03d}"
            try:
                self.graph.root.job(token).mkdir(parents=True, mode=0o700)
            except FileExistsError:
                continue
            return token

    def _task(self, node: Node, element: Element, token: str) -> LocalTask:
        # the ranks of all nodes, since all nodes are this machine
        ranks = node.resources.nproc_per_node * node.resources.nodes if uses_torchrun(node.stage) else 1
        threads = max(1, min(self._cpus(node), self.profile.cpus) // ranks)
        environment = worker_environment(self.code, self.profile.env, threads)
        return LocalTask(
            name=node.id,
            stage=node.stage,
            folder=str(self.graph.root.root if node.stage == REPORT else node.folder.path),
            jobs=str(self.graph.root.jobs),
            token=token,
            elements=((element,),),
            python=self.profile.interpreter,
            environment=environment | {"COLUMNS": str(self.display.console.width)},
            nproc_per_node=ranks,
            out=str(self.out),
            owner=this_process(),
        )

    # ------------------------------------------------------------------------------------------ end

    def _collect_ended(self) -> None:
        """Record the jobs that ended, and the state of nodes that have no jobs left."""
        for run in self.runs.values():
            ended = [job for job in run.live if job.handle.done()]
            for job in ended:
                self._record_end(run, job)
            if ended and not run.live and not run.pending:
                self._record_state(run)

    def _record_end(self, run: NodeRun, job: LiveJob) -> None:
        run.live.remove(job)
        self.free_gpus = sorted([*self.free_gpus, *job.gpus])
        is_report = run.node.stage == REPORT
        status = read_exit(rundir.exit_file(job.folder, 0)).get("status")
        outcome = decide_outcome(None if is_report else run.node, [job.element], job.folder, 0, status)
        run.outcomes.append(outcome)
        if outcome == "failed" and is_report:
            run.note = f"the report {describe_exit(status)}\n{tail(job.folder)}"
        elif outcome == "failed":
            record_failure(run.node.folder, job.element.worker, job.folder, 0, status)
        elif outcome == "finished" and is_report:
            self.report_token = job.token
        self.ledger.ended(job.token, outcome)

    def _record_state(self, run: NodeRun) -> None:
        """Set the state of a node whose jobs have all ended."""
        if "failed" in run.outcomes:
            run.state, run.note = "failed", run.note or last_error(run.node.folder)
        elif "stopped" in run.outcomes:
            run.state = "stopped"
        elif run.node.stage != REPORT and not check_artefact(run.node).done:
            run.state, run.note = "failed", "all its jobs finished, and it is still incomplete"
        else:
            run.state, run.note = "done", duration(time.monotonic() - (run.started or 0.0))

    # ------------------------------------------------------------------------------------------ interrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1

    def _stop_all(self) -> None:
        """Stop the running jobs."""
        live, interrupts = self._live(), self.interrupts
        if not live:
            return

        def is_over() -> bool:
            self._collect_ended()
            self.display.update(self.rows())
            return not self._live() or self.interrupts > interrupts

        self.display.say(f"stopping {len(live)} jobs; they save first (press Ctrl-C again to kill them)")
        stop_or_kill([(job.process, job.folder) for job in live], is_over)
        while self._live():
            time.sleep(POLL_S)
            self._collect_ended()

    # ------------------------------------------------------------------------------------------ state

    def rows_by_state(self) -> dict[str, list[tuple[str, str]]]:
        """Node ids and notes by state."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name, run in self.runs.items():
            found.setdefault(run.state, []).append((name, run.note))
        return found

    def rows(self) -> list[Row]:
        rows = []
        for run in self.runs.values():
            ids = [job.token for job in run.live]
            progress = read_progress(run.node.folder, ids, len(run.node.expected)) if ids else None
            rows.append(Row(run.node.stage, run.node.run, run.state, progress, run.note))
        return rows


def stop_or_kill(jobs: Sequence[tuple[Process, Path]], is_over: Callable[[], bool]) -> None:
    """Ask jobs to save and leave; kill those that are alive after a minute, or when `is_over`."""
    for _, folder in jobs:
        if folder.is_dir():
            rundir.stop_file(folder, 0).touch()
    for _ in poll_until(SAVE_S):
        if is_over():
            break
    for job, _ in jobs:
        if job.is_alive():
            kill_tree(job.pid)


def wait_for_orphans(jobs: Sequence[tuple[Process, Path]], display: Display) -> None:
    """Wait for jobs whose submit was killed: they notice it, save and leave; those that do not are killed."""
    live = [(job, folder) for job, folder in jobs if job.is_alive()]
    if live:
        display.say(f"waiting for {len(live)} jobs of a submit that was killed: they save first")
        stop_or_kill(live, lambda: not any(job.is_alive() for job, _ in live))
