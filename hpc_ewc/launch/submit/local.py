"""A graph run on this machine, in the foreground: as many jobs at once as fit, whatever unblocks most first.

submitit's LocalExecutor starts a job; when to start it, and how it ended, is decided here: it would start everything at
once, ends jobs after two minutes, and calls `sys.exit(3)` finished.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from hpc_ewc.launch.plan.graph import Graph, Node, elements, priorities
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.show.display import Display
from hpc_ewc.launch.show.rows import Row, duration, read_progress
from hpc_ewc.launch.submit.local_job import LiveJob, start
from hpc_ewc.node.commands import local_command, report_command, uses_torchrun
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.local_attempt import LocalTask
from hpc_ewc.process import Process, kill_tree, process, this_process

POLL_S = 0.2
LOOK_S = 1.0
"""Between two looks at the ledger for runs that were cancelled, and at progress."""
SAVE_S = 60.0
"""What jobs get to save in when they are to stop; then they are killed."""
SETTLED = ("done", "failed", "stopped", "blocked")


@dataclass
class NodeRun:
    """One node as this submit goes through it."""

    node: Node
    state: str
    pending: list[Element] = field(default_factory=list)
    live: list[LiveJob] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    started: float | None = None
    note: str = ""


class LocalRun:
    """Runs what is missing of a graph.

    Args:
        graph: of the experiment.
        found: by id, what is there of each node; the folders of those not done are ready for their workers.
        profile: how much of this machine may be used.
        ledger: where every job is written down.
        code: folder of the package for the jobs.
        out: folder of the tables.
        display: where progress goes.
    """

    def __init__(
        self,
        graph: Graph,
        found: dict[str, Completeness],
        profile: Profile,
        ledger: Ledger,
        code: Path,
        out: Path,
        display: Display,
    ) -> None:
        self.graph, self.profile, self.ledger = graph, profile, ledger
        self.code, self.out, self.display = code, out, display
        self.runs = {name: self._plan(node, found[name]) for name, node in graph.nodes.items()}
        wanted = [name for name, run in self.runs.items() if run.state != "done"]
        self.priority = priorities(graph, wanted)
        self.free_gpus = list(range(profile.local.gpus))
        self.interrupts = 0
        self.count = 0
        self.stamp = time.strftime("%Y%m%d-%H%M%S")
        self.looked_at = 0.0
        self.report_token = ""

    def _plan(self, node: Node, found: Completeness) -> NodeRun:
        if found.done:
            return NodeRun(node, "done")
        return NodeRun(node, "waiting", elements(node, found.missing or None), note=found.note)

    # ------------------------------------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Go through the graph; False if it was interrupted."""
        with self._interrupts():
            try:
                while not self.interrupts:
                    self._reap()
                    self._look_around()
                    self._settle_waiting()
                    while (chosen := self._next()) is not None:
                        self._start(*chosen)
                    self.display.update(self.rows())
                    if not self._live():
                        break
                    time.sleep(POLL_S)
            finally:  # also when something of ours is raised: no job outlives its submit
                self._stop_all()
        return not self.interrupts

    def _live(self) -> list[LiveJob]:
        return [job for run in self.runs.values() for job in run.live]

    def _next(self) -> tuple[NodeRun, Element] | None:
        """The job to start now: of those that may run and fit, the one that unblocks most, earlier ones first."""
        ready = [
            run for run in self.runs.values() if run.pending and self._may_start(run.node) and self._fits(run.node)
        ]
        if not ready:
            return None
        best = max(ready, key=lambda run: self.priority[run.node.id])
        return best, best.pending.pop(0)

    def _may_start(self, node: Node) -> bool:
        """Everything that it reads is there; a report waits for all to end, however."""
        needed = SETTLED if node.stage == REPORT else ("done",)
        return all(self.runs[name].state in needed for name in node.depends)

    def _fits(self, node: Node) -> bool:
        live = self._live()
        cpus = sum(job.cpus for job in live) + self._cpus(node)
        return not live or (cpus <= self.profile.cpus and self._gpus(node) <= len(self.free_gpus))

    def _cpus(self, node: Node) -> int:
        """Of all its nodes, which are this one here."""
        return node.resources.cpus_per_task * node.resources.nodes

    def _gpus(self, node: Node) -> int:
        return min(node.resources.gpus_per_node * node.resources.nodes, self.profile.local.gpus)

    # ------------------------------------------------------------------------------------------ start

    def _start(self, run: NodeRun, element: Element) -> None:
        """Submit one job: the intent before, the job's process after, both in the ledger."""
        token = self._token()
        folder = self.graph.root.job(token)
        gpus = tuple(self.free_gpus[: self._gpus(run.node)])
        self.ledger.intent(token, run.node.stage, run.node.run, element.name)
        task = self._task(run.node, element, token, folder)
        handle = start(task, run.node.id, self.profile.interpreter, gpus)
        job = LiveJob(token, element, folder, handle, process(int(handle.job_id)), self._cpus(run.node), gpus)
        self.ledger.submitted(token, token, job.process)
        self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in gpus]
        run.live.append(job)
        run.state, run.note = "running", ""
        run.started = run.started or job.started

    def _token(self) -> str:
        """Name of a job, never given twice: pids come round again, and a stop file must not meet another job."""
        while True:
            self.count += 1
            token = f"{self.stamp}-{self.count:03d}"
            try:
                self.graph.root.job(token).mkdir(parents=True, mode=0o700)
            except FileExistsError:
                continue
            return token

    def _task(self, node: Node, element: Element, token: str, folder: Path) -> LocalTask:
        resources = node.resources
        ranks = resources.nproc_per_node * resources.nodes if uses_torchrun(node.stage) else 1
        threads = max(1, min(self._cpus(node), self.profile.cpus) // ranks)
        if node.stage == REPORT:
            command = report_command(self.profile.interpreter, self.graph.root.root, self.out)
        else:
            python, where = self.profile.interpreter, node.folder.path
            command = local_command(python, node.stage, where, element.arguments, ranks=ranks, job=folder)
        return LocalTask(
            command=command,
            job_id=token,
            folder=str(folder),
            environment=worker_environment(self.code, self.profile.env, threads)
            | {"COLUMNS": str(self.display.console.width)},
            torchrun=uses_torchrun(node.stage),
            owner=this_process(),
        )

    # ------------------------------------------------------------------------------------------ end

    def _reap(self) -> None:
        """Take in the jobs that ended, and see what became of their nodes."""
        for run in self.runs.values():
            ended = [job for job in run.live if job.handle.done()]
            for job in ended:
                self._take_in(run, job)
            if ended and not run.live and not run.pending:
                self._close(run)

    def _take_in(self, run: NodeRun, job: LiveJob) -> None:
        run.live.remove(job)
        self.free_gpus = sorted([*self.free_gpus, *job.gpus])
        artefact = None if run.node.stage == REPORT else run.node
        status = read_exit(rundir.exit_file(job.folder, 0)).get("status")
        outcome = decide_outcome(artefact, [job.element], job.folder, 0, status)
        if outcome == "failed" and artefact is not None:
            record_failure(artefact.folder, job.element.worker, job.folder, 0, status)
        run.outcomes.append(outcome)
        self.ledger.ended(job.token, outcome)
        if run.node.stage == REPORT and outcome == "finished":
            self.report_token = job.token
        elif run.node.stage == REPORT and outcome == "failed":
            run.note = f"the report {describe_exit(status)}\n{tail(job.folder)}"

    def _close(self, run: NodeRun) -> None:
        """All elements of a node have ended."""
        seconds = time.monotonic() - (run.started or 0.0)
        if "failed" in run.outcomes:
            run.state, run.note = "failed", run.note or last_error(run.node.folder)
        elif "stopped" in run.outcomes:
            run.state = "stopped"
        elif run.node.stage != REPORT and not check_artefact(run.node).done:
            run.state, run.note = "failed", "all its jobs ended well, and it is not whole"
        else:
            run.state, run.note = "done", duration(seconds)

    def _settle_waiting(self) -> None:
        """What reads something that failed or was stopped does not start; the report does."""
        for run in self.runs.values():
            if run.state != "waiting" or run.node.stage == REPORT:
                continue
            lost = [name for name in run.node.depends if self.runs[name].state in ("failed", "blocked", "stopped")]
            if lost:
                halted = all(self.runs[name].state == "stopped" for name in lost)
                run.state, run.note = ("stopped" if halted else "blocked"), f"needs {lost[0]}"
                run.pending.clear()

    def _look_around(self) -> None:
        """Runs that `hpc-ewc cancel` took back are not started; their jobs have their stop files already."""
        if time.monotonic() - self.looked_at < LOOK_S:
            return
        self.looked_at = time.monotonic()
        for name in self.ledger.read().cancelled & self.runs.keys():
            run = self.runs[name]
            run.pending.clear()
            if run.state == "waiting":
                run.state, run.note = "stopped", "cancelled"

    # ------------------------------------------------------------------------------------------ interrupt

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """INT, TERM and HUP ask for an end; a second one does not wait for it."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1

    def _stop_all(self) -> None:
        """Ask the jobs to save and leave; kill those that have not after a minute, or at a second Ctrl-C."""
        live = self._live()
        if not live:
            return
        asked = self.interrupts
        self.display.say(f"stopping {len(live)} jobs; they save first (again: kill them)")
        for job in live:
            rundir.stop_file(job.folder, 0).touch()
        deadline = time.monotonic() + SAVE_S
        while self._live() and time.monotonic() < deadline and self.interrupts == asked:
            time.sleep(POLL_S)
            self._reap()
            self.display.update(self.rows())
        for job in self._live():
            kill_tree(job.process.pid)
        while self._live():
            time.sleep(POLL_S)
            self._reap()

    # ------------------------------------------------------------------------------------------ what is seen

    def rows_by_state(self) -> dict[str, list[tuple[str, str]]]:
        """Ids and notes, by state."""
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


def wait_for_orphans(jobs: Sequence[tuple[Process, Path]], display: Display) -> None:
    """Wait for jobs whose submit was killed: they see it, save and leave; kill those that have not after a minute."""
    live = [(lost, folder) for lost, folder in jobs if lost.is_alive()]
    if not live:
        return
    display.say(f"waiting for {len(live)} jobs of a submit that was killed: they save first")
    for _, folder in live:
        if folder.is_dir():
            rundir.stop_file(folder, 0).touch()
    deadline = time.monotonic() + SAVE_S
    while any(lost.is_alive() for lost, _ in live) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for lost, _ in live:
        if lost.is_alive():
            kill_tree(lost.pid)
