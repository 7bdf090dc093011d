"""Selecting one run of an experiment by a unique prefix of its name, or by a stage that has a single run."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.show.rows import Row


def select_run(rows: Sequence[Row], run: str, stage: str | None) -> list[Row]:
    """The rows of one run, in one stage or in all: "strength=1", "0123", "fisher", "report".

    Raises:
        ConfigError: no run matches, or several do.
    """
    candidates = [row for row in rows if stage in (None, row.stage)]
    if not candidates:
        raise ConfigError(f"--stage {stage}: this experiment has {', '.join(dict.fromkeys(r.stage for r in rows))}")
    exact = [row for row in candidates if row.run == run]
    if exact:
        return exact
    prefixed = [row for row in candidates if run and row.run.startswith(run)]
    found = prefixed or [row for row in candidates if row.stage == run]
    names = list(dict.fromkeys(row.run for row in found))
    if len(names) == 1:
        return found
    if names:
        what = f"several runs begin with {run!r}" if prefixed else f"{run!r} has several runs"
        raise ConfigError(f"{what}: {', '.join(names)}")
    raise ConfigError(f"no run begins with {run!r}; there are: {', '.join(dict.fromkeys(map(_label, candidates)))}")


def _label(row: Row) -> str:
    """The run's name, with its stage where the name is only a key."""
    return f"{row.run} ({row.stage})" if row.stage in ("tokens", "fisher") else row.run or row.stage
