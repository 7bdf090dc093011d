"""Stopped and gone on, on the same ranks and on others; a loss that is not finite; what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc import records
from hpc_ewc.data import batch_indices, read_tokens
from hpc_ewc.errors import InputError
from hpc_ewc.ewc import load_ewc_state
from hpc_ewc.stage import Stage
from hpc_ewc.train.trainer import NonFiniteLossError
from tests.distributed.ranks import RankError, run_ranks
from tests.distributed.training_folder import (
    build_fisher,
    build_model,
    build_stage,
    build_tokens,
    final_weights,
    read_metrics,
    run_training,
)

EWC = {"strength": 100.0}
COMPARED = ("step", "tokens", "loss", "penalty", "distance", "largest_step", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("resume")
    model = build_model(base / "model")
    tokens = build_tokens(base / "tokens", base / "model")
    return {"model": base / "model", "tokens": tokens, "fisher": build_fisher(base / "fisher", model), "ewc": EWC}


def one_run(rank: int, world_size: int, folder: Path, stop_after: int | None, stop_rank: int = 0) -> int:
    return run_training(folder, stop_after, stop_rank)


def several_attempts(rank: int, world_size: int, whole: Path, parts: Path) -> list[int]:
    run_training(whole)
    return [run_training(parts, stop_after=5, stop_rank=1), run_training(parts, stop_after=9), run_training(parts)]


def test_a_run_that_was_stopped_twice_is_the_run_that_was_not(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit on the same ranks, one of which alone was asked to stop; within rounding on three ranks."""
    for name in ("whole", "parts", "elsewhere"):
        build_stage(tmp_path / name, **inputs, export_at=(0.5, 1.0))
    assert run_ranks(2, several_attempts, tmp_path / "whole", tmp_path / "parts") == [5, 9, 12]
    whole, parts = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert [{k: line[k] for k in COMPARED} for line in parts] == [{k: line[k] for k in COMPARED} for line in whole]
    exports = sorted(path.name for path in (tmp_path / "parts" / "exports").iterdir())
    assert exports == ["00000006", "00000012"]
    for export in exports:
        facts = [
            records.read_json(tmp_path / name / "exports" / export / "hpc_ewc.json") for name in ("whole", "parts")
        ]
        assert facts[0] | {"run": ""} == facts[1] | {"run": ""}

    assert run_ranks(3, one_run, tmp_path / "elsewhere", 7, 2) == 7
    assert run_ranks(1, one_run, tmp_path / "elsewhere", None) == 12
    for mine, other in zip(read_metrics(tmp_path / "elsewhere"), whole, strict=True):
        assert mine == pytest.approx(mine | {key: other[key] for key in COMPARED}, rel=2e-5, abs=1e-6)
    want = final_weights(tmp_path / "whole")
    for name, tensor in final_weights(tmp_path / "elsewhere").items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=2e-4, msg=name)


def test_a_finished_run_says_what_it_made(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = build_stage(tmp_path / "run", **inputs, steps=3, log_every=2)
    run_ranks(2, one_run, tmp_path / "run", None)
    assert stage.is_done()
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 3], "every second one, and the last"
    done = records.read_done(stage.dir.done, stage.key)
    assert done is not None
    summary = done["summary"]
    assert summary["steps"] == 3
    assert summary["tokens"] == 3 * 6 * 23
    assert summary["loss"] == read_metrics(tmp_path / "run")[-1]["loss"]
    assert summary["free_parameters"] > 0
    assert 0 < summary["free_distance"] < summary["distance"]
    fisher = load_ewc_state(inputs["fisher"]).fisher
    count, trace = (sum(float(f(t)) for t in fisher.values()) for f in (torch.numel, torch.sum))
    assert summary["fisher_trace"] == pytest.approx(trace)
    assert summary["scaled_mean"] == pytest.approx(EWC["strength"] * trace / count)
    assert (summary["gpu_hours"], summary["overshot"]) == (0.0, False)
    assert {"metrics.jsonl", "manifest.json", "exports/00000003/model.safetensors"} <= set(done["outputs"])
    manifest = records.read_json(stage.dir.manifest_json)
    assert (manifest["world_size"], manifest["attention"], manifest["dtype"]) == (2, "eager", "float32")
    assert manifest["scaled_mean"] == summary["scaled_mean"]
    progress = records.read_json(stage.dir.progress())
    assert (progress["done"], progress["total"], progress["unit"]) == (3, 3, "step")


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_strong_penalty_throws_a_run_about_in_its_gradient_and_holds_it_as_a_proximal_step(
    inputs: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    stage = build_stage(tmp_path / "run", **inputs | {"ewc": {"strength": 1e9, "mode": mode}})
    run_ranks(2, one_run, tmp_path / "run", None)
    done = records.read_done(stage.dir.done, stage.key)
    assert done is not None
    assert done["summary"]["overshot"] is (mode == "gradient")
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["penalty"] > last["loss"]) is (mode == "gradient")


