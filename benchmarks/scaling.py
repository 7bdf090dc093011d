"""Check the formulas of docs/scaling.md: shards, bytes sent and written, losses and Fishers at 1, 2 and 4 ranks.

    python benchmarks/scaling.py [--out FILE]

A tiny Gemma 2 on a CPU under gloo, one thread per rank. Each number of ranks gets the same global batch and the same
questions, so loss and Fisher must be the same. Bytes are counted where FSDP2 hands its groups to the collectives, and
in each rank's tensors; the formulas are those of hpc_ewc/launch/forecast/formulas.py, which a dry run uses. Each rank
is a process; the times mean something only if there are enough cores (`environment`) for all of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine import build_engine, holdings
from models import config_of
from running import RESULTS, alone, rounded, save, say, seconds_of, start

RANKS = (1, 2, 4)
ROWS, LENGTH, QUESTIONS = 8, 128, 16
STRENGTH = 1e3
ROUNDS = 5


def main() -> None:
    """Run one job for each number of ranks and write one JSON file."""
    arguments = start(__doc__, size="tiny")
    if arguments.inside:
        inside(arguments, Path(arguments.inside[0]), int(arguments.inside[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        jobs = {n: alone(arguments, folder, n, ranks=n) for n in RANKS}
        errors = compare_fishers(Path(folder))
    first = jobs[RANKS[0]]
    result: dict[str, Any] = {
        "sequences of a step": ROWS,
        "tokens of each": LENGTH,
        "questions": QUESTIONS,
        "ranks": {str(n): job for n, job in jobs.items()},
        "loss / that of one rank − 1": {str(n): rounded(job["loss"] / first["loss"] - 1) for n, job in jobs.items()},
        "Fisher's worst relative error to one rank": errors,
        "step_s / that of one rank": {str(n): rounded(j["step_s"] / first["step_s"]) for n, j in jobs.items()},
        "worst of measured / predicted": worst(jobs),
        "peak of a step": step_peak(),
    }
    save(arguments, result)


def worst(jobs: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Return for each quantity the ratio that is farthest from one over all numbers of ranks."""
    found: dict[str, float] = {}
    for job in jobs.values():
        for name, pair in job["bytes"].items():
            ratio = pair["measured"] / pair["predicted"] if pair["predicted"] else 1.0 + pair["measured"]
            found[name] = max(found.get(name, 1.0), ratio, key=lambda value: abs(value - 1))
    return {name: rounded(ratio) for name, ratio in found.items()}


def step_peak() -> dict[str, Any]:
    """Return a step's memory beyond its shards, as `training_step.py` measured it on 2 ranks and by the formula."""
    from hpc_ewc.config import DataConfig, ModelConfig, TrainConfig
    from hpc_ewc.launch.forecast import formulas

    path = RESULTS / "training_step-cpu.json"
    measured = json.loads(path.read_text())
    rows, length = measured["tokens of a rank"]
    parts = formulas.training_memory(
        shape_of(measured["size"]),
        ModelConfig(path="x", dtype=measured["dtype"]),
        DataConfig(source="files", sequence_length=length),
        TrainConfig(local_batch_size=rows),
        formulas.Place("cpu", measured["ranks"]),
        4.0,
    )
    predicted = sum(parts[name] for name in ("gathered", "activations", "loss")) / 1e6
    found = measured["memory_mb of a rank"]["activations, gathered layers, loss"]
    return {"from": path.name, "measured_mb": found, "predicted_mb": rounded(predicted)}


def compare_fishers(folder: Path) -> dict[str, float]:
    """Return the worst relative error of a tensor, compared with the Fisher of one rank."""
    import torch

    fishers = {n: torch.load(folder / f"fisher-{n}.pt", weights_only=True) for n in RANKS}
    base = fishers[RANKS[0]]
    return {
        str(n): rounded(max(float((fisher[name] - f).norm() / f.norm()) for name, f in base.items()))
        for n, fisher in fishers.items()
    }


