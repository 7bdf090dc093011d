"""The manifest of a report: its records, versions and bootstrap; and the same as a footnote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import hpc_ewc
from hpc_ewc.records import canonical_json, sha256_file
from hpc_ewc.report.analysis.estimates import Analysis
from hpc_ewc.report.study.collect import Collection

SCHEMA = 1
TRAINING = ("commit", "device", "gpus", "world_size", "dtype", "attention", "loss")
"""Keys of a run's manifest that change its numbers or its cost."""


def manifest(collection: Collection, analysis: Analysis, *, resamples: int, seed: int, paired: bool) -> dict[str, Any]:
    """The contents of manifest.json except the hashes of files.

    They contain no time and no path of this machine: the same records give the same bytes.
    """
    cells = sorted({f"{record['where']} {record['cell_key']} {record['model_hash']}" for record in collection.records})
    experiments = {
        source.label: sha256_file(source.folder.experiment_toml) if source.folder.experiment_toml.is_file() else None
        for source in collection.sources
    }
    return {
        "schema": SCHEMA,
        "hpc_ewc": hpc_ewc.__version__,
        "experiments": experiments,
        "records": len(collection.records),
        "records_sha256": hashlib.sha256("\n".join(cells).encode()).hexdigest(),
        "missing": len(analysis.study.missing),
        "not_taken": len(analysis.study.problems),
        "bootstrap": {"resamples": resamples, "seed": seed, "paired": paired},
        "evaluated_with": _each([r.get("versions") for r in collection.records]),
        "trained_with": _each([{k: t.manifest.get(k) for k in TRAINING} for t in _trained(analysis) if t.manifest]),
        "training_versions": _each([t.manifest.get("versions") for t in _trained(analysis)]),
    }


def _trained(analysis: Analysis) -> list[Any]:
    found = [analysis.study.trained(run) for run in analysis.study.runs]
    return [trained for trained in found if trained is not None]


def _each(values: list[Any]) -> list[Any]:
    """The distinct values in a fixed order."""
    found = {canonical_json(value): value for value in values if isinstance(value, dict) and value}
    return [found[key] for key in sorted(found)]


def footnote(facts: Mapping[str, Any]) -> list[str]:
    """The manifest in a few lines."""
    bootstrap = facts["bootstrap"]
    lines = [
        f"{facts['records']:,} records of {', '.join(facts['experiments'])} (sha256 {facts['records_sha256'][:12]})",
        f"hpc_ewc {facts['hpc_ewc']}; {bootstrap['resamples']:,} bootstrap resamples, seed {bootstrap['seed']}",
    ]
    for name, key in (("Evaluated with", "evaluated_with"), ("Trained with", "training_versions")):
        lines += [f"{name} {', '.join(f'{k} {v}' for k, v in sorted(each.items()))}" for each in facts[key]]
    for each in facts["trained_with"]:
        said = [f"{key} {value}" for key, value in each.items() if value is not None]
        lines.append(f"Trained on {', '.join(said)}")
    return lines
