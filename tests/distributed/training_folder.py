"""The folders a training needs, made from nothing in a second: a tiny model with its tokenizer, tokens, a Fisher."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_ewc import records
from hpc_ewc.config import DataConfig, EvaluateConfig, EwcConfig, Experiment, ModelConfig, TrainConfig, render_toml
from hpc_ewc.stage import Stage
from tests.distributed.tiny_gemma import build_gemma

KEY = "0123456789ab"
SEQUENCE_LENGTH = 24
WORDS = [
    "the",
    "a",
    "river",
    "runs",
    "past",
    "old",
    "town",
    "where",
    "cold",
    "rain",
    "falls",
    "on",
    "red",
    "roofs",
    "crows",
]


def documents(count: int = 60, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choices(WORDS, k=dice.randint(20, 60))) + "." for _ in range(count)]


def build_model(folder: Path, kind: str = "gemma2", dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """Write a tiny Gemma and its tokenizer to `folder`; the model."""
    from examples.miniature.base_model import train_tokenizer

    tokenizer = train_tokenizer(documents(), 330)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model: Any = build_gemma(kind, **{"vocab_size": len(tokenizer), **ids} | settings).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def build_tokens(folder: Path, model: Path, packing: str = "concatenate", count: int = 60) -> Path:
    """Tokenise `documents` with the model's tokenizer into `folder`, by the real stage."""
    from hpc_ewc.data.tokenise import tokenise

    corpus = folder.with_name(folder.name + ".jsonl")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(count)))
    data = {"packing": packing, "fraction": 1.0, "heldout_documents": 0}
    stage = build_stage(folder, model, stage="tokens", inputs={"model": str(model), "files": [str(corpus)]}, data=data)
    assert tokenise(stage)
    return folder


def build_stage(
    folder: Path,
    model: Path,
    tokens: Path | None = None,
    *,
    fisher: Path | None = None,
    stage: str = "train",
    inputs: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    ewc: dict[str, Any] | None = None,
    dtype: str = "float32",
    model_options: dict[str, Any] | None = None,
    **train: Any,
) -> Stage:
    """The folder of a stage as `submit` writes it: 12 steps of 6 sequences unless told otherwise."""
    train = {"learning_rate": 3e-3, "global_batch_size": 6, "local_batch_size": 2, "steps": 12} | train
    experiment = Experiment(
        model=ModelConfig(path=str(model), dtype=dtype, **(model_options or {})),
        data=DataConfig(source="files", files=("corpus.jsonl",), sequence_length=SEQUENCE_LENGTH, **(data or {})),
        ewc=EwcConfig(**(ewc or {})),
        train=TrainConfig(**train),
        evaluate=EvaluateConfig(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(render_toml(experiment))
    if inputs is None:
        inputs = {"model": str(model), "tokens": str(tokens)} | ({"fisher": str(fisher)} if fisher else {})
    facts = {"schema": 1, "stage": stage, "run": folder.name, "key": KEY, "inputs": inputs, "coordinates": {}}
    records.write_json(folder / "stage.json", facts | {"expected": []})
    return Stage(folder)


def build_fisher(folder: Path, model: nn.Module, seed: int = 3) -> Path:
    """A Fisher over many decades, with exact zeros, of an anchor that is the model itself."""
    from hpc_ewc.ewc import save_ewc_state

    generator = torch.Generator().manual_seed(seed)
    fisher, anchor = {}, {}
    for name, parameter in model.named_parameters():
        values = 10 ** (torch.rand(parameter.shape, generator=generator) * 6 - 6)
        values[torch.rand(parameter.shape, generator=generator) < 0.1] = 0.0
        fisher[name], anchor[name] = values, parameter.detach().float()
    save_ewc_state(folder, fisher, anchor, {"about": "random, for a test"})
    return folder


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return list(records.read_lines(folder / "metrics.jsonl"))


def run_training(folder: Path, stop_after: int | None = None, stop_rank: int = 0, silent_s: float = 100.0) -> int:
    """What a rank of the worker does once the process group is up; every rank of `run_ranks` calls it.

    Args:
        folder: of the stage.
        stop_after: step after which `stop_rank` alone gets USR2, as from a launcher whose other nodes are late.
        stop_rank: the rank that gets it.
        silent_s: longest time between two signs of life.

    Returns:
        The step the run stands at.
    """
    from hpc_ewc.train.run import Run
    from hpc_ewc.train.watchdog import Watchdog

    stage = Stage(folder)
    stage.listen()
    watchdog = Watchdog(silent_s, lambda message: None)
    try:
        run = Run(stage, torch.device("cpu"), watchdog)
        make_step = run.trainer.step

        def step(batch: Any, rate: float) -> tuple[float, float]:
            result = make_step(batch, rate)
            if batch.step + 1 == stop_after and run.rank == stop_rank:
                os.kill(os.getpid(), signal.SIGUSR2)
            return result

        run.trainer.step = step  # type: ignore[method-assign]
        if run.train():
            run.finish()
        return run.step
    finally:
        watchdog.close()


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the last export."""
    from safetensors.torch import load_file

    return load_file(sorted((folder / "exports").iterdir())[-1] / "model.safetensors")
