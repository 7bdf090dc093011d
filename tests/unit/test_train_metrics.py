"""FLOP equal torch's counter; metrics are truncated to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_ewc.train.metrics import flop_per_token, objective, peak_tflops, truncate_metrics
from tests.distributed.tiny_gemma import build_gemma


def test_flop_per_token_equals_torchs_count_without_masked_attention() -> None:
    T, model = 32, build_gemma(sliding_window=64)  # a window wider than the sequence: both layers are causal
    config = model.config
    ids = torch.randint(1, 100, (1, T))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # torch counts all T × T scores and values, forward and backward; (T + 1) / 2T of them are causal
    layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    masked = 12 * layers * heads * width * (T - (T + 1) / 2) * T
    assert flop_per_token(config, T) * T == pytest.approx(counter.get_total_flops() - masked, rel=1e-9)


def test_a_sliding_window_bounds_the_context() -> None:
    T, window = 32, 4
    narrow = flop_per_token(build_gemma(sliding_window=window).config, T)
    wide = flop_per_token(build_gemma(sliding_window=T).config, T)
    context = sum(min(i, window) for i in range(1, T + 1)) / T
    assert wide - narrow == pytest.approx(12 * 4 * 8 * ((T + 1) / 2 - context))


def test_a_cpu_has_no_peak_rate() -> None:
    assert peak_tflops(torch.device("cpu")) is None


def test_metrics_are_truncated_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (1, 2, 3, 4, 3)]
    file.write_text("\n".join(lines) + '\n{"step": 5, "lo')  # the writer was killed within a line
    truncate_metrics(file, 3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 3]
    truncate_metrics(file, 0)
    assert file.read_text() == ""
    truncate_metrics(tmp_path / "absent", 3)


@pytest.mark.parametrize(
    ("losses", "penalties", "overshot"),
    [
        ([3.0] * 10 + [2.0] * 10, [0.0] * 20, False),  # λ = 0
        ([3.0] * 10 + [2.5] * 10, [0.0] * 10 + [0.4] * 10, False),  # constrained, and better for it
        ([3.0] * 10 + [3.1] * 10, [0.0] * 10 + [1e-6] * 10, False),  # frozen: the last batches were harder
        ([3.0] * 10 + [2.9] * 10, [0.0] * 10 + [2.3] * 10, True),
        ([3.0], [0.0], False),
    ],
)
def test_a_run_ending_above_its_starting_objective_overshot(
    losses: list[float], penalties: list[float], overshot: bool
) -> None:
    went = objective([{"loss": loss, "penalty": penalty} for loss, penalty in zip(losses, penalties, strict=True)])
    assert (went.began, went.ended, went.penalty) == pytest.approx((losses[0], losses[-1], penalties[-1]))
    assert went.overshot is overshot
    assert f"began at {losses[0]:g} and ended at {losses[-1]:g} + {penalties[-1]:g}, worse than never" in str(went)
