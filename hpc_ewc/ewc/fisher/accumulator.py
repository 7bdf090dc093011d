"""The sums of squared per-example gradients, step by step: forwards and backwards, the examples that count, reduction.

Gradients are squared in the backward (rules.py) or on their way to the shards (fsdp_reduction.py), and summed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from hpc_ewc.errors import InputError
from hpc_ewc.ewc.fisher.batches import NOT_SCORED, Rows, draw_labels, empty_rows, read_batch
from hpc_ewc.ewc.fisher.fsdp_reduction import GradientReduction
from hpc_ewc.ewc.fisher.results import (
    Batch,
    FisherEstimate,
    FisherSums,
    Labels,
    Method,
    NonFiniteExampleError,
    OnNonFinite,
)
from hpc_ewc.ewc.fisher.rules import SquaredGradients
from hpc_ewc.ewc.fisher.squared_functions import PassState
from hpc_ewc.ewc.sharding.ranks import gather_objects, max_over_ranks, rank_and_world_size, sum_over_ranks
from hpc_ewc.ewc.sharding.shards import check_layout, local_flat, trainable_parameters


class FisherAccumulator:
    """A context for `estimate_fisher` step by step: `add` batches until it returns False, then take the `mean`.

    Inside it, the model's layers and FSDP2's reduction are set up for squares, and the model has no dropout. Every rank
    builds it. Arguments are those of `estimate_fisher`.

    Attributes:
        sums: so far, over all ranks; they change in place.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        labels: Labels = "gold",
        method: Method = "batched",
        samples: int = 1,
        seed: int = 0,
        on_nonfinite: OnNonFinite = "error",
        start: FisherSums | None = None,
    ) -> None:
        for what, value, allowed in (
            ("labels", labels, ("gold", "sampled")),
            ("method", method, ("batched", "reduce_scatter")),
            ("on_nonfinite", on_nonfinite, ("error", "skip")),
        ):
            if value not in allowed:
                raise InputError(f"{what} is '{value}'; allowed are {allowed[0]!r} and {allowed[1]!r}")
        if samples < 1 or (labels == "gold" and samples > 1):
            raise InputError(f"samples is {samples}; allowed are numbers from 1, and only 1 with gold labels")
        self._model = model
        self._sampled, self._by_row = labels == "sampled", method == "reduce_scatter"
        self._samples, self._seed, self._skip = samples, seed, on_nonfinite == "skip"
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a forward before this leaves the root's parameters gathered
        self._parameters = trainable_parameters(model)
        for name, parameter in self._parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InputError(f"parameter '{name}' is {parameter.dtype}; the Fisher needs fp32 parameters")
        if not self._parameters:
            raise InputError("the model has no trainable parameter: there is no Fisher to estimate")
        self._device = local_flat(next(iter(self._parameters.values()))).device
        self._rules = None if self._by_row else SquaredGradients(model)
        if start is None:
            start = FisherSums({name: torch.zeros_like(p.detach()) for name, p in self._parameters.items()})
        else:
            check_layout("sums to start from", start.tensors, self._parameters)
        self.sums = start
        self._not_finite = torch.zeros((), dtype=torch.bool, device=self._device)
        self._kept: dict[str, Tensor] = {}
        self._rows_read = 0

    def __enter__(self) -> FisherAccumulator:
        with ExitStack() as stack:
            reduction = GradientReduction(self._model)
            stack.callback(reduction.restore)
            reduction.reset()
            if self._by_row:
                reduction.square_before(self._square)
            self._reduction = reduction
            if self._rules is not None:
                stack.enter_context(self._rules)
            for module in self._model.modules():
                stack.callback(setattr, module, "training", module.training)
            _without_dropout(self._model)
            stack.callback(self._drop_gradients)
            self._drop_gradients()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def add(self, batches: Sequence[Batch]) -> bool:
        """Adds this rank's next batches, with one reduction after the last, and returns whether any rank had a batch.

        All ranks call it equally often. Collectives: those of forwards and backwards, and two small all-reduces.
        """
        groups = []
        for batch in batches:
            groups.append(read_batch(batch, self._device, first=self._rows_read))
            self._rows_read += len(groups[-1].input_ids)
        if self._by_row:
            groups = [one for rows in groups for row in range(len(rows.input_ids)) if (one := rows.select([row]))]
        (rounds,) = max_over_ranks([len(groups)], self._device)
        if rounds == 0:
            return False
        skipped = 0
        while True:
            bad = self._run(groups, rounds)
            scored = sum(rows.scored() for rows in groups)
            any_bad, all_scored = sum_over_ranks([sum(map(len, bad)), scored], self._device)
            if not any_bad:
                break
            self._drop_gradients()
            if not self._skip:
                self._raise_not_finite(groups, bad)
            skipped += any_bad
            kept = [
                rows.select([row for row in range(len(rows.input_ids)) if row not in worse])
                for rows, worse in zip(groups, bad, strict=True)
            ]
            groups = [rows for rows in kept if rows is not None]
        self._take_gradients()
        self.sums.examples += all_scored
        self.sums.skipped += skipped
        self.sums.groups += 1
        return True

    def mean(self) -> FisherEstimate:
        """Divides the sums in place and returns F; nothing can be added afterwards. All ranks call it; one all-reduce.

        Raises:
            InputError: no row had a scored token, or a sum overflowed.
        """
        if self.sums.examples == 0:
            raise InputError("no row of any batch has a scored token (a label that is not -100): there is no Fisher")
        overflowed = []
        with torch.no_grad():
            for total in self.sums.tensors.values():
                flat = local_flat(total).mul_(1.0 / (self.sums.examples * self._samples))
                overflowed.append(0 if bool(torch.isfinite(flat.sum(dtype=torch.float64))) else 1)
        for name, flag in zip(self.sums.tensors, max_over_ranks(overflowed, self._device), strict=True):
            if flag:
                raise InputError(f"the Fisher of '{name}' overflows fp32: gradients above 1e19 were squared")
        return FisherEstimate(self.sums.tensors, self.sums.examples, self.sums.skipped, self._samples)

    # ------------------------------------------------------------------------------------------ one reduction

    def _run(self, groups: list[Rows], rounds: int) -> list[list[int]]:
        """Runs forward and backward of `groups`, and of empty rows up to `rounds`, which leaves squares in `.grad`.

        Returns:
            For each group, its rows whose gradient is not finite.
        """
        bad: list[set[int]] = [set() for _ in groups]
        for index in range(rounds):
            rows = groups[index] if index < len(groups) else empty_rows(self._device)
            for sample in range(self._samples):
                last = index == rounds - 1 and sample == self._samples - 1
                self._reduction.set_synchronize(now=self._by_row or last)
                worse = self._one_pass(rows, sample)
                if index < len(groups):
                    bad[index] |= set(worse)
        return [sorted(rows) for rows in bad]

    def _one_pass(self, rows: Rows, sample: int) -> list[int]:
        state = self._rules.begin(rows.input_ids, rows.spans) if self._rules is not None else None
        self._not_finite.zero_()
        logits = self._logits(rows)
        targets = draw_labels(rows, logits.detach(), self._seed, sample) if self._sampled else rows.targets
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(exact.flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum")
        torch.autograd.backward(loss)
        if state is not None:
            self._check_coverage(state)
            return list(state.not_finite.nonzero().flatten().tolist())
        if not self._reduction.sharded:
            self._square_and_keep()
        return [0] if bool(self._not_finite) else []

    def _logits(self, rows: Rows) -> Tensor:
        """Returns logits [B, K, V]: the head runs on scored positions alone."""
        logits: Tensor = self._model(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            logits_to_keep=rows.positions,
            use_cache=False,
        ).logits
        if logits.shape[:2] != rows.positions.shape:
            raise InputError(
                f"the model gives logits {list(logits.shape)} for positions {list(rows.positions.shape)}: its forward "
                f"does not take `logits_to_keep` [rows, positions], as Transformers 5.23 does"
            )
        return logits

    def _check_coverage(self, state: PassState) -> None:
        """Refuses a gradient that no rule made: it is a minibatch gradient, not a sum of squares."""
        for name, parameter in self._parameters.items():
            if name in state.seen or parameter.grad is None:
                continue
            if bool((local_flat(parameter.grad) != 0).any()):
                raise InputError(
                    f"parameter '{name}' has a gradient that its layer's rule did not make: its layer's forward is "
                    f"compiled or bypassed; use method 'reduce_scatter', or the model uncompiled"
                )

    def _square(self, gradient: Tensor) -> None:
        gradient.square_()
        self._not_finite |= ~gradient.isfinite().all()

    def _square_and_keep(self) -> None:
        """Squares and keeps one example's gradients: without shards, no hook runs between two examples' gradients."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            self._square(parameter.grad)
            if name in self._kept:
                self._kept[name] += parameter.grad
            else:
                self._kept[name] = parameter.grad
            parameter.grad = None

    def _take_gradients(self) -> None:
        """Adds the group's squares to the sums and drops the gradients."""
        _, world_size = rank_and_world_size()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                gradient = self._kept.pop(name, None) if parameter.grad is None else parameter.grad
                if gradient is None:
                    continue  # the model's output does not depend on it
                total = local_flat(self.sums.tensors[name])
                if isinstance(parameter, DTensor):
                    # FSDP2 left the mean over the ranks of the mesh; the sum is needed
                    total.add_(local_flat(gradient), alpha=parameter.device_mesh.size())
                else:
                    if world_size > 1:
                        dist.all_reduce(gradient)
                    total.add_(gradient.view(-1))
                parameter.grad = None

    def _drop_gradients(self) -> None:
        self._kept.clear()
        self._model.zero_grad(set_to_none=True)

    def _raise_not_finite(self, groups: list[Rows], bad: list[list[int]]) -> None:
        mine = [rows.examples[row] for rows, worse in zip(groups, bad, strict=True) for row in worse]
        by_rank = gather_objects(mine)
        named = [f"{example} (rank {rank})" for rank, examples in enumerate(by_rank) for example in examples]
        raise NonFiniteExampleError(
            f"the gradient of {len(named)} examples is not finite: {', '.join(named[:8])}"
            f"{' …' if len(named) > 8 else ''}; check these examples, or leave them out with on_nonfinite = 'skip'",
            [example for examples in by_rank for example in examples],
        )


def _without_dropout(model: nn.Module) -> None:
    """Sets evaluation mode, or keeps training mode under gradient checkpointing, which evaluation would turn off."""
    recomputes = any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())
    if not (model.training and recomputes):
        model.eval()
        return
    for path, module in model.named_modules():
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate > 0.0:
            raise InputError(
                f"'{path}' drops activations at rate {rate} in training mode, which gradient checkpointing needs; "
                f"set the rate to 0, or turn checkpointing off"
            )
