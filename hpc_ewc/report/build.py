"""A report from paths to files: collect, analyse, lay out, render, write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import hpc_ewc
from hpc_ewc import records
from hpc_ewc.errors import InputError
from hpc_ewc.report import data
from hpc_ewc.report.analysis import Analysis
from hpc_ewc.report.collect import Collection, collect
from hpc_ewc.report.differences import analyse
from hpc_ewc.report.document import build_document
from hpc_ewc.report.markdown import render_markdown
from hpc_ewc.report.stages import read_stages
from hpc_ewc.report.study import build_study
from hpc_ewc.report.terminal import print_document

FORMATS = ("terminal", "markdown", "csv")


@dataclass(frozen=True)
class Options:
    """What to make, and how the bootstrap draws."""

    formats: Sequence[str] = FORMATS
    paired: bool = True
    resamples: int = 2000
    seed: int = 0


def report(paths: Sequence[Path | str], out: Path | None, options: Options, console: Console) -> Path:
    """Print the tables and write them; the folder they were written to.

    Raises:
        InputError: a path does not exist, or nothing under the paths is ours or was ever expected.
    """
    collection = collect(paths)
    stages = read_stages(collection)
    study = build_study(collection, stages)
    if not (study.runs or study.missing or study.problems):
        raise InputError(f"{paths[0]}: no record in evaluate/ yet; `hpc-ewc status` says how far it is")
    analysis = analyse(study, paired=options.paired, resamples=options.resamples, seed=options.seed)
    document = build_document(analysis)
    out = out or Path("results") / collection.sources[0].folder.name
    files: dict[str, bytes] = {}
    if "markdown" in options.formats:
        files["report.md"] = render_markdown(document).encode()
    if "csv" in options.formats:
        files["results.csv"] = data.render_csv(data.long_rows(analysis)).encode()
        files["table.csv"] = data.render_csv(data.wide_rows(analysis)).encode()
    for name, content in files.items():
        records.write_bytes(out / name, content)
    records.write_json(out / "manifest.json", manifest(collection, analysis, options, files))
    if "terminal" in options.formats:
        print_document(document, console)
    return out


def manifest(collection: Collection, analysis: Analysis, options: Options, files: dict[str, bytes]) -> dict[str, Any]:
    """What the report was made of and by.

    No time and no path of this machine: the same records give the same bytes.
    """
    cells = sorted({f"{record['where']} {record['cell_key']} {record['model_hash']}" for record in collection.records})
    versions = sorted({tuple(sorted(r.get("versions", {}).items())) for r in collection.records})
    return {
        "schema": data.SCHEMA,
        "hpc_ewc": hpc_ewc.__version__,
        "experiments": [source.label for source in collection.sources],
        "records": len(collection.records),
        "records_sha256": hashlib.sha256("\n".join(cells).encode()).hexdigest(),
        "missing": len(analysis.study.missing),
        "not_taken": len(analysis.study.problems),
        "bootstrap": {"resamples": options.resamples, "seed": options.seed, "paired": options.paired},
        "versions": [dict(version) for version in versions],
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
