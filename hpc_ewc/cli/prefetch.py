"""`hpc-ewc prefetch SWEEP`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from hpc_ewc.cli.options import OptionalPath, Sweep
from hpc_ewc.launch.fetch.prefetch import prefetch


@dataclass(frozen=True)
class Settings:
    """Download everything that an experiment names, then prove that it loads without a network.

    Run it again after an interruption: files that are complete are not downloaded again.

    Exit status: 0 everything is in the cache, 1 something is missing (it says what to do), 2 refused.
    """

    sweep: Sweep
    """The experiment, such as sweeps/paper.toml."""
    profile: OptionalPath = None
    """Profile whose Python is used for the proof; absent: the Python of this command."""
    dry_run: bool = False
    """Show what would be downloaded, and its size; download nothing."""
    update: bool = False
    """Look for newer commits of repositories that are in the cache. Earlier records then describe other data."""
    as_job: Annotated[str | None, tyro.conf.arg(metavar="PARTITION")] = None
    """Run as a job in this partition, which must have a network; --profile names the cluster."""


def run(settings: Settings) -> int:
    """Download the inputs of an experiment; return the exit status."""
    return prefetch(
        settings.sweep, settings.profile, dry_run=settings.dry_run, update=settings.update, as_job=settings.as_job
    )
