"""The Fisher stage from its folder: what it writes, stopping and going on, on how many ranks ever, and how it fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpc_ewc import records
from hpc_ewc.config import DataConfig, Experiment, FisherConfig, ModelConfig, render_toml
from hpc_ewc.data.questions import question_batches
from hpc_ewc.data.tokenizer import load_tokenizer
from hpc_ewc.ewc import load_ewc_state
from hpc_ewc.stage import Stage
from hpc_ewc.worker.fisher_job import FisherJob
from tests.distributed.fisher_oracle import drawn_labels, fisher_by_definition, worst_error
from tests.distributed.ranks import run_ranks
from tests.distributed.training_folder import KEY, WORDS, build_model

FILE = "fisher-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fisher") / "model"
    build_model(folder)
    return folder


@pytest.fixture(scope="module")
def questions(model: Path) -> Path:
    dice = random.Random(0)
    rows = []
    for number in range(15):
        choices = [" ".join(dice.choices(WORDS, k=2)) for _ in range(4)]
        question = " ".join(dice.choices(WORDS, k=dice.randint(3, 9)))
        rows.append({"question": question, "subject": "old_town", "choices": choices, "answer": number % 4})
    path = model.with_name("questions.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_stage(folder: Path, model: Path, questions: Path, **fisher: Any) -> Path:
    """A fisher stage as `submit` writes it: 15 short questions in batches of 2."""
    config = FisherConfig(source="files", files=(str(questions),), batch_size=2, prompt="text", **fisher)
    experiment = Experiment(
        model=ModelConfig(path=str(model), dtype="float32"), data=DataConfig(source="a/corpus"), fisher=config
    )
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(render_toml(experiment))
    inputs = {"model": str(model), "questions": [str(questions)]}
    facts = {"schema": 1, "stage": "fisher", "run": KEY, "key": KEY, "inputs": inputs, "coordinates": {}}
    records.write_json(folder / "stage.json", facts | {"expected": []})
    return folder


class Beats:
    def beat(self, doing: str) -> None: ...


def run_stage(rank: int, world_size: int, folder: Path, stop_after: int | None = None, die: bool = False) -> bool:
    """What a rank of the worker does. After `stop_after` batches rank 1 alone gets USR2; or all die, sums saved."""
    import hpc_ewc.worker.fisher_job as worker

    worker.SAVE_EVERY_S = 0.0 if die else 1e9
    stage = Stage(folder)
    stage.listen()
    job = FisherJob(stage, torch.device("cpu"), Beats())  # type: ignore[arg-type]
    report, seen = job._report, [0]

    def reported(*args: Any) -> None:
        report(*args)
        seen[0] += 1
        if seen[0] == stop_after and rank == world_size - 1 and not die:
            os.kill(os.getpid(), signal.SIGUSR2)
        if seen[0] == stop_after and die:
            raise KeyboardInterrupt

    job._report = reported  # type: ignore[method-assign]
    try:
        return job.run()
    except KeyboardInterrupt:
        return False


def stop_die_and_go_on(rank: int, world_size: int, folders: dict[str, Path]) -> None:
    assert run_stage(rank, world_size, folders["whole"])
    assert not run_stage(rank, world_size, folders["stopped"], stop_after=2)
    partial = [path.name for path in folders["stopped"].joinpath("partial").iterdir()]
    assert partial == [f"{2 * 2 * world_size:08d}"]
    assert not (folders["stopped"] / "done.json").exists()
    assert run_stage(rank, world_size, folders["stopped"])
    assert not run_stage(rank, world_size, folders["dead"], stop_after=3, die=True)
    assert run_stage(rank, world_size, folders["dead"])
    assert not run_stage(rank, world_size, folders["for one rank"], stop_after=2)
    assert not run_stage(rank, world_size, folders["damaged"], stop_after=2)


def examples_of(stage: Stage, model: Path, questions: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The stage's examples for the oracle: tokens and labels, each label under its token."""
    batches = question_batches(stage.config.fisher, [questions], load_tokenizer(model), rank=0, world_size=1)
    examples = []
    for index in range(batches.total):
        ids = torch.tensor(batches.example(index).ids)
        examples.append((ids, torch.where(torch.arange(len(ids)) >= batches.example(index).first_scored, ids, -100)))
    return examples


