"""`hpc-ewc cancel FOLDER [RUN]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from hpc_ewc.cli.options import OptionalStage, RunFolder, Yes
from hpc_ewc.launch.watch.cancel import cancel


@dataclass(frozen=True)
class Settings:
    """Make jobs save and stop; the next submit resumes them."""

    folder: RunFolder
    """The run folder, such as runs/miniature."""
    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Any unique prefix of the name of a run, or a stage with one run; absent: the whole experiment."""
    stage: OptionalStage = None
    """Only this stage of that run, or of all runs."""
    yes: Yes = False
    """Do not ask."""


def run(settings: Settings) -> int:
    """Cancel jobs; return the exit status."""
    return cancel(settings.folder, settings.run, settings.stage, yes=settings.yes)
