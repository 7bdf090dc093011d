"""Measure a training step by part, the cost of EWC, its memory, and how long a checkpoint stalls training.

    python benchmarks/training_step.py [--device cpu|cuda] [--size small|gemma2-2b] [--ranks 2] [--out FILE]

Our engine on random weights, under torchrun: sharded, AdamW, chunked loss. On a GPU: bf16 compute, flex_attention,
sequences of 4,096 tokens, λ > 0 with F and θ* resident in bf16. Steps without and with a penalty take turns. Parts are
timed one by one with a wait for the device between them, so their sum exceeds the time of a plain step.
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
from models import BATCH, DTYPE
from running import alone, quartiles, ratio, rounded, save, say, seconds_of, start, synchronise, take_turns

ROUNDS = {"small": 7, "gemma2-2b": 12}
STRENGTH = 1e6


def main() -> None:
    """Measure steps and parts in one job, memory and checkpoints in two others, and write one JSON file."""
    arguments = start(__doc__, ranks=2)
    if arguments.inside:
        INSIDE[arguments.inside[0]](arguments)
        return
    result: dict[str, Any] = {
        "ranks": arguments.ranks,
        "tokens of a rank": BATCH[arguments.size],
        "dtype": DTYPE[arguments.size],
    }
    result |= alone(arguments, "steps", ranks=arguments.ranks)
    result["memory_mb of a rank"] = alone(arguments, "memory", ranks=arguments.ranks, exact_memory=True)
    result["checkpoint"] = alone(arguments, "checkpoint", ranks=arguments.ranks)
    save(arguments, result)


def steps(arguments: Namespace) -> None:
    """Report whole steps at λ = 0 and λ > 0 in turns, then the parts of a step with a penalty."""
    from hpc_ewc.train.metrics import flop_per_token, peak_tflops

    free = build_engine(arguments.size, 0.0)
    held = build_engine(arguments.size, STRENGTH, like=free)
    batch = synthetic_batch(arguments.size)
    ways = {"λ = 0": lambda: free.step(batch, 1e-5), "λ > 0": lambda: held.step(batch, 1e-5)}
    times = take_turns(ways, ROUNDS[arguments.size], arguments.device)
    parts = time_parts(held, batch, arguments)
    step_s = statistics.median(times["λ > 0"])
    tokens_per_s = batch.scored_tokens / step_s
    flop = flop_per_token(free.model.config, BATCH[arguments.size][1])
    tflops = tokens_per_s * flop / arguments.ranks / 1e12
    peak = peak_tflops(free.device)
    shares = [penalty / step_s for penalty in parts["penalty"]]
    result: dict[str, Any] = {
        "step_s": {way: rounded(statistics.median(values)) for way, values in times.items()},
        "λ > 0 / λ = 0, whole step": ratio(times, "λ > 0", "λ = 0"),
        "tokens_per_s": rounded(tokens_per_s),
        "tflops_per_s of a rank": rounded(tflops),
        **({} if peak is None else {"mfu": rounded(tflops / peak)}),
        "parts_s": {name: rounded(statistics.median(values)) for name, values in parts.items()},
        "EWC's share of a step": {"median": rounded(statistics.median(shares)), "quartiles": quartiles(shares)},
    }
    say(result)
    leave()


def time_parts(engine: Any, batch: Any, arguments: Namespace) -> dict[str, list[float]]:
    """Return the seconds of each part in each round."""
    from hpc_ewc.train.trainer import clip_

    parameters, microbatch = list(engine.parameters.values()), batch.microbatches[0]
    losses: list[Any] = []
    parts = {
        "forward": lambda: losses.append(engine._loss_sum(microbatch)),
        "backward": lambda: (losses.pop() / batch.scored_tokens).backward(),
        "penalty": engine.regularizer.add_gradient_,
        "clip": lambda: clip_(parameters, 1.0),
        "optimizer": engine.optimizer.step,
        "measure, each logged step": lambda: engine.regularizer.measure(1e-5),
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(ROUNDS[arguments.size] + 1):
        engine.optimizer.zero_grad(set_to_none=True)
        for name, action in parts.items():
            seconds = seconds_of(action, arguments.device)
            if number:
                spent[name].append(seconds)
    return spent


def memory(arguments: Namespace) -> None:
    """Report this rank's memory by kind in a step with a penalty."""
    engine, batch = build_engine(arguments.size, STRENGTH), synthetic_batch(arguments.size)
    peaks = []
    for _ in range(2):
        peak = PeakMemory(arguments.device)
        engine.step(batch, 1e-5)
        peaks.append(peak.bytes())
    local = sum(parameter.to_local().numel() for parameter in engine.parameters.values())
    persistent = {
        "parameters": 4 * local,
        "gradients": 4 * local,
        "optimizer": 8 * local,
        "F and θ* in bf16": 4 * local,
    }
    # in the second step gradients and moments exist already; its additional memory is freed at its end
    found = persistent | {"activations, gathered layers, loss": peaks[1]}
    say({name: rounded(bytes / 1e6) for name, bytes in found.items()})
    leave()


def checkpoint(arguments: Namespace) -> None:
    """Report the seconds that training stalls for a checkpoint, and how much slower steps are while it is written."""
    from hpc_ewc.rundir import StageDir
    from hpc_ewc.train.checkpoint import Checkpoints
    from hpc_ewc.train.optimizer import optimizer_state
    from hpc_ewc.train.process_group import any_rank

    engine, batch = build_engine(arguments.size, 0.0), synthetic_batch(arguments.size)
    plain = [seconds_of(lambda: engine.step(batch, 1e-5), arguments.device) for _ in range(6)][1:]
    position = {"tokens": 0, "loss": 0.0, "seconds": 0.0}
    state = {
        "model": {name: parameter.detach() for name, parameter in engine.parameters.items()},
        "optimizer": optimizer_state(engine.optimizer, engine.parameters),
    }
    with tempfile.TemporaryDirectory() as own:
        folder = shared_folder(Path(own))
        checkpoints = Checkpoints(StageDir(folder), "0" * 12, "benchmark.0", 1, None)
        stalls, waited, beside = [], [], []
        for number in range(5):
            synchronise(arguments.device)
            started = time.perf_counter()
            checkpoints.start(state, 2 * number + 1, **position)
            stalls.append(time.perf_counter() - started)
            while not any_rank([checkpoints.is_ready()])[0]:
                beside.append(seconds_of(lambda: engine.step(batch, 1e-5), arguments.device))
            checkpoints.finish()
            started = time.perf_counter()
            checkpoints.start(state, 2 * number + 2, **position)
            checkpoints.finish()
            waited.append(time.perf_counter() - started)
        bytes_of = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(
        {
            "mb of all ranks": rounded(bytes_of / 1e6),
            "stall_s": rounded(statistics.median(stalls[1:])),
            "if waited for_s": rounded(statistics.median(waited[1:])),
            "stall / waited for": rounded(
                statistics.median(a / b for a, b in zip(stalls[1:], waited[1:], strict=True))
            ),
            "stall / step": rounded(statistics.median(stalls[1:]) / statistics.median(plain)),
            "steps beside the writing": len(beside),
            "these over plain ones": rounded(statistics.median(beside) / statistics.median(plain)) if beside else None,
        }
    )
    leave()


def shared_folder(own: Path) -> Path:
    """Return rank 0's folder on every rank."""
    import torch.distributed as dist

    names = [str(own)]
    dist.broadcast_object_list(names, src=0)
    return Path(names[0])


def leave() -> None:
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


INSIDE = {"steps": steps, "memory": memory, "checkpoint": checkpoint}

if __name__ == "__main__":
    main()
