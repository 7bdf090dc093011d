"""The measures of a training: metrics.jsonl, throughput against the hardware's peak, and a line on the console."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hpc_ewc import records

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "GH200": 989.0, "A100": 312.0, "MI300X": 1307.0, "MI250X": 191.5}
"""Dense bf16 TFLOP/s of one device, by part of its name, from the data sheets (MI250X: one of its two dies)."""
LINE_EVERY_S = 10.0


def flop_per_token(config: Any, sequence_length: int) -> float:
    """Returns the FLOP of one token in training: 6 · matmul parameters + 12 · Σ_layers heads·head_dim · mean context.

    6 = 2 for a multiply-add × (1 forward + 2 backward). The head is counted, the embedding's look-up is not. Scores
    and weighted values are two products of heads·head_dim each for every token of context; a token's context is half
    the sequence on average (causal), at most the window in a sliding layer. Nothing recomputed is counted.
    """
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = config.hidden_size * width * (2 * heads + 2 * kv_heads)  # q, o, k, v
    mlp = 3 * config.hidden_size * config.intermediate_size
    matmul = config.num_hidden_layers * (attention + mlp) + config.vocab_size * config.hidden_size
    context = 0.0
    for kind in config.layer_types:
        window = min(sequence_length, config.sliding_window) if kind == "sliding_attention" else sequence_length
        # mean over positions i = 1…T of min(i, window)
        context += window - window * (window - 1) / (2 * sequence_length)
    return float(6.0 * matmul + 12.0 * heads * width * context)


def peak_tflops(device: torch.device) -> float | None:
    """Returns the dense bf16 TFLOP/s of this rank's device; None for a CPU, or a GPU that is not in PEAK_TFLOPS."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def memory_gb(device: torch.device) -> float:
    """Returns this rank's peak memory so far, in 1e9 bytes: on its GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def truncate_metrics(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, from which the run resumes and writes them again."""
    if not path.exists():
        return
    kept = [line for line in records.read_lines(path) if line.get("step", 0) <= step]
    records.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


class Objective(NamedTuple):
    """Means over the first and the last tenth of the logged steps, in nats per token.

    Attributes:
        began: loss of the first tenth.
        ended: loss of the last tenth.
        penalty: of the last tenth.
    """

    began: float
    ended: float
    penalty: float

    @property
    def overshot(self) -> bool:
        """Whether loss + penalty ended above its value at θ*, mainly because of the penalty.

        At θ* the penalty is 0, so no minimum of loss + penalty lies above the loss there. A run that ends above it has
        diverged: its steps are longer than the penalty's curvature allows (lr·λ·F, docs/penalty.md).
        """
        return self.ended + self.penalty > self.began and self.penalty > 0.1 * self.began

    def __str__(self) -> str:
        """Returns the warning for a run that overshot."""
        return (
            f"loss + penalty began at {self.began:.4g} and ended at {self.ended:.4g} + {self.penalty:.4g}, worse than "
            'never to have moved: the steps are too long for this λ; take ewc.mode = "proximal", a smaller λ or a '
            "smaller train.learning_rate (docs/penalty.md)"
        )


def objective(lines: Sequence[Mapping[str, Any]]) -> Objective:
    """Returns the objective from the lines of metrics.jsonl, at least one; a tenth is at least one line too."""
    tenth = max(1, len(lines) // 10)
    ends = [[float(line[key]) for line in part] for key, part in (("loss", lines[:tenth]), ("loss", lines[-tenth:]))]
    penalties = [float(line["penalty"]) for line in lines[-tenth:]]
    return Objective(*(sum(values) / tenth for values in (*ends, penalties)))


class Console:
    """Rank 0's progress on stderr: one line that is rewritten on a terminal, else a line every LINE_EVERY_S seconds.

    Args:
        rank: of this process; other ranks print nothing.
        steps: of the whole training.
    """

    def __init__(self, rank: int, steps: int) -> None:
        self._rank, self._steps = rank, steps
        self._terminal = sys.stderr.isatty()
        self._at = 0.0

    def step(self, step: int, line: Mapping[str, Any], eta_s: float) -> None:
        """Shows step, loss, tokens/s and the remaining time."""
        now = time.monotonic()
        if self._rank != 0 or (now - self._at < (0.2 if self._terminal else LINE_EVERY_S) and step < self._steps):
            return
        self._at = now
        text = (
            f"train: step {step}/{self._steps}  loss {line['loss']:.4f}  {line['tokens_per_s']:,.0f} tokens/s  "
            f"{_duration(eta_s)} left"
        )
        end = "\n" if not self._terminal or step == self._steps else ""
        sys.stderr.write(f"\r{text}\x1b[K{end}" if self._terminal else text + end)
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self._rank == 0:
            sys.stderr.write(f"train: {text}\n")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
