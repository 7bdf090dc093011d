"""Two training engines, the paper's and ours, on the random Gemma 2 of 15M parameters, to compare their costs.

The paper's engine also has whole weights, gradients and moments on every rank; only EWC's own tensors are counted.
"""

from __future__ import annotations

import os
from typing import Any

BATCH = (4, 64)
"""Rows per rank, in a step and for the Fisher, and tokens of each."""


class PaperEngine:
    """A replica of the model on each rank, gradients all-reduced; whole θ* (fp32 like the weights) and F (fp16)."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from models import build_plain
        from paper_way import PaperFisher, PaperPenalty

        from hpc_ewc.config import TrainConfig
        from hpc_ewc.train import process_group
        from hpc_ewc.train.optimizer import build_optimizer

        if not dist.is_initialized():
            process_group.join(600)
        self.model = build_plain("small", "cpu").train()
        self.optimizer = build_optimizer(dict(self.model.named_parameters()), TrainConfig())
        anchor = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.penalty = PaperPenalty(
            self.model, anchor, {n: torch.full_like(a, 1e-6).half() for n, a in anchor.items()}, 1e6
        )
        self._build_fisher = lambda: PaperFisher(self.model)

    def add_penalty(self) -> None:
        """Add the penalty's gradient by autograd to the existing gradients."""
        self.penalty().backward()

    def step(self, batch: Any) -> None:
        import torch
        import torch.distributed as dist

        ids = batch["input_ids"]
        self.model.zero_grad(set_to_none=True)
        (self.model(input_ids=ids, labels=ids, use_cache=False).loss + self.penalty()).backward()
        for parameter in self.model.parameters():
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def fisher(self, batch: Any) -> None:
        """Estimate the Fisher from minibatches of 4."""
        from paper_way import minibatches

        fisher = self._build_fisher()
        for one in minibatches(batch, 4):
            fisher.add(one)
        fisher.mean()

    def held(self) -> int:
        return self.penalty.bytes()


class OurEngine:
    """The project's engine: everything in shards; θ* in bf16 (exact for a model published in bf16), F in fp32."""

    def __init__(self) -> None:
        import torch
        from engine import build_engine

        from hpc_ewc.ewc import EwcPenalty
        from hpc_ewc.train.regularizer import EwcRegularizer

        self.engine = build_engine("small", 0.0)
        self.anchor = {name: p.detach().bfloat16() for name, p in self.engine.parameters.items()}
        self.F = {name: torch.full_like(p.detach(), 1e-6) for name, p in self.engine.parameters.items()}
        self.engine.regularizer = EwcRegularizer(EwcPenalty(self.engine.model, self.anchor, self.F, 1e6))

    def add_penalty(self) -> None:
        self.engine.regularizer.add_gradient_()

    def step(self, batch: Any) -> None:
        import numpy as np
        import torch.distributed as dist

        from hpc_ewc.data.loader import StepBatch

        rows, length = BATCH
        ranks = dist.get_world_size()
        given = {name: batch[name] for name in ("input_ids", "labels")}
        self.engine.step(StepBatch(0, np.arange(rows * ranks), rows * ranks * (length - 1), (given,)), 1e-5)

    def fisher(self, batch: Any) -> None:
        from hpc_ewc.ewc import FisherAccumulator

        with FisherAccumulator(self.engine.model) as fisher:
            fisher.add([batch])
        fisher.mean()

    def held(self) -> int:
        return sum(t.to_local().numel() * t.element_size() for t in [*self.anchor.values(), *self.F.values()])


ENGINES: dict[str, Any] = {"ours": OurEngine, "paper": PaperEngine}
"""The engines in the order in which they are built: ours joins the process group."""


def random_batch(*, answer: bool) -> dict[str, Any]:
    """Return this rank's rows; all tokens are scored, or only the last."""
    import torch
    from models import CONFIGS

    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    ids = torch.randint(1, CONFIGS["small"]["vocab_size"], BATCH, generator=generator)
    labels = ids.clone()
    labels[:, : -1 if answer else 1] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
