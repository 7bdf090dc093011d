"""Comparability of runs, columns and means, and items listed instead of shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.config import render_toml, replace_at
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.build import Options, report
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import Study, build_study
from hpc_ewc.report.tables.document import Document, build_document
from hpc_ewc.report.tables.table import Table
from tests.unit.report_fixture import RunBuilder


def make(folder: Path, name: str = "paper", **options: object) -> RunBuilder:
    defaults: dict[str, object] = {"strengths": (0.0, 1e6), "tasks": ("arc_easy", "mmlu"), "n": 12}
    return RunBuilder(folder / "runs" / name, **(defaults | options))  # type: ignore[arg-type]


def study_of(*roots: Path) -> Study:
    collection = collect(list(roots))
    return build_study(collection, read_stages(collection))


def document_of(*roots: Path) -> Document:
    return build_document(analyse(study_of(*roots), resamples=200))


def table(document: Document, key: str) -> Table:
    return next(table for table in document.tables if table.key == key)


def rewrite(run: RunBuilder, strength: float | None, cell_name: str, change: Callable[[dict], None]) -> None:
    """Edit one record in place."""
    name = "base" if strength is None else run.run_name(strength, 0)
    path = run.dir.evaluate(name).cell(0 if strength is None else 40, cell_name)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# ---------------------------------------------------------------------------------------------- settings


def test_other_limits_have_separate_columns_and_enter_no_common_mean(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    rewrite(run, 0.0, "mmlu.en", lambda record: record.update(limit=12, cell_key="other"))
    document = document_of(run.dir.root)
    labels = [column.label for column in document.build.study.columns if column.cell == "mmlu.en"]
    assert labels == ["mmlu limit=12", "mmlu limit=None"]
    english = table(document, "accuracy.en")
    heads = [head.text for head in english.heads]
    assert "MMLU limit=12" in heads
    by_row = {row[0].text: [cell.text for cell in row] for row in english.rows}
    assert by_row["0"][-1] == "–", "tasks under two limits have no common mean"
    assert by_row["1e6"][-1] != "–"
    assert "A run without every task has no mean." in english.notes
    differences = table(document, "difference.en")
    row = {row[0].text: row for row in differences.rows}["0"]
    assert row[heads.index("MMLU limit=12")].text == "–", "there is no base under that limit"


def test_other_shots_have_a_separate_mean(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    for strength in (None, 0.0):
        rewrite(run, strength, "mmlu.en", lambda record: record.update(shots=0))
    document = document_of(run.dir.root)
    english = table(document, "accuracy.en")
    assert [head.text for head in english.heads][-2:] == ["mean (1)", "mean (2)"]
    notes = " ".join(english.notes)
    assert "mean (1): arc_easy, mmlu shots=0." in notes
    rows = {row[0].text: [cell.text for cell in row][-2:] for row in english.rows}
    assert rows["1e6"][0] == "–"
    assert rows["0"][1] == "–"


def test_a_note_replaces_the_mean_if_every_run_mixes_limits(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    for strength in (None, 0.0, 1e6):
        rewrite(run, strength, "mmlu.en", lambda record: record.update(limit=12))
    notes = " ".join(table(document_of(run.dir.root), "accuracy.en").notes)
    assert "No mean: no run has every task under the same limit" in notes
    assert "only the first 12" in notes


def test_native_prompts_have_a_separate_mean(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    for strength in (None, 0.0, 1e6):
        name = "base" if strength is None else run.run_name(strength, 0)
        folder = run.dir.evaluate(name)
        step = 0 if strength is None else 40
        for cell in run.cells():
            if cell.language == "lt" and cell.task == "mmlu":
                from dataclasses import replace

                native = replace(cell, variant="native")
                rows = run.rows(native, strength, 0)
                coordinates = run.coordinates(strength, 0)
                run.write(folder, name, step, 0.0 if strength is None else 1.0, coordinates, native, rows)
        stage = json.loads(folder.stage_json.read_text())
        stage["expected"].append(("0.0" if strength is None else "1.0") + ":mmlu.lt.native")
        records.write_json(folder.stage_json, stage)
    document = document_of(run.dir.root)
    lithuanian = [mean for mean in document.build.analysis.means if mean.language == "lt"]
    assert [mean.label for mean in lithuanian] == ["mean Lithuanian", "mean Lithuanian native"]
    assert [column.cell for column in lithuanian[1].columns] == ["arc_easy.lt", "mmlu.lt.native"]


# ---------------------------------------------------------------------------------------------- runs


def test_without_a_base_there_are_values_and_no_differences(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build(base=False)
    document = document_of(run.dir.root)
    keys = {table.key for table in document.tables}
    assert "accuracy.en" in keys
    assert not keys & {"difference.en", "difference.lt", "choice"}
    assert any("base model is not among these records" in line for line in document.leads)
    assert document.choice is None


def test_a_single_run_gives_a_report(tmp_path: Path) -> None:
    run = make(tmp_path, strengths=())
    run.build()
    document = document_of(run.dir.root)
    assert [row[0].text for row in table(document, "summary").rows] == ["base"]


def test_an_experiment_without_records_names_missing_cells(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    for path in (run.dir.root / "evaluate").glob("*/0*/*.json"):
        path.unlink()
    document = document_of(run.dir.root)
    assert "No cell has a value yet." in document.leads
    assert document.tables == []
    ((title, lines),) = document.lists
    assert title == "Cells without a value"
    assert len(lines) == 3
    assert all("not evaluated yet" in line for line in lines)


def test_two_experiments_with_the_same_name_stay_separate(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a"), make(tmp_path / "b", model="google/gemma-2-9b-it")
    one.build()
    other.build(base=False)
    study = study_of(one.dir.root, other.dir.root)
    assert study.title == "a/runs/paper, b/runs/paper"
    assert len(study.runs) == 5
    summary = table(document_of(one.dir.root, other.dir.root), "summary")
    assert [head.text for head in summary.heads][:2] == ["λ", "experiment"]


def test_a_run_removed_from_the_experiment_is_listed_and_not_shown(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    fewer = replace_at(run.experiment(), {})
    from dataclasses import replace

    records.write_text(run.dir.experiment_toml, render_toml(replace(fewer, grid={"ewc.strength": (1e6,)})))
    study = study_of(run.dir.root)
    assert [r.strength for r in study.runs] == [None, 1e6]
    (problem,) = study.problems
    assert "strength=0-" in problem.where
    assert "no longer requested" in problem.what


def test_a_cell_removed_from_the_experiment_is_listed_and_not_shown(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    folder = run.dir.evaluate("base")
    stage = json.loads(folder.stage_json.read_text())
    stage["expected"].remove("0.0:mmlu.en")
    records.write_json(folder.stage_json, stage)
    study = study_of(run.dir.root)
    base = next(r for r in study.runs if r.is_base)
    assert "mmlu.en" not in {column.cell for (r, column) in study.records if r == base}
    assert [p.what for p in study.problems] == ["mmlu.en: no longer requested by experiment.toml"]


def test_intermediate_checkpoints_are_rows_with_their_step(tmp_path: Path) -> None:
    run = make(tmp_path, strengths=(1e6,))
    run.build()
    name = run.run_name(1e6, 0)
    folder = run.dir.evaluate(name)
    stage = json.loads(folder.stage_json.read_text())
    for cell in run.cells():
        run.write(folder, name, 20, 0.5, run.coordinates(1e6, 0), cell, run.rows(cell, 1e3, 0))
        stage["expected"].append(cell.at(0.5))
    records.write_json(folder.stage_json, stage)
    summary = table(document_of(run.dir.root), "summary")
    assert [[cell.text for cell in row[:2]] for row in summary.rows] == [["base", ""], ["1e6", "20"], ["1e6", "40"]]


def test_an_external_checkpoint_is_named_and_not_compared(tmp_path: Path) -> None:
    run = make(tmp_path, strengths=())
    run.build()
    folder = run.dir.evaluate("gemma-other-0123456789ab")
    for cell in run.cells():
        hashes = {"model_hash": "other", "base_hash": "other"}
        run.write(folder, "gemma-other-0123456789ab", 0, 0.0, {}, cell, run.rows(cell, 1e6, 0), **hashes)
    document = document_of(run.dir.root)
    assert [row[0].text for row in table(document, "summary").rows] == ["base", "gemma-other-0123456789ab"]
    assert not any(table.key.startswith("difference") for table in document.tables)


# ---------------------------------------------------------------------------------------------- statements


def test_documents_used_for_the_fisher_are_marked(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    clean = table(document_of(run.dir.root), "accuracy.en")
    assert not any("†" in head.text for head in clean.heads)
    for path in run.dir.root.rglob("*.toml"):
        path.write_text(path.read_text().replace('split = "validation"', 'split = "test"'))
    document = document_of(run.dir.root)
    for language, words in (("en", "computed on the documents that are scored here"), ("lt", "translations of")):
        marked = table(document, f"accuracy.{language}")
        assert [head.text for head in marked.heads if "†" in head.text] == ["MMLU †"]
        assert any(note.startswith("† MMLU: ") and words in note for note in marked.notes)


def test_files_used_for_the_fisher_are_marked_by_path(tmp_path: Path) -> None:
    """A file of evaluate.questions is identified by the <task>/<split> in its path."""
    run = make(tmp_path)
    run.build()
    before = 'source = "cais/mmlu"\nsubset = "all"\nfiles = []'
    for split, marked in (("validation", []), ("test", ["MMLU †"])):
        files = f'source = "files"\nsubset = "all"\nfiles = ["/rows/en/mmlu/{split}/*.jsonl"]'
        for path in run.dir.root.rglob("*.toml"):
            path.write_text(path.read_text().replace(before, files))
        before = files
        heads = table(document_of(run.dir.root), "accuracy.en").heads
        assert [head.text for head in heads if "†" in head.text] == marked


def test_shots_and_document_counts_are_stated(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    notes = " ".join(table(document_of(run.dir.root), "accuracy.en").notes)
    assert "ARC easy (n=12, 0 shots); MMLU (n=12, 5 shots)" in notes


def test_mmlu_by_subject_is_shown_on_request(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    analysis = analyse(study_of(run.dir.root), resamples=200)
    assert not any(t.key.startswith("subjects") for t in build_document(analysis).tables)
    shown = table(build_document(analysis, subsets=["subjects"]), "subjects.en.mmlu")
    assert [head.text for head in shown.heads] == ["λ", "anatomy", "astronomy", "law"]
    assert shown.rows[0][1].brief == "n=4"


def test_mmlu_by_group_is_shown_on_request_apart_from_subjects(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    path = run.dir.evaluate("base").cell(0, "mmlu.en")
    record = json.loads(path.read_text())
    stem = record["results"][1] | {"subset": "stem", "value": 0.375, "stderr": 0.125, "n": 8}
    path.write_text(json.dumps(record | {"results": [*record["results"], stem]}))
    document = build_document(analyse(study_of(run.dir.root), resamples=200), subsets=["groups", "subjects"])
    groups = table(document, "groups.en.mmlu")
    assert [head.text for head in groups.heads] == ["λ", "stem"]
    assert [row[1].text for row in groups.rows][:2] == ["37.5±12.5", "–"], "what a run lacks is a dash"
    assert "stem" not in [head.text for head in table(document, "subjects.en.mmlu").heads]


def test_single_seed_conclusions_apply_to_checkpoints_only(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    assert any("conclusions apply to these checkpoints only" in line for line in document_of(run.dir.root).leads)


def test_only_very_small_models_are_marked_as_illustrations(tmp_path: Path) -> None:
    small, real = make(tmp_path, "small"), make(tmp_path, "real", parameters=2_614_341_888)
    small.build()
    real.build()
    assert document_of(small.dir.root).leads[0].startswith("An illustration: the model has fewer than 10 million")
    assert not any("illustration" in line for line in document_of(real.dir.root).leads)
    for root in (small.dir.root, real.dir.root):
        assert not any(table.key == "criterion" for table in document_of(root).tables)


def test_a_report_without_results_is_refused(tmp_path: Path) -> None:
    from rich.console import Console

    from hpc_ewc.errors import InputError

    (tmp_path / "runs" / "empty" / "evaluate").mkdir(parents=True)
    with pytest.raises(InputError, match="no record in evaluate/ yet"):
        report([tmp_path / "runs" / "empty"], tmp_path / "out", Options(), Console(quiet=True))


def test_differences_that_can_change_scores_are_reported(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.build()
    rewrite(run, 0.0, "mmlu.en", lambda record: record.update(batch_size=8, truncated=3))
    notes = " ".join(table(document_of(run.dir.root), "accuracy.en").notes)
    assert "MMLU (n=12, 5 shots, up to 3 prompts cut to fit, batch sizes 8, 16)" in notes


def test_two_limits_give_two_means_for_any_number_of_tasks(tmp_path: Path) -> None:
    """Seven tasks under two limits can be combined in 128 ways; only two of them are means."""
    from tests.unit.report_fixture import TASKS

    run = make(tmp_path, strengths=(0.0,), tasks=TASKS)
    run.build()
    for cell in (cell for cell in run.cells() if cell.language == "en"):
        rewrite(run, 0.0, cell.name, lambda record: record.update(limit=12))
    means = [mean for mean in document_of(run.dir.root).build.analysis.means if mean.language == "en"]
    assert [{column.setting("limit") for column in mean.columns} for mean in means] == [{12}, {None}]


def test_cells_removed_from_the_experiment_are_not_missing(tmp_path: Path) -> None:
    from dataclasses import replace

    run = make(tmp_path)
    run.build()
    for strength in (0.0, 1e6):
        run.dir.evaluate(run.run_name(strength, 0)).cell(40, "mmlu.en").unlink()
    records.write_text(run.dir.experiment_toml, render_toml(replace(run.experiment(), grid={"ewc.strength": (1e6,)})))
    assert [(cell.run.split("-")[0], cell.cell) for cell in study_of(run.dir.root).missing] == [
        ("strength=1e+06", "mmlu.en")
    ]
