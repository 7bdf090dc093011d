"""Measure the gain from running a model's head on scored positions only, as `evaluate/scoring.py` does, over all.

    python benchmarks/scored_head.py [--out benchmarks/results/scored_head.json]

Random weights in the shape of Gemma 3 270M (a vocabulary of 262,144), fp32, one thread of a CPU; questions of 64
tokens, of which the last 8 are scored, as in multiple choice. The two alternatives take turns; the figures are CPU time
of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment

SHAPE = {
    "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
    "sliding_window": 512,
}  # fmt: skip
REQUESTS, CONTEXT, SCORED, BATCH, ROUNDS = 8, 56, 8, 4, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scored_head.json")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    scorer = make_scorer()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, SHAPE["vocab_size"], (REQUESTS, CONTEXT + SCORED), generator=draw).tolist()
    requests: list[Any] = [(None, [scorer.bos, *row[1:CONTEXT]], row[CONTEXT:]) for row in tokens]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, list[float]] = {}
    for _ in range(ROUNDS):
        for free in (False, True):
            scorer.head_is_free = free
            started = time.process_time()
            scores[free] = [value for value, _ in scorer._loglikelihood_tokens(requests)]
            seconds[free].append(time.process_time() - started)
    read = REQUESTS * (CONTEXT + SCORED - 1)
    found = {
        "what": f"{REQUESTS} requests of {CONTEXT} + {SCORED} tokens, batches of {BATCH}, shape of Gemma 3 270M, fp32",
        "all_positions_tokens_per_cpu_s": round(read / statistics.median(seconds[False]), 1),
        "scored_positions_tokens_per_cpu_s": round(read / statistics.median(seconds[True]), 1),
        "ratio": round(statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True)), 2),
        "ratio_of_each_round": [round(a / b, 2) for a, b in zip(seconds[False], seconds[True], strict=True)],
        "largest_difference_of_a_score_nats": max(abs(a - b) for a, b in zip(scores[False], scores[True], strict=True)),
        "a_score_nats": round(statistics.median(scores[True]), 1),
        "environment": environment("cpu"),
    }
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def make_scorer() -> Any:
    """Return the project's scorer on a random model, without the probe of batch effects."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from examples.miniature.base_model import train_tokenizer
    from hpc_ewc.evaluate.scoring import Scorer

    torch.manual_seed(0)
    config = Gemma2Config(**SHAPE, tie_word_embeddings=True, max_position_embeddings=2048)
    config._attn_implementation = "eager"
    tokenizer = train_tokenizer(["Ona gyvena Vilniuje."] * 4, vocabulary=320)
    scorer = Scorer(Gemma2ForCausalLM(config).eval(), tokenizer, batch_size=BATCH, max_length=512, whole_texts=False)
    scorer.batch_invariance = 0.0
    return scorer


if __name__ == "__main__":
    main()
