"""`hpc-ewc status FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from hpc_ewc.cli.options import RunFolder
from hpc_ewc.launch.watch.status import status


@dataclass(frozen=True)
class Settings:
    """Show the state of an experiment, by stage and run.

    Exit status: 0 all done, 1 something failed and nothing runs any more, 2 not a run folder, 3 not finished.
    """

    folder: RunFolder
    """The run folder, such as runs/miniature."""
    watch: Annotated[bool, tyro.conf.arg(aliases=["-w"])] = False
    """Update it until nothing runs any more."""
    json: bool = False
    """Print JSON, for programs."""


def run(settings: Settings) -> int:
    """Show the state of an experiment; return the exit status."""
    return status(settings.folder, watch=settings.watch, as_json=settings.json)
