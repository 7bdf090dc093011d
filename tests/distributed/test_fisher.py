"""The Fisher on shards against its definition: every world size, HSDP, both methods, all labels, ragged batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hpc_ewc.errors import InputError
from hpc_ewc.ewc import FisherSums, NonFiniteExampleError, estimate_fisher
from tests.distributed.fisher_oracle import (
    Example,
    collate,
    fisher_by_definition,
    make_examples,
    oracles,
    worst_error,
)
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_gemma import build_gemma, build_mesh, full, shard_gemma

EXAMPLES = {tokens: make_examples(11, tokens) for tokens in ("answer", "all", "some")}
LABELS: dict[str, dict[str, Any]] = {
    "answer": {},
    "all": {},
    "some": {},
    "sampled": {"labels": "sampled", "samples": 2, "seed": 5},
}


def deal(examples: list[Example], rank: int, world_size: int) -> list[dict[str, Tensor]]:
    """Unequal numbers of unequal batches: rank 0 has most, padding alternates its side, of 4 ranks one has nothing."""
    cuts = {1: [0, 11], 2: [0, 7, 11], 3: [0, 6, 10, 11], 4: [0, 6, 9, 9, 11]}[world_size]
    begin, end = list(pairwise(cuts))[rank]
    mine = examples[begin:end]
    sizes, batches = [3, 2, 1, 4, 1], []
    while mine:
        size = sizes[len(batches)]
        batches.append(collate(mine[:size], ("right", "left")[len(batches) % 2], extra=len(batches)))
        mine = mine[size:]
    return batches


def sharded(kind: str, world_size: int, replicate: int) -> Any:
    return shard_gemma(build_gemma(kind), build_mesh(world_size, replicate))


def errors(rank: int, world_size: int, replicate: int, kind: str, want: dict[str, Any]) -> dict[str, float]:
    """Worst relative error of each way to estimate, on these ranks."""
    found = {}
    for method in ("batched", "reduce_scatter"):
        model = sharded(kind, world_size, replicate)
        for labels, options in LABELS.items():
            examples = EXAMPLES["some" if labels == "sampled" else labels]
            fisher = estimate_fisher(model, deal(examples, rank, world_size), method=method, **options)
            assert fisher.examples == sum(bool((one != -100).any()) for _, one in examples)
            for name, parameter in model.named_parameters():  # sharded again, as the parameters are
                assert fisher[name].placements == parameter.placements
                assert parameter.grad is None
            found[f"{method}, {labels}"] = worst_error(fisher, want[labels])
    model = sharded(kind, world_size, replicate)
    batches = deal(EXAMPLES["all"], rank, world_size)
    found["accumulated"] = worst_error(estimate_fisher(model, batches, accumulate=3), want["all"])
    model.activation_checkpointing_enable()
    model.train()
    found["checkpointed"] = worst_error(estimate_fisher(model, batches), want["all"])
    assert model.training and "forward" not in vars(model.lm_head)
    # gradients of the ordinary kind are back, reduced as before
    model(input_ids=batches[0]["input_ids"] if batches else torch.ones(1, 3, dtype=torch.int64)).logits.sum().backward()
    assert bool((full(model.model.norm.weight.grad) < 0).any())
    return found


MORE_RANKS = [(3, 1, "gemma2"), (4, 1, "gemma2"), (4, 2, "gemma3")]


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    return {kind: oracles(kind, EXAMPLES) for kind in ("gemma2", "gemma3")}


@pytest.mark.parametrize(
    ("world_size", "replicate", "kind"),
    [(1, 1, "gemma2"), (2, 1, "gemma3"), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_RANKS)],
)
def test_the_sharded_fisher_is_its_definition(world_size: int, replicate: int, kind: str, wanted: Any) -> None:
    found = run_ranks(world_size, errors, replicate, kind, wanted[kind])
    assert max(found.values()) < 1e-5, found


# ---------------------------------------------------------------------------------------------- stop and go on


def stop_and_go_on(rank: int, world_size: int) -> None:
    """A run that stops after two groups and goes on in a new model is the uninterrupted run to the bit."""
    options: dict[str, Any] = {"labels": "sampled", "samples": 2}
    batches = deal(EXAMPLES["some"], rank, world_size)
    whole = estimate_fisher(sharded("gemma2", world_size, 1), batches, **options)
    kept: list[FisherSums] = []

    def stop_after_two(sums: FisherSums) -> bool:
        if sums.groups == 2:
            tensors = {name: tensor.clone() for name, tensor in sums.tensors.items()}
            kept.append(FisherSums(tensors, sums.examples, sums.skipped, sums.groups))
        return sums.groups == 2

    part = estimate_fisher(sharded("gemma2", world_size, 1), batches, after_group=stop_after_two, **options)
    assert part.examples < whole.examples
    again = estimate_fisher(sharded("gemma2", world_size, 1), batches[2:], start=kept[0], **options)
    assert again.examples == whole.examples
    assert all(torch.equal(again[name].to_local(), whole[name].to_local()) for name in whole)


# ---------------------------------------------------------------------------------------------- not finite


POISON = 100


def poisoned() -> Any:
    """Token 100's embedding is so large that its own backward is not finite; examples without it are well."""
    model = build_gemma()
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = 1e25
    return model


