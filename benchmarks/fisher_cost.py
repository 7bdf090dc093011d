"""What the exact per-example Fisher costs over a plain minibatch backward, beside other ways to get it, or not.

    python benchmarks/fisher_cost.py [--size small|gemma2-2b] [--out FILE]

`small` runs on a CPU with one thread; `gemma2-2b` needs a GPU with 80 GB (random weights, TF32). One row is a prompt
whose last token is scored, as with MMLU. Ways alternate batch by batch in one process, so that a busy machine is busy
for all; peak memory is taken of one batch of each.

Ways: `plain` is the forward and backward of the minibatch, what any of them must at least do; `batched` is
estimate_fisher's default; `reduce_scatter` its oracle, one example at a time; `naive` the loop anyone would write;
`vmap` torch.func's per-example gradients; `reference` what Neurotechnology/LLM_EWC does: the gradient of a minibatch's
mean of 4, squared in fp16 on the CPU, infinities capped. The last is no per-example Fisher: its errors stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import PeakMemory, environment

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "config": {
            "vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 48, "query_pre_attn_scalar": 48,
        },
        "cases": [(8, 64), (8, 128), (8, 256)],
        "batches": 7,
        "ways": ("plain", "batched", "naive", "reduce_scatter", "vmap", "reference"),
    },
    "gemma2-2b": {
        "config": {
            "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        },
        "cases": [(8, 128), (8, 256), (8, 512)],
        "batches": 5,
        "ways": ("plain", "batched", "naive", "reference"),
    },
}  # fmt: skip


def main() -> None:
    """Every way on every case; one JSON."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    device = "cpu" if arguments.size == "small" else "cuda"
    torch.set_float32_matmul_precision("high")
    model = build_model(size["config"], device)
    parameters = sum(p.numel() for p in model.parameters())
    result: dict[str, Any] = {"benchmark": "fisher_cost", "size": arguments.size, "parameters": parameters}
    for rows, positions in size["cases"]:
        case = f"{rows} rows of {positions} tokens"
        result[case] = measure_case(model, rows, positions, size["batches"], size["ways"], device)
        print(case, json.dumps(result[case]), flush=True)
    result["environment"] = environment(device)
    out = arguments.out or RESULTS / f"fisher_cost-{arguments.size}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


def build_model(config: dict[str, Any], device: str) -> Any:
    """A random Gemma 2 in fp32."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return Gemma2ForCausalLM(Gemma2Config(**config, attn_implementation="eager", use_cache=False)).float().eval()


def make_batch(rows: int, positions: int, vocabulary: int, seed: int, device: str) -> dict[str, Any]:
    """Prompts of one length, the last token scored."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (rows, positions), generator=generator).to(device)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure_case(
    model: Any, rows: int, positions: int, count: int, ways: tuple[str, ...], device: str
) -> dict[str, Any]:
    """Seconds a batch (median and spread), ratios to the plain backward, memory, and how wrong each Fisher is."""
    import torch

    batches = [make_batch(rows, positions, model.config.vocab_size, seed, device) for seed in range(count)]
    times: dict[str, list[float]] = {way: [] for way in ways}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    memory, sums = {}, {}
    for way in ways:  # memory of one batch, and what it makes of it
        WAYS[way](model)[0](batches[0])  # buffers, thread pools
        model.zero_grad(set_to_none=True)
        run, found = WAYS[way](model)
        peak = PeakMemory(device)
        run(batches[0])
        memory[way] = peak.bytes()
        sums[way] = found()
        model.zero_grad(set_to_none=True)
        del run
    for batch in batches:
        for way in ways:
            run, _ = WAYS[way](model)
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            times[way].append(time.perf_counter() - started)
            ratios[way].append(times[way][-1] / times["plain"][-1])
            model.zero_grad(set_to_none=True)
    true = sums["naive"]
    return {
        way: {
            "seconds": round(statistics.median(times[way]), 4),
            "/ plain": round(statistics.median(ratios[way]), 3),
            "/ plain, quartiles": [round(q, 3) for q in statistics.quantiles(ratios[way], n=4)[::2]],
            "peak_mb": round(memory[way] / 2**20),
            **({} if sums[way] is None or way == "naive" else errors(sums[way], true)),
        }
        for way in ways
    }


