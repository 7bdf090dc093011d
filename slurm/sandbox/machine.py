"""Check the machine's requirements before anything starts; and remove cgroups that nodes leave behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from processes import PATH
from settings import SandboxError

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "srun", "sinfo", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
PROGRAMS_OF_DEBIAN = ("unshare", "nsenter", "mount", "hostname", "bash")
APT = "apt-get install --no-install-recommends slurm-wlm slurmdbd munge mariadb-server"
CGROUPS = Path("/sys/fs/cgroup")
FREEZER = CGROUPS / "freezer"


def check() -> None:
    """Check that a cluster can start on this machine.

    Raises:
        SandboxError: not root, packages missing, or no namespaces; the message says what to do.
    """
    if os.geteuid():
        raise SandboxError("needs root, for the nodes' namespaces and a slurmd that starts jobs: run it with sudo")
    missing = [name for name in (*PROGRAMS, *PROGRAMS_OF_DEBIAN) if shutil.which(name, path=PATH) is None]
    if missing:
        raise SandboxError(f"not installed: {', '.join(missing)}. On Debian 12 or newer:\n  {APT}")
    trial = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "hostname", "trial"]
    tried = subprocess.run(trial, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    if tried.returncode:
        raise SandboxError(
            f"nodes need namespaces of their own, which this machine refuses ({tried.stderr.strip()}); "
            "a container needs CAP_SYS_ADMIN: docker run --privileged"
        )


def choose_proctrack(wanted: str) -> str:
    """Resolve `auto`: cgroup if possible, otherwise linuxproc.

    Clusters use cgroup, and with it signals reach only a job's first process.

    Raises:
        SandboxError: cgroup was requested, and no hierarchy of version 1 is writable.
    """
    has_freezer = os.access(FREEZER / "cgroup.procs", os.W_OK)
    if wanted == "cgroup" and not has_freezer:
        raise SandboxError(
            f"--proctrack cgroup: {FREEZER} (cgroup version 1) is not writable, and version 2 needs a systemd that "
            "knows the nodes; omit the option or use linuxproc"
        )
    return ("cgroup" if has_freezer else "linuxproc") if wanted == "auto" else wanted


def remove_cgroups(names: Sequence[str]) -> None:
    """Remove the cgroups that proctrack/cgroup leaves of killed nodes."""
    tops = [top for name in names for top in CGROUPS.glob(f"*/slurm_{name}") if top.is_dir()]
    until = time.monotonic() + 5.0
    while tops:
        for top in tops:
            _remove_tree(top)
        tops = [top for top in tops if top.is_dir()]
        if time.monotonic() > until:
            raise SandboxError(f"cgroups {', '.join(map(str, tops))} are still in use")
        time.sleep(0.02 if tops else 0)


def _remove_tree(top: Path) -> None:
    """Remove a cgroup and those inside it, innermost first; cgroups with processes stay."""
    folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
    for folder in sorted(folders, reverse=True):
        with suppress(OSError):  # not even SIGKILL ends a frozen process
            if (folder / "freezer.state").exists():
                (folder / "freezer.state").write_text("THAWED")
        with suppress(OSError):
            folder.rmdir()
