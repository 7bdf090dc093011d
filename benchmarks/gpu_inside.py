"""Measure training steps, or batches of the Fisher, in a process that gpu.py starts, or on each rank of a job."""

from __future__ import annotations

import json
import resource
import statistics
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import Choice, build_engine, build_sharded, holdings, local_bytes, synthetic_batch
from environment import PeakMemory, own
from models import DTYPE, config_of
from running import ratio, rounded, say, seconds_of, take_turns

TRAINING = "training"
STRENGTH = 1e6
TIMED_S = 6.0
"""Approximate time for the timed steps."""


@dataclass(frozen=True)
class Training:
    """A point of the search: settings of [model] and [train], and sequences per rank at once."""

    rows: int
    length: int
    activation_checkpointing: str
    compile: bool
    attention: str
    loss: str
    microbatches: int = 1


def run_inside(arguments: Namespace) -> None:
    """Report the row of the table; if a rank runs out of memory, report that."""
    what, settings, common = arguments.inside[0], *map(json.loads, arguments.inside[1:])
    from hpc_ewc.errors import ConfigError

    try:
        if common["memory_gb"]:
            allow(arguments.device, common["memory_gb"])
        measured = WHAT[what](arguments, settings, common)
    except ConfigError as error:
        say({"outcome": "refused", "error": str(error)}, of_any_rank=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # When one rank ends, torchrun ends the others.
        say({"outcome": "out of memory", "error": str(error).splitlines()[0][:200]}, of_any_rank=True)
        raise SystemExit(1) from None
    else:
        say({"outcome": "ok", "device": device_name(arguments.device), **measured})
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: torch has a class for it on a GPU, only messages on a CPU."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory"))


def allow(device: str, gigabytes: float) -> None:
    """Limit this rank's memory: of its GPU, or on a CPU what the process may allocate from now on."""
    if device == "cuda":
        import os

        import torch

        place = int(os.environ.get("LOCAL_RANK", "0"))
        total = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total), place)
        return
    import torch
    import transformers.models.gemma2.modeling_gemma2  # noqa: F401  # libraries do not count

    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + int(gigabytes * 1e9), resource.RLIM_INFINITY))


def device_name(device: str) -> str:
    """Return the name of the GPU, or cpu."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


# ---------------------------------------------------------------------------------------------- training


def training(arguments: Namespace, settings: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Measure speed, EWC's share and memory of one setting."""
    from hpc_ewc.config import EwcConfig
    from hpc_ewc.train.metrics import flop_per_token, peak_tflops
    from hpc_ewc.train.regularizer import NoPenalty

    way = Training(**settings)
    choice = Choice(way.attention, way.loss, way.activation_checkpointing, way.compile, layers=common["layers"])
    held = build_engine(arguments.size, STRENGTH, choice=choice)
    # No penalty, not even the copy that the distance is measured from: a step does not touch that.
    free = replace(held, regularizer=NoPenalty({}), ewc=EwcConfig(0.0))
    batch = synthetic_batch(arguments.size, shape=(way.rows, way.length), microbatches=way.microbatches)
    first_s = seconds_of(lambda: held.step(batch, 1e-5), arguments.device)
    memory = measure_memory(arguments, way, common, held, batch)
    again_s = seconds_of(lambda: held.step(batch, 1e-5), arguments.device)
    rounds = min(20, max(3, round(TIMED_S / 2 / again_s)))
    # [ewc] update = "auto": in one pass on a GPU whose compiler works, otherwise in separate passes
    at_once = held.regularizer.fused_adamw(held.optimizer) if arguments.device == "cuda" else None
    usual = replace(held, fused_adamw=at_once)
    ways = {"λ = 0": lambda: free.step(batch, 1e-5), "λ > 0": lambda: usual.step(batch, 1e-5)}
    if at_once is not None:
        ways["apart"] = lambda: held.step(batch, 1e-5)
    times = take_turns(ways, rounds, arguments.device)
    penalties = [seconds_of(held.regularizer.add_gradient_, arguments.device) for _ in range(rounds + 1)][1:]
    step_s = statistics.median(times["λ > 0"])
    tokens_per_s = batch.scored_tokens / step_s
    tflops = tokens_per_s * flop_per_token(held.model.config, way.length) / common["ranks"] / 1e12
    peak = peak_tflops(held.device)
    return {
        "parameters": sum(p.numel() for p in held.parameters.values()),
        "tokens of a rank's step": way.rows * way.length * way.microbatches,
        "step_s": rounded(step_s),
        "rounds": rounds,
        "first_step_s": rounded(first_s),
        "tokens_per_s": rounded(tokens_per_s),
        "tflops_per_s of a rank": rounded(tflops),
        "mfu": None if peak is None else rounded(tflops / peak),
        "λ > 0 / λ = 0, whole step": ratio(times, "λ > 0", "λ = 0"),
        "update in one pass / apart, whole step": ratio(times, "λ > 0", "apart") if at_once else None,
        "penalty alone / step": rounded(statistics.median(penalties) / step_s),
        "memory_gb of a rank": memory,
    }


