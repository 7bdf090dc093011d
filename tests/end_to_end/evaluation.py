"""Evaluated runs for the tests: checkpoints, stage folders as `submit` writes them, elements as jobs run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpc_ewc import records
from hpc_ewc.config import build_experiment, render_toml
from hpc_ewc.rundir import RunDir, StageDir
from hpc_ewc.stage import Stage
from hpc_ewc.suites import expand_suites
from hpc_ewc.worker import evaluate as worker

FOUR = ("arc_easy.en", "gsm8k.en", "mmlu.lt", "ppl_heldout.en")
SHOTS = {"gsm8k": 2, "arc_easy": 1}
MINIATURE: tuple[str, ...] = ("--base", "data/miniature/model", "--questions", "data/miniature/questions")
MINIATURE += ("--cloze", "--max-gen-toks", "32")
MINIATURE += ("--heldout", ",".join(f"{name}=data/miniature/text/heldout.{name}.jsonl" for name in ("en", "lt")))
"""Arguments of `hpc-ewc evaluate` for checkpoints of the miniature, in a folder with `data/miniature`."""


def noised(model: Path, folder: Path, sigma: float, *, fraction: float = 1.0, step: int = 10) -> Path:
    """A training's folder with one export: the base with noise of `sigma` times each tensor's own spread."""
    train = StageDir(folder)
    place = train.export(step)
    shutil.copytree(model, place)
    tensors = load_file(place / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensors[name] = tensor + sigma * tensor.std() * torch.randn(tensor.shape, generator=draw)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    facts = {
        "run": folder.name,
        "step": step,
        "fraction": fraction,
        "tokens": 1,
        "coordinates": {"ewc.strength": sigma},
    }
    facts |= {"train_key": f"key-{sigma}", "base_hash": records.model_hash(model)}
    records.write_json(place / "hpc_ewc.json", facts | {"model_hash": records.model_hash(place)})
    return folder


def prepare(
    root: Path,
    world: Path,
    cells: Iterable[str] = FOUR,
    *,
    run: str = "base",
    train: Path | None = None,
    limit: int | None = 16,
    heldout: Mapping[str, Path] | None = None,
    **evaluate: Any,
) -> StageDir:
    """The folder of an evaluated run, as `submit` writes it."""
    settings = {"suites": list(cells), "shots": SHOTS, "batch_size": 8, "cloze": True, "max_gen_toks": 32, **evaluate}
    settings["questions"] = str(world / "questions")
    table = {"model": {"path": str(world / "model"), "dtype": "float32"}, "data": {"source": "a/corpus"}}
    experiment = build_experiment(table | {"evaluate": settings | ({"limit": limit} if limit else {})}, "test.toml")
    texts = {language: world / "text" / f"heldout.{language}.jsonl" for language in ("en", "lt")}
    inputs: dict[str, Any] = {"questions": str(world / "questions")}
    inputs["heldout"] = {language: str(path) for language, path in (heldout or texts).items()}
    inputs |= {"train": str(train)} if train else {"model": str(world / "model")}
    fraction = 1.0 if train else 0.0
    asked = expand_suites(experiment.evaluate, "lt", inputs["heldout"])
    stage = RunDir(root).evaluate(run)
    stage.path.mkdir(parents=True, exist_ok=True)
    stage.config_toml.write_text(render_toml(experiment))
    key = records.key_of({name: value for name, value in {**settings, "limit": limit}.items() if name != "batch_size"})
    facts = {"schema": 1, "stage": "evaluate", "run": run, "key": key, "coordinates": {"ewc.strength": 1e6}}
    records.write_json(stage.stage_json, facts | {"inputs": inputs, "expected": [c.at(fraction) for c in asked]})
    return stage


def run(stage: StageDir, cells: Iterable[str] | None = None, element: str = "0") -> None:
    """One element, in this process: what `worker.evaluate.main` does but for signals."""
    opened = Stage(stage.path, element)
    fraction = 1.0 if "train" in opened.inputs else 0.0
    names = cells or [name.partition(":")[2] for name in opened.expected]
    with opened.attempt():
        worker.run(opened, fraction, list(names))


def start(stage: StageDir, cells: Iterable[str], fraction: float = 0.0, **env: str) -> subprocess.Popen[str]:
    """One element as its job runs it."""
    command = [sys.executable, "-m", "hpc_ewc.worker", "evaluate", str(stage.path)]
    command += ["--checkpoint", str(fraction), "--cells", ",".join(cells)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])} | env
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def primary(stage: StageDir, step: int, cell: str) -> dict[str, Any]:
    record = records.read_checked(stage.cell(step, cell), "record")
    (result,) = (result for result in record["results"] if result["primary"])
    return dict(result)


def stamps(stage: StageDir) -> dict[str, tuple[int, str]]:
    """When each record was written, and by which job."""
    paths = sorted(stage.path.glob("[0-9]*/*.json"))
    return {path.name: (path.stat().st_mtime_ns, records.read_json(path)["job_id"]) for path in paths}


def assert_same_numbers(record: Mapping[str, Any], cell: str, theirs: Mapping[str, Mapping[str, Any]]) -> None:
    """Counts of right answers are equal; what is continuous may differ by the rounding of other batches."""
    near = 1e-4 if "ppl" in cell or "mc2" in cell else 1e-9
    compared = 0
    for result in record["results"]:
        metrics = theirs[f"{cell}.{result['subset']}" if result["subset"] else cell]
        name = f"{result['metric']},{result['filter']}"
        if name not in metrics:  # perplexity by token is ours alone
            continue
        assert result["value"] == pytest.approx(metrics[name], rel=near), (cell, result, metrics)
        error = metrics[f"{result['metric']}_stderr,{result['filter']}"]
        if isinstance(error, float) and "ppl" not in cell:  # theirs is a bootstrap there
            assert result["stderr"] == pytest.approx(error, rel=near), (cell, result, metrics)
        compared += 1
    assert compared >= (3 if "ppl" in cell else 1)
