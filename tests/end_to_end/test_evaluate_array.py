"""Many checkpoints, every cell; lm-eval's own command line; a real Gemma on real rows. Minutes: marked slow."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import miniature, records
from hpc_ewc.evaluate import environment
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.stage import Stage
from hpc_ewc.suites import expand_suites
from tests.end_to_end.evaluation import assert_same_numbers, noised, prepare, primary, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
EVERYTHING = ("en", "lt", "fluency")


@pytest.fixture(scope="module")
def world(miniature_cache: Path) -> Path:
    """The miniature, with its base model."""
    return miniature_cache / "miniature" / miniature.version()


def test_every_number_equals_lm_evals_own_command_line(world: Path, tmp_path: Path) -> None:
    stage = prepare(tmp_path / "paper", world, EVERYTHING, limit=6, shots={})
    run(stage)
    cells = expand_suites(Stage(stage.path).config.evaluate, "lt", heldout=["en"])
    questions = LocalQuestions(world / "questions", cloze=True, max_gen_toks=32)
    for cell in cells:
        heldout = world / "text" / f"heldout.{cell.language}.jsonl"
        write_task_files(tmp_path / "tasks" / cell.name, cell, questions=questions, heldout=heldout)
    for kind, bos in (("questions", "True"), ("perplexity", "False")):
        names = [cell.name for cell in cells if (cell.kind == "perplexity") == (kind == "perplexity")]
        theirs = command_line(world / "model", names, tmp_path, bos)
        for name in names:
            assert_same_numbers(records.read_json(stage.cell(0, name)), name, theirs)


def command_line(model: Path, names: Sequence[str], folder: Path, bos: str) -> dict[str, dict[str, Any]]:
    """What `lm-eval run` prints of these cells."""
    out = folder / f"lm-eval-{bos}"
    arguments = f"pretrained={model},dtype=float32,softmax_dtype=float32,add_bos_token={bos},max_length=512"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", ",".join(names), "--include_path", str(folder / "tasks"), "--num_fewshot", "0"]
    command += ["--limit", "6", "--batch_size", "8", "--device", "cpu", "--output_path", str(out)]
    repository = str(Path(__file__).parents[2])
    cache = {"HF_HOME": str(folder / "hf"), "LM_HARNESS_CACHE_PATH": str(folder / "cache"), "PYTHONPATH": repository}
    done = subprocess.run(
        command, env=os.environ | environment.OFFLINE | environment.QUIET | cache, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.rglob("results_*.json")
    found = json.loads(file.read_text())
    return {**found["results"], **found.get("groups", {})}


# ---------------------------------------------------------------------------------------------- a real Gemma


@pytest.fixture(scope="module")
def real_questions(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real rows, in the layout of local questions."""
    folder = tmp_path_factory.mktemp("real") / "questions"
    for name in ("arc_easy", "mmlu"):
        (folder / "en" / name).mkdir(parents=True)
    shutil.copy(shared_data / "en" / "arc_easy_validation.jsonl", folder / "en" / "arc_easy" / "test.jsonl")
    for split in ("dev", "test"):
        for line in (shared_data / "en" / f"mmlu_{split}.jsonl").read_text().split("\n"):
            if line.strip():
                path = folder / "en" / "mmlu" / split / f"{json.loads(line)['subject']}.jsonl"
                path.parent.mkdir(exist_ok=True)
                with path.open("a") as file:
                    file.write(line + "\n")
    return folder


def test_a_real_gemma_knows_what_its_noised_copy_forgot(
    real_gemma: Path, real_questions: Path, shared_data: Path, tmp_path: Path
) -> None:
    world = real_questions.parent
    text = {"en": shared_data / "en_text" / "sib200_flores_en.jsonl"}
    runs = {}
    for sigma in (0.0, 0.3):
        train = noised(real_gemma, tmp_path / "train" / f"sigma={sigma}", sigma)
        cells = ("arc_easy.en", "ppl_heldout.en")
        run_name = f"sigma={sigma}"
        stage = prepare(tmp_path / "paper", world, cells, run=run_name, train=train, limit=80, shots={}, heldout=text)
        run(stage)
        runs[sigma] = stage
    knows = primary(runs[0.0], 10, "arc_easy.en")
    assert knows["value"] - 4 * knows["stderr"] > 0.25
    pairs = zip(*(records.read_samples(runs[s].samples(10, "arc_easy.en")) for s in (0.0, 0.3)), strict=True)
    differences = [ours["metrics"]["acc"] - theirs["metrics"]["acc"] for ours, theirs in pairs]
    z = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))
    assert z > 3
    good, bad = (primary(runs[s], 10, "ppl_heldout.en")["value"] for s in (0.0, 0.3))
    assert 0.5 < good < 1.5 < bad
