"""Measure the overhead of evaluation: a grid against one lm-eval call per cell, start-up by part, peak memory.

    python benchmarks/evaluation.py [--out benchmarks/results/evaluation.json]

Uses the miniature's base model on the CPU, one thread; runs `python -m examples.miniature` if the model is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from miniature_files import make_miniature

from hpc_ewc import records, suites
from hpc_ewc.config import build_experiment, render_toml
from hpc_ewc.evaluate import environment
from hpc_ewc.rundir import RunDir, StageDir

CELLS = ("arc_easy.en", "arc_easy.lt", "winogrande.en", "winogrande.lt")
CHECKPOINTS = 2

PARTS = """
import json, sys, time
t, parts = time.perf_counter(), {}
def part(name):
    global t
    now = time.perf_counter(); parts[name] = round(now - t, 3); t = now
from hpc_ewc.evaluate import environment
environment.prepare()
import torch; part("import torch")
import transformers; from transformers import AutoModelForCausalLM, AutoTokenizer; part("import transformers")
import datasets; part("import datasets")
import lm_eval.evaluator, lm_eval.models.huggingface; part("import lm_eval")
from pathlib import Path
from hpc_ewc.evaluate.checkpoint import load_model, load_tokenizer
from hpc_ewc.evaluate.scoring import Scorer
from hpc_ewc.evaluate.task_loading import load_tasks
from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files
from hpc_ewc.suites import Cell
part("import hpc_ewc.evaluate")
model_dir, questions, folder = map(Path, sys.argv[1:])
tokenizer = load_tokenizer(model_dir)
model = load_model(model_dir, dtype="float32", attention="auto", device=torch.device("cpu"), tokenizer=tokenizer)
part("load model and tokenizer")
Scorer(model, tokenizer, batch_size=16, max_length=512, whole_texts=False); part("scorer")
cell = Cell("mmlu", "en")
write_task_files(folder, cell, questions=LocalQuestions(questions, cloze=True)); part("write task files of mmlu")
load_tasks(cell, folder, (), 0); part("load tasks of mmlu")
from lm_eval.tasks import TaskManager
TaskManager(); part("for comparison: TaskManager() with all of lm-eval's tasks")
print(json.dumps(parts))
"""

BEYOND = ("scorer", "write task files of mmlu", "load tasks of mmlu")
"""Parts of the start-up that are neither import nor loading; MMLU has more task files than all other cells together."""

TEMPLATES = """
import json, sys, time
import lm_eval.utils
from hpc_ewc.evaluate.cell import compiled_templates
template = "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nAnswer:"
doc = {"question": "Which?", "choices": ["a", "b", "c", "d"]}
def each(n):
    t = time.perf_counter()
    for _ in range(n):
        lm_eval.utils.apply_template(template, doc)
    return (time.perf_counter() - t) / n * 1e3
plain = each(300)
with compiled_templates():
    kept = each(3000)
print(json.dumps({"compiled_each_time_ms": plain, "compiled_once_ms": kept}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation.json")
    out: Path = parser.parse_args().out
    world = make_miniature()
    with tempfile.TemporaryDirectory() as folder:
        parts = json.loads(python(PARTS, world / "model", world / "questions", Path(folder) / "mmlu"))
        found = {
            "what": f"{CHECKPOINTS} checkpoints × {len(CELLS)} cells of the miniature, all rows, one thread",
            "grid": grid(world, Path(folder)),
            "start_up_s": parts,
            "start_up_beyond_imports_and_loading_s": round(sum(parts[name] for name in BEYOND), 3),
            "prompt_template_ms": json.loads(python(TEMPLATES)),
            "environment": surroundings(),
        }
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def grid(world: Path, folder: Path) -> dict[str, Any]:
    """Return the wall time of an element per checkpoint, and of an `lm-eval run` per cell (on the first checkpoint)."""
    started = time.perf_counter()
    peak = 0
    for i in range(CHECKPOINTS):
        stage = prepare(folder / "runs", world, f"model-{i}")
        command = ["-m", "hpc_ewc.worker", "evaluate", stage.path, "--checkpoint", "0.0", "--cells", ",".join(CELLS)]
        subprocess.run([sys.executable, *map(str, command)], check=True, env=surrounding())
    ours = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    seconds = [
        records.read_json(stage.cell(0, cell))["seconds"]
        for stage in (RunDir(folder / "runs").evaluate(f"model-{i}") for i in range(CHECKPOINTS))
        for cell in CELLS
    ]
    started = time.perf_counter()
    for cell in CELLS:
        lm_eval_run(world, folder, cell)
    theirs = (time.perf_counter() - started) * CHECKPOINTS
    return {
        "ours_s": round(ours, 1),
        "ours_in_cells_s": round(sum(seconds), 1),
        "one_lm_eval_run_a_cell_s": round(theirs, 1),
        "ratio": round(theirs / ours, 1),
        "peak_memory_mb": round(peak / 1024),
    }


def prepare(root: Path, world: Path, run: str) -> StageDir:
    """Write a run's folder as `submit` does, and return it."""
    table = {"model": {"path": str(world / "model"), "dtype": "float32"}, "data": {"source": "a/corpus"}}
    asked = {"suites": list(CELLS), "shots": {}, "questions": str(world / "questions"), "cloze": True}
    experiment = build_experiment(table | {"evaluate": asked | {"max_gen_toks": 32}}, "benchmark")
    stage = RunDir(root).evaluate(run)
    stage.path.mkdir(parents=True)
    stage.config_toml.write_text(render_toml(experiment))
    cells = suites.expand_suites(experiment.evaluate, "lt")
    inputs = {"model": str(world / "model"), "questions": str(world / "questions")}
    facts = {"schema": 1, "stage": "evaluate", "run": run, "key": run, "coordinates": {}, "inputs": inputs}
    records.write_json(stage.stage_json, facts | {"expected": [cell.at(0.0) for cell in cells]})
    return stage


def lm_eval_run(world: Path, folder: Path, cell: str) -> None:
    """Evaluate the same cell with lm-eval's own command line."""
    from hpc_ewc.evaluate.task_files import LocalQuestions, write_task_files

    (known,) = suites.expand_suites(
        build_experiment(
            {"model": {"path": "m"}, "data": {"source": "a/corpus"}, "evaluate": {"suites": [cell]}},
            "benchmark",
        ).evaluate,
        "lt",
    )
    write_task_files(folder / cell, known, questions=LocalQuestions(world / "questions", cloze=True))
    arguments = f"pretrained={world / 'model'},dtype=float32,softmax_dtype=float32"
    command = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", cell]
    command += ["--include_path", str(folder / cell), "--num_fewshot", "0", "--batch_size", "16", "--device", "cpu"]
    subprocess.run([sys.executable, *command], check=True, env=surrounding(), stdout=subprocess.DEVNULL)


def python(code: str, *arguments: Path) -> str:
    """Run code in a new interpreter and return its output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, env=surrounding(), stdout=subprocess.PIPE, text=True).stdout


def surrounding() -> dict[str, str]:
    return os.environ | environment.OFFLINE | environment.QUIET | {"OMP_NUM_THREADS": "1"}


def surroundings() -> dict[str, Any]:
    packages = ("torch", "transformers", "lm_eval", "datasets")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
