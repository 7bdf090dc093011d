"""`hpc-ewc logs FOLDER RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from hpc_ewc.cli.options import OptionalNumber, OptionalStage, RunFolder
from hpc_ewc.launch.watch.logs import logs


@dataclass(frozen=True)
class Settings:
    """Show what a run printed; the error first, if it failed."""

    folder: RunFolder
    """The run folder, such as runs/miniature."""
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Any unique prefix of the name of a run, or of a key of tokens or Fisher; or a stage with one run: report."""
    stage: OptionalStage = None
    """tokens, fisher, train or evaluate; absent: the one that failed, else one that runs, else the last."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Print new lines as they are written, until the job ends."""
    rank: OptionalNumber = None
    """Only this rank."""
    element: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """Only this element of an array, by its number or its job id."""
    restart: OptionalNumber = None
    """Only this attempt of a job that Slurm started again, from 0; absent: the last."""


def run(settings: Settings) -> int:
    """Show what a run printed; return the exit status."""
    return logs(
        settings.folder,
        settings.run,
        stage=settings.stage,
        follow=settings.follow,
        rank=settings.rank,
        element=settings.element,
        restart=settings.restart,
    )
