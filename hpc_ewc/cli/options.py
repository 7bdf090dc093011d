"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalNumber = Annotated[int | None, tyro.conf.arg(metavar="N")]
OptionalStage = Annotated[str | None, tyro.conf.arg(metavar="STAGE")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Sweep = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP")]
Yes = Annotated[bool, tyro.conf.arg(aliases=["-y"])]


@dataclass(frozen=True)
class SubmitOptions:
    """Where jobs run and where files go: the options that `submit` and `evaluate` have in common."""

    profile: OptionalPath = None
    """Where and how jobs run, such as slurm/local.toml; absent: this machine."""
    runs: OptionalPath = None
    """Folder that holds the run folders; absent: the profile's, else ./runs."""
    out: OptionalPath = None
    """Folder of the tables, such as results/NAME; absent: RUNS/NAME/report."""
    dry_run: bool = False
    """Show what is done and what is missing, its cost, and on Slurm the batch scripts; write nothing."""
    yes: Yes = False
    """Do not ask before submitting more than max_gpu_hours."""
