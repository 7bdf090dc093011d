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
from hpc_ewc.errors import ArtefactError
from hpc_ewc.launch.artefacts import failure, find, missing_cells
from hpc_ewc.launch.graph import REPORT, Element, Node

Outcome = Literal["finished", "stopped", "failed"]
TAIL_LINES = 30


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


def decide(node: Node, element: Element, job: Path, restart: int = 0) -> Outcome:
    """How one attempt of an element ended; where it failed, `failed.json` is there afterwards."""
    ended = read_exit(job, restart)
    stopped = rundir.stop_file(job, restart).exists()
    if _is_made(node, element, ended, stopped):
        return "finished"
    if stopped:
        return "stopped"
    if node.stage != REPORT:
        explain(node, element, job, restart, ended)
    return "failed"


def _is_made(node: Node, element: Element, ended: Exit, stopped: bool) -> bool:
    if node.stage == REPORT:
        return ended.status == 0
    try:
        if find(node).done:
            return True
        if node.stage == "evaluate":
            return not set(element.expected) & set(missing_cells(node))
    except ArtefactError:
        return False
    # One of several parts of the tokens: whether the set is whole, the last of them sees.
    return node.resources.elements > 1 and node.stage == "tokens" and ended.status == 0 and not stopped


def read_exit(job: Path, restart: int = 0) -> Exit:
    with suppress(FileNotFoundError, ArtefactError, KeyError):
        return Exit(int(records.read_json(rundir.exit_file(job, restart))["status"]))
    return Exit(None)


def explain(node: Node, element: Element, job: Path, restart: int, ended: Exit) -> None:
    """Write `failed.json` for an attempt whose worker could not: killed, or dead before it knew its folder."""
    known = failure(node.folder)
    if (known.get("job_id"), known.get("restart")) == (job.name, restart):
        return
    error, trace, rank = first_error(job)
    printed = tail(job)
    error = error or last_exception(printed) or f"the worker {ended.words}" + ("" if ended.status else ", not done")
    facts = {
        "schema": records.SCHEMA,
        "error": error,
        "traceback": trace or printed,
        "rank": rank,
        "element": element.name,
        "node": socket.gethostname(),
        "job_id": job.name,
        "restart": restart,
        "samples": None,
    }
    records.write_json(node.folder.failed, facts)


def first_error(job: Path) -> tuple[str, str, int]:
    """Message, traceback and rank of the first of torchrun's error files; empty where no rank could write one."""
    found: list[tuple[float, int, dict[str, Any]]] = []
    for path in rundir.rank_logs(job).rglob("error.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            message = json.loads(path.read_text(encoding="utf-8"))["message"]
            found.append((float(message["extraInfo"]["timestamp"]), int(path.parent.name), message))
    if not found:
        return "", "", 0
    _, rank, message = min(found, key=lambda entry: entry[:2])
    return str(message["message"]), str(message["extraInfo"].get("py_callstack", "")), rank


def last_exception(text: str) -> str:
    """The line that Python ends a traceback with, if the text ends with one."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return last if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", last) else ""


def tail(job: Path, lines: int = TAIL_LINES) -> str:
    """The last lines that the ranks, or else submitit's task, wrote to stderr."""
    for files in (error_logs(job), sorted(job.glob("*_log.err"))):
        texts = [text for path in files if (text := last_lines(path, lines))]
        if texts:
            return "\n".join(texts)
    return ""


def error_logs(job: Path) -> Sequence[Path]:
    return sorted(rundir.rank_logs(job).rglob("stderr.log"))


def last_lines(path: Path, lines: int) -> str:
    """The last lines of a file of any size; "" where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 400 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""
