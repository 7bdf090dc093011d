"""Compare the cost of the exact per-example Fisher with a plain minibatch backward and with other methods.

    python benchmarks/fisher_cost.py [--device cpu|cuda] [--size small|gemma2-2b] [--out FILE]

Each row is a prompt whose last token is scored, as with MMLU. On a CPU: one thread, a small Gemma 2, fp32; on a GPU:
Gemma 2 2B's shapes, TF32, 80 GB. The methods take turns batch by batch in one process; peak memory is measured for one
batch of the last case, each method in a process of its own.

Methods: `plain` is the forward and backward of the minibatch, the least that any method must do; `batched` is
estimate_fisher's default; `reduce_scatter` its oracle, one example at a time; `naive` the obvious loop over examples;
`vmap` torch.func's per-example gradients; `reference` does as Neurotechnology/LLM_EWC: the gradient of the mean loss of
a minibatch of 4, squared in fp16 on the CPU, infinities capped. That is not a per-example Fisher, so its errors are
reported too. `square` is the least that squaring adds: one P-sized multiply-add per example and nothing else.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from environment import PeakMemory
from models import CONFIGS, build_plain
from running import alone, medians, ratio, save, say, seconds_of, start, synchronise

CASES = {"small": [(8, 64), (8, 128), (8, 256)], "gemma2-2b": [(8, 128), (8, 256), (8, 512)]}
"""Cases by model size: rows of a batch, tokens of each."""
BATCHES = 5
ON_GPU = ("plain", "batched", "naive", "reference", "square")
"""Methods on a GPU, without vmap (gradients of 8 examples take 84 GB) and reduce_scatter (as many passes as naive)."""


def main() -> None:
    """Measure every method on every case and write one JSON file."""
    arguments = start(__doc__)
    import torch

    torch.set_float32_matmul_precision("high")
    ways = tuple(WAYS) if arguments.size == "small" else ON_GPU
    if arguments.inside:
        way, rows, positions = arguments.inside
        say({"peak_mb": peak_mb(arguments, way, int(rows), int(positions))})
        return
    model = build_plain(arguments.size, arguments.device)
    result: dict[str, Any] = {
        "config": CONFIGS[arguments.size],
        "parameters": sum(p.numel() for p in model.parameters()),
        "batches": BATCHES,
    }
    for rows, positions in CASES[arguments.size]:
        case = measure_case(model, rows, positions, ways, arguments.device)
        for way in ways if (rows, positions) == CASES[arguments.size][-1] else ():
            case[way]["peak_mb"] = alone(arguments, way, rows, positions, exact_memory=True)["peak_mb"]
        result[f"{rows} rows of {positions} tokens"] = case
    save(arguments, result)


def make_batch(rows: int, positions: int, vocabulary: int, seed: int, device: str) -> dict[str, Any]:
    """Return random prompts of one length, whose last token is scored."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (rows, positions), generator=generator).to(device)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure_case(model: Any, rows: int, positions: int, ways: tuple[str, ...], device: str) -> dict[str, Any]:
    """Return each method's seconds per batch, their ratio to the plain backward's, and the error of its Fisher."""
    batches = [make_batch(rows, positions, model.config.vocab_size, seed, device) for seed in range(BATCHES)]
    times: dict[str, list[float]] = {way: [] for way in ways}
    sums: dict[str, Any] = {}
    for number, batch in enumerate([batches[0], *batches]):  # the first round only fills buffers and thread pools
        for way in ways:
            run, found = WAYS[way](model)
            seconds = seconds_of(lambda run=run, batch=batch: run(batch), device)
            if number:
                times[way].append(seconds)
            else:
                sums[way] = found()
            model.zero_grad(set_to_none=True)
    true = sums["naive"]
    seconds = medians(times)
    return {
        way: {
            "seconds": seconds[way],
            "/ plain": ratio(times, way, "plain"),
            **({} if sums[way] is None or way == "naive" else errors(sums[way], true)),
        }
        for way in ways
    }


def peak_mb(arguments: Namespace, way: str, rows: int, positions: int) -> int:
    """Return the peak memory of a batch beyond model and sums, in MB; of the second batch, when buffers exist."""
    model = build_plain(arguments.size, arguments.device)
    batch = make_batch(rows, positions, model.config.vocab_size, 0, arguments.device)
    run, _ = WAYS[way](model)
    run(batch)
    model.zero_grad(set_to_none=True)
    synchronise(arguments.device)
    peak = PeakMemory(arguments.device)
    run(batch)
    return round(peak.bytes() / 1e6)


