"""A small experiment on generated files and a scripted worker, for tests of the launcher alone."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

from hpc_ewc.errors import StageError
from hpc_ewc.stage import Stage

TEMPLATE = """
[model]
path = "{folder}/model"
dtype = "float32"
[data]
source = "files"
files = ["{folder}/corpus.jsonl"]
heldout_documents = 1
[fisher]
source = "files"
files = ["{folder}/questions.jsonl"]
[evaluate]
suites = ["arc_easy.en", "ppl_heldout.lt"]
[grid]
ewc.strength = {strengths}
[resources.evaluate]
elements = {elements}
"""


def write_experiment(
    folder: Path, strengths: list[float] | None = None, name: str = "small", elements: int = 1, more: str = ""
) -> Path:
    """Write an experiment and its inputs: a model and a corpus with just what a login node reads."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    for file in ("corpus.jsonl", "questions.jsonl"):
        if not (folder / file).exists():
            (folder / file).write_text('{"text": "Laba diena."}\n')
    path = folder / f"{name}.toml"
    values = [0.0, 1e6] if strengths is None else strengths
    path.write_text(TEMPLATE.format(folder=folder, strengths=values, elements=elements) + more)
    return path


def write_model(folder: Path, *, rows: int = 4, tokens: int = 3, kind: str = "gemma2") -> Path:
    """Write a model folder: an embedding of `rows` × 2, and a tokenizer of a given number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": rows}))
    (folder / "model.safetensors").write_bytes(safetensors(rows))
    image = {"id": rows, "content": "<image>", "special": True}  # beyond the embedding, and no text gets it
    vocabulary = {str(i): i for i in range(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [image]}))
    return folder


def safetensors(rows: int, data: int | None = None) -> bytes:
    """Return an embedding of `rows` × 2 in float32 as safetensors; `data`: the bytes present."""
    entry = {"dtype": "F32", "shape": [rows, 2], "data_offsets": [0, rows * 8]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "model.embed_tokens.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (rows * 8 if data is None else data)


FAKE_PYTHON = """#!/bin/sh
for word; do
  case $word in
  hpc_ewc.worker) while [ "$1" != "$word" ]; do shift; done; shift; exec {python} {world} {orders} "$@" ;;
  hpc_ewc.report) exec {python} -c "{report}" "$3" "$5" ;;
  esac
done
exec {python} "$@"
"""
REPORT = "import sys; print('the table of', sys.argv[1].rsplit('/', 1)[1]); open(sys.argv[2] + '/table.md', 'w')"


def write_fake_python(orders: Path) -> Path:
    """Write a Python interpreter for jobs that runs this file as the worker, and a small report."""
    script = orders / "python"
    world = Path(__file__).absolute()
    script.write_text(FAKE_PYTHON.format(python=sys.executable, world=world, orders=orders, report=REPORT))
    script.chmod(0o755)
    return script


def read_events(orders: Path) -> list[dict[str, Any]]:
    """Return the fake workers' events: when each began and ended."""
    path = orders / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def order(orders: Path, what: str, for_: str) -> None:
    """Set the behaviour of the workers of a stage (`train`) or of nodes with a prefix (`train/strength=0`)."""
    orders.mkdir(exist_ok=True)
    known = json.loads((orders / "orders.json").read_text()) if (orders / "orders.json").exists() else {}
    (orders / "orders.json").write_text(json.dumps(known | {for_: what}))


# ---------------------------------------------------------------------------------------------- the worker


def work(orders: Path, stage_name: str, folder: Path) -> int:
    file = orders / "orders.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    name = f"{stage_name}/{folder.name}"
    what = next((told[key] for key in sorted(told, key=len, reverse=True) if name.startswith(key)), "finish")
    note(orders, name, "begin")
    stage = Stage(folder)
    if what not in ("hang", "die"):
        stage.listen()
    if stage.is_done():
        return 0
    with stage.attempt():
        code = obey(stage, what)
    note(orders, name, "end")
    return code


def obey(stage: Stage, what: str) -> int:
    if what == "raise":
        raise ValueError("as it was told")
    if what == "lose":
        raise StageError("another rank of this job ended (Connection closed by peer)")
    if what == "leave":  # exit status 0 without done.json
        return 0
    if what == "die":
        import os

        os.kill(os.getpid(), 9)
    if what == "hang":
        time.sleep(600)
    if what == "wait":
        while not stage.stop_requested():
            stage.progress(1, 4, "step", loss=2.0)
            time.sleep(0.05)
        return 0
    if what.startswith("sleep"):
        time.sleep(float(what.split()[1]))
    stage.finish([], told=what)
    return 0


def note(orders: Path, name: str, what: str) -> None:
    with (orders / "events.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "what": what, "at": time.time()}) + "\n")


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
