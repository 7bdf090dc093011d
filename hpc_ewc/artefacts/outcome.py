"""How an attempt of a job ended, told from files alone: an exit status of 0 says nothing by itself.

done.json (or the element's records) → finished; else a stop file → stopped; else failed, and `failed.json` has the
first traceback. Submitit's result pickles and job states are never asked: `sys.exit(3)` reads FINISHED there.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.artefact import REPORT, Artefact, Element
from hpc_ewc.artefacts.completeness import check_artefact, missing_cells, read_failure
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import RunDir

Outcome = Literal["finished", "stopped", "failed"]
TAIL_LINES = 30
CONSEQUENCE = re.compile(
    r"another rank of this job ended|connection (closed|reset|refused)|broken pipe|socket timeout|Rendezvous\w*Error|"
    r"Dist(Network|Store|Backend)Error|recvValue failed|NCCL|Gloo connect|heartbeat",
    re.IGNORECASE,
)
ROOT_CAUSE = re.compile(r"Root Cause[^\n]*:\n(?:.*\n)*?\s*rank\s*: (\d+).*\n(?:.*\n)*?\s*traceback : (Signal .*)")
"""What torchrun prints of the rank that it saw die first, where that was by a signal."""


@dataclass(frozen=True)
class Exit:
    """What the launcher of an attempt left."""

    status: int | None
    """Of the worker; None: the launcher itself was killed."""

    @property
    def words(self) -> str:
        if self.status is None:
            return "was killed, and its launcher with it"
        return f"was killed by signal {-self.status}" if self.status < 0 else f"ended with status {self.status}"


def decide(
    node: Artefact, element: Element, job: Path, restart: int = 0, ended: Exit | None = None, *, note: bool = True
) -> Outcome:
    """How one attempt of an element ended.

    Args:
        node: the artefact.
        element: of it.
        job: runs/NAME/jobs/<job_id>.
        restart: which attempt.
        ended: what its launcher left; absent: it is read.
        note: where it failed, write `failed.json` unless it is there.
    """
    ended = ended or read_exit(job, restart)
    stopped = rundir.stop_file(job, restart).exists()
    if _is_made(node, element, ended, stopped):
        return "finished"
    if stopped:
        return "stopped"
    if note and node.stage != REPORT:
        explain(node, element, job, restart, ended)
    return "failed"


def _is_made(node: Artefact, element: Element, ended: Exit, stopped: bool) -> bool:
    if node.stage == REPORT:
        return ended.status == 0
    try:
        if check_artefact(node).done:
            return True
        if node.stage == "evaluate":
            return not set(element.expected) & set(missing_cells(node))
    except ArtefactError:
        return False
    # One of several parts of the tokens: whether the set is whole, the last of them sees.
    return "--part" in element.arguments and ended.status == 0 and not stopped


def read_exit(job: Path, restart: int = 0) -> Exit:
    with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
        status = records.read_json(rundir.exit_file(job, restart))["status"]
        return Exit(None if status is None else int(status))
    return Exit(None)


def report_fingerprint(root: RunDir, runs: Sequence[str]) -> str:
    """Of all that a report of these evaluations reads: which of them were finished, and when."""
    finished = {}
    for run in runs:
        done = root.evaluate(run).done
        if done.is_file():
            finished[f"evaluate/{run}"] = records.read_json(done)["finished_at"]
    return records.key_of(finished)


def explain(node: Artefact, element: Element, job: Path, restart: int, ended: Exit) -> None:
    """Write `failed.json` for an attempt whose worker could not: killed, or dead before it knew its folder."""
    known = read_failure(node.folder)
    this_attempt = (known.get("job_id"), known.get("restart")) == (job.name, restart)
    if this_attempt and not is_consequence(str(known.get("error", ""))):
        return
    error, trace, rank = first_error(job, restart)
    if not error or is_consequence(error):
        killed = killed_rank(job, restart)
        error, trace, rank = (*killed[:1], "", killed[1]) if killed[0] else (error, trace, rank)
    if this_attempt and (not error or is_consequence(error)):
        return
    printed = tail(job, restart=restart)
    error = error or last_exception(printed) or f"the worker {ended.words}" + ("" if ended.status else ", not done")
    facts = {
        "schema": records.SCHEMA,
        "error": error,
        "traceback": trace or printed,
        "rank": rank,
        "element": element.worker,
        "node": socket.gethostname(),
        "job_id": job.name,
        "restart": restart,
        "samples": None,
    }
    records.write_json(node.folder.failed, facts)


def is_consequence(error: str) -> bool:
    """A rank that says only that it lost another: the cause is elsewhere, or a node that is gone."""
    return CONSEQUENCE.search(error) is not None


def first_error(job: Path, restart: int = 0) -> tuple[str, str, int]:
    """Message, traceback and rank of the first of torchrun's error files; empty where no rank could write one."""
    found: list[tuple[float, int, dict[str, Any]]] = []
    own = rundir.rank_logs(job) / f"restart_{restart}"  # a requeued job keeps what its earlier attempts printed
    for path in (own if own.is_dir() else rundir.rank_logs(job)).rglob("error.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            message = json.loads(path.read_text(encoding="utf-8"))["message"]
            found.append((float(message["extraInfo"]["timestamp"]), int(path.parent.name), message))
    if not found:
        return "", "", 0
    _, rank, message = min(found, key=lambda entry: entry[:2])
    return str(message["message"]), str(message["extraInfo"].get("py_callstack", "")), rank


def killed_rank(job: Path, restart: int = 0) -> tuple[str, int]:
    """What torchrun says of the rank that it saw die first, such as of SIGKILL; "" where it says nothing."""
    for path in [*torchrun_logs(job, restart), *sorted(job.glob("*_log.err"))]:
        found = ROOT_CAUSE.findall(last_lines(path, 200))
        if found:
            rank, words = found[-1]
            return f"rank {rank}: {words.strip()}", int(rank)
    return "", 0


def last_exception(text: str) -> str:
    """The line that Python ends a traceback with, if the text ends with one."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return last if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", last) else ""


def tail(job: Path, lines: int = TAIL_LINES, restart: int | None = None) -> str:
    """The last lines that the ranks, or else torchrun or submitit's task, wrote to stderr; of one attempt or of all."""
    for files in (error_logs(job, restart), torchrun_logs(job, restart), sorted(job.glob("*_log.err"))):
        texts = [text for path in files if (text := last_lines(path, lines))]
        if texts:
            return "\n".join(texts)
    return ""


def torchrun_logs(job: Path, restart: int | None = None) -> Sequence[Path]:
    """What torchrun itself said on each node, of one attempt or of all."""
    return sorted(rundir.rank_logs(job).glob(f"restart_{'*' if restart is None else restart}/node_*/torchrun.log"))


def error_logs(job: Path, restart: int | None = None) -> Sequence[Path]:
    """What ranks wrote to stderr. A job that was never on Slurm has one attempt, and no folder for it."""
    own = rundir.rank_logs(job) / f"restart_{restart}"
    return sorted((own if own.is_dir() else rundir.rank_logs(job)).rglob("stderr.log"))


def last_lines(path: Path, lines: int) -> str:
    """The last lines of a file of any size; "" where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 400 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""
