"""Puts records into a study: runs and columns in order, and which of them may be compared."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hpc_ewc.report.study.collect import Collection, Problem
from hpc_ewc.report.study.columns import SOURCE_LANGUAGE, Column, assign_columns, primary
from hpc_ewc.report.study.json_numbers import finite_number
from hpc_ewc.report.study.runs import Run, assign_runs, find_bases
from hpc_ewc.report.study.stages import Missing, RequestedRuns, Stages, Trained

SMALL_MODEL = 10_000_000
"""Number of parameters; smaller language models are of no use but as examples."""


@dataclass
class Study:
    """All that can be shown, in order."""

    title: str
    runs: list[Run]
    columns: list[Column]
    records: dict[tuple[Run, Column], dict[str, Any]]
    bases: dict[Run, Run]
    """Base of each run that has one."""
    target: str
    """The language that is learnt."""
    stages: Stages
    missing: list[Missing]
    problems: list[Problem]
    illustration: bool
    """The model has fewer than `SMALL_MODEL` parameters: its figures show how the experiment works, no more."""

    def result(self, run: Run, column: Column) -> dict[str, Any] | None:
        """The primary result of a run in a column."""
        record = self.records.get((run, column))
        return None if record is None else primary(record)

    @cached_property
    def records_by_column(self) -> dict[Column, list[dict[str, Any]]]:
        """The records of each column."""
        found: dict[Column, list[dict[str, Any]]] = defaultdict(list)
        for (_, column), record in self.records.items():
            found[column].append(record)
        return found

    @cached_property
    def records_by_run(self) -> dict[Run, list[dict[str, Any]]]:
        """The records of each run."""
        found: dict[Run, list[dict[str, Any]]] = defaultdict(list)
        for (run, _), record in self.records.items():
            found[run].append(record)
        return found

    def means(self, language: str) -> list[Column]:
        """The columns whose values are averaged for a language."""
        return [column for column in self.columns if column.language == language and column.kind == "share"]

    def languages(self) -> list[str]:
        """Languages with any column: the base model's own first, then the one that is learnt."""
        return list(dict.fromkeys(column.language for column in self.columns))

    def trained(self, run: Run) -> Trained | None:
        """The files that the training of this run left."""
        return self.stages.trained.get((run.source, run.name))


def build_study(collection: Collection, stages: Stages) -> Study:
    """The study of all records that were read and that their experiment still requests."""
    problems = [*collection.problems, *stages.problems]
    known = {source: RequestedRuns(experiment) for source, experiment in stages.experiments.items()}
    requested = {at: trained in known[at[0]] for at, trained in stages.trained.items() if at[0] in known}
    good = [record for record in collection.records if record["status"] == "ok" and primary(record) is not None]
    good = _drop_unrequested(good, stages, requested, problems)
    taught = [experiment.data.language for experiment in stages.experiments.values()]
    measured = [record["language"] for record in good if record["language"] != "und"]
    target = next((language for language in (*taught, *measured) if language != SOURCE_LANGUAGE), "lt")
    run_of, column_of = assign_runs(good, stages), assign_columns(good, target)
    placed: dict[tuple[Run, Column], dict[str, Any]] = {}
    for record in good:
        shown = placed.setdefault((run_of[record["where"]], column_of[record["where"]]), record)
        if shown is not record:
            what = f"of the same run and column as {shown['where']}, which is shown"
            problems.append(Problem(record["where"], what))
    runs = sorted({run for run, _ in placed})
    return Study(
        title=", ".join(source.label for source in collection.sources),
        runs=runs,
        columns=sorted({column for _, column in placed}),
        records=placed,
        bases=find_bases(runs),
        target=target,
        stages=stages,
        missing=[cell for cell in stages.missing if requested.get((cell.source, cell.run), True)],
        problems=problems,
        illustration=bool(good) and _is_illustration(stages),
    )


def _is_illustration(stages: Stages) -> bool:
    """Whether the Fishers say that every model is smaller than `SMALL_MODEL`; False if none says."""
    summaries = [trained.fisher.get("summary") for trained in stages.trained.values()]
    counts = [finite_number(summary.get("parameters")) for summary in summaries if isinstance(summary, dict)]
    return max((count for count in counts if count is not None), default=SMALL_MODEL) < SMALL_MODEL


def _drop_unrequested(
    records: list[dict[str, Any]],
    stages: Stages,
    requested: dict[tuple[str, str], bool],
    problems: list[Problem],
) -> list[dict[str, Any]]:
    """The records that the experiment, as last submitted, requests; the others are added to `problems`."""
    dropped: dict[tuple[str, str], list[str]] = defaultdict(list)
    kept = []
    for record in records:
        at = record["source"], record["run"]
        expected = stages.expected.get(at)
        if requested.get(at, True) and (expected is None or (float(record["fraction"]), record["cell"]) in expected):
            kept.append(record)
        else:
            dropped[at].append(record["cell"])
    for (source, run), cells in sorted(dropped.items()):
        what = ", ".join(sorted(set(cells))) if requested.get((source, run), True) else f"{len(cells)} records of a run"
        problems.append(Problem(f"{source}/evaluate/{run}", f"{what}: no longer requested by experiment.toml"))
    return kept
