"""The Fisher by its definition: one process, one example at a time, autograd, float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.distributed.tiny_gemma import VOCABULARY, Float64, build_gemma, relative_error

Example = tuple[Tensor, Tensor]
"""Tokens [L] and labels [L], each label under its token, -100 not scored."""


def make_examples(count: int, tokens: str, seed: int = 3, longest: int = 12) -> list[Example]:
    """Random texts of 2 to `longest` tokens; the last token is scored ("answer"), all but the first, or just some."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(2, longest + 1, (1,), generator=generator))
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
        labels = torch.full((length,), -100)
        if tokens == "answer":
            labels[-1] = ids[-1]
        else:
            labels[1:] = ids[1:]
        if tokens == "some":
            labels[torch.rand(length, generator=generator) < 0.5] = -100
        examples.append((ids, labels))
    return examples


def collate(examples: Sequence[Example], side: str = "right", extra: int = 0) -> dict[str, Tensor]:
    """Examples as a batch, padded on `side` to the longest and by `extra` more."""
    width = max(len(ids) for ids, _ in examples) + extra
    batch = {
        "input_ids": torch.zeros(len(examples), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(examples), width, dtype=torch.int64),
        "labels": torch.full((len(examples), width), -100),
    }
    for row, (ids, labels) in enumerate(examples):
        here = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        batch["input_ids"][row, here] = ids
        batch["attention_mask"][row, here] = 1
        batch["labels"][row, here] = labels
    return batch


def fisher_by_definition(
    model: Any, examples: Sequence[Example], labels_of: Callable[[Tensor, Tensor, Tensor], list[Tensor]] | None = None
) -> dict[str, Tensor]:
    """1/N Σ_n (∂ Σ_t log p(y_t|x) / ∂θ)², N = examples with a scored token.

    Args:
        model: any copy; it is made float64.
        examples: unpadded.
        labels_of: (ids, labels, logits) → the label sets to score instead of the gold one; their squares are averaged.
    """
    model = model.double().eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    kept = [example for example in examples if bool((example[1] != -100).any())]
    with Float64():
        for ids, labels in kept:
            logits = model(input_ids=ids[None]).logits[0]
            sets = [labels] if labels_of is None else labels_of(ids, labels, logits.detach())
            for one in sets:
                model.zero_grad()
                log_p = -F.cross_entropy(logits[:-1], one[1:], ignore_index=-100, reduction="sum")
                log_p.backward(retain_graph=True)
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        sums[name] += p.grad**2 / len(sets)
    return {name: total / len(kept) for name, total in sums.items()}


def worst_error(got: Any, want: dict[str, Tensor], negligible: float = 0.0) -> float:
    """The largest relative error of a tensor; the names must be the same.

    A tensor whose norm is below `negligible` times the largest one's is measured against that bound: where its Fisher
    is zero by symmetry (all tokens of a row alike: attention weights cannot matter) there is but rounding in it.
    """
    assert set(got) == set(want)
    floor = negligible * max(float(tensor.norm()) for tensor in want.values())
    return max(
        float((got[name].double() - want[name]).norm()) / floor
        if float(want[name].norm()) < floor
        else relative_error(got[name], want[name])
        for name in want
    )


def drawn_labels(seed: int, samples: int) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """The labels that `estimate_fisher` draws for an example, from the float64 model's probabilities."""
    from hpc_ewc.ewc.fisher.batches import draw_labels, read_batch

    def labels_of(ids: Tensor, labels: Tensor, logits: Tensor) -> list[Tensor]:
        rows = read_batch(collate([(ids, labels)]), torch.device("cpu"))
        sets = []
        for sample in range(samples):
            drawn = draw_labels(rows, logits[rows.positions[0]][None], seed, sample)
            one = torch.full_like(labels, -100)
            one[rows.positions[0] + 1] = drawn[0]
            sets.append(one)
        return sets

    return labels_of


def oracles(kind: str, examples: dict[str, list[Example]]) -> dict[str, dict[str, Tensor]]:
    """By definition: for each way of labelling, the Fisher of `build_gemma(kind)`."""
    found = {tokens: fisher_by_definition(build_gemma(kind), examples[tokens]) for tokens in examples}
    found["sampled"] = fisher_by_definition(build_gemma(kind), examples["some"], drawn_labels(seed=5, samples=2))
    return found