def measure_memory(
    arguments: Namespace, way: Training, common: dict[str, Any], engine: Any, batch: Any
) -> dict[str, dict[str, float]]:
    """Return the memory of a step by part, measured and predicted; moments and gradients exist before the step."""
    found: dict[str, float] = dict(holdings(engine))
    after: list[int] = []
    base = now(arguments.device)
    layers = engine.model.model.register_forward_hook(lambda *_: after.append(now(arguments.device)))
    peak = PeakMemory(arguments.device)
    engine.step(batch, 1e-5)
    layers.remove()
    # Gradients existed when the count began, and are dropped when the step begins.
    found["gathered and activations, after the layers"] = max(after) - base + found["gradients"]
    found["gathered, activations and loss, at the highest"] = peak.bytes()
    held = ("weights", "gradients", "moments", "Fisher", "anchor")
    found["highest"] = sum(found[name] for name in held) + peak.bytes()
    said = predict(arguments, way, common)
    return {name: pair(size, said[name]) for name, size in found.items()}


def pair(measured: float, predicted: float) -> dict[str, float]:
    """Return measured and predicted bytes in GB."""
    return {"measured": rounded(measured / 1e9), "predicted": rounded(predicted / 1e9)}


def predict(arguments: Namespace, way: Training, common: dict[str, Any]) -> dict[str, float]:
    """Return the forecast's parts under the names of the measured ones."""
    from hpc_ewc.config import DataConfig, ModelConfig, TrainConfig
    from hpc_ewc.launch.forecast import formulas

    shape, place = shape_of(arguments.size, common["layers"]), formulas.Place(arguments.device, common["ranks"])
    model = ModelConfig(path="x", dtype=DTYPE[arguments.size], attention=way.attention, loss=way.loss)
    data = DataConfig(source="files", sequence_length=way.length)
    train = TrainConfig(local_batch_size=way.rows, activation_checkpointing=way.activation_checkpointing)
    parts = formulas.training_memory(shape, model, data, train, place, 4.0)
    c = formulas.BYTES[model.dtype]
    kept = formulas.kept_activations(shape, way.rows, way.length, c, way.attention, way.activation_checkpointing)
    return {
        **{name: parts[name] for name in ("weights", "gradients", "moments")},
        "Fisher": parts["F and θ*"] / 2,
        "anchor": parts["F and θ*"] / 2,
        "gathered and activations, after the layers": parts["gathered"] + kept,
        "gathered, activations and loss, at the highest": sum(parts[n] for n in ("gathered", "activations", "loss")),
        "highest": sum(size for name, size in parts.items() if name != "checkpoint"),
    }


def shape_of(size: str, layers: int | None) -> Any:
    """Return the model's shape as the formulas take it."""
    from hpc_ewc.launch.forecast import shapes

    changes = {} if layers is None else {"num_hidden_layers": layers}
    return shapes.shape_of(config_of(size, **changes).to_dict() | {"dtype": "bfloat16"}, size)


def now(device: str) -> int:
    """Return the bytes that this rank has allocated: on its GPU, or in main memory on a CPU."""
    if device == "cpu":
        return own()
    import torch

    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


# ---------------------------------------------------------------------------------------------- the Fisher


def fisher(arguments: Namespace, settings: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Measure examples per second and memory of batches whose last token is scored; fp32 with TF32, as in the stage."""
    import torch
    import torch.distributed as dist

    from hpc_ewc.config import FisherConfig, ModelConfig
    from hpc_ewc.ewc import FisherAccumulator
    from hpc_ewc.launch.forecast import formulas
    from hpc_ewc.train import process_group

    torch.set_float32_matmul_precision("high")
    place = process_group.join(600)
    model, parameters = build_sharded(
        arguments.size, place, Choice(loss="full", dtype="float32", layers=common["layers"])
    )
    rows, length = settings["rows"], settings["length"]
    generator = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.randint(1, model.config.vocab_size, (rows, length), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    began = time.monotonic()
    with FisherAccumulator(model) as accumulator:
        accumulator.add([batch])
        first_s = time.monotonic() - began
        base = local_bytes(list(parameters.values())) + local_bytes(list(accumulator.sums.tensors.values()))
        peak = PeakMemory(arguments.device)
        again_s = seconds_of(lambda: accumulator.add([batch]), arguments.device)
        highest = base + peak.bytes()
        rounds = min(20, max(3, round(TIMED_S / again_s)))
        seconds = [seconds_of(lambda: accumulator.add([batch]), arguments.device) for _ in range(rounds)]
    batch_s = statistics.median(seconds)
    shape = shape_of(arguments.size, common["layers"])
    said = formulas.fisher_memory(
        shape, ModelConfig(path="x"), FisherConfig(batch_size=rows), formulas.Place(arguments.device, common["ranks"])
    )
    return {
        "batch_s": rounded(batch_s),
        "first_batch_s": rounded(first_s),
        "examples_per_s": rounded(rows * common["ranks"] / batch_s),
        "memory_gb of a rank": {
            "highest": pair(highest, sum(said.values())),
            "tokens a row": {"measured": length, "predicted": formulas.FISHER_ROW},
        },
    }


WHAT = {TRAINING: training, "fisher": fisher}
