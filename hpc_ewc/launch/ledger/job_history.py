"""jobs.jsonl: every job that was submitted, in the order of events.

An intent is written before a job is given to the scheduler, and its id after. A submit that dies in between leaves an
intent without an id; the next submit looks for that job before it submits anything.

    graph      the stages of a submit, which `status` shows
    intent     token, stage, run, element; on Slurm also `scheduler`, and `elements`: what each index of the array
               covers and, if the array makes several runs, its run
    submitted  token, job_id, host, pid, started; on Slurm job_id (of the whole array), dependencies
    ended      token, outcome (finished, stopped, failed; lost: never reached Slurm); for an array `outcomes` by index
    cancelled  node (stage/run), which the submit at work must not start
    reported   token, of (a fingerprint of the evaluations reported), out (folder of the tables)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.process import Process
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import ArrayElement, GraphEvent, GraphNode, ReportedEvent


@dataclass
class Job:
    """One job, or one element of an array."""

    token: str
    """Token of the submission, whose folder under jobs/ has the script. The elements of an array share it."""
    stage: str
    run: str
    element: str
    job_id: str = ""
    """Name of its folder under jobs/; on Slurm `123`, or `123_4` for an element; "" while only the intent is known."""
    process: Process | None = None
    outcome: str = ""
    at: float = 0.0
    scheduler: str = "local"
    """local or slurm."""
    index: int | None = None
    """Index in its array."""
    covers: tuple[str, ...] = ()
    """On Slurm, what it makes: `<fraction>:<cell>` (evaluate), names of elements (tokens) or "0"."""
    link: int = 0
    """Position in a chain of successors."""

    @property
    def node(self) -> str:
        return f"{self.stage}/{self.run}" if self.run else self.stage

    @property
    def main_id(self) -> str:
        """Slurm's id of the whole array."""
        return self.job_id.partition("_")[0]

    @property
    def is_open(self) -> bool:
        """Whether it was or is about to be submitted to Slurm and has no known end; only Slurm knows its state."""
        return self.scheduler == "slurm" and not self.outcome

    def is_alive(self) -> bool:
        """Whether it is a local job that was submitted, has no known end, and whose process is alive."""
        return bool(self.job_id) and not self.outcome and self.process is not None and self.process.is_alive()


@dataclass
class History:
    """The contents of a ledger."""

    jobs: dict[str, Job] = field(default_factory=dict)
    graph: GraphEvent = field(default_factory=lambda: GraphEvent())
    """The stages of the last submit; empty before the first."""
    reported: ReportedEvent = field(default_factory=lambda: ReportedEvent())
    """The last report; empty if there is none."""
    cancelled: set[str] = field(default_factory=set)
    """`stage/run` of stages cancelled since the last submit began."""

    def live(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.is_alive()]

    def open(self) -> list[Job]:
        """Jobs on Slurm that have no known end."""
        return [job for job in self.jobs.values() if job.is_open]

    def submission(self, token: str) -> list[Job]:
        """The jobs of one intent: one, or the elements of an array."""
        if token in self.jobs:
            return [self.jobs[token]]
        found: list[Job] = []
        while (job := self.jobs.get(_name(token, len(found)))) is not None:
            found.append(job)
        if not found:
            raise KeyError(token)
        return found

    def of(self, node: str) -> list[Job]:
        """The jobs of one node, oldest first."""
        return [job for job in self.jobs.values() if job.node == node]


