"""One run picked out of an experiment by any unique prefix of its name."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.graph import REPORT
from hpc_ewc.launch.view import Row


def pick(rows: Sequence[Row], run: str, stage: str | None) -> list[Row]:
    """The rows of the one run that a prefix names, of one stage or of all; `report` names the report.

    Raises:
        ConfigError: no run begins so, or several do.
    """
    if run == REPORT and stage in (None, REPORT):
        return [row for row in rows if row.stage == REPORT]
    mine = [row for row in rows if stage is None or row.stage == stage]
    if not mine:
        known = ", ".join(dict.fromkeys(row.stage for row in rows))
        raise ConfigError(f"--stage {stage}: this experiment has {known}")
    exact = [row for row in mine if row.run == run]
    if exact:
        return exact
    found = [row for row in mine if run and row.run.startswith(run)]
    names = list(dict.fromkeys(row.run for row in found))
    if len(names) == 1:
        return found
    listed = ", ".join(names or dict.fromkeys(row.run for row in mine if row.run))
    what = f"several runs begin with {run!r}: {listed}" if names else f"no run begins with {run!r}; there are: {listed}"
    raise ConfigError(what)
