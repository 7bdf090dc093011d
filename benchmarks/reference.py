"""Compare the paper's formulas with ours on one small model: the Fisher's error, loss from fp16, quality, time, memory.

    python benchmarks/reference.py [--out FILE]

The paper's (paper_way.py): squares of minibatch-mean gradients in fp16, the penalty a term of the loss, θ* and F whole
on every rank. Ours: squares per example in fp32, the penalty's gradient in closed form, θ* and F in shards. Model and
data are the miniature (pretrained in a minute the first time). It is too small for times and memory, which are measured
on the random Gemma 2 of 15M parameters of the other scripts (two_engines.py), on 1 and 2 ranks.

    fisher   against an fp64 loop over examples, by size of the minibatch; also in fp32, which shows the error of the
             minibatch alone, and with gradients as small as those of Gemma 2 2B
    quality  loss on held-out Lithuanian (learnt) and English (kept) after STEPS steps, at equal λ·tr F; the paper's
             Fisher, ours, and a constant with the same trace as the baseline without information
    cost     penalty, whole step, Fisher per example, in turns; bytes of EWC's tensors, and a step's peak beyond them
"""

from __future__ import annotations

import copy
import json
import statistics
from argparse import Namespace
from typing import Any

from environment import PeakMemory
from miniature_files import FOLDER, make_miniature
from running import alone, ratio, rounded, save, say, start, take_turns

EXAMPLES = 96
FISHER_FILES = {"paper": "mmlu/validation/*.jsonl", "text": "fisher_text.jsonl"}
LARGER = 78.0
"""√(2.6e9 / 4.2e5): the factor by which gradient entries shrink when the same trace is spread over Gemma 2 2B."""
PAPERS_WAYS = (
    *((size, dtype, 1.0) for size in (1, 2, 4, 8, 16) for dtype in ("float16", "float32")),
    (4, "float16", LARGER),
)
"""Rows of a minibatch, dtype, divisor of the gradients."""
STEPS, ROWS, LENGTH, RATE = 100, 8, 64, 5e-3
STRENGTHS = (0.01, 0.1, 1.0)
"""λ · tr F / P, the penalty's mean curvature."""
SEEDS = (0, 1)
COST_ROUNDS = 5


def main() -> None:
    """Run all parts and write one JSON file."""
    arguments = start(__doc__, size="miniature")
    if arguments.inside:
        INSIDE[arguments.inside[0]](arguments)
        return
    result: dict[str, Any] = alone(arguments, "errors") | alone(arguments, "quality")
    for ranks in (1, 2):
        cost: dict[str, Any] = alone(arguments, "times", ranks=ranks)
        cost["EWC's memory_mb of a rank"] = alone(arguments, "memory", ranks=ranks, exact_memory=True)
        result[f"cost on {ranks} rank{'s' if ranks > 1 else ''}"] = cost
    save(arguments, result)


# ---------------------------------------------------------------------------------------------- model and data


def load_miniature() -> tuple[Any, Any]:
    """Return the miniature's model in fp32 and its tokenizer."""
    from transformers import Gemma2ForCausalLM

    from hpc_ewc.data.tokenizer import load_tokenizer

    folder = make_miniature() / "model"
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")
    return model.eval(), load_tokenizer(folder)


def questions(tokenizer: Any, prompt: str) -> dict[str, Any]:
    """Return EXAMPLES examples as one batch; scored: the answers' letters ("paper") or all tokens of texts ("text")."""
    from hpc_ewc.config import FisherConfig
    from hpc_ewc.data.questions import question_batches

    tokens = "answer" if prompt == "paper" else "all"
    config = FisherConfig(source="files", prompt=prompt, tokens=tokens, batch_size=EXAMPLES, max_examples=EXAMPLES)
    files = sorted((FOLDER / "questions" / "en").glob(FISHER_FILES[prompt]))
    return dict(next(iter(question_batches(config, files, tokenizer, rank=0, world_size=1))))


