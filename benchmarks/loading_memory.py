"""Measure the peak memory and the time that a rank needs to load a checkpoint into its shards.

    python benchmarks/loading_memory.py [--device cpu|cuda] [--size small|gemma2-2b] [--ranks 2] [--out FILE]

`shards` is ours: the model is built on the meta device and sharded, and each rank reads its own slices. `whole` is the
usual way: from_pretrained on every rank, then fully_shard. The size of one shard of fp32 masters is reported too. The
files are bf16. Each alternative is a job of its own. Memory is the peak of a rank without mapped pages of the files
(`with_mapped_files_mb` includes them; the ranks share most). On a GPU it is GPU memory, with host memory beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from environment import OwnMemory, PeakMemory
from models import DTYPE, save_random
from running import alone, rounded, save, say, start

LAYERS = {"small": 24, "gemma2-2b": 26}
"""More layers than the small model has: with 4, the embedding alone would decide."""
ROUNDS = 3


def main() -> None:
    """Measure both alternatives in turns and write one JSON file."""
    arguments = start(__doc__, ranks=2)
    if arguments.inside:
        what, folder = arguments.inside
        if what == "checkpoint":
            save_random(arguments.size, Path(folder), num_hidden_layers=LAYERS[arguments.size])
            say({})
        else:
            load(arguments, what, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        alone(arguments, "checkpoint", folder)
        found: dict[str, list[dict[str, float]]] = {"shards": [], "whole": []}
        for _ in range(ROUNDS):
            for way, rounds in found.items():
                rounds.append(alone(arguments, way, folder, ranks=arguments.ranks, exact_memory=True))
    ways = {
        way: {n: rounded(statistics.median(r[n] for r in rounds)) for n in rounds[0]} for way, rounds in found.items()
    }
    shard = ways["shards"].pop("shard_mb")
    ways["whole"].pop("shard_mb")
    beyond = {way: values["peak_mb"] - shard for way, values in ways.items()}
    save(
        arguments,
        {
            "ranks": arguments.ranks,
            "layers": LAYERS[arguments.size],
            "shard_mb": shard,
            "ways": ways,
            "whole / shards, memory": rounded(ways["whole"]["peak_mb"] / ways["shards"]["peak_mb"]),
            "beyond the shard itself, mb": {way: rounded(value) for way, value in beyond.items()},
        },
    )


def load(arguments: Namespace, way: str, folder: Path) -> None:
    """Report this rank's peak memory, and the seconds until the model is in shards."""
    import torch
    from transformers import Gemma2ForCausalLM

    from hpc_ewc.model.build import build_empty
    from hpc_ewc.model.load import load_model
    from hpc_ewc.model.mesh import build_mesh, shard_model
    from hpc_ewc.train import process_group

    place = process_group.join(600)
    mesh = build_mesh(place.type)
    build_empty(folder, "eager")  # imports transformers, which neither alternative should pay for
    on_gpu = PeakMemory("cuda") if place.type == "cuda" else None
    mapped, host, started = PeakMemory("cpu"), OwnMemory(), time.perf_counter()
    if way == "shards":
        model: Any = load_model(folder, mesh, dtype=DTYPE[arguments.size])
    else:
        model = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        model.to(place)
        shard_model(model, mesh, getattr(torch, DTYPE[arguments.size]))
    seconds = time.perf_counter() - started
    result = {"peak_mb": host.bytes() / 1e6, "with_mapped_files_mb": mapped.bytes() / 1e6, "seconds": seconds}
    if on_gpu is not None:
        result |= {"peak_mb": on_gpu.bytes() / 1e6, "peak_host_mb": result["peak_mb"]}
    shard = sum(4 * parameter.to_local().numel() for parameter in model.parameters())
    say(result | {"shard_mb": shard / 1e6})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
