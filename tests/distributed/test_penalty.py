"""The penalty on shards against autograd of its formula in one process, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn import functional as F

from hpc_ewc.errors import InputError
from hpc_ewc.ewc import EwcPenalty
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_gemma import (
    VOCABULARY,
    build_gemma,
    build_mesh,
    relative_error,
    shard_gemma,
    shard_like,
)

STRENGTH = 37.0
BATCH = 12
STEPS = 3
MESHES = [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2)]


def tokens(step: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (BATCH, 9), generator=torch.Generator().manual_seed(100 + step))


def anchor_and_fisher(model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An anchor away from the parameters, and a Fisher over ten decades with some exact zeros."""
    generator = torch.Generator().manual_seed(7)
    anchor, fisher = {}, {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        anchor[name] = parameter.detach() + 0.05 * torch.randn(shape, generator=generator)
        fisher[name] = 10 ** (torch.rand(shape, generator=generator) * 10 - 9)
        fisher[name][torch.rand(shape, generator=generator) < 0.1] = 0.0
    return anchor, fisher


def penalty_of(model: Any, anchor: dict[str, Tensor], fisher: dict[str, Tensor]) -> Tensor:
    """λ/2 Σ F (θ−θ*)², by the formula, through autograd."""
    terms = [(fisher[n].double() * (p - anchor[n].double()) ** 2).sum() for n, p in model.named_parameters()]
    return STRENGTH / 2 * torch.stack(terms).sum()


def token_loss(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def one_process(clip: str) -> dict[str, Any]:
    """The same training in one process: penalty in the loss, or after clipping the task's gradient."""
    model = build_gemma()
    anchor, fisher = anchor_and_fisher(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    values = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = token_loss(model, tokens(step)) / (BATCH * 8)
        penalty = penalty_of(model, anchor, fisher)
        values.append(float(penalty))
        if clip == "total":
            (loss + penalty).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            penalty.backward()
        optimizer.step()
    return {"parameters": {n: p.detach() for n, p in model.named_parameters()}, "values": values}


def sharded_training(rank: int, world_size: int, replicate: int, clip: str) -> float:
    model = build_gemma()
    anchor, fisher = anchor_and_fisher(model)
    model = shard_gemma(model, build_mesh(world_size, replicate))
    layout = dict(model.named_parameters())
    penalty = EwcPenalty(
        model,
        {n: shard_like(t, layout[n]) for n, t in anchor.items()},
        {n: shard_like(t, layout[n]) for n, t in fisher.items()},
        STRENGTH,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    values = []
    for step in range(STEPS):
        optimizer.zero_grad()
        mine = tokens(step).chunk(world_size)[rank]
        halves = mine.split((len(mine) + 1) // 2)
        for index, half in enumerate(halves):  # accumulation without communication
            model.set_requires_gradient_sync(index == len(halves) - 1)
            (token_loss(model, half) * world_size / (BATCH * 8)).backward()
        values.append(penalty.measure().value)
        if clip == "total":
            penalty.add_gradient_()
            torch.nn.utils.clip_grad_norm_(layout.values(), 0.5)
        else:
            torch.nn.utils.clip_grad_norm_(layout.values(), 0.5)
            penalty.add_gradient_()
        optimizer.step()
    want = one_process(clip)
    worst = max(relative_error(p, want["parameters"][n]) for n, p in layout.items())
    assert values == pytest.approx(want["values"], rel=1e-5)
    return worst


def bf16_compute(rank: int, world_size: int) -> float:
    """Worst difference of the penalty's gradient, with fp32 masters under bf16 compute, from autograd's."""
    model = build_gemma()
    anchor, fisher = anchor_and_fisher(model)
    grads = torch.autograd.grad(penalty_of(model, anchor, fisher), list(model.parameters()))
    want = dict(zip(fisher, grads, strict=True))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard_gemma(model, build_mesh(world_size), policy)
    layout = dict(model.named_parameters())
    penalty = EwcPenalty(
        model,
        {n: shard_like(t, layout[n]) for n, t in anchor.items()},
        {n: shard_like(t, layout[n]) for n, t in fisher.items()},
        STRENGTH,
    )
    token_loss(model, tokens(0).chunk(world_size)[rank]).backward()
    before = {n: p.grad.full_tensor().double() for n, p in layout.items()}
    penalty.add_gradient_()
    added = {n: p.grad.full_tensor().double() - before[n] for n, p in layout.items()}
    return max(float((added[n] - want[n]).norm() / (want[n].norm() + before[n].norm())) for n in want)


def scalars_and_refusals(rank: int, world_size: int, replicate: int) -> None:
    model = build_gemma()
    anchor, fisher = anchor_and_fisher(model)
    moved = torch.cat([(p.detach() - anchor[n]).double().flatten() for n, p in model.named_parameters()])
    entries = torch.cat([f.double().flatten() for f in fisher.values()])
    model = shard_gemma(model, build_mesh(world_size, replicate))
    layout = dict(model.named_parameters())
    shards = [{n: shard_like(t, layout[n]) for n, t in tensors.items()} for tensors in (anchor, fisher)]
    penalty = EwcPenalty(model, *shards, STRENGTH)
    assert penalty.trace == pytest.approx(float(entries.sum()), rel=1e-6)
    assert penalty.measure().distance == pytest.approx(float(moved.norm()), rel=1e-6)
    assert penalty.largest_step(0.1) == pytest.approx(0.1 * STRENGTH * float(entries.max()), rel=1e-6)
    free = moved[entries == 0]
    assert penalty.measure()[2:] == (free.numel(), pytest.approx(float(free.norm()), rel=1e-6))
    assert penalty.parameter_count == moved.numel()
    with pytest.raises(
        InputError, match=r"laid out as a full tensor, cpu, the trainable parameter of the model as .*load_ewc_state"
    ):
        EwcPenalty(model, anchor, fisher, STRENGTH)
    if replicate == 1:
        name = "model.layers.1.mlp.up_proj.weight"
        spoilt = {n: t.clone() for n, t in shards[1].items()}
        if rank == 0:  # one bad entry on one rank: every rank must raise
            spoilt[name].to_local()[0, 0] = float("nan")
        with pytest.raises(InputError, match=f"Fisher of '{name}' has 1 entries that are negative or not finite"):
            EwcPenalty(model, shards[0], spoilt, STRENGTH)
    model(input_ids=tokens(0)[:1])
    with pytest.raises(InputError, match=r"a forward has gathered it; do this before the first forward"):
        EwcPenalty(model, *shards, STRENGTH)


def all_checks(rank: int, world_size: int, replicate: int) -> dict[str, float]:
    worst = {clip: sharded_training(rank, world_size, replicate, clip) for clip in ("total", "task")}
    if replicate == 1:
        worst["bf16 compute"] = bf16_compute(rank, world_size)
    scalars_and_refusals(rank, world_size, replicate)
    return worst


@pytest.mark.parametrize(("world_size", "replicate"), MESHES)
def test_training_with_the_penalty_is_one_process_autograd(world_size: int, replicate: int) -> None:
    worst = run_ranks(world_size, all_checks, replicate)
    assert max(worst.values()) < 1e-5, worst
