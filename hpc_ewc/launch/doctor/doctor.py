"""`hpc-ewc doctor`: whether a machine or cluster is ready for jobs, one line per finding, each with its fix.

The checks follow the order of a submit and change nothing, except for a temporary folder where run folders go. On a
cluster they include one small job, which Ctrl-C cancels.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.config import load_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.doctor.findings import Finding, fail
from hpc_ewc.launch.doctor.free_space import check_folders
from hpc_ewc.launch.doctor.machine import check_inputs, check_machine
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, load_profile


def doctor(profile: Path | None, sweep: Path | None, *, quick: bool, as_json: bool) -> int:
    """Check everything that jobs of a profile need.

    Args:
        profile: of a machine or cluster; None: this machine.
        sweep: an experiment whose inputs and resources are checked too.
        quick: submit no job; check only what the login node can see.
        as_json: print JSON at the end instead of a line per finding.

    Returns:
        0 ready, 1 a check failed.

    Raises:
        ConfigError: the profile or the experiment cannot be read.
    """
    loaded = load_profile(profile)
    found = []
    for finding in _checks(loaded, sweep, quick=quick):
        found.append(finding)
        if not as_json:  # each at once: the job may take minutes
            sys.stdout.write(finding.render())
            sys.stdout.flush()
    failures = sum(finding.state == "fail" for finding in found)
    status = 1 if failures else 0
    if as_json:
        facts = {"schema": records.SCHEMA, "profile": str(profile or "local")}
        facts |= {"findings": [dataclasses.asdict(finding) for finding in found], "exit_status": status}
        sys.stdout.write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(f"{f'{failures} to fix' if failures else 'ready'}: {profile or 'this machine'}\n")
    return status


def _checks(profile: Profile, sweep: Path | None, *, quick: bool) -> Iterator[Finding]:
    experiment = load_experiment(sweep) if sweep else None
    runs = local_path(profile.runs or "runs")
    yield from check_placeholders(profile)
    if profile.executor == "slurm":
        from hpc_ewc.launch.doctor.cluster import check_cluster

        yield from check_cluster(profile, experiment, runs, quick=quick)
    else:
        yield from check_machine(profile, experiment, quick=quick)
    yield from check_folders(runs)
    yield from check_inputs(sweep, experiment)


def check_placeholders(profile: Profile) -> Iterator[Finding]:
    """Check that the user has filled in the values that a shipped profile cannot know."""
    try:
        check_filled_in(profile)
    except ConfigError as error:
        keys = str(error).removeprefix(f"{profile.where}: ").partition(":")[0]
        yield fail("profile", f"{keys}: not filled in yet", f"edit {profile.where}; its comments explain each key")
