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


# ---------------------------------------------------------------------------------------------- tokens


class PlanFacts(TypedDict):
    """plan.json: how a corpus is cut into parts."""

    files: list[str]
    sizes: list[int]
    """Size of each file in bytes."""
    records: int
    used_records: int
    parts: list[list[tuple[int, int, int, int, int]]]
    """The spans of each part: index of the file, records, line, offset in bytes, bytes."""
    heldout: list[str]
    """Hash of each held-out document."""
    schema: int


class HeldoutDocument(TypedDict):
    """A line of heldout.jsonl: a document that is never trained on."""

    text: str
    doc_hash: str
    file: str
    line: int


class PartFacts(TypedDict):
    """parts/<i>.json: the content of one part, written last."""

    schema: int
    part: int
    documents: int
    """Documents to train on."""
    tokens: int
    tokens_cut: int
    """Tokens dropped by "truncate"."""
    text_bytes: int
    skipped: dict[str, int]
    """Records without a usable document, by reason."""
    heldout_copies: int
    heldout: list[HeldoutDocument]
    tokenizer: str
    """Hash of the tokenizer."""
    sha256: dict[str, str]
    sources: list[tuple[str, int]]
    """Files in order, each with its number of documents to train on."""


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


# ---------------------------------------------------------------------------------------------- fisher and train


class MetricsLine(TypedDict):
    """A line of metrics.jsonl, one every `train.log_every` steps."""

    step: int
    tokens: int
    """Scored tokens so far."""
    loss: float
    """Mean over the step's scored tokens, in nats."""
    penalty: float
    """λ/2 Σ F (θ−θ*)²."""
    distance: float
    """‖θ−θ*‖."""
    largest_step: float
    """The largest lr·λ·F."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens_per_s: float
    step_time_s: float
    loader_wait_s: float
    tflops_per_s: NotRequired[float]
    """Per GPU, where its peak is known."""
    mfu: NotRequired[float]
    memory_gb: float
    restart: int


class CheckpointPosition(TypedDict):
    """`summary` in the done.json of a checkpoint: where the training resumes."""

    step: int
    parts: list[str]
    """"model", and "optimizer" unless it was dropped at the end."""
    tokens: int
    loss: float
    seconds: float


class EwcSummary(TypedDict, total=False):
    """The part of a training's summary that exists for λ > 0."""

    free_parameters: int
    """Parameters with F = 0."""
    free_distance: float
    """‖θ−θ*‖ over these."""
    fisher_trace: float
    scaled_mean: float
    """λ·tr F/P."""


class TrainSummary(EwcSummary):
    """`summary` in the done.json of a training."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    gpu_hours: float
    penalty: float
    distance: float
    overshot: bool


class FisherSummary(TypedDict):
    """`summary` in the done.json of a Fisher."""

    examples: int
    skipped: int
    trace: float
    mean: float
    zero_fraction: float


class ExportFacts(TypedDict):
    """hpc_ewc.json in an export, written last."""

    schema: NotRequired[int]
    run: str
    step: int
    fraction: float
    """Fraction of the training."""
    tokens: int
    coordinates: dict[str, Any]
    train_key: str
    base_hash: str
    base_model: str
    strength: float
    model_hash: NotRequired[str]
    """Added by the writer."""


# ---------------------------------------------------------------------------------------------- evaluate


class Result(TypedDict):
    """An entry of `results` in a record: one metric of a cell, or of a part of it."""

    metric: str
    filter: str
    """lm-eval's filter of the answers, such as "flexible-extract"; "none"."""
    subset: str
    """"" for the whole cell, else a category or subject."""
    value: float
    stderr: float | None
    n: int
    """Number of documents."""
    higher_is_better: bool
    primary: NotRequired[bool]
    """Whether the report's table shows it; exactly one result of a record."""


class Sample(TypedDict):
    """A line of <cell>.samples.jsonl.zst: one document under one filter."""

    doc_id: int
    doc_hash: str
    subset: str
    filter: str
    metrics: dict[str, float]
    loglikelihoods: list[float]
    """In nats: one per choice of a question, or that of the text."""
    tokens: int | None
    """Sizes of a text; None for a question."""
    words: int | None
    bytes: int | None
    response: NotRequired[str]
    """The generated answer."""
    cluster: NotRequired[str]
    """Hash of the passage that several questions share."""


class Record(TypedDict):
    """<cell>.json: what a cell was scored with, and its results or its error."""

    schema: int
    status: str
    """"ok" or "failed"."""
    error: str | None
    cell_key: str
    """Hash of all that decides the numbers."""
    experiment: str
    run: str
    step: int
    fraction: float
    coordinates: dict[str, Any]
    """Values of the grid keys."""
    model: str
    model_hash: str
    base_hash: str
    task: str
    language: str
    variant: str
    suite: str
    chance: float | None
    cloze: bool
    shots: int | None
    limit: int | None
    seed: int
    backend: str
    backend_args: NotRequired[str]
    """Absent in older records."""
    dtype: str
    attention: str
    batch_size: int
    """The smallest that was used."""
    max_length: int
    max_gen_toks: int | None
    truncated: int
    """Requests that were cut to fit the context."""
    task_version: str
    data_hash: str
    results: list[Result]
    batch_invariance: float | None
    """Largest difference, in nats, between a request scored in its batch and alone."""
    seconds: float
    job_id: str
    gpu_hours: float
    versions: dict[str, str]
    retry: NotRequired[bool]
    """Whether a further attempt may succeed."""
