"""Bad input: what jobs, other submits and Slurm left or say."""

from __future__ import annotations

import json
from pathlib import Path

from tests.end_to_end.bad_input import CLUSTER, Case, finished, put, submitted

RECORDS = [
    Case(
        "Fisher",
        "a file of it is gone",
        "output.bin: listed in",
        finished("fisher", lambda folder: (folder / "output.bin").unlink()),
        error="ArtefactError",
    ),
    Case(
        "Fisher",
        "a file of it changed",
        "output.bin: 3 bytes, but done.json says 5; delete both",
        finished("fisher", lambda folder: (folder / "output.bin").write_bytes(b"123")),
        error="ArtefactError",
    ),
    Case(
        "record",
        "half a done.json",
        "done.json: corrupt or not written by hpc-ewc",
        finished("tokens", lambda folder: (folder / "done.json").write_text("{")),
        error="ArtefactError",
    ),
    Case(
        "record",
        "another version's",
        "done.json: schema 99, this version reads 1; not written by hpc-ewc, or by a newer version",
        finished("tokens", lambda folder: (folder / "done.json").write_text('{"schema": 99}')),
        error="ArtefactError",
    ),
    Case(
        "record",
        "outputs that are none",
        "corrupt or not written by hpc-ewc: 'outputs' has no size and sha256 of a; delete it",
        finished("train", lambda folder: spoil_json(folder / "done.json", outputs={"a": None})),
        error="ArtefactError",
    ),
    Case(
        "record",
        "another key's",
        "has key else, not",
        finished("train", lambda folder: spoil_json(folder / "done.json", key="else")),
        error="ArtefactError",
    ),
    Case(
        "record",
        "a ledger with a foreign line",
        "jobs.jsonl: a line is not one that hpc-ewc writes (no 'event')",
        submitted([{"a": 1}, {"event": "x", "at": 1}]),
        "status runs/x",
        error="ArtefactError",
    ),
    Case(
        "record",
        "a ledger cut in the middle",
        "jobs.jsonl:1: not a JSON line: '{'",
        put("runs/x/jobs.jsonl", '{\n{"event": "x"}\n'),
        "status runs/x",
        error="ArtefactError",
    ),
    Case(
        "record",
        "no such run",
        "no run begins with 'strength=7'; there are: strength=0-aa, strength=1-bb",
        submitted(),
        "logs runs/x strength=7",
    ),
    Case("record", "several such runs", "several runs begin with 'strength='", submitted(), "logs runs/x strength="),
    Case(
        "record",
        "no such stage",
        "--stage trian: this experiment has train",
        submitted(),
        "logs runs/x strength=0 --stage trian",
    ),
]


def spoil_json(path: Path, **facts: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


MACHINE = [
    Case(
        "environment",
        "another submit is running",
        "another submit is starting, or was killed while starting; if none is running, delete it",
        put("runs/x/submit.lock", ""),
        error="SubmitError",
    ),
    Case(
        "environment",
        "a submit of another machine is at work",
        "another submit is running: pid 7 on elsewhere; this host cannot tell whether it is alive",
        put("runs/x/submit.lock", '{"host": "elsewhere", "pid": 7, "started": "1"}'),
        error="SubmitError",
    ),
    Case(
        "cluster",
        "no Slurm here",
        "is this a login node of a Slurm cluster",
        command=CLUSTER,
        error="SchedulerError",
        environment=(("PATH", "/nowhere"),),
    ),
]

REFUSALS = [
    Case(
        "cluster", words, fix, command=CLUSTER, error="SubmitError", sbatch_says=f"Batch job submission failed: {words}"
    )
    for words, fix in (
        ("Invalid account or account/partition combination specified", "set slurm.account in cluster.toml"),
        ("Invalid partition name specified", "set slurm.partition (sinfo lists them) in cluster.toml"),
        ("Invalid qos specification", "set slurm.qos in cluster.toml"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower resources.tokens.time_min"),
        ("Requested node configuration is not available", "lower resources.tokens.nodes, cpus_per_task, mem_gb"),
        ("Invalid generic resource (gres) specification", "correct slurm.gres, or resources.tokens.gpus_per_node"),
        ("Memory specification can not be satisfied", "lower resources.tokens.mem_gb"),
        ("Something that no site has said before", "change what it names in cluster.toml"),
    )
]
