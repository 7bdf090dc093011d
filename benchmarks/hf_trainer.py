"""Compare our engine with transformers' Trainer: same model, tokens, optimizer and schedule, in one process each.

    python benchmarks/hf_trainer.py [--device cpu|cuda] [--size small|gemma2-2b] [--out FILE]

Processes of `engine`, `engine, λ > 0` and `trainer` take turns; each makes the same steps on the same tokens from
the same checkpoint. The first step is not counted. The losses are reported too, and show that the training is the same.
Memory is the peak of a step beyond the model with its gradients and moments, in processes whose allocator gives back
what it frees.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine import build_engine, synthetic_batch
from environment import PeakMemory
from models import BATCH, DTYPE, save_random
from running import alone, quartiles, rounded, save, say, start, synchronise

STEPS = {"small": 5, "gemma2-2b": 15}
ROUNDS = 3
RATE = 1e-4
WAYS = ("engine", "engine, λ > 0", "trainer")


def main() -> None:
    """Measure the alternatives in turns and write one JSON file."""
    arguments = start(__doc__)
    if arguments.inside:
        what, folder = arguments.inside
        if what == "checkpoint":
            save_random(arguments.size, Path(folder))
            say({})
        else:
            INSIDE[what](arguments, Path(folder))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        alone(arguments, "checkpoint", folder)
        for _ in range(ROUNDS):
            for way, rounds in found.items():
                rounds.append(alone(arguments, way, folder, ranks=0 if way == "trainer" else 1))
        peaks = {w: alone(arguments, w, folder, ranks=int(w != "trainer"), exact_memory=True)["peak_mb"] for w in WAYS}
    ways = {}
    for way, rounds in found.items():
        over = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(rounds, found["trainer"], strict=True)]
        ways[way] = {
            "tokens_per_s": rounded(statistics.median(r["tokens_per_s"] for r in rounds)),
            "/ trainer": {"median": rounded(statistics.median(over)), "quartiles": quartiles(over)},
            "peak_mb of a step": peaks[way],
            "first loss": rounds[0]["first_loss"],
            "last loss": rounds[0]["last_loss"],
        }
    tokens = BATCH[arguments.size]
    save(
        arguments, {"tokens of a step": tokens, "steps": STEPS[arguments.size], "dtype": DTYPE[arguments.size], **ways}
    )


def engine(arguments: Namespace, folder: Path, strength: float = 0.0) -> None:
    """Measure our engine, under torchrun with one rank."""
    import torch
    import torch.distributed as dist
    from safetensors.torch import load_file

    own = build_engine(arguments.size, strength)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in own.parameters.items():
            parameter.to_local().copy_(weights[name])
    steps = STEPS[arguments.size]
    batches = [synthetic_batch(arguments.size, step) for step in range(steps + 1)]
    losses = [own.step(batches[0], RATE)[0]]
    synchronise(arguments.device)
    peak, started = PeakMemory(arguments.device), time.perf_counter()
    losses += [own.step(batch, RATE)[0] for batch in batches[1:]]
    synchronise(arguments.device)
    seconds = time.perf_counter() - started
    say(facts(seconds, sum(batch.scored_tokens for batch in batches[1:]), losses, peak.bytes()))
    dist.destroy_process_group()


def trainer(arguments: Namespace, folder: Path) -> None:
    """Measure transformers' `Trainer`."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Gemma2ForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    steps = STEPS[arguments.size]
    batches = [synthetic_batch(arguments.size, step) for step in range(steps + 1)]
    rows = [{"input_ids": row, "labels": row} for batch in batches for row in batch.microbatches[0]["input_ids"]]
    marks: list[float] = []
    peaks: list[PeakMemory] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise(arguments.device)
            marks.append(time.perf_counter())
            if not peaks:
                peaks.append(PeakMemory(arguments.device))

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(rows)  # type: ignore[arg-type]

    # eager computes Gemma 2's soft cap on any device; flex_attention is the fast one on a GPU
    attention = "flex_attention" if arguments.device == "cuda" else "eager"
    model = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    options = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=BATCH[arguments.size][0],
        max_steps=steps + 1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=DTYPE[arguments.size] == "bfloat16",
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=arguments.device == "cpu",
        dataloader_pin_memory=arguments.device == "cuda",
    )
    run = InOrder(model=model, args=options, train_dataset=rows, callbacks=[Clock()])
    run.remove_callback(PrinterCallback)
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    scored = sum(batch.scored_tokens for batch in batches[1:])
    say(facts(marks[-1] - marks[0], scored, [float(loss) for loss in losses], peaks[0].bytes()))


def facts(seconds: float, tokens: int, losses: list[float], peak: int) -> dict[str, float]:
    """Return what a process reports."""
    first, last = (float(f"{loss:.4f}") for loss in (losses[0], losses[-1]))
    return {"tokens_per_s": tokens / seconds, "peak_mb": rounded(peak / 1e6), "first_loss": first, "last_loss": last}


INSIDE = {
    "engine": engine,
    "engine, λ > 0": lambda arguments, folder: engine(arguments, folder, 1e6),
    "trainer": trainer,
}

if __name__ == "__main__":
    main()
