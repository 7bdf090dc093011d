"""Finds records and reads them. Corrupt, foreign, older or double files are listed and never shown."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.report.study.json_numbers import find_bad_number, finite_number
from hpc_ewc.rundir import RunDir, StageDir

OPTIONAL_SETTINGS = ("cloze", "max_gen_toks", "backend_args")
"""Settings that a record may leave out."""
SETTINGS = ("shots", "limit", "seed", "backend", "dtype", "max_length", "task_version", "data_hash", *OPTIONAL_SETTINGS)
"""Settings that two records of a cell must share for their values to be in one column."""
DAMAGED = "corrupt or not written by hpc-ewc; delete it and resubmit"


@dataclass(frozen=True)
class Problem:
    """A file that is not in the tables, and why."""

    where: str
    what: str


@dataclass(frozen=True)
class Source:
    """The run folder of one experiment."""

    label: str
    """Its name, after as much of its path as distinguishes it from others of that name."""
    folder: RunDir


@dataclass
class Collection:
    """Every record that could be read, once, and everything that could not."""

    sources: list[Source] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    """As in docs/schemas, with `source` (label of its experiment), `where`, `cell`, `path` and `samples_path` added."""
    problems: list[Problem] = field(default_factory=list)
    measured: set[tuple[str, str, float, str]] = field(default_factory=set)
    """(source, run, fraction, cell) of every record that could be read, doubles included."""


def collect(paths: Sequence[Path | str]) -> Collection:
    """All records under `paths`.

    Args:
        paths: folders of experiments (`runs/NAME`), folders that hold such folders, the `evaluate` folder of one, of
            one run or of one checkpoint, exported checkpoints (`train/RUN/exports/STEP`), single record files, or
            globs of any of these.

    Raises:
        InputError: a path does not exist, or is no part of an experiment.
    """
    found: dict[Path, dict[Path, None]] = {}  # run folder → its records, both in order of discovery
    for path in _expand(paths):
        experiments = list(_experiments(path))
        if not experiments:
            raise InputError(
                f"{path}: holds no record of an experiment; give runs/NAME, which has an evaluate/ folder, or "
                "something inside it"
            )
        for root, files in experiments:
            found.setdefault(root, {}).update(dict.fromkeys(files))
    labels = _labels(list(found))
    collection = Collection(sources=[Source(labels[root], RunDir(root)) for root in found])
    for root, record_files in found.items():
        for path in record_files:
            where = f"{labels[root]}/{path.relative_to(root)}"
            try:
                record = read_record(path) | {"source": labels[root], "where": where}
            except (ArtefactError, FileNotFoundError) as error:
                collection.problems.append(Problem(where, str(error).removeprefix(f"{path}: ")))
            else:
                collection.records.append(record)
                collection.measured.add((record["source"], record["run"], float(record["fraction"]), record["cell"]))
    _drop_doubles(collection)
    return collection


def load_records(*paths: Path | str) -> list[dict[str, Any]]:
    """One flat dictionary per result: the fields of its record beside `metric, filter, subset, value, stderr, n, …`.

    Cells that failed have no result; `collect` lists them, and every file that could not be read.
    """
    return [row for record in collect(paths).records for row in flatten(record)]


def flatten(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record's results, each with the fields of the record; coordinates stay a dictionary."""
    shared = {key: value for key, value in record.items() if key not in ("results", "schema")}
    for result in record["results"]:
        yield {**shared, **result}


# ---------------------------------------------------------------------------------------------- finding


def _expand(paths: Sequence[Path | str]) -> Iterator[Path]:
    for given in paths:
        path = Path(given)
        if path.exists():
            yield path.absolute()
            continue
        matches = sorted(glob.glob(str(path)))  # noqa: PTH207 - an absolute pattern is refused by Path.glob
        if not matches:
            raise InputError(f"{given}: no such folder or file; give runs/NAME, as `hpc-ewc submit` printed it")
        yield from (Path(match).absolute() for match in matches)


