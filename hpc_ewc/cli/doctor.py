"""`hpc-ewc doctor [SWEEP]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hpc_ewc.cli.options import OptionalPath
from hpc_ewc.launch.doctor.doctor import doctor


@dataclass(frozen=True)
class Settings:
    """Check whether this machine or cluster is ready to run jobs: one line per finding, and what to do about it.

    On a cluster it submits one job on at most two nodes, for a few minutes.

    Exit status: 0 ready, 1 something must be fixed, 2 the profile or the experiment cannot be read.
    """

    sweep: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP]")] = None
    """An experiment: check also that its resources are granted and its inputs are in the cache."""
    profile: OptionalPath = None
    """Where jobs are to run, such as slurm/lumi.toml; absent: this machine."""
    quick: bool = False
    """Submit no job; check only what the login node can tell."""
    json: bool = False
    """Print JSON, for programs."""


def run(settings: Settings) -> int:
    """Check the machine or cluster; return the exit status."""
    return doctor(settings.profile, settings.sweep, quick=settings.quick, as_json=settings.json)
