"""A whole cluster up, down, and looked at."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import configuration
import machine
import nodes
from daemons import DAEMONS, ctld_answers, start_mariadbd, start_munged, start_slurmctld, start_slurmdbd
from processes import ask, end, marked, pid_of
from settings import SandboxError, Settings, is_free, with_free_ports


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """One command at a time for one folder. The lock file lies beside the folder and goes with the last command."""
    path = state.with_name(f".{state.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its last holder removed it while we waited
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def up(settings: Settings) -> None:
    """Start whatever of the cluster does not run; where all of it does, nothing changes.

    Raises:
        SandboxError: a daemon does not start; with the tail of its log.
    """
    if is_healthy(settings):
        return
    if not marked(settings) and not all(map(is_free, settings.ports)):  # taken since it died
        settings = with_free_ports(settings)
    settings.save()
    configuration.write_all(settings)
    start_munged(settings)
    start_mariadbd(settings)
    start_slurmdbd(settings)
    for name in settings.names:
        if pid_of(settings, name) is None:
            nodes.power_on(settings, name)
        else:
            nodes.restart_slurmd(settings, name)
    start_slurmctld(settings)
    nodes.wait_for_nodes(settings, settings.names)


def is_healthy(settings: Settings) -> bool:
    """Every daemon lives and answers, every node is there."""
    if not all(pid_of(settings, name) for name in (*DAEMONS, *settings.names)):
        return False
    return ctld_answers(settings) and nodes.are_ready(settings, settings.names)


def down(settings: Settings, keep: bool) -> None:
    """End everything, and leave no trace; with `keep`, the folder stays, with its accounting, for the next `up`."""
    if keep:
        ask(settings, "scancel", "--user=root", timeout_s=10.0)
    for name in settings.names:
        nodes.power_off(settings, name)
    if keep:  # in an order that lets each write down what it knows
        for daemon in reversed(DAEMONS):
            pid = pid_of(settings, daemon)
            end([pid] if pid else [], signal.SIGTERM, 20.0)
    end(marked(settings))
    machine.remove_cgroups(settings.names)
    if not keep:
        shutil.rmtree(settings.state)


def describe(settings: Settings) -> str:
    """What runs, and what Slurm thinks of it."""
    lines = [f"{'daemon':<12} {'pid':>8}"]
    lines += [f"{name:<12} {pid_of(settings, name) or 'dead':>8}" for name in DAEMONS]
    asked = pid_of(settings, "slurmctld") is not None  # Slurm's commands try a dead one for long
    seen = nodes.states(settings) if asked else {}
    lines += ["", f"{'node':<12} {'pid':>8} {'slurmd':>8}  state"]
    for name in settings.names:
        slurmd = nodes.slurmd_pids(settings, name)
        facts = (pid_of(settings, name) or "off", slurmd[0] if slurmd else "dead", seen.get(name, "unknown"))
        lines.append(f"{name:<12} {facts[0]:>8} {facts[1]:>8}  {facts[2]}")
    jobs = ask(settings, "squeue", "-h", "-o", "%T").stdout.split() if asked else ["unknown"]
    counted = ", ".join(f"{jobs.count(state)} {state.lower()}" for state in sorted(set(jobs)))
    lines += ["", f"jobs: {counted or 'none'}", f"files: {settings.state}; proctrack/{settings.proctrack}"]
    return "\n".join(lines)


def kill_daemon(settings: Settings, name: str) -> None:
    """End one of the four daemons as a crash would; `up` starts it again.

    Raises:
        SandboxError: there is no such daemon.
    """
    if name not in DAEMONS:
        raise SandboxError(f"no daemon {name!r}: {', '.join(DAEMONS)}; for a node's see kill-slurmd")
    pid = pid_of(settings, name)
    if pid is not None:
        end([pid])
