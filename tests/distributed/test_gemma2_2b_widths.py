"""Gemma 2 2B's widths, its vocabulary where there is room, one layer: every stage on two shards, within the formulas.

Load, Fisher, penalty, steps, checkpoint, another number of ranks, export. Memory is what a rank holds itself above what
it had when it began, looked at each millisecond; the forecast is what a dry run says.
"""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc.config import DataConfig, FisherConfig, ModelConfig, TrainConfig
from hpc_ewc.data import batch_indices, read_tokens
from hpc_ewc.launch.forecast import formulas
from hpc_ewc.launch.forecast.formulas import Place
from hpc_ewc.launch.forecast.shapes import KNOWN, Shape, read_shape
from tests.distributed.ranks import run_ranks
from tests.distributed.training_folder import (
    SEQUENCE_LENGTH,
    build_model,
    build_stage,
    build_tokens,
    read_metrics,
    run_training,
)

WIDTHS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "num_hidden_layers": 1,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "layer_types": ["sliding_attention"],
}  # fmt: skip
WHOLE, PART = 256_000, 32_000
RANKS = 2
QUESTION_LENGTH = 12
MODEL = ModelConfig(path="x", dtype="bfloat16")
DATA = DataConfig(source="files", sequence_length=SEQUENCE_LENGTH)
TRAIN = TrainConfig(local_batch_size=1)
FISHER = FisherConfig(batch_size=2, dtype="bfloat16")
STRENGTH = 1e4
LIMIT_S = 1200.0
GIVEN_BACK = 1 << 16
"""Blocks above this are given back to the system when they are freed, so that a peak is a peak."""


def stated(shape: Shape, ranks: int) -> dict[str, float]:
    """Bytes of a rank by the formulas, of each stage."""
    place = Place("cpu", ranks)
    held = formulas.penalty_bytes(STRENGTH, shape, FISHER.dtype)
    return {
        "fisher": sum(formulas.fisher_memory(shape, MODEL, FISHER, place).values()),
        "train": sum(formulas.training_memory(shape, MODEL, DATA, TRAIN, place, held).values()),
    }


# ---------------------------------------------------------------------------------------------- on the ranks


