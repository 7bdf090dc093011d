"""Measure the time and the peak memory of a report over 10,000 records with their samples.

    python benchmarks/report_speed.py [--records 10000] [--documents 100] [--out benchmarks/results/report_speed.json]

The script makes records and samples, untimed: two languages with seven tasks and two texts each, and as many runs as
that needs. It times the whole process: interpreter start, reading every sample, pairing each run with the base, 2,000
bootstrap resamples. The bar, 10 s, is for the tables; all formats together take longer, since the page has figures of
as many λs as there are runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zstandard

REPOSITORY = Path(__file__).resolve().parents[1]
BAR_S = 10.0
RESULTS = REPOSITORY / "benchmarks" / "results" / "report_speed.json"
TASKS = ("arc_easy", "belebele", "gsm8k", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande")
TEXTS = ("ppl_truthfulqa", "ppl_heldout")
CELLS = [(task, language) for language in ("en", "lt") for task in (*TASKS, *TEXTS)]


def make(root: Path, records: int, documents: int) -> int:
    """Write the runs of one experiment and return the number of records."""
    rng = np.random.default_rng(0)
    runs = math.ceil(records / len(CELLS))
    written = 0
    for number in range(runs):
        name = "base" if number == 0 else f"strength={number}-{number:012x}"
        coordinates = {} if number == 0 else {"ewc.strength": float(number)}
        folder = root / "evaluate" / name / f"{0 if number == 0 else 100:08d}"
        folder.mkdir(parents=True)
        for task, language in CELLS:
            record, rows = cell(rng, name, coordinates, task, language, documents)
            (folder / f"{task}.{language}.json").write_text(json.dumps(record, indent=1))
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{task}.{language}.samples.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
            written += 1
    return written


def cell(
    rng: np.random.Generator, run: str, coordinates: dict[str, float], task: str, language: str, documents: int
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return a record and its samples, as large as real ones."""
    text, metric = task.startswith("ppl"), "exact_match" if task == "gsm8k" else "acc"
    rows: list[dict[str, object]] = []
    nats, sizes = rng.gamma(4, 40, documents), rng.integers(100, 900, documents)
    right = (rng.random(documents) < 0.6).astype(float)
    for i in range(documents):
        row: dict[str, object] = {
            "doc_id": i,
            "doc_hash": f"{hash((task, language, i)) & (1 << 256) - 1:064x}"[:64],
            "subset": f"subject_{i % 57}" if task == "mmlu" else "",
            "filter": "strict-match" if task == "gsm8k" else "none",
            "metrics": {metric: right[i], "acc_norm": right[i]},
            "loglikelihoods": [float(x) for x in rng.normal(-20, 5, 4)],
            "tokens": None,
            "words": None,
            "bytes": None,
        }
        if text:
            size = int(sizes[i])
            row |= {"loglikelihoods": [-float(nats[i])], "tokens": size // 4, "words": size // 6, "bytes": size}
            row["metrics"] = {"perplexity": math.exp(nats[i] / (size // 4)), "bits_per_byte": nats[i] / size}
        if task == "belebele":
            row["cluster"] = f"{i // 2:012x}"
        rows.append(row)
    tokens = sum(int(size) // 4 for size in sizes)
    values = {
        "perplexity": math.exp(nats.sum() / tokens),
        "bits_per_byte": nats.sum() / sizes.sum() / math.log(2),
    }
    primary = ("perplexity" if task == "ppl_truthfulqa" else "bits_per_byte") if text else metric
    results = [
        {"metric": name, "filter": rows[0]["filter"], "subset": "", "value": float(value), "stderr": 0.01}
        | {"n": documents, "higher_is_better": not text, "primary": name == primary}
        for name, value in (values if text else {metric: right.mean()}).items()
    ]
    record = {
        "schema": 1,
        "status": "ok",
        "error": None,
        "cell_key": f"{run}.{task}.{language}",
        "experiment": "large",
        "run": run,
        "step": 100 if coordinates else 0,
        "fraction": 1.0 if coordinates else 0.0,
        "coordinates": coordinates,
        "model": "google/gemma-2-2b-it",
        "model_hash": run,
        "base_hash": "base",
        "task": task,
        "language": language,
        "variant": "",
        "suite": "fluency" if text else language,
        "shots": 0,
        "limit": None,
        "seed": 1234,
        "backend": "hf",
        "dtype": "bfloat16",
        "batch_size": 16,
        "max_length": 2048,
        "data_hash": "0123456789ab",
        "results": results,
        "versions": {"lm_eval": version("lm_eval"), "torch": version("torch")},
    }
    return record, rows


def timed(arguments: list[str], folder: Path, repeats: int) -> dict[str, float | int]:
    """Return wall seconds, CPU seconds and peak memory of whole processes."""
    command = [sys.executable, "-m", "hpc_ewc.report", "runs/large", "--out", "out", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    walls, cpus = [], []
    for _ in range(repeats):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - started)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "wall_s_median": round(statistics.median(walls), 2),
        "wall_s_min": round(min(walls), 2),
        "cpu_s_median": round(statistics.median(cpus), 2),
        "peak_memory_mb": round(after.ru_maxrss / 1024),
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from environment import environment  # after the parser, so that --help needs no torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = make(folder / "runs" / "large", options.records, options.documents)
        size = sum(path.stat().st_size for path in folder.rglob("*.zst"))
        everything = ["terminal", "markdown", "csv", "json", "latex", "html"]
        results = {
            "tables on the terminal": timed(["--format", "terminal"], folder, options.repeats),
            "terminal, Markdown, CSV, JSON, LaTeX, page": timed(["--format", *everything], folder, options.repeats),
            "without samples": timed(["--format", "terminal", "--unpaired"], folder, options.repeats),
        }
    value = {
        "what": "python -m hpc_ewc.report over records with samples, whole processes",
        "records": written,
        "documents_a_record": options.documents,
        "samples_mb_compressed": round(size / 1e6, 1),
        "bar_s": BAR_S,
        "results": results,
        "environment": environment("cpu") | {package: version(package) for package in ("scipy", "rich", "zstandard")},
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