def shape_of(size: str) -> Any:
    """Return the model's shape as the formulas take it."""
    from hpc_ewc.launch.forecast import shapes

    return shapes.shape_of(config_of(size).to_dict() | {"dtype": "bfloat16"}, size)


# ---------------------------------------------------------------------------------------------- in the job


def inside(arguments: Namespace, folder: Path, ranks: int) -> None:
    """Measure steps, Fisher and files; rank 0 reports the bytes of the rank that has most."""
    import torch.distributed as dist

    from hpc_ewc.config import FisherConfig, TrainConfig
    from hpc_ewc.launch.forecast import formulas

    free = build_engine(arguments.size, 0.0)
    same_weights(free.parameters)
    engine = build_engine(arguments.size, STRENGTH, like=free)
    shape, traffic = shape_of(arguments.size), Traffic(engine.model, ranks)
    batch = global_batch(engine.model.config.vocab_size, ranks)
    loss, _ = engine.step(batch, 1e-3)
    share = shape.parameters / ranks
    pairs = pairs_of_shards(engine, share)
    traffic.take()
    engine.step(batch, 1e-3)
    sent, expected = traffic.take(), formulas.training_traffic(shape, TrainConfig(), "float32", ranks)
    pairs |= {f"step, {name}": (sent[name], expected[name]) for name in ("gather", "reduce")}
    step_s = [seconds_of(lambda: engine.step(batch, 1e-3), arguments.device) for _ in range(ROUNDS)]
    pairs["checkpoint"] = (checkpoint_bytes(engine, folder / f"checkpoint-{ranks}"), formulas.checkpoint_disk(shape))
    fisher, fisher_s = estimate(engine, ranks, traffic)
    sent, expected = traffic.take(), formulas.fisher_traffic(shape, ranks)
    pairs |= {f"batch of the Fisher, {name}": (sent[name] / BATCHES, expected[name]) for name in ("gather", "reduce")}
    files = save_fisher(engine, fisher, folder, ranks)
    pairs["Fisher and anchor"] = (files, formulas.fisher_disk(shape, FisherConfig()))
    say(
        {
            "loss": loss,
            "step_s": rounded(statistics.median(step_s)),
            "fisher_s of an example": rounded(fisher_s / QUESTIONS),
            "bytes": {name: {"measured": own, "predicted": rounded(of)} for name, (own, of) in most(pairs).items()},
        }
    )
    dist.barrier()
    dist.destroy_process_group()


def same_weights(parameters: dict[str, Any]) -> None:
    """Set the same weights at every number of ranks; as in a published model, they are exact in bf16."""
    import torch
    import torch.distributed as dist

    generator = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        whole = torch.randn(parameter.shape, generator=generator) * (0.0 if "norm" in name else 0.02)
        own = whole.bfloat16().float().chunk(dist.get_world_size())[dist.get_rank()]
        parameter.detach().to_local().copy_(own)


BATCHES = 2
"""Batches into which a rank's questions are cut."""


def pairs_of_shards(engine: Any, share: float) -> dict[str, tuple[float, float]]:
    """Return the bytes of this rank's shards, measured and by the formula: 4, 4, 8 per parameter, F and θ* in bf16."""
    found = holdings(engine)
    found["F and θ*"] = found.pop("Fisher") + found.pop("anchor")
    each = {"weights": 4, "gradients": 4, "moments": 8, "F and θ*": 4}
    return {name: (own, each[name] * share) for name, own in found.items()}


class Traffic:
    """Counts the bytes that FSDP2 gathers and reduces: a rank receives (S − 1)/S · n of a tensor of n bytes."""

    def __init__(self, model: Any, ranks: int) -> None:
        from torch.distributed.fsdp import FSDPModule

        self.ranks, self.bytes = ranks, {"gather": 0.0, "reduce": 0.0}
        gather, reduce = counting(self)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(gather)
                module.set_custom_reduce_scatter(reduce)

    def note(self, name: str, tensor: Any) -> None:
        self.bytes[name] += tensor.numel() * tensor.element_size() * (self.ranks - 1) / self.ranks

    def take(self) -> dict[str, float]:
        """Return the counts since the last call, and start again at zero."""
        found, self.bytes = self.bytes, dict.fromkeys(self.bytes, 0.0)
        return found


