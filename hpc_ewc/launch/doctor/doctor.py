"""`hpc-ewc doctor`: is this machine, or this cluster, ready for jobs; a line a finding, and what to do about it.

It looks at what a submit would meet, in the order in which it would meet it, and changes nothing but a folder of its
own in the run folder's place, which it removes. On a cluster it submits one small job, which it cancels on Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from hpc_ewc import records
from hpc_ewc.config import load_experiment
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.doctor.findings import Finding, wrong
from hpc_ewc.launch.doctor.machine import check_folders, check_inputs, check_machine
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, load_profile

READY, NOT_READY = 0, 1
WIDTH = 16


def check_gaps(profile: Profile) -> Iterator[Finding]:
    """A shipped profile has values that only the user knows; until they are there, nothing else can be right."""
    try:
        check_filled_in(profile)
    except ConfigError as error:
        keys = str(error).removeprefix(f"{profile.where}: ").partition(":")[0]
        yield wrong("profile", f"{keys}: still to be filled in", f"edit {profile.where}; its comments say with what")


def doctor(profile: Path | None, sweep: Path | None, quick: bool, as_json: bool) -> int:
    """Look at everything that jobs of this profile need.

    Args:
        profile: of a machine or cluster; None: this machine.
        sweep: an experiment, whose inputs must be in the cache and whose resources must be granted.
        quick: no job: what the login node alone can tell.
        as_json: for programs; else lines as they come.

    Returns:
        0 ready, 1 something is wrong.

    Raises:
        ConfigError: the profile or the experiment cannot be read.
    """
    loaded = load_profile(profile)
    experiment = load_experiment(sweep) if sweep else None
    runs = local_path(loaded.runs or "runs")

    def checks() -> Iterator[Finding]:
        yield from check_gaps(loaded)
        if loaded.executor == "slurm":
            from hpc_ewc.launch.doctor.cluster import check_cluster

            yield from check_cluster(loaded, experiment, runs, quick)
        else:
            yield from check_machine(loaded, experiment, quick)
        yield from check_folders(runs)
        yield from check_inputs(sweep, experiment)

    found = list(checks() if as_json else shown(checks(), sys.stdout))
    status = NOT_READY if any(finding.state == "wrong" for finding in found) else READY
    if as_json:
        listed = [{"check": f.check, "state": f.state, "text": f.text, "fix": f.fix} for f in found]
        facts = {"schema": records.SCHEMA, "profile": str(profile or "local"), "findings": listed}
        sys.stdout.write(json.dumps(facts | {"exit_status": status}, ensure_ascii=False, indent=1) + "\n")
    else:
        n = sum(finding.state == "wrong" for finding in found)
        sys.stdout.write(f"{f'{n} to put right' if n else 'ready'}: {profile or 'this machine'}\n")
    return status


def shown(findings: Iterable[Finding], stream: TextIO) -> Iterator[Finding]:
    """Each finding, printed as soon as it is there: a job may take minutes."""
    for finding in findings:
        stream.write(render(finding))
        stream.flush()
        yield finding


def render(finding: Finding) -> str:
    """`ok     torch             2.13.0`, and what to do on a line of its own."""
    start = f"{finding.state:<9}  {finding.check:<{WIDTH}}"
    lines = [f"{start}  {finding.text}"]
    lines += [f"{'':<{len(start)}}  → {finding.fix}"] if finding.fix else []
    return "\n".join(lines) + "\n"
