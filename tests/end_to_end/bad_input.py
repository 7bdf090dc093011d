"""One case of bad input, the small world that it is tried in, and what a case may change there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.plan.request import load_request
from hpc_ewc.launch.profile.reading import load_profile
from hpc_ewc.rundir import RunDir
from tests.unit.launch_world import write_model

SWEEP = """[model]
path = "model"
dtype = "float32"
[data]
source = "files"
files = ["corpus.jsonl"]
heldout_documents = 1
[fisher]
source = "files"
files = ["questions.jsonl"]
[evaluate]
suites = ["arc_easy.en", "ppl_heldout.lt"]
[grid]
ewc.strength = [0.0, 1e6]
"""
SLURM = 'executor = "slurm"\n[slurm]\npartition = "main"\n'
CLUSTER = "submit x.toml --profile cluster.toml --yes"

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """What is wrong, and the end of the one line that is said of it."""

    about: str
    """experiment, profile, command line, corpus, tokenizer, model, Fisher, checkpoint, record, environment, cluster."""
    wrong: str
    says: str
    """Part of the line on stderr; `{here}` is the folder of the world."""
    change: Change = lambda here: None
    command: str = "submit x.toml"
    error: str = "ConfigError"
    status: int = 2
    environment: tuple[tuple[str, str], ...] = ()
    sbatch_says: str = ""
    """With what the cluster's sbatch refuses every job; its script is left to be read then."""

    @property
    def name(self) -> str:
        return f"{self.about}: {self.wrong}"


def build_world(here: Path) -> None:
    """An experiment that would be submitted as it is, beside all that it names."""
    write_model(here / "model")
    (here / "corpus.jsonl").write_text('{"text": "Laba diena."}\n')
    (here / "questions.jsonl").write_text('{"text": "Laba diena."}\n')
    (here / "x.toml").write_text(SWEEP)
    (here / "profile.toml").write_text('executor = "local"\n')
    (here / "cluster.toml").write_text(SLURM)


# ---------------------------------------------------------------------------------------------- changes


def add(text: str, file: str = "x.toml") -> Change:
    """More tables, in front of [grid]."""

    def change(here: Path) -> None:
        head, grid, tail = (here / file).read_text().partition("[grid]\n")
        (here / file).write_text(f"{head}{text}\n{grid}{tail}" if grid else f"{head}{text}\n")

    return change


def swap(old: str, new: str, file: str = "x.toml") -> Change:
    def change(here: Path) -> None:
        text = (here / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (here / file).write_text(text.replace(old, new))

    return change


def put(file: str, data: str | bytes) -> Change:
    def change(here: Path) -> None:
        path = here / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def remove(file: str) -> Change:
    return lambda here: (here / file).unlink()


def both(*changes: Change) -> Change:
    def change(here: Path) -> None:
        for one in changes:
            one(here)

    return change


# ---------------------------------------------------------------------------------------------- what jobs left


def finished(stage: str, spoil: Callable[[Path], object]) -> Change:
    """The first artefact of a stage as if a job had made it; then its folder is spoilt."""

    def change(here: Path) -> None:
        root = RunDir(here / "runs" / "x")
        graph = load_request(Path("x.toml")).build(Resolver("x.toml"), root, load_profile(None))
        node = graph.of(stage)[0]
        records.write_json(node.folder.stage_json, node.stage_json)
        records.write_bytes(node.folder.path / "output.bin", b"12345")
        facts = {"schema": 1, "key": node.key, "finished_at": 1.0, "outputs": {"output.bin": [5, "aa"]}, "summary": {}}
        records.write_json(node.folder.done, facts)
        spoil(node.folder.path)

    return change


def submitted(ledger: list[dict[str, Any]] | None = None, more: Change = lambda here: None) -> Change:
    """A run folder of which something is known to have been submitted."""
    nodes = [{"stage": "train", "run": "strength=0-aa", "depends": []}, {"stage": "train", "run": "strength=1-bb"}]
    lines = [{"event": "graph", "nodes": nodes, "at": 1.0}, *(ledger or [])]

    def change(here: Path) -> None:
        put("runs/x/jobs.jsonl", "".join(json.dumps(line) + "\n" for line in lines))(here)
        more(here)

    return change