def plain_model(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")


def worker(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpc_ewc.worker", "fisher", str(folder)]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.mark.slow
def test_a_fisher_is_the_definition_however_it_came_about(tmp_path: Path, model: Path, questions: Path) -> None:
    names = ("whole", "stopped", "dead", "for one rank", "damaged")
    folders = {name: build_stage(tmp_path / name, model, questions) for name in names}
    run_ranks(2, stop_die_and_go_on, folders, timeout_s=240)

    # by definition
    examples = examples_of(Stage(folders["whole"]), model, questions)
    state = load_ewc_state(folders["whole"])
    assert worst_error(state.fisher, fisher_by_definition(plain_model(model), examples)) < 1e-5
    stored = load_file(model / "model.safetensors")
    assert all(torch.equal(tensor.float(), stored[name]) for name, tensor in state.anchor.items())

    # interrupted, to the bit
    whole = (folders["whole"] / FILE).read_bytes()
    for name in ("stopped", "dead"):
        assert (folders[name] / FILE).read_bytes() == whole, name
        assert not (folders[name] / "partial").exists()

    # and on one rank, by hand, after two had begun
    result = worker(folders["for one rank"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == "resuming after example 8\ndone\n"
    assert worst_error(load_ewc_state(folders["for one rank"]).fisher, state.fisher) < 1e-6

    # sums that were damaged are left aside
    sums = next(folders["damaged"].glob("partial/*/sums-*.safetensors"))
    sums.write_bytes(sums.read_bytes()[:-8])
    result = worker(folders["damaged"])
    assert "not resuming from 00000008" in result.stdout and "bytes, manifest.json says" in result.stdout
    assert worst_error(load_ewc_state(folders["damaged"]).fisher, state.fisher) < 1e-6

    # what it leaves for others
    facts = state.manifest
    assert (facts["stage"], facts["key"], facts["examples"], facts["skipped"]) == ("fisher", KEY, 15, 0)
    assert (facts["dataset"], facts["prompt"], facts["labels"]) == ("files", "text", "gold")
    assert facts["model_hash"] == records.model_hash(model)
    done = records.read_done(folders["whole"] / "done.json", KEY)
    assert done is not None and FILE in done["outputs"] and "manifest.json" in done["outputs"]
    assert done["summary"]["trace"] == facts["summary"]["trace"] > 0
    assert 0 <= done["summary"]["zero_fraction"] < 1
    progress = records.read_json(folders["whole"] / "progress" / "0.json")
    assert (progress["done"], progress["total"], progress["unit"]) == (15, 15, "example")
    assert worker(folders["whole"]).returncode == 0  # done already: it returns at once
    assert (folders["whole"] / FILE).read_bytes() == whole


def test_what_fisher_asks_for_is_what_is_estimated(tmp_path: Path, model: Path, questions: Path) -> None:
    """Every key of [fisher] that changes the numbers, and the other method, at another value than its default."""
    settings = {"labels": "sampled", "samples": 2, "seed": 5, "tokens": "all", "max_examples": 7}
    folder = build_stage(tmp_path / "sampled", model, questions, method="reduce_scatter", **settings)
    assert run_ranks(2, run_stage, folder)
    examples = examples_of(Stage(folder), model, questions)
    assert len(examples) == 7
    want = fisher_by_definition(plain_model(model), examples, drawn_labels(seed=5, samples=2))
    state = load_ewc_state(folder)
    assert worst_error(state.fisher, want) < 1e-5
    facts = {name: state.manifest[name] for name in ("labels", "samples", "seed", "tokens", "method", "examples")}
    assert facts == {**{k: v for k, v in settings.items() if k in facts}, "method": "reduce_scatter", "examples": 7}


def test_a_bad_question_is_named_in_failed_json(tmp_path: Path, model: Path, questions: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(questions.read_text().replace('"answer": 2', '"answer": 7', 1))
    folder = build_stage(tmp_path / "stage", model, broken)
    assert worker(folder).returncode != 0
    failed = records.read_json(folder / "failed.json")
    assert "broken.jsonl:3: answer 7 is not one of the 4 choices" in failed["error"]


@pytest.mark.slow
def test_an_example_without_a_finite_gradient_is_named_with_its_line(tmp_path: Path, questions: Path) -> None:
    folder = tmp_path / "model"
    build_model(folder)
    lines = questions.read_text().splitlines(keepends=True)
    lines[4] = json.dumps(json.loads(lines[4]) | {"question": "ZZZ"}) + "\n"
    path = tmp_path / "poisoned.jsonl"
    path.write_text("".join(lines))
    config = FisherConfig(prompt="text", batch_size=2)
    batches = question_batches(config, [path], load_tokenizer(folder), rank=0, world_size=1)
    of_others = {token for index in range(batches.total) if index != 4 for token in batches.example(index).ids}
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    # times the embedding's scale it is infinite; as a row of the head, for the others, it is not
    weights["model.embed_tokens.weight"][min(set(batches.example(4).ids) - of_others), 0] = 1e38
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stage = build_stage(tmp_path / "stage", folder, path)
    assert worker(stage).returncode != 0
    failed = records.read_json(stage / "failed.json")
    assert "gradient of 1 examples is not finite: 4 (rank 0)" in failed["error"]
    assert "poisoned.jsonl:5" in failed["error"]
    assert failed["samples"] == [4]
    stage = build_stage(tmp_path / "skipping", folder, path, on_nonfinite="skip", dtype="bfloat16")
    assert worker(stage).returncode == 0
    assert records.read_done(stage / "done.json", KEY)["summary"]["skipped"] == 1  # type: ignore[index]
    assert {tensor.dtype for tensor in load_ewc_state(stage).fisher.values()} == {torch.bfloat16}