class Ledger:
    """`runs/NAME/jobs.jsonl`."""

    def __init__(self, root: RunDir) -> None:
        self.path = root.ledger

    def write(self, event: str, **facts: Any) -> None:
        records.append_line(self.path, {"event": event, **facts, "at": time.time()})

    def graph(self, nodes: Sequence[GraphNode], **facts: Any) -> None:
        self.write("graph", nodes=list(nodes), **facts)

    def intent(self, token: str, stage: str, run: str, element: str) -> None:
        self.write("intent", token=token, stage=stage, run=run, element=element)

    def submitted(self, token: str, job_id: str, process: Process) -> None:
        facts = {"host": process.host, "pid": process.pid, "started": process.started}
        self.write("submitted", token=token, job_id=job_id, **facts)

    def slurm_intent(self, token: str, stage: str, run: str, elements: Sequence[ArrayElement], link: int) -> None:
        """Called before sbatch; `elements` has one entry for each index of the array."""
        self.write("intent", token=token, stage=stage, run=run, elements=list(elements), scheduler="slurm", link=link)

    def slurm_submitted(self, token: str, job_id: str, dependencies: str) -> None:
        """Called after sbatch, or when the job of an intent was found in the queue."""
        self.write("submitted", token=token, scheduler="slurm", job_id=job_id, dependencies=dependencies)

    def ended(self, token: str, outcome: str) -> None:
        self.write("ended", token=token, outcome=outcome)

    def elements_ended(self, outcomes: Iterable[tuple[Job, str]]) -> None:
        """Record how jobs ended, in one line for each array: a thousand lines would be a thousand flushes to disk."""
        by_token: dict[str, dict[str, str]] = {}
        for job, outcome in outcomes:
            if job.index is None:
                self.ended(job.token, outcome)
            else:
                by_token.setdefault(job.token, {})[str(job.index)] = outcome
        for token, found in by_token.items():
            self.write("ended", token=token, outcomes=found)

    def cancelled(self, node: str) -> None:
        self.write("cancelled", node=node)

    def reported(self, token: str, of: str, out: str) -> None:
        self.write("reported", token=token, of=of, out=out)

    def read(self) -> History:
        """Read all events.

        Raises:
            ArtefactError: a line other than the last is corrupt or not written by hpc-ewc.
        """
        history = History()
        for line in records.read_lines(self.path):
            try:
                _check(line)
                _apply(history, line)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                words = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ArtefactError(
                    f"{self.path}: a line is not one that hpc-ewc writes ({words}): {json.dumps(line)[:100]}; delete it"
                ) from None
        return history


FIELDS: dict[str, dict[str, type]] = {
    "graph": {"nodes": list},
    "intent": {"token": str, "stage": str, "run": str},
    "submitted": {"token": str, "job_id": str},
    "ended": {"token": str},
    "cancelled": {"node": str},
    "reported": {"token": str, "of": str, "out": str},
}
"""Keys of each event's line, beside `at`. Other events come from a newer version and are skipped."""


def _check(line: dict[str, Any]) -> None:
    """Raise TypeError, ValueError or KeyError if a line is not what this module writes."""
    for key, kind in FIELDS.get(line["event"], {}).items():
        if not isinstance(line[key], kind):
            raise TypeError(f"{key} = {line[key]!r}")
    if not math.isfinite(line["at"]):
        raise ValueError(f"at = {line['at']!r}")
    for node in line["nodes"] if line["event"] == "graph" else ():
        if not (isinstance(node["stage"], str) and isinstance(node["run"], str)):
            raise TypeError(f"stage = {node['stage']!r}, run = {node['run']!r}")


def _apply(history: History, line: dict[str, Any]) -> None:
    match line["event"]:
        case "graph":
            history.graph, history.cancelled = cast(GraphEvent, line), set()
        case "intent":
            for job in _intended_jobs(line):
                history.jobs[_name(job.token, job.index)] = job
        case "submitted":
            for job in history.submission(line["token"]):
                job.job_id = line["job_id"] if job.index is None else f"{line['job_id']}_{job.index}"
                if job.scheduler == "local":
                    job.process = Process(line["host"], int(line["pid"]), line["started"])
        case "ended" if "outcomes" in line:
            for index, outcome in line["outcomes"].items():
                history.jobs[_name(line["token"], int(index))].outcome = outcome
        case "ended":
            history.jobs[line["token"]].outcome = line["outcome"]
        case "cancelled":
            history.cancelled.add(line["node"])
        case "reported":
            history.reported = cast(ReportedEvent, line)


def _intended_jobs(line: dict[str, Any]) -> list[Job]:
    """The jobs of one intent; a single job has no index."""
    scheduler = line.get("scheduler", "local")
    listed = line["elements"] if scheduler == "slurm" else [{"name": line["element"], "covers": []}]
    return [
        Job(
            line["token"],
            line["stage"],
            element.get("run", line["run"]),
            element["name"],
            at=float(line["at"]),
            scheduler=scheduler,
            index=index if len(listed) > 1 else None,
            covers=tuple(element["covers"]),
            link=int(line.get("link", 0)),
        )
        for index, element in enumerate(listed)
    ]


def _name(token: str, index: int | None) -> str:
    """Key of a job in `History.jobs`."""
    return token if index is None else f"{token}/{index}"
