"""Runs that consist only of records, to test reports without a model."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from hpc_ewc import records, suites
from hpc_ewc.config import DataConfig, EvaluateConfig, Experiment, ModelConfig, TrainConfig, render_toml, replace_at
from hpc_ewc.rundir import RunDir, StageDir

STRENGTHS = (0.0, 1e2, 1e6, 1e12)
N = 60
BASE_HASH = hashlib.sha256(b"base").hexdigest()
TASKS = ("arc_easy", "belebele", "gsm8k", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande")


def write_text(path: Path, text: str) -> None:
    """Write like records.write_*, without fsync: a test writes hundreds of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_samples(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def digest(*parts: Any) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def ability(strength: float | None, language: str) -> float:
    """Return the probability of a correct answer: at small λ English falls and Lithuanian rises."""
    if strength is None:
        return 0.85 if language == "en" else 0.35
    kept = min(1.0, math.log10(strength + 1) / 4)
    return 0.35 + 0.5 * kept if language == "en" else 0.75 - 0.4 * max(0.0, (math.log10(strength + 1) - 4) / 8)


class RunBuilder:
    """Writes one experiment, `runs/NAME`.

    Args:
        root: its folder.
        model: as `model.path` of the experiment.
        strengths: λ of each run.
        seeds: `train.seed` of each run.
        tasks: share tasks; fluency is always there.
        n: documents a cell.
        samples: write them.
        parameters: size of the model, as its Fisher says it.
        others: further leaves of the grid, such as `{"ewc.mode": ("gradient", "proximal")}`.
    """

    def __init__(
        self,
        root: Path,
        *,
        model: str = "google/gemma-2-2b-it",
        strengths: Sequence[float] = STRENGTHS,
        seeds: Sequence[int] = (0,),
        tasks: Sequence[str] = TASKS,
        n: int = N,
        samples: bool = True,
        parameters: int = 424_000,
        others: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.dir = RunDir(root)
        self.model, self.strengths, self.seeds = model, strengths, seeds
        self.tasks, self.n, self.samples = tasks, n, samples
        self.parameters, self.others = parameters, others or {}
        self.point: dict[str, Any] = {}
        """Values of the other coordinates of the run being written."""
        self.run_folders: dict[str, StageDir] = {}

    def build(self, *, base: bool = True) -> RunDir:
        """Write everything: experiment.toml, train folders, records."""
        self.dir.root.mkdir(parents=True)
        experiment = self.experiment()
        write_text(self.dir.experiment_toml, render_toml(experiment))
        if base:
            self.evaluate("base", None, 0)
        for values in itertools.product(*self.others.values()):
            self.point = dict(zip(self.others, values, strict=True))
            for seed, strength in itertools.product(self.seeds, self.strengths):
                name = self.run_name(strength, seed)
                self.train(name, strength, seed)
                self.evaluate(name, strength, seed)
        return self.dir

    def experiment(self) -> Experiment:
        grid: dict[str, tuple[Any, ...]] = {"ewc.strength": tuple(self.strengths)}
        if len(self.seeds) > 1:
            grid["train.seed"] = tuple(self.seeds)
        grid |= {name: tuple(values) for name, values in self.others.items()}
        return Experiment(
            model=ModelConfig(path=self.model),
            data=DataConfig(source="uonlp/CulturaX"),
            train=TrainConfig(steps=40),
            evaluate=EvaluateConfig(heldout={"en": "news.jsonl"}),
            grid=grid,
        )

    def run_name(self, strength: float, seed: int) -> str:
        seeds = f",seed={seed}" if len(self.seeds) > 1 else ""
        others = "".join(f",{name.split('.')[-1]}={value}" for name, value in self.point.items())
        return f"strength={strength:g}{seeds}{others}-{digest(self.model, strength, seed, *self.point.values())[:12]}"

    def coordinates(self, strength: float | None, seed: int) -> dict[str, Any]:
        if strength is None:
            return {}
        return {"ewc.strength": strength} | ({"train.seed": seed} if len(self.seeds) > 1 else {}) | self.point

    # ------------------------------------------------------------------------------------------ stages

    def stage_json(self, folder: StageDir, **fields: Any) -> None:
        facts = {"schema": 1, "key": digest(folder.path)[:12], "inputs": {}, "coordinates": {}, "expected": []}
        write_json(folder.stage_json, facts | fields)

    def fisher(self) -> StageDir:
        """Write a Fisher folder with only its manifest."""
        folder = self.dir.fisher("0123456789ab")
        layers = {"model.embed_tokens.weight": 0.4, "0": 0.1, "1": 0.2, "2": 0.3}
        kinds = {"model.embed_tokens.weight": 0.4, "self_attn.q_proj.weight": 0.2, "mlp.up_proj.weight": 0.4}
        summary = {"trace": 6.1, "parameters": self.parameters, "zeros": 12000, "mean": 6.1 / self.parameters}
        summary |= {"share_by_layer": layers, "share_by_kind": kinds, "quantiles": {"0.5": 1e-7}}
        write_json(folder.manifest_json, {"schema": 1, "split": "validation", "summary": summary})
        done = {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {}, "summary": {}}
        write_json(folder.done, done)
        return folder

    def train(self, name: str, strength: float, seed: int) -> None:
        """Write a finished training: configuration, manifest, metrics, done.json."""
        folder = self.dir.train(name)
        inputs = {} if strength == 0 else {"fisher": str(self.fisher().path)}
        self.stage_json(folder, stage="train", run=name, coordinates=self.coordinates(strength, seed), inputs=inputs)
        point = replace_at(self.experiment(), self.coordinates(strength, seed))
        write_text(folder.config_toml, render_toml(point))
        manifest = {"schema": 1, "stage": "train", "run": name, "gpus": 8, "world_size": 8, "device": "NVIDIA H200"}
        write_json(folder.manifest_json, manifest | {"nodes": ["node1"], "commit": "abc"})
        distance = 28.0 / (1 + math.log10(strength + 1))
        lines = []
        for step in range(1, 41):
            share = 1 - math.exp(-step / 12)
            penalty = strength * 1e-3 / (1 + strength)
            line = {"step": step, "tokens": 4096 * step, "loss": 9 - 6 * share, "penalty": penalty, "restart": 0}
            lines.append(json.dumps(line | {"distance": distance * share, "tokens_per_s": 50000.0}))
        write_text(folder.metrics, "\n".join(lines) + "\n")
        summary = {"steps": 40, "tokens": 4096 * 40, "loss": 3.2, "seconds": 30.0, "penalty": 0.1, "distance": distance}
        if strength:
            summary |= {"free_parameters": 12000, "free_distance": 1.7, "fisher_trace": 6.1}
        done = {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {}, "summary": summary}
        write_json(folder.done, done)

    def evaluate(self, name: str, strength: float | None, seed: int) -> None:
        folder = self.dir.evaluate(name)
        step = 0 if strength is None else 40
        fraction = 0.0 if strength is None else 1.0
        cells = self.cells()
        self.stage_json(
            folder,
            stage="evaluate",
            run=name,
            coordinates=self.coordinates(strength, seed),
            expected=[cell.at(fraction) for cell in cells],
            inputs={} if strength is None else {"train": f"/elsewhere/runs/x/train/{name}"},
        )
        self.run_folders[name] = folder
        for cell in cells:
            rows = self.rows(cell, strength, seed)
            self.write(folder, name, step, fraction, self.coordinates(strength, seed), cell, rows)

    def cells(self) -> list[suites.Cell]:
        config = EvaluateConfig(suites=(*self.tasks, "fluency"), heldout={"en": "news.jsonl"})
        return suites.expand_suites(config, "lt")

    # ------------------------------------------------------------------------------------------ records

    def rows(self, cell: suites.Cell, strength: float | None, seed: int) -> list[dict[str, Any]]:
        """Return samples; a document is equally hard for every run, so pairing helps, as with real data."""
        documents = np.random.default_rng(int(digest(cell.name)[:8], 16))
        mine = np.random.default_rng(int(digest(cell.name, strength, seed, *self.point.values())[:8], 16))
        hard = documents.random(self.n)
        noise = mine.normal(0, 0.08, self.n)
        rows = []
        for i in range(self.n):
            row = {"doc_id": i, "doc_hash": digest(cell.name, i), "subset": "", "filter": cell.filter or "none"}
            row |= {"metrics": {}, "loglikelihoods": [-1.0, -2.0], "tokens": None, "words": None, "bytes": None}
            p = ability(strength, cell.language)
            if cell.kind == "perplexity":
                size = 40 + int(60 * hard[i])
                bits = (1.6 - p) * (1 + 0.3 * hard[i]) + noise[i]
                nats = bits * size * math.log(2)
                row |= {"loglikelihoods": [-nats], "tokens": size // 4, "words": size // 6, "bytes": size}
                row["metrics"] = {"perplexity": math.exp(nats / (size // 4)), "bits_per_byte": bits}
            elif cell.task == "truthfulqa_mc2":
                row["metrics"] = {"acc": round(float(np.clip(0.3 + 0.4 * p + noise[i], 0, 1)), 6)}
            else:
                row["metrics"] = {cell.metric: float(hard[i] + noise[i] < p)}
            if cell.task == "mmlu":
                row["subset"] = ("anatomy", "astronomy", "law")[i % 3]
            if cell.task == "belebele":
                row["cluster"] = digest("passage", i // 3)[:12]
            rows.append(row)
        return rows

    def results(self, cell: suites.Cell, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shared = {"filter": cell.filter or "none", "subset": "", "n": len(rows)}
        if cell.kind == "perplexity":
            nats = np.array([-row["loglikelihoods"][0] for row in rows])
            tokens, size = (np.array([row[unit] for row in rows], dtype=float) for unit in ("tokens", "bytes"))
            each = np.exp(nats / tokens)
            residuals = nats - nats.sum() / size.sum() * size
            stderr = math.sqrt(len(nats) / (len(nats) - 1) * (residuals**2).sum()) / size.sum()
            values = {
                "perplexity": (math.exp(nats.sum() / tokens.sum()), stderr * 4 * math.exp(nats.sum() / tokens.sum())),
                "perplexity_mean": (each.mean(), each.std(ddof=1) / math.sqrt(len(each))),
                "perplexity_median": (float(np.median(each)), None),
                "bits_per_byte": (nats.sum() / size.sum() / math.log(2), stderr / math.log(2)),
            }
        else:
            each = np.array([row["metrics"][cell.metric] for row in rows])
            values = {cell.metric: (each.mean(), each.std(ddof=1) / math.sqrt(len(each)))}
        results = [
            shared
            | {"metric": name, "value": float(value), "stderr": None if stderr is None else float(stderr)}
            | {"higher_is_better": cell.higher_is_better, "primary": name == cell.metric}
            for name, (value, stderr) in values.items()
        ]
        for subset in dict.fromkeys(row["subset"] for row in rows if row["subset"]):
            part = np.array([row["metrics"][cell.metric] for row in rows if row["subset"] == subset])
            results.append(
                shared
                | {"metric": cell.metric, "subset": subset, "n": len(part), "value": float(part.mean())}
                | {"stderr": float(part.std(ddof=1) / math.sqrt(len(part))), "higher_is_better": True, "primary": False}
            )
        return results

    def write(
        self,
        folder: StageDir,
        run: str,
        step: int,
        fraction: float,
        coordinates: Mapping[str, Any],
        cell: suites.Cell,
        rows: list[dict[str, Any]],
        **changes: Any,
    ) -> Path:
        """Write one record and its samples; `changes` replace fields of the record."""
        model_hash = BASE_HASH if run == "base" else digest(self.model, run, step)
        record = {
            "schema": records.SCHEMA,
            "status": "ok",
            "error": None,
            "cell_key": digest(run, step, cell.name, cell.shots, changes.get("limit"))[:12],
            "experiment": self.dir.name,
            "run": run,
            "step": step,
            "fraction": fraction,
            "coordinates": dict(coordinates),
            "model": self.model,
            "model_hash": model_hash,
            "base_hash": BASE_HASH,
            "task": cell.task,
            "language": cell.language,
            "variant": cell.variant,
            "suite": cell.suite,
            "chance": cell.chance,
            "cloze": False,
            "shots": cell.shots,
            "limit": None,
            "seed": 1234,
            "backend": "hf",
            "dtype": "bfloat16",
            "attention": "eager",
            "batch_size": 16,
            "max_length": 2048,
            "truncated": 0,
            "task_version": "1.0",
            "data_hash": digest(cell.name)[:12],
            "results": self.results(cell, rows),
            "batch_invariance": 0.0,
            "seconds": 12.5,
            "job_id": "1",
            "gpu_hours": 0.0125,
            "versions": {"hpc_ewc": "0.1.0", "lm_eval": "0.4.13", "torch": "2.13.0"},
        }
        path = folder.cell(step, cell.name)
        if self.samples:
            write_samples(folder.samples(step, cell.name), rows)
        write_json(path, record | changes)
        return path
