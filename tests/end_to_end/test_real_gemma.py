"""A real Gemma through the whole engine: text, Fisher, training with a penalty, stop, go on, export."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc import records
from hpc_ewc.config import DataConfig, EwcConfig, Experiment, FisherConfig, ModelConfig, TrainConfig, render_toml
from hpc_ewc.data import batch_indices, read_tokens
from hpc_ewc.rundir import StageDir
from hpc_ewc.stage import Stage
from tests.conftest import require_memory
from tests.distributed.ranks import run_ranks

RANKS = 2
STEPS = 4
SEQUENCE_LENGTH = 256


def build_stage(folder: Path, experiment: Experiment, stage: str, **inputs: Any) -> Stage:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(render_toml(experiment))
    facts = {"schema": 1, "stage": stage, "run": folder.name, "key": "0123456789ab", "inputs": inputs}
    records.write_json(folder / "stage.json", facts | {"coordinates": {}, "expected": []})
    return Stage(folder)


def worker(stage: Stage, stop_at: int | None = None) -> str:
    """Run the worker under torchrun as one would by hand; with `stop_at`, Ctrl-C after that step. What was printed."""
    command: Sequence[str] = [sys.executable, "-m", "hpc_ewc.worker", stage.name, str(stage.dir.path)]
    if stage.name != "tokens":
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        command = [sys.executable, *torchrun, *command[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    log = stage.dir.path / f"log.{time.time_ns()}"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                lines = list(records.read_lines(stage.dir.metrics)) if stage.dir.metrics.exists() else []
                if stop_at is not None and lines and lines[-1]["step"] >= stop_at:
                    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to all of the foreground
                    process.wait(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = log.read_text()
    assert stop_at is not None or process.returncode == 0, said[-3000:]
    return said


def checkpoint_logits(rank: int, world_size: int, model: Path, run: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of the last checkpoint, read into the base model by one rank."""
    from hpc_ewc.model.load import load_model
    from hpc_ewc.model.mesh import build_mesh
    from hpc_ewc.train.checkpoint import Checkpoints

    sharded = load_model(model, build_mesh("cpu"), dtype="float32")
    weights = {name: parameter.detach() for name, parameter in sharded.named_parameters()}
    checkpoints = Checkpoints(StageDir(run), "0123456789ab", "test.0", 2, None)
    position = checkpoints.load_newest({"model": weights})
    assert position is not None
    assert position["step"] == STEPS
    with torch.no_grad():
        logits: torch.Tensor = sharded.eval()(input_ids=ids, use_cache=False).logits
    return logits


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_real_gemma_is_trained_stopped_gone_on_with_and_exported(
    real_gemma: Path, shared_data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_memory(12)
    text, questions = shared_data / "lt_text" / "ntrex_news_lt.jsonl", shared_data / "en" / "mmlu_dev.jsonl"
    experiment = Experiment(
        model=ModelConfig(path=str(real_gemma), dtype="float32"),
        data=DataConfig(
            source="files", files=(str(text),), fraction=1.0, heldout_documents=5, sequence_length=SEQUENCE_LENGTH
        ),
        fisher=FisherConfig(source="files", files=(str(questions),), batch_size=2, max_examples=8),
        ewc=EwcConfig(strength=1e3),
        train=TrainConfig(
            steps=STEPS,
            global_batch_size=2,
            local_batch_size=1,
            learning_rate=2e-5,
            warmup_ratio=0.0,
            keep_checkpoints=1,
            keep_optimizer=False,
        ),
    )
    base = {"model": str(real_gemma)}
    tokens = build_stage(tmp_path / "tokens", experiment, "tokens", **base, files=[str(text)])
    worker(tokens)
    fisher = build_stage(tmp_path / "fisher", experiment, "fisher", **base, questions=[str(questions)])
    worker(fisher)
    made = {"tokens": str(tokens.dir.path), "fisher": str(fisher.dir.path)}
    train = build_stage(tmp_path / "train", experiment, "train", **base, **made)
    assert "stopped after step" in worker(train, stop_at=2)
    assert not train.is_done()
    assert "resuming after step" in worker(train)
    assert train.is_done()
    lines = list(records.read_lines(train.dir.metrics))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["penalty"] > 0

    # the first loss is transformers' own on the same samples
    dataset = read_tokens(tokens.dir.path)
    ids = torch.from_numpy(dataset.batch(batch_indices(0, 0, 2, len(dataset)))[0])
    with torch.no_grad():
        before: Any = AutoModelForCausalLM.from_pretrained(real_gemma, attn_implementation="eager", dtype=torch.float32)
        assert lines[0]["loss"] == pytest.approx(float(before(input_ids=ids, labels=ids).loss), rel=1e-5)

    # the last checkpoint and the export are one model, which learnt
    export = train.dir.export(STEPS)
    with torch.no_grad():
        after: Any = AutoModelForCausalLM.from_pretrained(export, attn_implementation="eager", dtype=torch.float32)
        logits = after(input_ids=ids[:1, :32]).logits
        assert float(after(input_ids=ids, labels=ids).loss) < lines[0]["loss"]
    assert after.lm_head.weight is after.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(export)("Labas rytas").input_ids[0] == dataset.bos_id
    assert torch.equal(run_ranks(1, checkpoint_logits, real_gemma, train.dir.path, ids[:1, :32]), logits)
