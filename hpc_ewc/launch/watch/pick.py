"""One run picked out of an experiment by any unique prefix of its name, or by a stage that has one run."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.show.view import Row


def pick(rows: Sequence[Row], run: str, stage: str | None) -> list[Row]:
    """The rows of the one run that is named, of one stage or of all: "strength=1", "0123", "fisher", "report".

    Raises:
        ConfigError: no run is called or begins so, or several are.
    """
    mine = [row for row in rows if stage is None or row.stage == stage]
    if not mine:
        known = ", ".join(dict.fromkeys(row.stage for row in rows))
        raise ConfigError(f"--stage {stage}: this experiment has {known}")
    exact = [row for row in mine if row.run == run]
    if exact:
        return exact
    begun = [row for row in mine if run and row.run.startswith(run)]
    found = begun or [row for row in mine if row.stage == run]
    names = list(dict.fromkeys(row.run for row in found))
    if len(names) == 1:
        return found
    if names:
        what = f"several runs begin with {run!r}" if begun else f"{run!r} has several runs"
        raise ConfigError(f"{what}: {', '.join(names)}")
    listed = ", ".join(dict.fromkeys(_listed(row) for row in mine))
    raise ConfigError(f"no run begins with {run!r}; there are: {listed}")


def _listed(row: Row) -> str:
    """Its name; a key alone says nothing to a person."""
    return f"{row.run} ({row.stage})" if row.stage in ("tokens", "fisher") else row.run or row.stage
