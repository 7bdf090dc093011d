"""Measure tokenisation against a plain loop (tokens per second), and how long a training step waits for its batch.

    python benchmarks/data_loading.py [--text FILE.jsonl …] [--vocabulary 8000] [--megabytes 40] [--out FILE]

Without --text, the miniature's text is used. The tokenizer is a byte-fallback BPE trained on the text. The documents
are repeated, each with a number that makes it different, until the corpus has --megabytes. Each tokenisation is timed
in a process of its own, start included. The plain loop calls the tokenizer once per document. The loader's step is a
matrix product of about --step-ms in the main thread, as in training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import environment

from hpc_ewc.config import DataConfig, Experiment, ModelConfig, render_toml
from hpc_ewc.records import SCHEMA, read_json, write_json, write_text

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]

LOOP = """
import json, sys, numpy as np
from tokenizers import Tokenizer
tokenizer, ids = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json"), []
with open(sys.argv[1], encoding="utf-8", newline="\\n") as file:
    for line in file:
        ids.extend([2, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids])
np.array(ids, dtype="<u4").tofile(sys.argv[3])
print(len(ids))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--step-ms", type=float, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "data_loading.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = read_texts(arguments.text)
        model = train_tokenizer(texts, arguments.vocabulary, folder / "model")
        corpus, documents = write_corpus(texts, arguments.megabytes, folder / "corpus.jsonl")
        size = corpus.stat().st_size
        facts: dict[str, Any] = {
            "text": [path.name for path in arguments.text] or ["miniature"],
            "megabytes": round(size / 1e6, 1),
            "documents": documents,
            "vocabulary": arguments.vocabulary,
            "tokenisation": measure_tokenisation(folder, model, corpus, arguments.repeat),
            "loader": [measure_loader(folder / "stage", batch, arguments) for batch in (8, 64)],
            "environment": environment("cpu") | {"cores_used": len(os.sched_getaffinity(0))},
        }
    print(json.dumps(facts, indent=1))
    write_json(arguments.out, facts)


def read_texts(files: list[Path]) -> list[str]:
    if not files:
        from miniature_files import make_miniature

        files = sorted((make_miniature(with_model=False) / "text").glob("train.*.jsonl"))
    return [json.loads(line)["text"] for path in files for line in path.read_bytes().split(b"\n") if line]


def train_tokenizer(texts: list[str], vocabulary: int, folder: Path) -> Path:
    """Train a tokenizer, write the files that a model's tokenizer is loaded from, and return their folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 2, "pad_token_id": 0})
    return folder


def write_corpus(texts: list[str], megabytes: float, path: Path) -> tuple[Path, int]:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for text in texts:
                file.write(json.dumps({"text": f"{count} {text}"}, ensure_ascii=False) + "\n")
                count += 1
                if count % 100 == 0 and file.tell() >= megabytes * 1e6:
                    break
    return path, count


def measure_tokenisation(folder: Path, model: Path, corpus: Path, repeat: int) -> dict[str, Any]:
    """Return the fastest round of each command; commands take turns, so that a busy machine disturbs all alike."""
    worker = [sys.executable, "-m", "hpc_ewc.worker", "tokens"]
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    stages = {"stage": 1000, "stage_no_heldout": 0, "stage_one_core": 1000}
    commands = {"loop": [sys.executable, "-c", LOOP, str(corpus), str(model), str(folder / "loop.bin")]}
    commands |= {name: [*worker, str(folder / name)] for name in stages}
    commands["stage_one_core"] = [*one_core, *commands["stage_one_core"]]
    times, cpu = dict.fromkeys(commands, float("inf")), dict.fromkeys(commands, float("inf"))
    for _ in range(repeat):
        for name, command in commands.items():
            if name in stages:
                shutil.rmtree(folder / name, ignore_errors=True)
                write_stage(folder / name, model, corpus, stages[name])
            seconds, busy = time_of(command, {"RAYON_NUM_THREADS": "1"} if name == "loop" else {})
            times[name], cpu[name] = min(times[name], seconds), min(cpu[name], busy)
    summary = read_json(folder / "stage_no_heldout" / "done.json")["summary"]
    return {
        "tokens": summary["tokens"],
        "same_tokens_as_the_loop": 4 * summary["tokens"] == (folder / "loop.bin").stat().st_size,
        "parts": len(summary["parts"]),
        "seconds": {name: round(seconds, 2) for name, seconds in times.items()},
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in cpu.items()},
        "tokens_per_s": {name: round(summary["tokens"] / seconds) for name, seconds in times.items()},
        "over_the_loop": {name: round(times["loop"] / seconds, 2) for name, seconds in times.items()},
    }


def write_stage(folder: Path, model: Path, corpus: Path, heldout: int) -> None:
    data = DataConfig(
        source="files", files=(str(corpus),), fraction=1.0, heldout_documents=heldout, sequence_length=512
    )
    write_text(folder / "config.toml", render_toml(Experiment(ModelConfig(path=str(model)), data)))
    inputs = {"model": str(model), "files": [str(corpus)]}
    facts = {"schema": SCHEMA, "stage": "tokens", "run": "", "key": "0" * 12, "inputs": inputs}
    write_json(folder / "stage.json", facts | {"coordinates": {}, "expected": []})


def time_of(command: list[str], changes: dict[str, str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of a process and its children."""
    given = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"} | changes
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=given, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_loader(tokens: Path, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds that a step waits for its batch, with and without reading ahead."""
    import torch

    from hpc_ewc.data import StepLoader, read_tokens

    dataset = read_tokens(tokens)
    size = 256
    while _step_s(torch.ones(size, size)) < arguments.step_ms / 1e3:
        size = int(size * 1.2)
    a, waits = torch.ones(size, size), {}
    for name, ahead in (("read_ahead", 2), ("in_the_step", 0)):
        waited, steps = [], []
        with StepLoader(
            dataset, seed=0, global_batch_size=batch, local_batch_size=8, rank=0, world_size=1,
            start_step=0, steps=arguments.steps, ahead=ahead,
        ) as loader:  # fmt: skip
            before = 0.0
            for _ in loader:
                steps.append(_step_s(a))
                waited.append(1e3 * (loader.waited_s - before))
                before = loader.waited_s
        waits[name] = {
            "median_ms": round(statistics.median(waited[1:]), 4),
            "mean_ms": round(statistics.mean(waited[1:]), 4),
            "largest_ms": round(max(waited[1:]), 3),
            "share_of_the_step": round(sum(waited[1:]) / (1e3 * sum(steps[1:]) + sum(waited[1:])), 5),
        }
    facts = {"global_batch_size": batch, "sequence_length": dataset.sequence_length, "steps": arguments.steps}
    return facts | {"step_ms": round(1e3 * statistics.median(steps), 1), "waited": waits}


def _step_s(a: Any) -> float:
    begun = time.perf_counter()
    a @ a
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
