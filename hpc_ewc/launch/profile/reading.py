"""Read and check profiles, `slurm/*.toml`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_ewc.config import STAGES, build_resources, build_section, load_toml
from hpc_ewc.errors import ConfigError, did_you_mean
from hpc_ewc.launch.profile.keys import SECTIONS, Profile, SlurmConfig, StageConfig
from hpc_ewc.node.container import ContainerConfig
from hpc_ewc.node.environment import SECRETS


def load_profile(path: Path | str | None) -> Profile:
    """Return the checked profile in a TOML file; for None this machine with all its cores and no GPU.

    Raises:
        ConfigError: the file, a key or a value is wrong, or keys contradict each other.
    """
    return Profile() if path is None else build_profile(load_toml(Path(path)), str(path))


def build_profile(table: Mapping[str, Any], where: str) -> Profile:
    """Return the profile that a table describes; `where` is the file that errors name."""
    scalars = {f.name for f in dataclasses.fields(Profile)} - {*SECTIONS, "resources", "where"}
    known = [*scalars, *SECTIONS, "resources"]
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}")
    for key in (*SECTIONS, "resources"):
        if not isinstance(table.get(key, {}), dict):
            raise ConfigError(f"{where}: '{key}' must be a table [{key}], not {table[key]!r}")
    slurm, setup = _take_setup(table.get("slurm", {}), where)
    stages = _take_stages(slurm, where)
    tables = {name: table.get(name, {}) for name in SECTIONS} | {"slurm": slurm}
    sections = {name: build_section(cls, tables[name], name, where) for name, cls in SECTIONS.items()}
    sections["slurm"] = dataclasses.replace(sections["slurm"], setup=setup, stage=stages)
    resources = build_resources(table.get("resources", {}), where)
    top = build_section(Profile, {key: table[key] for key in table if key in scalars}, "profile", where)
    profile: Profile = dataclasses.replace(top, **sections, resources=resources, where=where)
    _check_together(profile, table, where)
    return profile


def _take_setup(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return [slurm] without `setup`, and `setup`: as it is shell, it alone may contain control characters."""
    rest = dict(table)
    setup = rest.pop("setup", [])
    if not isinstance(setup, list) or not all(isinstance(line, str) and "\0" not in line for line in setup):
        raise ConfigError(f"{where}: slurm.setup = {setup!r}: must be a list of shell lines")
    return rest, tuple(setup)


def _take_stages(slurm: dict[str, Any], where: str) -> dict[str, StageConfig]:
    """Remove `stage` from [slurm] and return its tables [slurm.stage.<stage>]."""
    tables = slurm.pop("stage", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{where}: 'slurm.stage' must be tables [slurm.stage.<stage>], not {tables!r}")
    found = {}
    for stage, values in tables.items():
        if stage not in STAGES:
            raise ConfigError(f"{where}: unknown table 'slurm.stage.{stage}'{did_you_mean(stage, STAGES)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: 'slurm.stage.{stage}' must be a table, not {values!r}")
        found[stage] = build_section(StageConfig, values, f"slurm.stage.{stage}", where)
    return found


def _check_together(profile: Profile, table: Mapping[str, Any], where: str) -> None:
    other = "slurm" if profile.executor == "local" else "local"
    for name in (other, "container") if profile.executor == "local" else (other,):
        if name in table:
            raise ConfigError(f'{where}: [{name}] has no meaning with executor = "{profile.executor}"; take it out')
    for name in profile.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"{where}: env.{name!r}: not a name of an environment variable")
        if name in SECRETS or re.search(r"TOKEN$|PASSWORD|SECRET|API_KEY", name):
            raise ConfigError(
                f"{where}: env.{name}: jobs work offline and get no tokens, since scripts and logs are read by others; "
                "take it out"
            )
    if bool(profile.container.runtime) != bool(profile.container.image):
        raise ConfigError(f"{where}: container.runtime and container.image go together; set both or neither")
    if profile.executor == "slurm":
        _check_slurm(profile, where)
        for stage, resources in profile.resources.items():
            check_time(stage, resources.time_min, profile, where)


