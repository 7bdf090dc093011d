"""An array element from its command to its records: right, whole, and never computed twice."""

from __future__ import annotations

import json
import shutil
import signal
import time
import tomllib
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from hpc_ewc import records, suites
from hpc_ewc.config import build_experiment
from hpc_ewc.errors import InputError, StageError
from hpc_ewc.evaluate import element, models
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage
from hpc_ewc.suites import Cell, expand_suites
from tests.end_to_end.evaluation import (
    FOUR,
    SHOTS,
    assert_same_numbers,
    noised,
    prepare,
    primary,
    run,
    stamps,
    start,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(miniature: Path) -> Path:
    return miniature


@pytest.fixture(scope="module")
def base(world: Path, tmp_path_factory: pytest.TempPathFactory) -> StageDir:
    """The base model, asked four cells."""
    stage = prepare(tmp_path_factory.mktemp("runs") / "paper", world)
    run(stage)
    return stage


@pytest.fixture(scope="module")
def damaged(world: Path, base: StageDir, tmp_path_factory: pytest.TempPathFactory) -> StageDir:
    """A training that forgot, asked the same."""
    train = noised(world / "model", tmp_path_factory.mktemp("train") / "noise", 0.6)
    stage = prepare(base.path.parents[1], world, run="noise", train=train)
    run(stage)
    return stage


# ---------------------------------------------------------------------------------------------- records


def test_a_record_says_all_that_a_reader_needs(base: StageDir, damaged: StageDir, world: Path) -> None:
    record = records.read_checked(damaged.cell(10, "mmlu.lt"), "record")
    expected = {
        "schema": 1,
        "status": "ok",
        "error": None,
        "experiment": "paper",
        "run": "noise",
        "step": 10,
        "fraction": 1.0,
        "coordinates": {"ewc.strength": 1e6},
        "model": str(world / "model"),
        "base_hash": records.model_hash(world / "model"),
        "task": "mmlu",
        "language": "lt",
        "variant": "",
        "suite": "lt",
        "shots": 0,
        "limit": 16,
        "seed": 1234,
        "backend": "hf",
        "dtype": "float32",
        "attention": "eager",
        "batch_size": 8,
        "max_length": 512,
        "gpu_hours": 0.0,
    }
    assert {name: record[name] for name in expected} == expected
    assert record["model_hash"] != record["base_hash"]
    assert record["versions"]["lm_eval"] and record["data_hash"] and record["seconds"] > 0
    assert record["batch_invariance"] < 1e-3
    subsets = {result["subset"] for result in record["results"]}
    assert {"", "stem", "humanities", "social_sciences", "other", "nutrition"} <= subsets
    assert sum(result["primary"] for result in record["results"]) == 1
    untrained = records.read_checked(base.cell(0, "mmlu.lt"), "record")
    assert untrained["model_hash"] == untrained["base_hash"] == record["base_hash"]
    assert (untrained["step"], untrained["fraction"]) == (0, 0.0)


def test_the_manifest_says_who_measured_what(base: StageDir) -> None:
    manifest = records.read_json(base.manifest_json)
    assert (manifest["stage"], manifest["run"], manifest["key"]) == ("evaluate", "base", Stage(base.path).key)
    assert set(manifest["cells"]) == {f"0.0:{cell}" for cell in FOUR}
    for cell in FOUR:
        record = records.read_json(base.cell(0, cell))
        facts = manifest["cells"][f"0.0:{cell}"]
        assert facts == {name: record[name] for name in facts}
        assert {"cell_key", "data_hash", "job_id"} <= set(facts) and record["job_id"] in manifest["job_ids"]
        assert manifest["model_hash"] == [record["model_hash"]]
    assert build_experiment(tomllib.loads(manifest["config"]), "x").evaluate.suites == FOUR


def test_samples_pair_two_checkpoints_document_by_document(base: StageDir, damaged: StageDir) -> None:
    for cell in FOUR:
        ours = list(records.read_samples(base.samples(0, cell)))
        theirs = list(records.read_samples(damaged.samples(10, cell)))
        who = [
            [(row["subset"], row["doc_id"], row["doc_hash"], row["filter"]) for row in rows] for rows in (ours, theirs)
        ]
        assert who[0] == who[1] and len(set(who[0])) == len(who[0])
    questions = list(records.read_samples(base.samples(0, "arc_easy.en")))
    assert all(len(row["loglikelihoods"]) == 4 and set(row["metrics"]) == {"acc", "acc_norm"} for row in questions)
    mean = sum(row["metrics"]["acc"] for row in questions) / len(questions)
    assert mean == primary(base, 0, "arc_easy.en")["value"]
    texts = list(records.read_samples(base.samples(0, "ppl_heldout.en")))
    assert all(row["tokens"] > 0 and row["words"] > 0 and row["bytes"] > row["words"] for row in texts)
    answers = list(records.read_samples(base.samples(0, "gsm8k.en")))
    assert {row["filter"] for row in answers} == {"strict-match", "flexible-extract"}
    assert all(isinstance(row["response"], str) for row in answers)


def test_the_questions_tell_a_model_that_knows_from_one_that_forgot(base: StageDir, damaged: StageDir) -> None:
    for cell, least in (("arc_easy.en", 0.3), ("ppl_heldout.en", 0.5)):
        knows, forgot = primary(base, 0, cell), primary(damaged, 10, cell)
        better = 1 if knows["higher_is_better"] else -1
        assert better * (knows["value"] - forgot["value"]) > least, cell
    assert primary(base, 0, "arc_easy.en")["value"] > 0.75
    assert primary(base, 0, "mmlu.lt")["value"] < 0.5


def test_done_names_every_record_once_they_are_all_there(base: StageDir) -> None:
    done = records.read_done(base.done, Stage(base.path).key)
    assert done is not None
    assert {f"00000000/{cell}.json" for cell in FOUR} | {f"00000000/{cell}.samples.jsonl.zst" for cell in FOUR} == set(
        done["outputs"]
    )
    assert done["summary"]["failed"] == [] and done["summary"]["cells"] == 4
    progress = records.read_json(base.progress("0"))
    assert (progress["done"], progress["total"], progress["unit"]) == (4, 4, "cell")


# ---------------------------------------------------------------------------------------------- lm-eval's numbers


@pytest.mark.parametrize("cell", ["arc_easy.en", "gsm8k.en", "mmlu.lt"])
def test_numbers_equal_lm_evals_own(base: StageDir, world: Path, tmp_path: Path, cell: str) -> None:
    task, language = cell.split(".")
    shots = SHOTS.get(task, 0)
    questions = LocalQuestions(world / "questions", cloze=True)
    write_task_files(tmp_path, Cell(task, language, shots=shots), questions=questions, max_gen_toks=32)
    plain = HFLM(pretrained=str(world / "model"), dtype="float32", device="cpu", batch_size=8)
    theirs = lm_eval.simple_evaluate(
        model=plain,
        tasks=[cell],
        num_fewshot=shots,
        limit=16,
        task_manager=TaskManager(include_path=[str(tmp_path)], include_defaults=False),
        log_samples=False,
    )
    assert_same_numbers(records.read_json(base.cell(0, cell)), cell, theirs["results"])


def test_batch_size_does_not_change_a_loglikelihood_beyond_rounding(
    base: StageDir, world: Path, tmp_path: Path
) -> None:
    alone = prepare(tmp_path / "paper", world, ["arc_easy.en", "ppl_heldout.en"], batch_size=1)
    run(alone)
    for cell in ("arc_easy.en", "ppl_heldout.en"):
        pairs = zip(
            records.read_samples(base.samples(0, cell)), records.read_samples(alone.samples(0, cell)), strict=True
        )
        for ours, theirs in pairs:
            assert ours["loglikelihoods"] == pytest.approx(theirs["loglikelihoods"], abs=1e-3)


# ---------------------------------------------------------------------------------------------- goes on


def test_what_is_there_is_not_computed_again(base: StageDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stamps(base)
    monkeypatch.setattr(models, "load_model", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    run(base)
    base.done.unlink()  # killed between the last record and done.json
    run(base)
    assert base.done.is_file()
    assert stamps(base) == before


def test_one_record_deleted_is_one_cell_computed(base: StageDir, world: Path, tmp_path: Path) -> None:
    stage = StageDir(Path(shutil.copytree(base.path, tmp_path / "paper" / "evaluate" / "base")))
    before = stamps(stage)
    stage.cell(0, "gsm8k.en").unlink()
    run(stage)
    after = stamps(stage)
    assert {name for name in after if after[name] != before.get(name)} == {"gsm8k.en.json"}
    assert stage.done.is_file()
    half = stage.cell(0, "arc_easy.en")
    half.write_text(half.read_text()[:100])
    run(stage)
    assert primary(stage, 0, "arc_easy.en") == primary(base, 0, "arc_easy.en")


def test_other_settings_are_another_measurement(base: StageDir, world: Path, tmp_path: Path) -> None:
    stage = StageDir(Path(shutil.copytree(base.path, tmp_path / "paper" / "evaluate" / "base")))
    prepare(tmp_path / "paper", world, limit=8)
    before = stamps(stage)
    run(stage, ["arc_easy.en"])
    after = stamps(stage)
    assert {name for name in after if after[name] != before[name]} == {"arc_easy.en.json"}
    assert primary(stage, 0, "arc_easy.en")["n"] == 8


def test_a_stop_drops_the_cell_it_comes_in_and_ends_well(world: Path, tmp_path: Path) -> None:
    cells = ("ppl_heldout.en", "truthfulqa_mc2.en")
    stage = prepare(tmp_path / "paper", world, cells, limit=None)
    stop = tmp_path / "stop.0"
    job = start(stage, cells, HPC_EWC_STOP_FILE=str(stop))
    deadline = time.monotonic() + 120
    while not stage.cell(0, "ppl_heldout.en").is_file() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR2)
    stop.touch()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert set(stamps(stage)) == {"ppl_heldout.en.json"}
    assert not stage.done.exists() and not stage.failed.exists()


def test_two_elements_share_a_checkpoint_and_the_last_one_is_done(world: Path, tmp_path: Path) -> None:
    cells = ("arc_easy.en", "arc_easy.lt", "ppl_heldout.en")
    stage = prepare(tmp_path / "paper", world, cells)
    run(stage, cells[:1], "a")
    assert not stage.done.exists()
    run(stage, cells[1:], "b")
    assert stage.done.is_file()


# ---------------------------------------------------------------------------------------------- fails


def test_a_model_that_gives_nan_has_marked_cells_and_no_number(world: Path, tmp_path: Path) -> None:
    train = noised(world / "model", tmp_path / "train", 0.0)
    place = StageDir(train).export(10)
    tensors = load_file(place / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    facts = records.read_json(place / "hpc_ewc.json")
    records.write_json(place / "hpc_ewc.json", facts | {"model_hash": records.model_hash(place)})
    cells = ("arc_easy.en", "truthfulqa_mc2.en", "ppl_heldout.en")
    stage = prepare(tmp_path / "paper", world, cells, run="nan", train=train, limit=4)
    run(stage)
    for cell in cells:
        record = records.read_checked(stage.cell(10, cell), "record")
        assert (record["status"], record["retry"], record["results"]) == ("failed", False, [])
        assert "not finite" in record["error"] and "the model has diverged" in record["error"]
        assert not stage.samples(10, cell).exists()
    done = records.read_done(stage.done, Stage(stage.path).key)
    assert done is not None and done["summary"]["failed"] == [f"1.0:{cell}" for cell in cells]
    before = stamps(stage)
    run(stage)
    assert stamps(stage) == before  # asking again would give no number either


def test_a_diverged_model_that_still_gives_numbers_is_scored(world: Path, tmp_path: Path) -> None:
    train = noised(world / "model", tmp_path / "train", 300.0)
    stage = prepare(tmp_path / "paper", world, ("truthfulqa_mc2.en",), run="far", train=train, limit=8)
    run(stage)
    assert 0.0 <= primary(stage, 10, "truthfulqa_mc2.en")["value"] <= 1.0


def test_a_training_that_came_out_otherwise_is_measured_again(world: Path, tmp_path: Path) -> None:
    cells = ("arc_easy.en", "ppl_heldout.en")
    train = noised(world / "model", tmp_path / "train", 0.3)
    stage = prepare(tmp_path / "paper", world, cells, run="again", train=train, limit=8)
    run(stage)
    facts = StageDir(train).export(10) / "hpc_ewc.json"
    before, old = stamps(stage), records.read_json(facts)
    measured = primary(stage, 10, "ppl_heldout.en")["value"]
    shutil.rmtree(train)
    noised(world / "model", tmp_path / "train", 0.6)
    records.write_json(facts, records.read_json(facts) | {"train_key": old["train_key"]})
    run(stage)
    assert {cell: stamps(stage)[f"{cell}.json"] == before[f"{cell}.json"] for cell in cells} == dict.fromkeys(
        cells, False
    )
    assert primary(stage, 10, "ppl_heldout.en")["value"] > measured
    for cell in cells:
        record = records.read_checked(stage.cell(10, cell), "record")
        assert record["model_hash"] == records.read_json(facts)["model_hash"] != old["model_hash"]
    done = records.read_done(stage.done, Stage(stage.path).key)
    assert done is not None and done["summary"]["weights"] == {"1.0": records.read_json(facts)["model_hash"]}
    after = stamps(stage)
    run(stage)
    assert stamps(stage) == after


def test_a_cell_that_fails_costs_only_itself_and_is_tried_again(world: Path, tmp_path: Path) -> None:
    cells = ("ppl_heldout.en", "arc_easy.en")
    text = tmp_path / "news.jsonl"
    stage = prepare(tmp_path / "paper", world, cells, heldout={"en": text})
    with pytest.raises(StageError, match=r"ppl_heldout.en failed; the records in .*00000000 give the reasons"):
        run(stage)
    record = records.read_checked(stage.cell(0, "ppl_heldout.en"), "record")
    assert (record["status"], record["retry"]) == ("failed", True)
    assert record["error"].startswith(f"InputError: {text}: no held-out text 'en'")
    assert records.read_checked(stage.cell(0, "arc_easy.en"), "record")["status"] == "ok"
    assert not stage.done.exists()
    assert suites.missing(stage, Stage(stage.path).expected) == ["0.0:ppl_heldout.en"]
    assert "ppl_heldout.en failed" in records.read_checked(stage.failed, "failed")["error"]
    before = stamps(stage)
    text.write_text('{"text": "Anna lives in the town."}\n')
    run(stage)
    assert stamps(stage)["arc_easy.en.json"] == before["arc_easy.en.json"]
    assert stage.done.is_file() and not stage.failed.exists()


def test_a_cell_that_the_experiment_does_not_ask_for_is_refused(base: StageDir) -> None:
    with pytest.raises(StageError, match="this experiment has no cell 'mmlu.fr'; known: arc_easy.en, gsm8k.en"):
        element.select_cells(["mmlu.fr"], expand_suites(Stage(base.path).config.evaluate, "lt", ["en"]))


def test_a_backend_that_is_not_installed_is_an_error_and_not_another_backend(world: Path, tmp_path: Path) -> None:
    stage = prepare(tmp_path / "paper", world, ("arc_easy.en",), backend="vllm")
    with pytest.raises(InputError, match=r"vllm is not installed here; pip install 'hpc-ewc\[vllm\]', or set 'hf'"):
        run(stage)
    assert not list(stage.path.glob("[0-9]*/*.json"))


def test_the_corpus_own_heldout_documents_are_scored(world: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "heldout.jsonl").write_text(json.dumps({"text": "Ona gyvena mieste. " * 20}) + "\n")
    stage = prepare(tmp_path / "paper", world, ("ppl_heldout.lt",), heldout={"en": tmp_path / "none"})
    facts = records.read_json(stage.stage_json)
    facts["inputs"]["tokens"] = str(tokens)
    records.write_json(stage.stage_json, facts)
    run(stage)
    assert primary(stage, 0, "ppl_heldout.lt")["n"] == 1
