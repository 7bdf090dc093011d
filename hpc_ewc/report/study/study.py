"""Which runs and which columns there are, in which order, and what may stand beside what."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hpc_ewc import suites, sweep
from hpc_ewc.report.study.collect import OPTIONAL, SETTINGS, Collection, Problem
from hpc_ewc.report.study.stages import Asked, Missing, Stages, Trained

SOURCE_LANGUAGE = "en"
"""What the base model speaks, and may forget."""
LANGUAGE_NAMES = {"en": "English", "lt": "Lithuanian", "lv": "Latvian", "et": "Estonian", "und": "no language"}
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em", "mc1", "mc2", "pass@1")
"""Metrics in [0, 1] of which a mean over tasks makes sense; shown in per cent."""
PERPLEXITIES = ("perplexity", "perplexity_mean", "perplexity_median", "word_perplexity", "byte_perplexity")
SEEDS = ("train.seed", "fisher.seed")
"""Coordinates over which runs are repetitions of each other."""
SMALL_MODEL = 10_000_000
"""Number of parameters; nobody uses a smaller language model."""


@dataclass(frozen=True, order=True)
class Run:
    """One checkpoint: a run at one of its exports, or a model that was not trained here."""

    order: tuple[Any, ...]
    source: str
    name: str
    step: int
    fraction: float
    strength: float | None
    seeds: tuple[tuple[str, Any], ...]
    others: tuple[tuple[str, Any], ...]
    """Coordinates that are neither λ nor a seed."""
    model_hash: str = field(compare=False)
    base_hash: str = field(compare=False)
    is_base: bool = field(compare=False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Once: a report of thousands of cells looks runs up a million times."""
        return hash((self.order, self.name, self.step))

    @property
    def setting(self) -> tuple[Any, ...]:
        """What it shares with its repetitions under other seeds."""
        if self.is_base or self.strength is None:
            return (self.source, self.name, self.step, self.model_hash)
        return (self.source, self.strength, self.others, self.fraction)


@dataclass(frozen=True, order=True)
class Column:
    """One task in one language under one set of settings: values of a column may be compared."""

    order: tuple[Any, ...]
    language: str
    task: str
    variant: str
    metric: str
    filter: str
    settings: tuple[Any, ...]
    """Values of SETTINGS."""
    higher_is_better: bool = field(compare=False)
    kind: str = field(compare=False)
    """share: in [0, 1], enters the means; perplexity, of one text; judged: of each run's own answers; number: else."""
    chance: float | None = field(compare=False)
    label: str = field(compare=False, default="")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Once, as that of a run."""
        return hash((self.order, self.metric, self.filter))

    def setting(self, name: str) -> Any:
        """One of SETTINGS."""
        return self.settings[SETTINGS.index(name)]

    @property
    def cell(self) -> str:
        """`task.language[.variant]`."""
        return ".".join(part for part in (self.task, self.language, self.variant) if part)


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
    def of_column(self) -> dict[Column, list[dict[str, Any]]]:
        """The records of each column."""
        found: dict[Column, list[dict[str, Any]]] = defaultdict(list)
        for (_, column), record in self.records.items():
            found[column].append(record)
        return found

    @cached_property
    def of_run(self) -> dict[Run, list[dict[str, Any]]]:
        """The records of each run."""
        found: dict[Run, list[dict[str, Any]]] = defaultdict(list)
        for (run, _), record in self.records.items():
            found[run].append(record)
        return found

    def means(self, language: str) -> list[Column]:
        """The columns whose values are averaged for a language."""
        return [c for c in self.columns if c.language == language and c.kind == "share"]

    def languages(self) -> list[str]:
        """With any column; the base model's own first, then the one that is learnt."""
        return list(dict.fromkeys(column.language for column in self.columns))

    def trained(self, run: Run) -> Trained | None:
        """What the training of this run left."""
        return self.stages.trained.get((run.source, run.name))


def language_name(code: str) -> str:
    """English for en; the code itself where it is not known here."""
    return LANGUAGE_NAMES.get(code, code)


