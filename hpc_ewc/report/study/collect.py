"""Finds records and reads them. What is half-written, foreign, older or double is listed, never taken for a result."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.rundir import RunDir, StageDir

OPTIONAL = ("cloze", "max_gen_toks", "backend_args")
"""Settings that mostly are not set."""
SETTINGS = ("shots", "limit", "seed", "backend", "dtype", "max_length", "task_version", "data_hash", *OPTIONAL)
"""What two records of a cell must share before their values may stand in one column."""


@dataclass(frozen=True)
class Problem:
    """A file, or a cell, that is not in the tables, and why."""

    where: str
    what: str


@dataclass(frozen=True)
class Source:
    """The folder of one experiment that was asked for."""

    label: str
    """Its name; with as much of its path as tells it from another of that name."""
    folder: RunDir


@dataclass
class Collection:
    """Every record that could be read, once, and everything that could not."""

    sources: list[Source] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    """As in docs/schemas, with `source` (label of its experiment), `cell`, `path` and `samples_path` added."""
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
        InputError: a path does not exist, or nothing under it is ours.
    """
    found: dict[Path, Path] = {}  # record → folder of its experiment; both in order of discovery
    roots: dict[Path, None] = {}
    for path in _expand(paths):
        before = len(roots)
        for root, files in _experiments(path):
            roots.setdefault(root)
            found.update(dict.fromkeys(files, root))
        if len(roots) == before and not any(root == path or root in path.parents for root in roots):
            raise InputError(
                f"{path}: holds no record of an experiment; give runs/NAME, which has an evaluate/ folder, or "
                "something inside it"
            )
    labels = _labels(list(roots))
    collection = Collection(sources=[Source(labels[root], RunDir(root)) for root in roots])
    _read_all(found, labels, collection)
    return collection


def load_records(*paths: Path | str) -> list[dict[str, Any]]:
    """One flat record a result: the fields of its cell beside `metric, filter, subset, value, stderr, n, …`.

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
    """Each experiment at or above or just below `path`, with the records under `path`, or those of a checkpoint."""
    if path.parent.name == "exports" and path.parent.parent.parent.name == "train":
        run = path.parent.parent
        root = run.parent.parent
        if (evaluated := RunDir(root).evaluate(run.name).path / path.name).is_dir():
            yield root, _of_cells(evaluated)
        return
    if path.name == "evaluate" and path.is_dir() and not _is_experiment(path):
        yield path.parent, _of_runs(path)
    elif path.parent.name == "evaluate" and path.is_dir():
        yield path.parent.parent, _of_steps(path)
    elif path.parent.parent.name == "evaluate" and path.is_dir():
        yield path.parent.parent.parent, _of_cells(path)
    elif path.is_file() and path.suffix == ".json" and path.parent.parent.parent.name == "evaluate":
        yield path.parent.parent.parent.parent, [path]
    elif _is_experiment(path):
        yield path, _of_runs(path / "evaluate")
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if _is_experiment(child):
                yield child, _of_runs(child / "evaluate")


def _is_experiment(path: Path) -> bool:
    return (path / "evaluate").is_dir() or (path / "experiment.toml").is_file()


def _of_runs(evaluate: Path) -> list[Path]:
    folders = sorted(evaluate.iterdir()) if evaluate.is_dir() else []
    return [record for folder in folders if folder.is_dir() for record in _of_steps(folder)]


def _of_steps(run: Path) -> list[Path]:
    steps = (folder for folder in sorted(run.iterdir()) if folder.name.isdigit() and folder.is_dir())
    return [record for folder in steps for record in _of_cells(folder)]


def _of_cells(step: Path) -> list[Path]:
    """Records; names that start with a dot are files that a writer has not finished."""
    return [path for path in sorted(step.iterdir()) if path.suffix == ".json" and not path.name.startswith(".")]


def _labels(roots: Sequence[Path]) -> dict[Path, str]:
    """The name of each folder; where two share it, with as many of the folders above as it takes."""
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


def _read_all(found: Mapping[Path, Path], labels: Mapping[Path, str], collection: Collection) -> None:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for record in sorted(_readable(found, labels, collection), key=lambda record: record["status"] != "ok"):
        collection.measured.add((record["source"], record["run"], float(record["fraction"]), record["cell"]))
        twin = seen.setdefault((record["cell_key"], record["model_hash"]), record)
        if twin is not record:
            same = [_essence(r) for r in record["results"]] == [_essence(r) for r in twin["results"]]
            what = "the same measurement as" if same else "another result of the same measurement as"
            collection.problems.append(Problem(record["where"], f"{what} {twin['where']}; that one is shown"))
            continue
        collection.records.append(record)


def _readable(
    found: Mapping[Path, Path], labels: Mapping[Path, str], collection: Collection
) -> Iterator[dict[str, Any]]:
    """Every record that can be read, with its `source` and `where`; the others become problems."""
    for path, root in found.items():
        where = f"{labels[root]}/{path.relative_to(root)}"
        try:
            record = read_record(path)
        except (ArtefactError, FileNotFoundError) as error:
            collection.problems.append(Problem(where, str(error).removeprefix(f"{path}: ")))
            continue
        yield record | {"source": labels[root], "where": where}


def read_record(path: Path) -> dict[str, Any]:
    """A record, with `cell`, `path` and `samples_path` added.

    Raises:
        ArtefactError: half-written, foreign, of another schema, or with a value that is not a finite number.
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
        value, numeric = record.get(name), name in ("chance", "truncated")
        if not (value is None or _finite(value) or (isinstance(value, (str, bool)) and not numeric)):
            raise ArtefactError(
                f"{path}: '{name}' is {str(value)[:60]!r}; corrupt or not written by hpc-ewc; delete it and resubmit"
            )
    stage = StageDir(path.parent.parent)
    samples = stage.samples(record["step"], cell)
    samples = samples if samples.parent == path.parent else path.with_name(samples.name)
    return record | {"cell": cell, "path": str(path), "samples_path": str(samples) if samples.is_file() else None}


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    value, stderr, n = result.get("value"), result.get("stderr"), result.get("n")
    return (
        all(isinstance(result.get(name, ""), str) for name in ("metric", "filter", "subset"))
        and "metric" in result
        and _finite(value)
        and (stderr is None or (_finite(stderr) and stderr >= 0))
        and type(n) is int
        and n > 0
    )


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _essence(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(key) for key in ("metric", "filter", "subset", "value", "n"))
