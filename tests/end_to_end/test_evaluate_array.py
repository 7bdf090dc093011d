"""Many checkpoints, every cell; lm-eval's own command line; a real Gemma on real rows. Minutes: marked slow."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import records
from hpc_ewc.evaluate import environment
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage
from hpc_ewc.suites import expand_suites
from tests.conftest import require_memory
from tests.end_to_end.evaluation import assert_same_numbers, noised, prepare, primary, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
EVERYTHING = ("en", "lt", "fluency")


@pytest.fixture(scope="module")
def world(miniature: Path) -> Path:
    return miniature


def test_every_number_equals_lm_evals_own_command_line(world: Path, tmp_path: Path) -> None:
    stage = prepare(tmp_path / "paper", world, EVERYTHING, limit=6, shots={})
    run(stage)
    cells = expand_suites(Stage(stage.path).config.evaluate, "lt", heldout=["en"])
    questions = LocalQuestions(world / "questions", cloze=True)
    for cell in cells:
        heldout = world / "text" / f"heldout.{cell.language}.jsonl"
        write_task_files(tmp_path / "tasks" / cell.name, cell, questions=questions, heldout=heldout, max_gen_toks=32)
    for kind, bos in (("questions", "True"), ("perplexity", "False")):
        names = [cell.name for cell in cells if (cell.kind == "perplexity") == (kind == "perplexity")]
        theirs = command_line(world / "model", names, tmp_path, bos)
        for name in names:
            assert_same_numbers(records.read_json(stage.cell(0, name)), name, theirs)


def command_line(model: Path, names: Sequence[str], folder: Path, bos: str) -> dict[str, dict[str, Any]]:
    """Return what `lm-eval run` prints for these cells."""
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

ASKED = {"arc_easy": 80, "mmlu": 2, "text": 20}
"""Rows of ARC-Easy, the shortest of each of MMLU's 57 subjects, sentences: four minutes of one core with the models."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def real_world(real_gemma: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model and real rows, in the layout of local questions."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "model").symlink_to(real_gemma)
    english = folder / "questions" / "en"
    write_rows(
        english / "arc_easy" / "test.jsonl",
        rows_of(shared_data / "en" / "arc_easy_validation.jsonl")[: ASKED["arc_easy"]],
    )
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(shared_data / "en" / "mmlu_test.jsonl"):
        by_subject.setdefault(row["subject"], []).append(row)
    for subject, rows in by_subject.items():
        shortest = sorted(rows, key=lambda row: len(json.dumps(row)))[: ASKED["mmlu"]]
        write_rows(english / "mmlu" / "test" / f"{subject}.jsonl", shortest)
    write_rows(folder / "text.jsonl", rows_of(shared_data / "en_text" / "sib200_flores_en.jsonl")[: ASKED["text"]])
    return folder


def standard_scores(values: Sequence[float]) -> float:
    """The mean in standard errors."""
    return statistics.mean(values) / (statistics.stdev(values) / math.sqrt(len(values)))


def paired(stages: Sequence[tuple[StageDir, int]], cell: str, value: Callable[[dict[str, Any]], float]) -> list[float]:
    """Return the difference, first minus second, of each document."""
    rows = [list(records.read_samples(stage.samples(step, cell))) for stage, step in stages]
    assert [row["doc_hash"] for row in rows[0]] == [row["doc_hash"] for row in rows[1]]
    return [value(ours) - value(theirs) for ours, theirs in zip(*rows, strict=True)]


def test_a_real_gemma_knows_what_its_noised_copy_forgot(real_world: Path, tmp_path: Path) -> None:
    """Gemma 3 270M on real rows, well above chance; and against itself with noise of 0.3 times each tensor's spread.

    By letter a model of this size guesses at MMLU (27 % of 114 others; the letter that is right is no likelier than
    the rest), so a threshold there would test the dice. Asked for the words of the answer, a byte of which is worth
    as much in a short answer as in a long one (`acc_norm`), it has 42 ± 4 % of these. The noised copy still has 35 %
    of 80 questions of ARC-Easy, where the base has half: too near for so few, so what must be apart beyond doubt is
    what either finds likely, paired by document.
    """
    require_memory(4)
    text = {"en": real_world / "text.jsonl"}
    settings: dict[str, Any] = {"limit": None, "shots": {}, "heldout": text, "cloze": True, "max_length": 512}
    train = noised(real_world / "model", tmp_path / "train" / "noised", 0.3)
    both = ("arc_easy.en", "ppl_heldout.en")
    far = prepare(tmp_path / "paper", real_world, both, run="noised", train=train, **settings)
    run(far)
    base = prepare(tmp_path / "paper", real_world, (*both, "mmlu.en"), **settings)
    run(base)

    easy = primary(base, 0, "arc_easy.en")
    assert easy["value"] - 3 * easy["stderr"] > 0.25
    mmlu = records.read_checked(base.cell(0, "mmlu.en"), "record")
    (words,) = (x for x in mmlu["results"] if (x["metric"], x["subset"]) == ("acc_norm", ""))
    assert (mmlu["cloze"], words["n"]) == (True, 57 * ASKED["mmlu"])
    assert words["value"] - 3 * words["stderr"] > 0.25
    apart = [(base, 0), (far, 10)]
    assert statistics.mean(paired(apart, "arc_easy.en", lambda row: row["metrics"]["acc"])) > 0
    assert standard_scores(paired(apart, "arc_easy.en", lambda row: sum(row["loglikelihoods"]))) > 3
    assert standard_scores(paired(apart, "ppl_heldout.en", lambda row: -row["metrics"]["bits_per_byte"])) > 3
    assert 0.5 < primary(base, 0, "ppl_heldout.en")["value"] < 1.5 < primary(far, 10, "ppl_heldout.en")["value"]