class OwnMemory:
    """Bytes that this rank holds itself, no file behind them, above those at its start: the highest so far."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            assert libc.mallopt(parameter, GIVEN_BACK) == 1
        self._base, self.highest = self._now(), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> OwnMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self.highest = max(self.highest, self._now() - self._base)


def highest_of_all(memory: OwnMemory) -> int:
    """Of the rank that had most."""
    most = torch.tensor(memory.highest)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def make_model(rank: int, world_size: int, folder: Path, vocabulary: int) -> None:
    """Where its memory ends with it. The tokenizer's few hundred ids are the embedding's first rows."""
    build_model(folder, dtype=torch.bfloat16, vocab_size=vocabulary, **WIDTHS)


def estimate(rank: int, world_size: int, model: Path, out: Path) -> int:
    """The Fisher of a few questions, and the anchor, as the stage writes them; the highest memory."""
    from hpc_ewc.ewc import FisherAccumulator, save_ewc_state
    from hpc_ewc.model.load import load_model
    from hpc_ewc.model.mesh import build_mesh

    with OwnMemory() as memory:
        sharded = load_model(model, build_mesh("cpu"), dtype="float32", loss="full")
        parameters = dict(sharded.named_parameters())
        generator = torch.Generator().manual_seed(rank)
        with FisherAccumulator(sharded) as accumulator:
            for _ in range(2):
                ids = torch.randint(4, 300, (FISHER.batch_size, QUESTION_LENGTH), generator=generator)
                labels = torch.full_like(ids, -100)
                labels[:, -1] = ids[:, -1]
                accumulator.add([{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}])
        anchor = {name: parameter.detach() for name, parameter in parameters.items()}
        save_ewc_state(out, accumulator.mean(), anchor, {"about": "a test"}, torch.bfloat16)
    return highest_of_all(memory)


def train(rank: int, world_size: int, folder: Path, stop_after: int | None) -> tuple[int, int]:
    """The step it stands at, and the highest memory."""
    with OwnMemory() as memory:
        step = run_training(folder, stop_after, silent_s=LIMIT_S)
    return step, highest_of_all(memory)


def go_on(rank: int, world_size: int, folder: Path, export: Path) -> tuple[int, int]:
    """To the end, from a checkpoint that other ranks wrote: which is, in bf16, what they exported, bit for bit."""
    from safetensors import safe_open

    from hpc_ewc.stage import Stage
    from hpc_ewc.train.run import Run
    from hpc_ewc.train.watchdog import Watchdog

    watchdog = Watchdog(LIMIT_S, lambda message: None)
    try:
        with OwnMemory() as memory:
            run = Run(Stage(folder), torch.device("cpu"), watchdog)
            assert run.step == 1
            with safe_open(export / "model.safetensors", framework="pt") as tensors:
                for name, parameter in run.parameters.items():
                    held: Any = parameter.detach()
                    assert torch.equal(held.full_tensor().bfloat16(), tensors.get_tensor(name)), name
                    assert run.trainer.optimizer.state[parameter]["exp_avg_sq"].full_tensor().any(), name
            assert run.train()
            run.finish()
        return run.step, highest_of_all(memory)
    finally:
        watchdog.close()


def read_by_transformers(rank: int, world_size: int, export: Path, ids: torch.Tensor) -> float:
    """The mean loss of what was exported, by code that is not ours."""
    from transformers import Gemma2ForCausalLM

    model = Gemma2ForCausalLM.from_pretrained(export, attn_implementation="eager", dtype=torch.bfloat16)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


# ---------------------------------------------------------------------------------------------- the test


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def skip_where_too_small(shape: Shape, folder: Path) -> None:
    """By what all ranks hold at once; and two checkpoints, the Fisher and three models on the disk."""
    memory = max(RANKS * max(stated(shape, RANKS).values()), max(stated(shape, 1).values()))
    disk = 2 * formulas.checkpoint_disk(shape) + 10 * shape.parameters
    free = shutil.disk_usage(folder).free
    for what, needed, there in (("memory", 1.15 * memory, available_bytes()), ("disk", disk, free)):
        if there < needed:
            pytest.skip(f"needs {needed / 1e9:.1f} GB of {what}, {there / 1e9:.1f} are available")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vocabulary", [PART, WHOLE])
def test_every_stage_of_gemma_2_2b_s_widths_stays_within_the_forecast(
    vocabulary: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "FISHER_ROW", QUESTION_LENGTH)
    shape = dataclasses.replace(
        KNOWN["google/gemma-2-2b"], vocab_size=vocabulary, num_hidden_layers=1, sliding_layers=1
    )
    skip_where_too_small(shape, tmp_path)
    model, fisher, folder = (tmp_path / name for name in ("model", "fisher", "train"))
    try:
        run_ranks(1, make_model, model, vocabulary, timeout_s=LIMIT_S)
        assert read_shape(model) == shape
        held = {"fisher": run_ranks(RANKS, estimate, model, fisher, timeout_s=LIMIT_S)}
        tokens = build_tokens(tmp_path / "tokens", model)
        options = {"global_batch_size": 2, "local_batch_size": 1, "steps": 2, "export_at": (0.5, 1.0)}
        build_stage(
            folder,
            model,
            tokens,
            fisher=fisher,
            ewc={"strength": STRENGTH},
            dtype="bfloat16",
            **options,
            keep_checkpoints=1,
        )
        step, held["train"] = run_ranks(RANKS, train, folder, 1, timeout_s=LIMIT_S)
        assert step == 1
        first, second = (folder / "exports" / f"{number:08d}" for number in (1, 2))
        step, alone = run_ranks(1, go_on, folder, first, timeout_s=LIMIT_S)
        assert step == 2
        print({"held": held, "said": stated(shape, RANKS), "alone": alone, "said alone": stated(shape, 1)})
        assert (second / "hpc_ewc.json").is_file()
        lines = read_metrics(folder)
        assert lines[1]["penalty"] > 0
        # The second step's loss is that of the weights which the first step left, and exported.
        data = read_tokens(tokens)
        ids = torch.stack([torch.as_tensor(data[i]) for i in batch_indices(0, 1, 2, len(data))])
        assert run_ranks(1, read_by_transformers, first, ids) == pytest.approx(lines[1]["loss"], rel=0.02)
        said = stated(shape, RANKS)
        assert {name: (most, said[name]) for name, most in held.items() if most > said[name]} == {}
        assert alone <= stated(shape, 1)["train"]
    finally:
        for path in (model, fisher, folder):
            shutil.rmtree(path, ignore_errors=True)