def counting(traffic: Traffic) -> tuple[Any, Any]:
    """Return FSDP2's two collectives, which count their bytes in `traffic`."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

    class Gather(AllGather):
        def allocate(self, size: Any, *, dtype: Any, device: Any) -> Any:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, async_op: bool = False) -> Any:
            traffic.note("gather", output_tensor)
            return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)

    class Reduce(ReduceScatter):
        def allocate(self, size: Any, *, dtype: Any, device: Any) -> Any:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> Any:
            traffic.note("reduce", input_tensor)
            return dist.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)

    return Gather(), Reduce()


def global_batch(vocabulary: int, ranks: int) -> Any:
    """Return this rank's rows of one global batch that does not depend on the number of ranks."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from hpc_ewc.data.loader import StepBatch

    ids = torch.randint(1, vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    own = ids[dist.get_rank() :: ranks]
    return StepBatch(0, np.arange(ROWS), ROWS * (LENGTH - 1), ({"input_ids": own, "labels": own},))


def estimate(engine: Any, ranks: int, traffic: Traffic) -> tuple[dict[str, Any], float]:
    """Return the Fisher at the anchor, from this rank's share of the same questions, and its seconds."""
    import torch
    import torch.distributed as dist

    from hpc_ewc.ewc import FisherAccumulator

    with torch.no_grad():
        for part in engine.regularizer.penalty.shards:
            part.parameter.to_local().view(-1).copy_(part.anchor)
    vocabulary, generator = engine.model.config.vocab_size, torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocabulary, (QUESTIONS, 48), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    batches = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": own}
        for i, own in zip(
            ids[dist.get_rank() :: ranks].chunk(BATCHES), labels[dist.get_rank() :: ranks].chunk(BATCHES), strict=True
        )
    ]
    with FisherAccumulator(engine.model) as fisher:
        traffic.take()
        seconds = sum(seconds_of(lambda batch=batch: fisher.add([batch]), "cpu") for batch in batches)
        return dict(fisher.mean()), seconds


def save_fisher(engine: Any, fisher: dict[str, Any], folder: Path, ranks: int) -> int:
    """Write the state as the stage does, and full tensors for the comparison; return the bytes of the state."""
    import torch
    import torch.distributed as dist

    from hpc_ewc.ewc import save_ewc_state

    anchor = {name: parameter.detach() for name, parameter in engine.parameters.items()}
    place = folder / f"state-{ranks}"
    save_ewc_state(place, fisher, anchor, {"about": "a benchmark"})
    full = {name: tensor.full_tensor() for name, tensor in fisher.items()}
    if dist.get_rank() == 0:
        torch.save(full, folder / f"fisher-{ranks}.pt")
    dist.barrier()
    return sum(path.stat().st_size for path in place.glob("*.safetensors"))


def checkpoint_bytes(engine: Any, folder: Path) -> int:
    """Write one checkpoint of weights and moments and return the bytes of all ranks' files."""
    from hpc_ewc.rundir import StageDir
    from hpc_ewc.train.checkpoint import Checkpoints
    from hpc_ewc.train.optimizer import optimizer_state

    weights = {name: parameter.detach() for name, parameter in engine.parameters.items()}
    state = {"model": weights, "optimizer": optimizer_state(engine.optimizer, engine.parameters)}
    checkpoints = Checkpoints(StageDir(folder), "0" * 12, "benchmark.0", 1, None)
    checkpoints.start(state, 1, tokens=0, loss=0.0, seconds=0.0)
    checkpoints.finish()
    return sum(path.stat().st_size for path in folder.rglob("*.distcp"))


def most(pairs: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the pairs with the largest measured value over all ranks."""
    import torch
    import torch.distributed as dist

    values = torch.tensor([own for own, _ in pairs.values()], dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return {name: (float(own), of) for own, (name, (_, of)) in zip(values, pairs.items(), strict=True)}


if __name__ == "__main__":
    main()