def poisoned_examples() -> list[Example]:
    examples = make_examples(11, "all", seed=9)
    for index, (ids, labels) in enumerate(examples):
        ids[ids == POISON] = 7
        labels[labels == POISON] = 7
        if index in (4, 10):
            ids[0] = POISON
    return examples


def name_or_skip(rank: int, world_size: int, want: dict[str, Tensor]) -> None:
    mesh = build_mesh(world_size)
    batches = deal(poisoned_examples(), rank, world_size)
    numbers = [range(0, 7), range(7, 11)][rank]
    for batch in batches:
        batch["examples"] = torch.tensor(numbers[: len(batch["input_ids"])])
        numbers = numbers[len(batch["input_ids"]) :]
    for method in ("batched", "reduce_scatter"):
        model = shard_gemma(poisoned(), mesh)
        where = r"gradient of 2 examples is not finite: 4 \(rank 0\), 10 \(rank 1\); check these examples"
        with pytest.raises(NonFiniteExampleError, match=where) as raised:  # on either rank
            estimate_fisher(model, batches, method=method)
        assert raised.value.samples == [4, 10]
        fisher = estimate_fisher(model, batches, method=method, on_nonfinite="skip")
        assert (fisher.examples, fisher.skipped) == (9, 2)
        for name in want:
            torch.testing.assert_close(full(fisher[name]).double(), want[name], rtol=1e-4, atol=1e-9)


# ---------------------------------------------------------------------------------------------- refusals


def refusals(rank: int, world_size: int) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    batches = deal(EXAMPLES["all"], rank, world_size)
    with pytest.raises(InputError, match=r"needs shards: under dp_replicate use at least 2"):
        estimate_fisher(sharded("gemma2", 2, 2), batches, method="reduce_scatter")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard_gemma(build_gemma(), build_mesh(2), policy)
    with pytest.raises(InputError, match="needs a model that computes and reduces in float32"):
        estimate_fisher(model, batches, method="reduce_scatter")
    unscored = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    with pytest.raises(InputError, match="no row of any batch has a scored token"):
        estimate_fisher(sharded("gemma2", 2, 1), unscored)


def plain_copies(rank: int, world_size: int, want: dict[str, Tensor]) -> None:
    """Ranks that each hold the whole model, unsharded, add up as well."""
    batches = deal(EXAMPLES["all"], rank, world_size)
    for method in ("batched", "reduce_scatter"):
        assert worst_error(estimate_fisher(build_gemma(), batches, method=method), want) < 1e-5


def the_rest(rank: int, world_size: int, want: dict[str, Tensor], without_poison: dict[str, Tensor]) -> None:
    stop_and_go_on(rank, world_size)
    name_or_skip(rank, world_size, without_poison)
    refusals(rank, world_size)
    plain_copies(rank, world_size, want)


def test_two_ranks_stop_resume_skip_refuse_and_agree(wanted: Any) -> None:
    healthy = [example for index, example in enumerate(poisoned_examples()) if index not in (4, 10)]
    run_ranks(2, the_rest, wanted["gemma2"]["all"], fisher_by_definition(poisoned(), healthy))