def finish_twice(rank: int, world_size: int, folder: Path) -> int:
    run_training(folder)
    torch.distributed.barrier()
    if rank == 0:  # as if it had been killed after its last checkpoint, before done.json
        (folder / "done.json").unlink()
    torch.distributed.barrier()
    return run_training(folder)


def test_optimizer_shards_of_a_finished_run_are_removed_on_request(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = build_stage(tmp_path / "run", **inputs, steps=6, keep_every=2, keep_optimizer=False)
    assert run_ranks(2, finish_twice, tmp_path / "run") == 6
    assert stage.is_done()
    assert [path.name for path in stage.dir.checkpoints.iterdir()] == ["00000006"]
    assert records.read_json(stage.dir.checkpoint(6) / "done.json")["summary"]["parts"] == ["model"]
    weights = sum(tensor.nbytes for tensor in final_weights(tmp_path / "run").values())
    assert sum(path.stat().st_size for path in stage.dir.checkpoint(6).iterdir()) < 2 * weights
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def run_until_nan(rank: int, world_size: int, folder: Path, from_step: int) -> tuple[str, list[int], bool]:
    """Train with a model whose loss is NaN for one sample of `from_step`; the message, samples, weights unmoved."""
    from hpc_ewc.train import run as room

    stage = Stage(folder)
    tokens = read_tokens(stage.inputs["tokens"])
    samples = batch_indices(0, from_step, 6, len(tokens))
    bad = torch.from_numpy(tokens[int(samples[4])])
    made: list[Any] = []
    build = room.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        made.append(model)
        inner = model.loss_of

        def loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            rows = labels.view(-1, len(bad))[:, :-1]  # shifted by one inside the forward
            hit = (rows == bad[1:]).all(dim=1).any()
            result: torch.Tensor = inner(hidden, weight, labels)
            return result * torch.where(hit, float("nan"), 1.0)

        model.loss_of = loss
        return model

    room.load_model = load
    before: dict[str, Any] = {}
    watched = room.Trainer._raise_at_samples

    def remember(self: Any, *args: Any) -> None:
        before.update({name: p.detach().to_local().clone() for name, p in self.parameters.items()})
        try:
            watched(self, *args)
        finally:
            before["moved"] = any(
                not torch.equal(p.detach().to_local(), before[name]) for name, p in self.parameters.items()
            )

    room.Trainer._raise_at_samples = remember  # type: ignore[method-assign]
    try:
        with pytest.raises(NonFiniteLossError) as raised:
            run_training(folder)
    finally:
        room.load_model, room.Trainer._raise_at_samples = build, watched  # type: ignore[method-assign]
    return str(raised.value), raised.value.samples, before["moved"]


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_and_names_the_sample(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    stage = build_stage(tmp_path / "run", **inputs, keep_every=2)
    message, samples, moved = run_ranks(2, run_until_nan, tmp_path / "run", 4)
    tokens = read_tokens(inputs["tokens"])
    culprit = int(batch_indices(0, 4, 6, len(tokens))[4])
    assert samples == [culprit]
    assert message.startswith("step 5: the loss is nan; stopped before the optimizer, the last checkpoint is good.")
    assert f"whose loss alone is not finite: {culprit} ({tokens.describe(culprit)})" in message
    assert not moved
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    whole = sorted(path.name for path in stage.dir.checkpoints.iterdir() if (path / "done.json").exists())
    assert whole[-1] == "00000004"


def test_tokens_of_another_tokenizer_are_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    from examples.miniature.base_model import train_tokenizer

    build_model(tmp_path / "model")
    train_tokenizer(["zebras quarrel with xylophones"] * 20, 330).save_pretrained(tmp_path / "model")
    build_stage(tmp_path / "run", tmp_path / "model", inputs["tokens"])
    with pytest.raises(RankError, match="was tokenised with another tokenizer or vocabulary"):
        run_ranks(1, one_run, tmp_path / "run", None)


def test_λ_above_0_without_a_fisher_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    from hpc_ewc.config import EwcConfig
    from hpc_ewc.train.regularizer import build_regularizer

    with pytest.raises(InputError, match=r"ewc.strength = 1e\+06: stage.json names no Fisher"):
        build_regularizer(None, {}, EwcConfig(strength=1e6), None)