def texts(name: str) -> list[str]:
    lines = (FOLDER / "text" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


# ---------------------------------------------------------------------------------------------- the Fisher's error


def errors(arguments: Namespace) -> None:
    """Compare each Fisher with the definition, on answers and on texts."""
    import torch
    from paper_way import PaperFisher, fisher_by_definition, minibatches

    from hpc_ewc.ewc import estimate_fisher

    model, tokenizer = load_miniature()
    parameters = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"parameters": parameters, "examples": EXAMPLES}
    for prompt, name in (("paper", "fisher of answers"), ("text", "fisher of texts")):
        batch = questions(tokenizer, prompt)
        truth = flat(fisher_by_definition(copy.deepcopy(model), minibatches(batch, 1)))
        part = {
            "mean F": rounded(float(truth.mean())),
            "ours": judge(estimate_fisher(model, minibatches(batch, 8)), truth),
        }
        for size, dtype, shrink in PAPERS_WAYS:
            fisher = PaperFisher(model, getattr(torch, dtype), shrink)
            for one in minibatches(batch, size):
                fisher.add(one)
            key = f"minibatches of {size}, {dtype}" + (f", gradients / {shrink:g}" if shrink > 1 else "")
            part[key] = judge(fisher.mean(), truth) | {"squares capped": fisher.capped}
        found[name] = part
    say(found)


def flat(fisher: Any) -> Any:
    """Return all entries as one float64 vector."""
    import torch

    return torch.cat([fisher[name].detach().double().flatten() for name in fisher])


def judge(fisher: Any, truth: Any) -> dict[str, float]:
    """Return a Fisher's error, also after the best scaling (λ can absorb a factor), and the entries lost to zero."""
    got = flat(fisher)
    overflowed = ~got.isfinite()
    got = got.masked_fill(overflowed, 0.0)
    cosine = float(got @ truth / (got.norm() * truth.norm()))
    a, b = got - got.mean(), truth - truth.mean()
    lost = (got == 0) & (truth > 0)
    return {
        "trace / true": rounded(float(got.sum() / truth.sum())),
        "relative error": rounded(float((got - truth).norm() / truth.norm())),
        "relative error at the best factor": rounded(max(0.0, 1 - cosine**2) ** 0.5),
        "correlation": rounded(float(a @ b / (a.norm() * b.norm()))),
        "lost to zero": rounded(float(lost.double().mean())),
        "trace of what is lost": rounded(float(truth[lost].sum() / truth.sum())),
        "overflowed": int(overflowed.sum()),
    }


# ---------------------------------------------------------------------------------------------- quality


def quality(arguments: Namespace) -> None:
    """Report the losses in both languages for each Fisher at the same λ·tr F and steps; mean and range over SEEDS."""
    import torch
    from paper_way import PaperFisher, minibatches

    from hpc_ewc.ewc import estimate_fisher

    model, tokenizer = load_miniature()
    batch = questions(tokenizer, "text")
    paper = PaperFisher(model)
    for one in minibatches(batch, 4):
        paper.add(one)
    exact = dict(estimate_fisher(model, minibatches(batch, 8)))
    ways = {"paper": paper.mean(), "ours": exact, "constant": {n: torch.ones_like(f) for n, f in exact.items()}}
    heldout = {language: [tokenizer.encode(t) for t in texts(f"heldout.{language}")] for language in ("lt", "en")}
    stream = torch.tensor([i for text in texts("train.lt")[:3000] for i in tokenizer.encode(text)])

    def run(way: str, target: float) -> dict[str, Any]:
        losses = []
        for seed in SEEDS:
            trained = train(copy.deepcopy(model), way, ways.get(way), target, stream, seed)
            losses.append([nats_per_token(trained, heldout[language]) for language in heldout])
        columns = zip(heldout, zip(*losses, strict=True), strict=True)
        return {
            name: {"mean": rounded(statistics.mean(values)), "range": [rounded(min(values)), rounded(max(values))]}
            for name, values in columns
        }

    table: dict[str, Any] = {
        "base": {name: rounded(nats_per_token(model, rows)) for name, rows in heldout.items()},
        "λ = 0": run("free", 0.0),
    }
    for target in STRENGTHS:
        table[f"λ·tr F/P = {target:g}"] = {way: run(way, target) for way in ways}
    settings = {"steps": STEPS, "sequences": ROWS, "tokens of each": LENGTH, "learning rate": RATE, "seeds": len(SEEDS)}
    say({"quality": settings | {"loss in nats a token": table}, "penalty's gradient": same_gradient(model, exact)})


