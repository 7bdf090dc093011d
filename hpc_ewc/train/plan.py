"""The number of steps of a training and the steps at which it exports, from its configuration and its corpus."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_ewc.config import TrainConfig
from hpc_ewc.errors import InputError


@dataclass(frozen=True)
class Plan:
    """The steps of a training.

    Attributes:
        steps: optimizer steps in all.
        exports: {step after which a checkpoint is exported: fraction of the training}.
    """

    steps: int
    exports: dict[int, float]


def make_plan(config: TrainConfig, samples: int) -> Plan:
    """Returns the plan for a corpus of `samples` sequences. No collective.

    An epoch is as many full batches as the samples fill; a training has at least one step.

    Raises:
        InputError: no samples, fewer than one batch, or fewer steps than exports.
    """
    if samples < config.global_batch_size:
        raise InputError(
            f"the corpus has {samples} sequences, train.global_batch_size = {config.global_batch_size} needs as many "
            "for one step; make it smaller, or data.fraction larger"
        )
    if config.steps is not None:
        steps = config.steps
    else:
        epochs = 1.0 if config.epochs is None else config.epochs
        steps = max(1, math.floor(epochs * samples / config.global_batch_size + 1e-9))
    exports = {max(1, round(fraction * steps)): fraction for fraction in config.export_at}
    if len(exports) < len(config.export_at):
        raise InputError(
            f"train.export_at = {list(config.export_at)}: {len(config.export_at)} checkpoints of a run of {steps} "
            "steps fall on the same step; ask for fewer, or train longer"
        )
    return Plan(steps, exports)
