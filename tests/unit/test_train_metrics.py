"""FLOP against torch's own counter; metrics cut back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_ewc.train.metrics import cut_back, flop_per_token, peak_tflops
from tests.distributed.tiny_gemma import build_gemma


def test_flop_per_token_is_what_torch_counts_less_the_half_of_attention_that_is_masked() -> None:
    T, model = 32, build_gemma(sliding_window=64)  # a window wider than the sequence: both layers are causal
    config = model.config
    ids = torch.randint(1, 100, (1, T))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # torch counts the whole T × T of scores and values, forward and backward; causal are (T + 1) / 2T of it
    layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    masked = 12 * layers * heads * width * (T - (T + 1) / 2) * T
    assert flop_per_token(config, T) * T == pytest.approx(counter.get_total_flops() - masked, rel=1e-9)


def test_a_sliding_window_bounds_the_context() -> None:
    T, window = 32, 4
    narrow = flop_per_token(build_gemma(sliding_window=window).config, T)
    wide = flop_per_token(build_gemma(sliding_window=T).config, T)
    context = sum(min(i, window) for i in range(1, T + 1)) / T
    assert wide - narrow == pytest.approx(12 * 4 * 8 * ((T + 1) / 2 - context))


def test_a_cpu_has_no_peak() -> None:
    assert peak_tflops(torch.device("cpu")) is None


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (1, 2, 3, 4, 3)]
    file.write_text("\n".join(lines) + '\n{"step": 5, "lo')  # the writer was killed in the middle of a line
    cut_back(file, 3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 3]
    cut_back(file, 0)
    assert file.read_text() == ""
    cut_back(tmp_path / "absent", 3)
