"""`hpc-ewc report RUN_FOLDER…`: the same as `python -m hpc_ewc.report`."""

from __future__ import annotations

from hpc_ewc.report.__main__ import Arguments as Settings
from hpc_ewc.report.__main__ import run_report as run

__all__ = ["Settings", "run"]
