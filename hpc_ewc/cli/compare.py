"""`hpc-ewc compare A B [RUN_FOLDER…]`: the same as `python -m hpc_ewc.report compare`."""

from __future__ import annotations

from hpc_ewc.report.__main__ import CompareArguments as Settings
from hpc_ewc.report.__main__ import run_compare as run

__all__ = ["Settings", "run"]
