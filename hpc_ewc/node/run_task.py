"""What submitit calls in a job of Slurm, once on each node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc_ewc.node.slurm_attempt import SlurmAttempt
from hpc_ewc.node.task import SlurmTask


@dataclass(frozen=True)
class RunTask(SlurmTask):
    """A task that runs when it is called."""

    def __call__(self) -> str:
        """Run this node's part of the attempt to its end."""
        return SlurmAttempt(self).run()

    def checkpoint(self) -> Any:
        """Submitit asks this if USR2 comes before our own handler is there: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
