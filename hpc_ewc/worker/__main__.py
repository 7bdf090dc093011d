"""`python -m hpc_ewc.worker tokens|fisher|train|evaluate DIR …`: the programs that run inside a job.

Each can be started by hand; fisher and train also under torchrun, to which `record` reports the first rank's traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from hpc_ewc.errors import HpcEwcError
from hpc_ewc.stage import listen_early

STAGES = ("tokens", "fisher", "train", "evaluate")
OTHERS = ("prefetch",)
"""Programs that a command on a login node starts in a process of its own, because they import heavy packages."""


def main(arguments: Sequence[str]) -> int:
    """Runs one stage's worker and returns its exit status; an error of this package is one line on stderr."""
    if not arguments or arguments[0] not in (*STAGES, *OTHERS):
        sys.stderr.write(f"usage: python -m hpc_ewc.worker {'|'.join(STAGES)} DIR …\n")
        return 2
    module = importlib.import_module(f"hpc_ewc.worker.{arguments[0]}")
    try:
        return int(module.main(list(arguments[1:])) or 0)
    except HpcEwcError as error:
        if _under_torchrun():
            raise  # its report names the error of the first rank that failed
        sys.stderr.write(f"{type(error).__name__}: {error}\n")  # failed.json has the traceback
        return 1


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def run() -> int:
    """Runs `main`, recorded for torchrun if there is one, so that a failing import is reported too."""
    if sys.argv[1:2] and sys.argv[1] in STAGES:
        listen_early()  # `record` imports torch
    if not _under_torchrun():
        return main(sys.argv[1:])
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(main)(sys.argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(run())