FILL_IN = "FILL IN"
"""Placeholder in the shipped profiles for values that only the user knows."""


def check_filled_in(profile: Profile) -> None:
    """Raise ConfigError if a value of a shipped profile is still a placeholder."""
    values = {f"slurm.{f.name}": getattr(profile.slurm, f.name) for f in dataclasses.fields(SlurmConfig)}
    values |= {f"container.{f.name}": getattr(profile.container, f.name) for f in dataclasses.fields(ContainerConfig)}
    values |= {"runs": profile.runs, "python": profile.python, "env": profile.env}
    open_keys = [key for key, value in values.items() if FILL_IN in str(value)]
    if open_keys:
        raise ConfigError(f"{profile.where}: {', '.join(open_keys)}: not filled in yet; see the comments in the file")


RESERVED = {
    "array": "the elements set it",
    "chdir": "jobs run in the run folder",
    "comment": "it has the token by which a submit finds its jobs",
    "cpus-per-task": "set resources.<stage>.cpus_per_task",
    "dependency": "the graph sets it",
    "error": "logs are in jobs/",
    "export": "jobs inherit a fixed list of variables; env adds to it",
    "gpus-per-node": "set resources.<stage>.gpus_per_node",
    "job-name": "a submit finds its jobs by it",
    "kill-on-invalid-dep": "dependants of a failed job must leave the queue",
    "mem": "set resources.<stage>.mem_gb",
    "no-requeue": 'set continuation = "chain"',
    "nodes": "set resources.<stage>.nodes",
    "ntasks": "one task runs on each node",
    "ntasks-per-node": "one task runs on each node",
    "open-mode": "a requeued job appends to its log",
    "output": "logs are in jobs/",
    "requeue": 'set continuation = "requeue"',
    "signal": "set signal_delay_s",
    "time": "set resources.<stage>.time_min",
    "wrap": "the script is generated",
}
"""Flags of sbatch that a profile cannot set, each with the reason or the key to set instead."""
OWN_KEYS = ("partition", "account", "qos", "constraint", "exclude", "gres", "exclusive")


def _check_slurm(profile: Profile, where: str) -> None:
    """Check values of a batch script: submitit quotes them, but sbatch reads quotes differently from a shell."""
    slurm = profile.slurm
    tables = {"slurm": slurm} | {f"slurm.stage.{name}": own for name, own in slurm.stage.items()}
    for label, part in tables.items():
        for flag in part.sbatch or ():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", flag):
                raise ConfigError(f"{where}: {label}.sbatch.{flag!r}: not a long flag of sbatch, such as reservation")
            if flag in RESERVED or flag in OWN_KEYS:
                reason = RESERVED.get(flag, f"set slurm.{flag}")
                raise ConfigError(f"{where}: {label}.sbatch.{flag}: reserved, {reason}; take it out")
        values = {key: getattr(part, key) for key in (*OWN_KEYS, "cpu_bind")}
        values |= {f"sbatch.{flag}": value for flag, value in (part.sbatch or {}).items()}
        for key, value in values.items():
            if isinstance(value, str) and re.search(r"""["'\\`$#]""", value):
                raise ConfigError(
                    f"{where}: {label}.{key} = {value!r}: quotes, backslash, backquote, $ and # are not "
                    "allowed in a value of sbatch; take them out"
                )


def check_time(stage: str, time_min: int | None, profile: Profile, where: str) -> None:
    """Raise ConfigError if a job has no time to start before it is told to stop.

    USR2 kills a job that has not installed its handler yet, which takes up to a minute.
    """
    least = profile.slurm.signal_delay_s + 180
    if time_min is not None and time_min * 60 < least:
        raise ConfigError(
            f"{where}: resources.{stage}.time_min = {time_min}: allowed is at least {-(-least // 60)}, "
            f"slurm.signal_delay_s = {profile.slurm.signal_delay_s} and 180 s to start"
        )
