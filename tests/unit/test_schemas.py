"""The examples in docs/schemas are read by the code that reads real files; none is missing or superfluous."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NotRequired, get_origin, get_type_hints

import pytest

from hpc_ewc import records
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.rundir import RunDir
from hpc_ewc.schemas import Record, Result, Sample


@pytest.fixture
def schemas(repository: Path) -> Path:
    return repository / "docs" / "schemas"


@pytest.mark.parametrize("stage", ["tokens", "fisher", "train", "evaluate"])
def test_stage_done_and_progress_files_of_each_stage_are_valid(schemas: Path, stage: str) -> None:
    facts = records.read_checked(schemas / f"stage.{stage}.json", "stage")
    assert facts["stage"] == stage
    done = records.read_checked(schemas / f"done.{stage}.json", "done")
    assert done["key"] == facts["key"]
    assert all(len(entry) == 2 and len(entry[1]) == 64 for entry in done["outputs"].values())
    progress = records.read_json(schemas / f"progress.{stage}.json")
    assert progress["done"] <= progress["total"]
    assert {"schema", "unit", "updated", "job_id", "restart", "node"} <= set(progress)


def test_a_stage_opens_from_its_example(schemas: Path, tmp_path: Path) -> None:
    from hpc_ewc.stage import Stage

    (tmp_path / "stage.json").write_bytes((schemas / "stage.train.json").read_bytes())
    (tmp_path / "config.toml").write_text('[model]\npath = "a/model"\n[data]\nsource = "a/corpus"\n')
    stage = Stage(tmp_path)
    assert stage.coordinates == {"ewc.strength": 1e6}
    assert set(stage.inputs) == {"model", "tokens", "fisher"}
    (tmp_path / "failed.json").write_bytes((schemas / "failed.json").read_bytes())
    assert records.read_checked(tmp_path / "failed.json", "failed")["samples"] == [4711]
    stage.forget_failure()
    assert not (tmp_path / "failed.json").exists()


def test_checkpoint_and_training_summaries_match_their_examples(schemas: Path) -> None:
    checkpoint = records.read_checked(schemas / "checkpoint.done.json", "done")
    assert set(checkpoint["summary"]) == {"step", "parts", "tokens", "loss", "seconds"}
    assert checkpoint["summary"]["parts"] == ["model", "optimizer"]
    summary = records.read_json(schemas / "done.train.json")["summary"]
    manifest = records.read_json(schemas / "manifest.train.json")
    assert {"gpu_hours", "penalty", "distance", "free_parameters", "free_distance"} <= set(summary)
    for name in ("fisher_trace", "scaled_mean"):
        assert summary[name] == manifest[name]
    parameters = records.read_json(schemas / "manifest.fisher.json")["summary"]["parameters"]
    assert summary["scaled_mean"] == pytest.approx(1e6 * summary["fisher_trace"] / parameters)


def assert_keys(value: Any, kind: Any) -> None:
    """Check that a TypedDict describes an example: it has all required keys and no other than the optional ones."""
    hints = get_type_hints(kind, include_extras=True)
    required = {name for name, hint in hints.items() if get_origin(hint) is not NotRequired}
    assert required <= set(value) <= set(hints)


def test_records_become_rows_of_the_report(schemas: Path, tmp_path: Path) -> None:
    from hpc_ewc.report import load_records

    cells = tmp_path / "runs" / "nano" / "evaluate" / "strength=1e+06-d05b095a51ca" / "00000020"
    cells.mkdir(parents=True)
    for name, cell in (("record.json", "arc_easy.en"), ("record.perplexity.json", "ppl_heldout.lt")):
        record = records.read_checked(schemas / name, "record")
        assert f"{record['task']}.{record['language']}" == cell
        assert sum(result["primary"] for result in record["results"]) == 1
        assert_keys(record, Record)
        for result in record["results"]:
            assert_keys(result, Result)
        (cells / f"{cell}.json").write_bytes((schemas / name).read_bytes())
        rows = list(records.read_lines(schemas / f"samples.{cell}.jsonl"))
        records.write_samples(cells / f"{cell}.samples.jsonl.zst", rows)
        for row in rows:
            assert_keys(row, Sample)
        assert {"doc_id", "doc_hash", "subset", "filter", "metrics", "loglikelihoods"} <= set(rows[0])
    rows = load_records(tmp_path / "runs" / "nano")
    assert {(row["task"], row["language"]) for row in rows} == {("arc_easy", "en"), ("ppl_heldout", "lt")}


def test_the_ledger_has_intent_before_submitted(schemas: Path) -> None:
    events = [line["event"] for line in records.read_lines(schemas / "jobs.jsonl")]
    assert events.index("intent") < events.index("submitted")


def test_the_slurm_ledger_lists_each_element(schemas: Path, tmp_path: Path) -> None:
    root = RunDir(tmp_path)
    root.ledger.write_bytes((schemas / "jobs.slurm.jsonl").read_bytes())
    jobs = Ledger(root).read().jobs.values()
    trained = "strength=1e+06-d05b095a51ca"
    assert [(job.job_id, job.run, job.outcome) for job in jobs] == [
        ("4711", trained, "finished"),
        ("4712_0", trained, "finished"),
        ("4712_1", trained, "stopped"),
        ("4713_0", "base", "finished"),  # one array over two runs
        ("4713_1", trained, ""),
    ]
    assert read_outcome(schemas / "exit.slurm.json") == "stopped"


def test_every_example_is_listed_and_every_listed_one_exists(schemas: Path) -> None:
    listed = set(re.findall(r"\]\(([a-z_.]+\.jsonl?)\)", (schemas / "README.md").read_text()))
    assert listed == {path.name for path in schemas.iterdir()} - {"README.md"}