def primary(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that stands for the cell: the one marked so, else the first over the whole."""
    whole = [result for result in record["results"] if result.get("subset", "") == ""]
    marked = [result for result in whole if result.get("primary")]
    chosen: list[dict[str, Any]] = marked or whole
    return chosen[0] if chosen else None


def build_study(collection: Collection, stages: Stages) -> Study:
    """Runs and columns of the records that were read."""
    problems = [*collection.problems, *stages.problems]
    experiments = list(stages.experiments.values())
    target = next((e.data.language for e in experiments if e.data.language != SOURCE_LANGUAGE), "")
    good = [record for record in collection.records if record["status"] == "ok" and primary(record) is not None]
    asked = _asked_runs(stages)
    good = _asked(good, stages, asked, problems)
    target = target or next((r["language"] for r in good if r["language"] not in (SOURCE_LANGUAGE, "und")), "lt")
    run_of = _runs(good, stages)
    column_of = _columns(good, target)
    placed: dict[tuple[Run, Column], dict[str, Any]] = {}
    for record in good:
        at = run_of[record["where"]], column_of[record["where"]]
        if placed.setdefault(at, record) is not record:
            problems.append(
                Problem(record["where"], f"stands in the same place as {placed[at]['where']}; that is shown")
            )
    runs = sorted({run for run, _ in placed})
    return Study(
        title=", ".join(source.label for source in collection.sources),
        runs=runs,
        columns=sorted({column for _, column in placed}),
        records=placed,
        bases=_bases(runs),
        target=target,
        stages=stages,
        missing=[cell for cell in stages.missing if asked.get((cell.source, cell.run), True)],
        problems=problems,
        illustration=bool(good) and _is_illustration(stages),
    )


def _is_illustration(stages: Stages) -> bool:
    """Whether the Fishers say that every model is smaller than `SMALL_MODEL`; False if none says."""
    summaries = [trained.fisher.get("summary") for trained in stages.trained.values()]
    counts = [summary.get("parameters") for summary in summaries if isinstance(summary, dict)]
    known = [count for count in counts if isinstance(count, int | float)]
    return bool(known) and max(known) < SMALL_MODEL


# ---------------------------------------------------------------------------------------------- runs


def _asked(
    good: list[dict[str, Any]], stages: Stages, asked: Mapping[tuple[str, str], bool], problems: list[Problem]
) -> list[dict[str, Any]]:
    """Without the records that the experiment, as last submitted, does not ask for; these are listed."""
    dropped: dict[tuple[str, str], list[str]] = defaultdict(list)
    kept = []
    for record in good:
        at = record["source"], record["run"]
        expected = stages.expected.get(at)
        if asked.get(at, True) and (expected is None or (float(record["fraction"]), record["cell"]) in expected):
            kept.append(record)
        else:
            dropped[at].append(record["cell"])
    for (source, run), cells in sorted(dropped.items()):
        what = ", ".join(sorted(set(cells))) if asked.get((source, run), True) else f"{len(cells)} records of a run"
        problems.append(Problem(f"{source}/evaluate/{run}", f"{what}: experiment.toml no longer asks for it"))
    return kept


def _asked_runs(stages: Stages) -> dict[tuple[str, str], bool]:
    """Of every training whose experiment is known, whether that still asks for it."""
    asked = {source: Asked(experiment) for source, experiment in stages.experiments.items()}
    return {at: asked[at[0]].has(trained) for at, trained in stages.trained.items() if at[0] in asked}


def _runs(good: Iterable[dict[str, Any]], stages: Stages) -> dict[str, Run]:
    """The run of each record, by where the record is."""
    good = list(good)
    parents = {r["base_hash"] for r in good if r["base_hash"] != r["model_hash"]}
    runs: dict[str, Run] = {}
    known: dict[Run, Run] = {}
    for record in good:
        is_base = record["model_hash"] in parents or record["run"] == sweep.BASE_RUN
        trained = stages.trained.get((record["source"], record["run"]))
        coordinates = record["coordinates"]
        strength = coordinates.get("ewc.strength", None if trained is None else trained.strength)
        strength = float(strength) if isinstance(strength, (int, float)) and not is_base else None
        seeds = tuple(sorted((k, v) for k, v in coordinates.items() if k in SEEDS))
        others = tuple(sorted((k, _plain(v)) for k, v in coordinates.items() if k not in (*SEEDS, "ewc.strength")))
        # a base is one model wherever it was measured; anything else is a run of its own experiment
        source, name = ("", sweep.BASE_RUN) if is_base else (record["source"], record["run"])
        place = -1.0 if is_base else math.inf if strength is None else strength
        order = (not is_base, source, repr(others), place, float(record["fraction"]), repr(seeds), name)
        run = Run(
            order=(*order, record["model_hash"] if is_base else ""),
            source=source,
            name=name,
            step=record["step"],
            fraction=float(record["fraction"]),
            strength=strength,
            seeds=seeds,
            others=others,
            model_hash=record["model_hash"],
            base_hash=record["base_hash"],
            is_base=is_base,
        )
        runs[record["where"]] = known.setdefault(run, run)
    return runs


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _bases(runs: Iterable[Run]) -> dict[Run, Run]:
    by_hash = {run.model_hash: run for run in runs if run.is_base}
    return {run: by_hash[run.base_hash] for run in runs if run.base_hash in by_hash and not run.is_base}


# ---------------------------------------------------------------------------------------------- columns


def _columns(good: Iterable[dict[str, Any]], target: str) -> dict[str, Column]:
    """The column of each record, by where the record is; labels tell columns of one task apart."""
    good = list(good)
    # lm-eval gives some tasks' f1 in per cent
    beyond = {
        (record["task"], found["metric"])
        for record in good
        if (found := primary(record)) is not None and not 0 <= found["value"] <= 1
    }
    raw = {record["where"]: _column(record, target, beyond) for record in good}
    alike: dict[tuple[str, str, str], set[Column]] = defaultdict(set)
    for column in raw.values():
        alike[column.language, column.task, column.variant].add(column)
    labelled = {c: dataclasses.replace(c, label=_label(c, group)) for group in alike.values() for c in group}
    return {where: labelled[column] for where, column in raw.items()}


def _kind(task: str, metric: str, beyond: set[tuple[str, str]]) -> str:
    """Of a column; `beyond`: the (task, metric)s with a value that is no share."""
    if task == suites.JUDGED:
        return "judged"
    if metric in SHARES and (task, metric) not in beyond:
        return "share"
    return "perplexity" if metric in (*PERPLEXITIES, "bits_per_byte") else "number"


def _column(record: Mapping[str, Any], target: str, beyond: set[tuple[str, str]]) -> Column:
    result = primary(record)
    assert result is not None
    known = suites.TASKS.get(record["task"])
    metric = result["metric"]
    kind = _kind(record["task"], metric, beyond)
    language = record["language"]
    first = [SOURCE_LANGUAGE, target]
    rank = first.index(language) if language in first else len(first)
    place = list(suites.TASKS).index(record["task"]) if known else len(suites.TASKS)
    settings = tuple(_setting(record, name) for name in SETTINGS)
    order = (rank, language, kind != "share", place, record["task"], record["variant"], repr(settings))
    return Column(
        order=order,
        language=language,
        task=record["task"],
        variant=record["variant"],
        metric=metric,
        filter=str(result.get("filter", "none")),
        settings=settings,
        higher_is_better=bool(result.get("higher_is_better", True)),
        kind=kind,
        chance=record.get("chance", known.chance if known else None),
    )


def _setting(record: Mapping[str, Any], name: str) -> Any:
    """One of SETTINGS; of those that a record may leave out, what is not set is None however it is written."""
    value = _plain(record.get(name))
    return None if name in OPTIONAL and not value else value


def _label(column: Column, group: set[Column]) -> str:
    """The task, with what tells this column from others of the same cell."""
    parts = [column.task, *([column.variant] if column.variant else [])]
    for place, name in enumerate(SETTINGS):
        if len({other.settings[place] for other in group}) > 1:
            parts.append(f"{name}={column.settings[place]}")
    for name in ("metric", "filter"):
        if len({getattr(other, name) for other in group}) > 1:
            parts.append(f"{name}={getattr(column, name)}")
    return " ".join(parts)