def errors(got: dict[str, Any], true: dict[str, Any]) -> dict[str, float]:
    """Compare with the naive loop: worst relative error of a tensor, trace / true, share of entries lost to zero."""
    worst = max(float((got[n] - f).norm() / f.norm()) for n, f in true.items())
    trace = sum(float(f.double().sum()) for f in got.values()) / sum(float(f.double().sum()) for f in true.values())
    lost = sum(int(((got[n] == 0) & (f > 0)).sum()) for n, f in true.items()) / sum(f.numel() for f in true.values())
    return {
        "worst relative error": float(f"{worst:.2g}"),
        "trace / true": round(trace, 4),
        "lost to zero": round(lost, 4),
    }


# ---------------------------------------------------------------------------------------------- the methods

Way = tuple[Callable[[dict[str, Any]], None], Callable[[], Any]]
"""A function of a batch, which is timed; and one that returns the sums of squares of the last batch alone, or None."""


def scored_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return −Σ log p of the scored tokens; the head runs on one position per row."""
    import torch
    from torch.nn import functional as F

    last = torch.full((len(batch["input_ids"]), 1), batch["input_ids"].shape[1] - 2, device=batch["input_ids"].device)
    out = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=last, use_cache=False
    )
    return F.cross_entropy(out.logits[:, 0].float(), batch["labels"][:, -1], reduction="sum")


def plain(model: Any) -> Way:
    """Return the forward and backward of the minibatch; it has no sums."""
    return lambda batch: scored_loss(model, batch).backward(), lambda: None


def ours(method: str) -> Callable[[Any], Way]:
    """Return the inner step of estimate_fisher, without its start and its end."""

    def build(model: Any) -> Way:
        from hpc_ewc.ewc import FisherAccumulator

        fisher = FisherAccumulator(model, method=method)  # type: ignore[arg-type]

        def run(batch: dict[str, Any]) -> None:
            with fisher:
                fisher.add([batch])

        return run, lambda: fisher.sums.tensors

    return build


def naive(model: Any) -> Way:
    """Return a loop over rows: forward, backward, square, add."""
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


def square(model: Any) -> Way:
    """Return a loop that adds a ready g² to the sums for each row: the least that squaring whole gradients costs."""
    import torch

    gradients = [torch.full_like(p, 1e-3) for p in model.parameters()]
    sums = [torch.zeros_like(p) for p in model.parameters()]

    def run(batch: dict[str, Any]) -> None:
        with torch.no_grad():
            for _ in range(len(batch["input_ids"])):
                for total, gradient in zip(sums, gradients, strict=True):
                    total.addcmul_(gradient, gradient)

    return run, lambda: None


def vmap(model: Any) -> Way:
    """Return torch.func's per-example gradients of a whole batch at once, then squared."""
    import torch
    from torch.nn import functional as F

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sums: dict[str, Any] = {}

    def loss(parameters: dict[str, Any], ids: Any, masks: dict[str, Any]) -> Any:
        tied = parameters | {"lm_head.weight": parameters["model.embed_tokens.weight"]}
        arguments = {"input_ids": ids[None], "attention_mask": masks, "logits_to_keep": 2, "use_cache": False}
        out = torch.func.functional_call(model, tied, (), arguments)
        return F.cross_entropy(out.logits[0, :1].float(), ids[-1:], reduction="sum")

    def run(batch: dict[str, Any]) -> None:
        ids = batch["input_ids"]
        length, window = ids.shape[1], model.config.sliding_window
        hidden = torch.full((length, length), torch.finfo(torch.float32).min, device=ids.device)
        causal, behind = hidden.triu(1), hidden.tril(-window)
        # vmap cannot build the masks; all rows are this long
        masks = {"full_attention": causal[None, None], "sliding_attention": (causal + behind)[None, None]}
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))(parameters, ids, masks)
        for name in list(gradients):
            sums[name] = gradients.pop(name).square_().sum(0)

    return run, lambda: dict(sums)


def reference(model: Any) -> Way:
    """Return the method of the paper's code: mean loss of 4 rows, squares in fp16 on the CPU, infinities set to 100."""
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
        # The paper's code divides by the number of batches, ours by that of rows: on one scale, the rest is its error.
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
    "square": square,
}


if __name__ == "__main__":
    main()
