"""Types of the JSON files that stages exchange, as they are read. docs/schemas/ has an example of each."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class StageFacts(TypedDict):
    """stage.json: what a job is to make, written by `submit`."""

    schema: int
    stage: str
    run: str
    key: str
    inputs: dict[str, Any]
    """Absolute paths of what the stage reads, by name."""
    coordinates: dict[str, Any]
    """Values of the grid keys."""
    expected: list[str]
    """`<fraction>:<cell>` of an evaluation."""
    settings: NotRequired[str]
    """Hash of what an evaluation asks."""


class Done(TypedDict):
    """done.json: an artefact is complete, written last."""

    schema: int
    key: str
    job_id: NotRequired[str]
    restart: NotRequired[int]
    finished_at: float
    outputs: dict[str, Any]
    """By path in the folder: size in bytes and sha256."""
    summary: dict[str, Any]


class Failure(TypedDict, total=False):
    """failed.json: why the last attempt failed; empty if there is none."""

    schema: int
    error: str
    traceback: str
    """Traceback, or the last lines that the worker printed."""
    rank: int
    element: str
    node: str
    job_id: str
    restart: int
    samples: list[int] | None
    """Samples whose loss was not finite."""


class AttemptExit(TypedDict, total=False):
    """jobs/<job_id>/exit.<restart>: how an attempt ended; empty if it has not."""

    status: int | None
    """Exit status of the worker; None: it was never started, or its launcher was killed."""
    stopped: bool
    ended_at: float
    # on Slurm
    outcome: str
    why: list[str]
    """Signals that asked for the stop."""
    node: str
    # of a report on Slurm
    reported: str
    out: str


class AttemptStart(TypedDict):
    """One entry of jobs/<token>/attempts.<index>.json: how far the artefact was when an attempt began."""

    job_id: str
    restart: int
    mark: str
    at: float


# ---------------------------------------------------------------------------------------------- jobs.jsonl


class GraphNode(TypedDict):
    """A stage in a `graph` line."""

    stage: str
    run: str
    depends: list[str]


class GraphEvent(TypedDict, total=False):
    """The stages of a submit."""

    nodes: list[GraphNode]
    sweep: str
    out: str
    executor: str
    at: float


class ArrayElement(TypedDict):
    """One index of an array in an `intent` line."""

    name: str
    covers: list[str]
    run: NotRequired[str]


class ReportedEvent(TypedDict, total=False):
    """The last report that was made."""

    token: str
    of: str
    """Fingerprint of the evaluations in it."""
    out: str
    at: float
