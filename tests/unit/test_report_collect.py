"""Records accepted by the report, and files listed as problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_ewc.errors import InputError
from hpc_ewc.report import load_records
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.document import build_document
from tests.unit.report_fixture import RunBuilder


@pytest.fixture
def run(tmp_path: Path) -> RunBuilder:
    builder = RunBuilder(tmp_path / "runs" / "paper", strengths=(0.0, 1e6), tasks=("arc_easy", "mmlu"), n=12)
    builder.build()
    return builder


def test_each_result_is_one_flat_record(run: RunBuilder) -> None:
    rows = load_records(run.dir.root)
    mmlu = [row for row in rows if row["cell"] == "mmlu.lt" and row["run"] == "base"]
    assert [row["subset"] for row in mmlu] == ["", "anatomy", "astronomy", "law"]
    assert {row["value"] for row in mmlu if row["primary"]} == {mmlu[0]["value"]}
    assert {row["coordinates"].get("ewc.strength") for row in rows} == {None, 0.0, 1e6}


@pytest.mark.parametrize("place", ["", "..", "evaluate", "evaluate/base", "evaluate/base/00000000", "evaluate/*"])
def test_records_are_found_from_any_folder_or_glob(run: RunBuilder, place: str) -> None:
    found = collect([run.dir.root / place])
    base = [record for record in found.records if record["run"] == "base"]
    assert len(base) == len(run.cells())
    assert [source.label for source in found.sources] == ["paper"]


def test_a_list_of_exported_checkpoints_stands_for_their_records(run: RunBuilder) -> None:
    names = [run.run_name(strength, 0) for strength in (0.0, 1e6)]
    exports = [run.dir.train(name).export(40) for name in names]
    for export in exports:
        export.mkdir(parents=True)
    found = collect(exports)
    assert {record["run"] for record in found.records} == set(names)
    assert len(found.records) == 2 * len(run.cells())
    never = run.dir.train(names[0]).export(20)
    never.mkdir()
    with pytest.raises(InputError, match="holds no record of an experiment"):
        collect([never])


def test_a_single_record_file_is_enough(run: RunBuilder) -> None:
    assert len(collect([run.dir.evaluate("base").cell(0, "mmlu.en")]).records) == 1


def test_damaged_unknown_older_and_duplicate_records_are_listed_and_skipped(run: RunBuilder) -> None:
    folder = run.dir.evaluate("base").cells(0)
    text = (folder / "mmlu.en.json").read_text()
    (folder / "mmlu.en.json").write_text(text[: len(text) // 2])
    (folder / "arc_easy.en.json").write_text(json.dumps({"schema": 0}))
    (folder / "notes.json").write_text("[1, 2]")
    record = json.loads((folder / "mmlu.lt.json").read_text())
    record["results"][0]["value"] = float("nan")
    (folder / "mmlu.lt.json").write_text(json.dumps(record))
    (folder / ".arc_easy.lt.json.node1.17").write_text("{")
    (folder / "other.en.json").write_text((folder / "arc_easy.lt.json").read_text())
    found = collect([run.dir.root])
    listed = {problem.where.removeprefix("paper/evaluate/base/00000000/"): problem.what for problem in found.problems}
    assert set(listed) == {"mmlu.en.json", "arc_easy.en.json", "notes.json", "mmlu.lt.json", "other.en.json"}
    assert "corrupt or not written" in listed["mmlu.en.json"]
    assert "schema 0" in listed["arc_easy.en.json"]
    assert "not an object" in listed["notes.json"]
    assert "without a finite value" in listed["mmlu.lt.json"]
    assert "renamed or not written by hpc-ewc" in listed["other.en.json"]
    taken = {record["cell"] for record in found.records if record["run"] == "base"}
    assert not taken & {"mmlu.en", "arc_easy.en", "mmlu.lt"}


def test_a_duplicate_measurement_is_used_once(run: RunBuilder, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "elsewhere" / "paper"
    shutil.copytree(run.dir.root, copy)
    path = copy / "evaluate" / "base" / "00000000" / "mmlu.en.json"
    record = json.loads(path.read_text())
    record["results"][0]["value"] += 0.1
    path.write_text(json.dumps(record))
    found = collect([run.dir.root, copy])
    assert [source.label for source in found.sources] == ["runs/paper", "elsewhere/paper"]
    assert len(found.records) == len(collect([run.dir.root]).records)
    assert len(found.problems) == len(found.records)
    other = [problem for problem in found.problems if problem.what.startswith("another result")]
    assert [problem.where for problem in other] == ["elsewhere/paper/evaluate/base/00000000/mmlu.en.json"]


def test_no_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder or file"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no record of an experiment"):
        collect([tmp_path])


# ---------------------------------------------------------------------------------------------- missing cells


def why(run: RunBuilder) -> dict[str, str]:
    stages = read_stages(collect([run.dir.root]))
    return {f"{cell.run.split('-')[0]} {cell.cell}": cell.why for cell in stages.missing}


def test_a_failed_cell_shows_its_error(run: RunBuilder) -> None:
    name = run.run_name(0.0, 0)
    cell = next(cell for cell in run.cells() if cell.name == "mmlu.en")
    failed = {"status": "failed", "error": "NonFinite: the model has diverged", "results": []}
    rows = run.rows(cell, 0.0, 0)
    run.write(run.dir.evaluate(name), name, 40, 1.0, run.coordinates(0.0, 0), cell, rows, **failed)
    assert why(run) == {"strength=0 mmlu.en": "NonFinite: the model has diverged"}


def test_a_cell_that_could_not_start_shows_the_upstream_error(run: RunBuilder) -> None:
    from hpc_ewc import records

    name = run.run_name(1e6, 0)
    run.dir.evaluate(name).cell(40, "mmlu.en").unlink()
    train = run.dir.train(name)
    train.done.unlink()
    assert why(run) == {"strength=1e+06 mmlu.en": "training is not finished"}
    records.write_json(train.progress(), {"schema": 1, "done": 12, "total": 40, "unit": "step"})
    assert why(run)["strength=1e+06 mmlu.en"] == "training is not finished: step 12 of 40"
    records.write_json(train.failed, {"schema": 1, "error": "StageError: loss is NaN", "traceback": "…"})
    assert why(run)["strength=1e+06 mmlu.en"] == "training failed: StageError: loss is NaN"
    train.failed.unlink()
    done = {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {}, "summary": {}}
    records.write_json(train.done, done)
    assert why(run)["strength=1e+06 mmlu.en"] == "not evaluated yet"
    records.write_json(run.dir.evaluate(name).failed, {"schema": 1, "error": "killed\n", "traceback": "…"})
    assert why(run)["strength=1e+06 mmlu.en"] == "evaluation failed: killed"


def test_the_attempt_with_a_value_is_used(run: RunBuilder, tmp_path: Path) -> None:
    """The checkpoint was measured in two experiments; in the first the cell failed."""
    import shutil

    copy = tmp_path / "elsewhere" / "paper"
    shutil.copytree(run.dir.root, copy)
    path = run.dir.evaluate("base").cell(0, "mmlu.en")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "failed", "error": "OutOfMemoryError", "results": []}))
    found = collect([run.dir.root, copy])
    (taken,) = [record for record in found.records if record["run"] == "base" and record["cell"] == "mmlu.en"]
    assert (taken["status"], taken["source"]) == ("ok", "elsewhere/paper")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("chance", "0.25", "'chance' is '0.25'"),
        ("truncated", "3", "'truncated' is '3'"),
        ("data_hash", {"a": 1}, "'data_hash' is"),
        ("cloze", [], "'cloze' is"),
        ("filter", None, "a result without a finite value"),
        ("stderr", -0.1, "a result without a finite value"),
    ],
)
def test_a_record_with_a_field_of_the_wrong_type_is_skipped(
    run: RunBuilder, field: str, value: object, said: str
) -> None:
    path = run.dir.evaluate("base").cell(0, "arc_easy.en")
    record = json.loads(path.read_text())
    (record if field in record else record["results"][0])[field] = value
    path.write_text(json.dumps(record))
    found = collect([run.dir.root])
    assert [said in problem.what for problem in found.problems] == [True]
    build_document(analyse(build_study(found, read_stages(found)), resamples=100))