def train(model: Any, way: str, fisher: Any, target: float, stream: Any, seed: int) -> Any:
    """Train STEPS steps of AdamW on Lithuanian; the paper's penalty is in the loss, ours in the gradient."""
    import torch
    from paper_way import PaperPenalty

    from hpc_ewc.config import TrainConfig
    from hpc_ewc.ewc import EwcPenalty
    from hpc_ewc.train.optimizer import build_optimizer, learning_rate_at, set_learning_rate

    config = TrainConfig(learning_rate=RATE, warmup_ratio=0.05)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, config)
    anchor = {name: p.detach().clone() for name, p in parameters.items()}
    in_loss = in_gradient = None
    if fisher is not None:
        count, trace = sum(f.numel() for f in fisher.values()), sum(float(f.double().sum()) for f in fisher.values())
        λ = target * count / trace
        if way == "paper":
            in_loss = PaperPenalty(model, anchor, fisher, λ)
        else:
            in_gradient = EwcPenalty(model, anchor, fisher, λ)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        starts = torch.randint(0, len(stream) - LENGTH, (ROWS,), generator=generator)
        ids = torch.stack([stream[first : first + LENGTH] for first in starts.tolist()])
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        (loss if in_loss is None else loss + in_loss()).backward()
        if in_gradient is not None:
            in_gradient.add_gradient_()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        set_learning_rate(optimizer, learning_rate_at(step, STEPS, config))
        optimizer.step()
    return model


def nats_per_token(model: Any, rows: list[list[int]]) -> float:
    """Return the mean loss over all tokens but the first of each row."""
    import torch

    with torch.no_grad():
        total = sum(
            float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (ids.shape[1] - 1)
            for ids in (torch.tensor([row]) for row in rows)
        )
    return total / sum(len(row) - 1 for row in rows)


def same_gradient(model: Any, fisher: Any) -> dict[str, float]:
    """Compare our gradient with autograd's for the same F, away from the anchor: worst relative error of a tensor."""
    import torch
    from paper_way import PaperPenalty

    from hpc_ewc.ewc import EwcPenalty

    parameters = dict(model.named_parameters())
    torch.manual_seed(0)
    anchor = {name: p.detach() + 0.01 * torch.randn_like(p) for name, p in parameters.items()}
    model.zero_grad(set_to_none=True)
    PaperPenalty(model, anchor, fisher, 10.0)().backward()
    wanted = {name: p.grad.clone() for name, p in parameters.items()}
    model.zero_grad(set_to_none=True)
    EwcPenalty(model, anchor, fisher, 10.0).add_gradient_()
    worst = max(float((p.grad - wanted[n]).norm() / wanted[n].norm()) for n, p in parameters.items())
    return {"worst relative difference": rounded(worst)}


# ---------------------------------------------------------------------------------------------- time and memory


def times(arguments: Namespace) -> None:
    """Report the milliseconds of each part for both engines, in turns."""
    import torch.distributed as dist
    from two_engines import BATCH, ENGINES, random_batch

    batch, prompts = random_batch(answer=False), random_batch(answer=True)
    engines = {way: engine() for way, engine in ENGINES.items()}
    found: dict[str, Any] = {}
    for part, rounds, action in (
        ("step", COST_ROUNDS, lambda engine: engine.step(batch)),
        ("penalty", 4 * COST_ROUNDS, lambda engine: engine.add_penalty()),
        ("fisher", COST_ROUNDS, lambda engine: engine.fisher(prompts)),
    ):
        spent = take_turns({way: lambda e=e, a=action: a(e) for way, e in engines.items()}, rounds, "cpu")
        scale = 1e3 / (BATCH[0] if part == "fisher" else 1)
        name = "fisher, ms an example of a rank" if part == "fisher" else f"{part}_ms"
        found[name] = {way: rounded(scale * statistics.median(values)) for way, values in spent.items()}
        found[f"{part}: paper / ours"] = ratio(spent, "paper", "ours")
    say(found)
    dist.barrier()
    dist.destroy_process_group()


def memory(arguments: Namespace) -> None:
    """Report the bytes of θ* and F on this rank, and the additional peak while the penalty is added."""
    import torch.distributed as dist
    from two_engines import ENGINES, random_batch

    batch, found = random_batch(answer=False), {}
    for way, build in ENGINES.items():
        engine = build()
        engine.step(batch)
        engine.add_penalty()
        peak = PeakMemory("cpu")
        engine.add_penalty()
        beyond = rounded(peak.bytes() / 1e6)
        found[way] = {"θ* and F": rounded(engine.held() / 1e6), "peak of the penalty beyond": beyond}
        del engine
    say(found)
    dist.barrier()
    dist.destroy_process_group()


INSIDE = {"errors": errors, "quality": quality, "times": times, "memory": memory}

if __name__ == "__main__":
    main()