def errors(got: dict[str, Any], true: dict[str, Any]) -> dict[str, float]:
    """Against the naive loop: worst relative error of a tensor, its trace over the true one, zeros that are none."""
    worst = max(float((got[n] - f).norm() / f.norm()) for n, f in true.items())
    trace = sum(float(f.double().sum()) for f in got.values()) / sum(float(f.double().sum()) for f in true.values())
    lost = sum(int(((got[n] == 0) & (f > 0)).sum()) for n, f in true.items()) / sum(f.numel() for f in true.values())
    return {
        "worst relative error": float(f"{worst:.2g}"),
        "trace / true": round(trace, 4),
        "lost to zero": round(lost, 4),
    }


# ---------------------------------------------------------------------------------------------- the ways

Way = tuple[Callable[[dict[str, Any]], None], Callable[[], Any]]
"""What is timed, on a batch; and the sums of squares it has made of the last batch alone, or None."""


def scored_loss(model: Any, batch: dict[str, Any]) -> Any:
    """−Σ log p of the scored tokens; the head runs on one position a row."""
    import torch
    from torch.nn import functional as F

    last = torch.full((len(batch["input_ids"]), 1), batch["input_ids"].shape[1] - 2, device=batch["input_ids"].device)
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=last, use_cache=False
    )
    return F.cross_entropy(out.logits[:, 0].float(), batch["labels"][:, -1], reduction="sum")


def plain(model: Any) -> Way:
    """One forward and backward of the minibatch."""
    return lambda batch: scored_loss(model, batch).backward(), lambda: None


def ours(method: str) -> Callable[[Any], Way]:
    """estimate_fisher's inner step: everything but its start and its end."""

    def build(model: Any) -> Way:
        from hpc_ewc.ewc import FisherAccumulator

        fisher = FisherAccumulator(model, method=method)  # type: ignore[arg-type]

        def run(batch: dict[str, Any]) -> None:
            with fisher:
                fisher.add([batch])

        return run, lambda: fisher.sums.tensors

    return build


def naive(model: Any) -> Way:
    """Each row by itself: forward, backward, square, add."""
    import torch

    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def run(batch: dict[str, Any]) -> None:
        for row in range(len(batch["input_ids"])):
            model.zero_grad(set_to_none=True)
            scored_loss(model, {name: tensor[row : row + 1] for name, tensor in batch.items()}).backward()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    sums[name].addcmul_(p.grad, p.grad)

    return run, lambda: sums


def vmap(model: Any) -> Way:
    """torch.func: a batch's gradients all at once, then squared."""
    import torch
    from torch.nn import functional as F

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sums: dict[str, Any] = {}

    def loss(parameters: dict[str, Any], ids: Any, mask: Any) -> Any:
        tied = parameters | {"lm_head.weight": parameters["model.embed_tokens.weight"]}
        masks = {"full_attention": mask, "sliding_attention": mask}  # vmap cannot build them; all rows are this long
        arguments = {"input_ids": ids[None], "attention_mask": masks, "logits_to_keep": 2, "use_cache": False}
        out = torch.func.functional_call(model, tied, (), arguments)
        return F.cross_entropy(out.logits[0, :1].float(), ids[-1:], reduction="sum")

    def run(batch: dict[str, Any]) -> None:
        ids = batch["input_ids"]
        length = ids.shape[1]
        mask = torch.full((length, length), torch.finfo(torch.float32).min, device=ids.device).triu(1)[None, None]
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))(parameters, ids, mask)
        for name in list(gradients):
            sums[name] = gradients.pop(name).square_().sum(0)

    return run, lambda: dict(sums)


def reference(model: Any) -> Way:
    """The paper's code: mean loss of 4 rows, gradient to fp16 on the CPU, squared there, infinities set to 100."""
    import torch

    sums = {name: torch.zeros(p.shape, dtype=torch.float16) for name, p in model.named_parameters()}
    rows = [0]

    def run(batch: dict[str, Any]) -> None:
        rows[0] = len(batch["input_ids"])
        for first in range(0, rows[0], 4):
            model.zero_grad(set_to_none=True)
            four = {name: tensor[first : first + 4] for name, tensor in batch.items()}
            (scored_loss(model, four) / 4).backward()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    square = p.grad.half().cpu() ** 2
                    sums[name] += torch.where(square.isinf(), torch.tensor(100.0, dtype=torch.float16), square)

    def found() -> dict[str, Any]:
        # it divides by the number of batches, we by that of rows: the same scale, so that what is left is its error
        device = next(model.parameters()).device
        return {name: total.float().to(device) * 4 for name, total in sums.items()}

    return run, found


WAYS: dict[str, Callable[[Any], Way]] = {
    "plain": plain,
    "batched": ours("batched"),
    "reduce_scatter": ours("reduce_scatter"),
    "naive": naive,
    "vmap": vmap,
    "reference": reference,
}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
