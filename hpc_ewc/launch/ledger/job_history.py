"""jobs.jsonl: what was submitted, in the order it happened.

An intent is written before a job is given to the scheduler, its id after. Whoever dies in between leaves an intent
without an id, which the next submit looks up before it submits anything again.

    graph      the stages of a submit: what `status` shows
    intent     token, stage, run, element; of Slurm `scheduler`, and `elements`, what each index of the array covers
               and, where those are of several runs, of which
    submitted  token, job_id, host, pid, started; of Slurm job_id (of the whole array), dependencies
    ended      token, outcome (finished, stopped, failed; lost: it never reached Slurm), of an array `outcomes` by index
    cancelled  node (stage/run): not to be started by the submit that is at work
    reported   token, of (a hash of what was reported), out (where its tables are)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.process import Process
from hpc_ewc.rundir import RunDir


@dataclass
class Job:
    """One job, or one element of an array, as the ledger tells it."""

    token: str
    """Of the submission: its folder under jobs/ has the script. An array's elements share it."""
    stage: str
    run: str
    element: str
    job_id: str = ""
    """Its folder under jobs/. Of Slurm `123`, or `123_4` for an element; "" while only the intent is known."""
    process: Process | None = None
    outcome: str = ""
    at: float = 0.0
    scheduler: str = "local"
    """Or slurm."""
    index: int | None = None
    """In its array."""
    covers: tuple[str, ...] = ()
    """Of Slurm: what it makes, as `<fraction>:<cell>` (evaluate), names of elements (tokens) or "0"."""
    link: int = 0
    """Place in a chain of successors."""

    @property
    def node(self) -> str:
        return f"{self.stage}/{self.run}" if self.run else self.stage

    @property
    def main_id(self) -> str:
        """Slurm's id of the whole array."""
        return self.job_id.partition("_")[0]

    @property
    def is_open(self) -> bool:
        """Given to Slurm, or about to be, and not known to have ended: only Slurm can tell."""
        return self.scheduler == "slurm" and not self.outcome

    def is_alive(self) -> bool:
        """Of a local job: submitted, not known to have ended, and its process is still there."""
        return bool(self.job_id) and not self.outcome and self.process is not None and self.process.is_alive()


@dataclass
class History:
    """The ledger read whole."""

    jobs: dict[str, Job] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    """Of the last submit."""
    reported: dict[str, Any] = field(default_factory=dict)
    """The last report that was made: of what, where."""
    cancelled: set[str] = field(default_factory=set)
    """`stage/run`s taken back since the last submit began."""

    def live(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.is_alive()]

    def open(self) -> list[Job]:
        """Jobs of Slurm that are not known to have ended."""
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

    def graph(self, nodes: list[dict[str, Any]], **facts: Any) -> None:
        self.write("graph", nodes=nodes, **facts)

    def intent(self, token: str, stage: str, run: str, element: str) -> None:
        self.write("intent", token=token, stage=stage, run=run, element=element)

    def submitted(self, token: str, job_id: str, process: Process) -> None:
        facts = {"host": process.host, "pid": process.pid, "started": process.started}
        self.write("submitted", token=token, job_id=job_id, **facts)

    def slurm_intent(self, token: str, stage: str, run: str, elements: list[dict[str, Any]], link: int) -> None:
        """Before sbatch; `elements` has name and covers of each index, and its run where they are of several."""
        self.write("intent", token=token, stage=stage, run=run, elements=elements, scheduler="slurm", link=link)

    def slurm_submitted(self, token: str, job_id: str, dependencies: str) -> None:
        """After sbatch, or where an intent was found again in the queue."""
        self.write("submitted", token=token, scheduler="slurm", job_id=job_id, dependencies=dependencies)

    def ended(self, token: str, outcome: str) -> None:
        self.write("ended", token=token, outcome=outcome)

    def elements_ended(self, outcomes: Iterable[tuple[Job, str]]) -> None:
        """How elements of arrays ended, one line a submission: a thousand lines would be a thousand flushes."""
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
        """Everything that happened.

        Raises:
            ArtefactError: a line in the middle is not ours.
        """
        history = History()
        for line in records.read_lines(self.path):
            try:
                _check(line)
                _apply(history, line)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                words = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ArtefactError(
                    f"{self.path}: not a line of ours ({words}): {json.dumps(line)[:100]}; take it out"
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
"""What a line of each event has, beside `at`. A line of an event that is not here is a newer version's: passed over."""


def _check(line: dict[str, Any]) -> None:
    """TypeError, ValueError or KeyError where a line is not what this module writes."""
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
            history.graph, history.cancelled = line, set()
        case "intent" if line.get("scheduler") == "slurm":
            for job in _elements(line):
                history.jobs[_name(job.token, job.index)] = job
        case "intent":
            job = Job(line["token"], line["stage"], line["run"], line["element"], at=float(line["at"]))
            history.jobs[job.token] = job
        case "submitted" if line.get("scheduler") == "slurm":
            main = str(line["job_id"])
            for job in history.submission(line["token"]):
                job.job_id = main if job.index is None else f"{main}_{job.index}"
        case "submitted":
            job = history.jobs[line["token"]]
            job.job_id = line["job_id"]
            job.process = Process(line["host"], int(line["pid"]), line["started"])
        case "ended" if "outcomes" in line:
            for index, outcome in line["outcomes"].items():
                history.jobs[_name(line["token"], int(index))].outcome = outcome
        case "ended":
            history.jobs[line["token"]].outcome = line["outcome"]
        case "cancelled":
            history.cancelled.add(line["node"])
        case "reported":
            history.reported = line


def _elements(line: dict[str, Any]) -> list[Job]:
    """The jobs of one intent for Slurm: a single one has no index."""
    listed = line["elements"]
    return [
        Job(
            line["token"],
            line["stage"],
            element.get("run", line["run"]),
            element["name"],
            at=float(line["at"]),
            scheduler="slurm",
            index=index if len(listed) > 1 else None,
            covers=tuple(element["covers"]),
            link=int(line["link"]),
        )
        for index, element in enumerate(listed)
    ]


def _name(token: str, index: int | None) -> str:
    """Key of a job in `History.jobs`."""
    return token if index is None else f"{token}/{index}"
