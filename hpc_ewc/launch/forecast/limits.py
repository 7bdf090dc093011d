"""Is a job's time limit enough for what a forecast expects of it, and if not, how does it go on? Pure; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_ewc.launch.profile.keys import SlurmConfig


@dataclass(frozen=True)
class Limit:
    """What one job of a stage may take, and what follows when that is over."""

    time_min: int
    signal_delay_s: int
    """Before the limit, when it is told to save."""
    links: int | None
    """Jobs of a chain, the first counted; None: Slurm starts the same job again, as often as it takes."""

    @property
    def usable_h(self) -> float:
        """Hours until a job is told to save; its start-up is not taken off."""
        return (self.time_min * 60 - self.signal_delay_s) / 3600


def limit_of(time_min: int, slurm: SlurmConfig) -> Limit:
    """Of a stage's jobs on Slurm."""
    return Limit(time_min, slurm.signal_delay_s, 1 + slurm.successors if slurm.continuation == "chain" else None)


def exceeds(stage: str, label: str, hours: float, limit: Limit) -> str | None:
    """A line for people where a job needs more than its time limit; None where it fits, or nobody can know.

    Args:
        stage: whose resources they are.
        label: what it is called in the forecast.
        hours: that it is expected to run, nothing waited for; may be nan.
        limit: of each job.
    """
    if math.isnan(hours) or hours <= limit.usable_h:
        return None
    needed = math.ceil(hours / limit.usable_h)
    said = f"{label} runs {_hours(hours)}, a job has {_hours(limit.time_min / 60)} (resources.{stage}.time_min)"
    if limit.links is None:
        return f"{said}: Slurm starts it again {_times(needed - 1)}, from the last checkpoint each time"
    if needed <= limit.links:
        return f"{said}: {needed} of the {limit.links} jobs of its chain"
    return (
        f"{said}: does not fit its chain of {limit.links} jobs, {_hours(limit.links * limit.usable_h)}: "
        f"slurm.successors = {needed - 1} or a longer time_min, more GPUs; or submit again when the chain has ended"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