def _experiments(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The experiment that `path` is or is part of, else each one just below it, with the records under `path`."""
    if path.parent.name == "exports" and path.parent.parent.parent.name == "train":
        run = path.parent.parent
        path = RunDir(run.parent.parent).evaluate(run.name).path / path.name
    if not path.exists():
        return
    # evaluate, evaluate/RUN, evaluate/RUN/STEP and evaluate/RUN/STEP/CELL.json are part of the folder above evaluate
    above = [folder.parent for folder in (path, *path.parents)[:4] if folder.name == "evaluate"]
    for root in (path, *above):
        if _is_experiment(root):
            inside = _records(root)
            if path != root:
                inside = [record for record in inside if path in (record, *record.parents)]
            if inside or path.is_dir():
                yield root, inside
            return
    for child in sorted(path.iterdir()) if path.is_dir() else ():
        if _is_experiment(child):
            yield child, _records(child)


def _is_experiment(path: Path) -> bool:
    return (path / "evaluate").is_dir() or (path / "experiment.toml").is_file()


def _records(root: Path) -> list[Path]:
    """Record files of an experiment. A leading dot marks a file that its writer has not finished."""
    paths = sorted(root.glob("evaluate/*/*/*.json"))
    return [path for path in paths if path.parent.name.isdigit() and not path.name.startswith(".")]


def _labels(roots: Sequence[Path]) -> dict[Path, str]:
    """The name of each folder, after as many of the folders above as distinguish it."""
    labels: dict[Path, str] = {}
    for root in roots:
        parts = root.parts
        for length in range(1, len(parts) + 1):
            label = "/".join(parts[-length:])
            if not any(other != root and "/".join(other.parts[-length:]) == label for other in roots):
                break
        labels[root] = label
    return labels


# ---------------------------------------------------------------------------------------------- reading


def _drop_doubles(collection: Collection) -> None:
    """Keep one record of each measurement, one with a value before a failed one, and list the others."""
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for record in sorted(collection.records, key=lambda record: record["status"] != "ok"):
        twin = kept.setdefault((record["cell_key"], record["model_hash"]), record)
        if twin is not record:
            same = [_identity(r) for r in record["results"]] == [_identity(r) for r in twin["results"]]
            what = "the same measurement as" if same else "another result of the same measurement as"
            collection.problems.append(Problem(record["where"], f"{what} {twin['where']}, which is shown"))
    collection.records = list(kept.values())


def _identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(key) for key in ("metric", "filter", "subset", "value", "n"))


def read_record(path: Path) -> dict[str, Any]:
    """A record, with `cell`, `path` and `samples_path` added.

    Raises:
        ArtefactError: damaged, foreign, of another schema, or with a number that is not a finite float.
    """
    record = records.read_checked(path, "record")
    cell = path.name.removesuffix(".json")
    named = ".".join(part for part in (record["task"], record["language"], record["variant"]) if part)
    if named != cell:
        raise ArtefactError(f"{path}: says it is of cell '{named}'; renamed or not written by hpc-ewc")
    for result in record["results"]:
        if not _is_result(result):
            raise ArtefactError(f"{path}: a result without a finite value: {str(result)[:120]}")
    for name in (*SETTINGS, "chance", "truncated"):
        value, must_be_number = record.get(name), name in ("chance", "truncated")
        is_known = value is None or finite_number(value) is not None
        if not (is_known or (isinstance(value, (str, bool)) and not must_be_number)):
            raise ArtefactError(f"{path}: '{name}' is {str(value)[:60]!r}; {DAMAGED}")
    for value in record["coordinates"].values():
        if any(isinstance(item, (dict, list)) for item in (value if isinstance(value, list) else [value])):
            raise ArtefactError(f"{path}: 'coordinates' holds {str(value)[:60]!r}; {DAMAGED}")
    if bad := find_bad_number(record):
        raise ArtefactError(f"{path}: holds {bad}, which is not a finite number; {DAMAGED}")
    stage = StageDir(path.parent.parent)
    samples = stage.samples(record["step"], cell)
    samples = samples if samples.parent == path.parent else path.with_name(samples.name)
    return record | {"cell": cell, "path": str(path), "samples_path": str(samples) if samples.is_file() else None}


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    stderr, n = result.get("stderr"), result.get("n")
    return (
        all(isinstance(result.get(name, ""), str) for name in ("metric", "filter", "subset"))
        and "metric" in result
        and finite_number(result.get("value")) is not None
        and (stderr is None or ((error := finite_number(stderr)) is not None and error >= 0))
        and type(n) is int
        and 0 < n < 1 << 63
    )
