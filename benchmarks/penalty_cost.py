"""What the EWC penalty costs: time an element and peak memory, against autograd and this machine's memory bandwidth.

    python benchmarks/penalty_cost.py [--size small|gemma2-2b] [--out FILE]

`small` runs on a CPU with one thread, over three model sizes. `gemma2-2b` needs a GPU with 80 GB: the shapes of Gemma 2
2B's 288 tensors with random numbers, on one shard and on the shard that a rank of eight has. Every way is measured in
a process of its own with its tensors resident; ways alternate in rounds, so that a busy machine is busy for all.

Ways: `autograd` writes the penalty as a loss and calls backward; `foreach` is the analytic gradient over whole
tensors; `eager` and `compiled` are EwcPenalty's two kernels, `+bf16` with θ* and F in bfloat16; `value` is what a log
line costs; `triad` (c = a + b, 12 bytes an element) is the bandwidth; `adamw` is the optimizer's own step, fused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import PeakMemory, environment

RESULTS = Path(__file__).parent / "results"
STRENGTH = 10.0
WAYS = (
    "triad",
    "autograd",
    "foreach",
    "eager",
    "eager+bf16",
    "compiled",
    "compiled+bf16",
    "value",
    "proximal",
    "adamw",
)
BYTES = {"triad": 12, "eager": 20, "eager+bf16": 16, "compiled": 20, "compiled+bf16": 16}
"""Bytes an element that a way must move: θ, θ*, F and the gradient read, the gradient written."""
ROUNDS = 3


def shapes_of(size: str) -> list[int]:
    """Elements of each tensor."""
    if size != "gemma2-2b":
        elements = int(float(size))
        return [elements // 26] * 26
    layer = [2048 * 2304, 1024 * 2304, 1024 * 2304, 2304 * 2048, *[9216 * 2304] * 3, *[2304] * 4]
    return [256000 * 2304, 2304, *layer * 26]


def main() -> None:
    """Each way in rounds of its own processes; one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "gemma2-2b"), default="small")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cpu" if arguments.size == "small" else "cuda"
    if arguments.inside:
        way, size, shards = arguments.inside
        print(json.dumps(measure(way, [-(-n // int(shards)) for n in shapes_of(size)], device)))
        return
    cases = [("1e6", 1), ("1e7", 1), ("5e7", 1)] if device == "cpu" else [("gemma2-2b", 1), ("gemma2-2b", 8)]
    result: dict[str, Any] = {"benchmark": "penalty_cost", "size": arguments.size, "strength": STRENGTH}
    for size, shards in cases:
        result[f"{size} elements, {shards} shards"] = measure_case(arguments.size, size, shards)
    if device == "cpu":
        result["share of a training step"] = step_share()
    result["environment"] = environment(device)
    out = arguments.out or RESULTS / f"penalty_cost-{arguments.size}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure_case(run_size: str, size: str, shards: int) -> dict[str, Any]:
    """Every way on one model: the best of each round's median, and what follows from them."""
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            command = [sys.executable, __file__, "--size", run_size, "--inside", way, size, str(shards)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
            seen[way].append(json.loads(done.stdout.splitlines()[-1]))
    best = {way: min(rounds, key=lambda one: one["ns_per_element"]) for way, rounds in seen.items()}
    bandwidth = BYTES["triad"] / best["triad"]["ns_per_element"]
    ratios = {
        f"autograd / {way}": round(best["autograd"]["ns_per_element"] / best[way]["ns_per_element"], 2)
        for way in ("foreach", "eager", "compiled", "compiled+bf16")
    }
    floors = {
        f"{way} / bandwidth floor": round(best[way]["ns_per_element"] * bandwidth / moved, 2)
        for way, moved in BYTES.items()
        if way != "triad"
    }
    return {"ways": best, "GB/s of triad": round(bandwidth, 1), **ratios, **floors}


def measure(way: str, sizes: list[int], device: str) -> dict[str, float]:
    """Nanoseconds an element (median) and peak bytes an element beyond θ, θ*, F and the gradient."""
    import torch

    torch.manual_seed(0)
    elements = sum(sizes)
    action = build(way, sizes, device)
    for _ in range(3):
        action()
    peak = PeakMemory(device)
    times = []
    for _ in range(max(5, min(30, int(2e8 / elements)))):
        started = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "ns_per_element": round(statistics.median(times) * 1e9 / elements, 4),
        "ms": round(statistics.median(times) * 1e3, 4),
        "peak_bytes_per_element": round(peak.bytes() / elements, 3),
    }


def build(way: str, sizes: list[int], device: str) -> Callable[[], Any]:
    """The action to be timed, with everything it reads resident."""
    import torch
    from torch import nn

    from hpc_ewc.ewc import EwcPenalty

    def tensors() -> list[torch.Tensor]:
        return [torch.randn(n, device=device) for n in sizes]

    if way == "triad":
        a, b, c = tensors(), tensors(), tensors()
        return lambda: [torch.add(x, y, out=z) for x, y, z in zip(a, b, c, strict=True)]
    model = nn.ParameterDict({f"p{i}": nn.Parameter(t) for i, t in enumerate(tensors())})
    parameters = list(model.values())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    if way == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        return optimizer.step
    dtype = torch.bfloat16 if way.endswith("bf16") else torch.float32
    anchor = {name: p.detach().to(dtype) * 0.9 for name, p in model.items()}
    fisher = {name: torch.rand_like(p.detach()).to(dtype) for name, p in model.items()}
    if way == "autograd":

        def autograd() -> None:
            terms = [(fisher[n] * (p - anchor[n]) ** 2).sum() for n, p in model.items()]
            (STRENGTH / 2 * torch.stack(terms).sum()).backward()

        return autograd
    if way == "foreach":

        def foreach() -> None:
            with torch.no_grad():
                deltas = torch._foreach_sub(parameters, list(anchor.values()))
                torch._foreach_addcmul_([p.grad for p in parameters], list(fisher.values()), deltas, value=STRENGTH)

        return foreach
    if way == "proximal":
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        optimizer.step()
        penalty = EwcPenalty(model, anchor, fisher, STRENGTH, "proximal", compile="auto")
        return lambda: penalty.proximal_step_(optimizer)
    penalty = EwcPenalty(model, anchor, fisher, STRENGTH, compile=way.startswith("compiled"))
    return penalty.value if way == "value" else penalty.add_gradient_


def step_share() -> dict[str, Any]:
    """The penalty's part of a step of a small Gemma 2 on 256 tokens, in one process, with AdamW."""
    import torch
    from torch.nn import functional as F
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from hpc_ewc.ewc import EwcPenalty

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Gemma2Config(
        vocab_size=16000, hidden_size=384, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=48, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    anchor = {n: p.detach().clone() for n, p in model.named_parameters()}
    penalty = EwcPenalty(model, anchor, {n: torch.rand_like(t) for n, t in anchor.items()}, STRENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(1, 16000, (2, 128))
    spent: dict[str, list[float]] = {"step": [], "penalty": []}
    for _ in range(8):
        started = time.perf_counter()
        logits = model(input_ids=ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        before = time.perf_counter()
        penalty.add_gradient_()
        after = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        spent["step"].append(time.perf_counter() - started)
        spent["penalty"].append(after - before)
    step, part = (statistics.median(spent[name]) for name in ("step", "penalty"))
    return {
        "parameters": penalty.parameter_count,
        "tokens": ids.numel(),
        "step_ms": round(step * 1e3, 1),
        "penalty_ms": round(part * 1e3, 2),
        "share": round(part / step, 4),
    }


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": paths}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
