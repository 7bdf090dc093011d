"""Start, stop and describe the whole cluster."""

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
    """Let one command at a time work on a folder. The lock file lies beside it; the last command removes it."""
    path = state.with_name(f".{state.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # the command before us removed it while we waited
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def up(settings: Settings) -> None:
    """Start those parts of the cluster that do not run.

    Raises:
        SandboxError: a daemon does not start; the message has the tail of its log.
    """
    if is_healthy(settings):
        return
    if not marked(settings) and not all(map(is_free, settings.ports)):  # taken since the cluster died
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
    """Whether every daemon runs and answers, and every node is ready."""
    if not all(pid_of(settings, name) for name in (*DAEMONS, *settings.names)):
        return False
    return ctld_answers(settings) and nodes.are_ready(settings, settings.names)


def down(settings: Settings, keep: bool) -> None:
    """Stop everything and remove the folder; `keep` keeps the folder and its accounting for the next `up`."""
    if keep:
        ask(settings, "scancel", "--user=root", timeout_s=10.0)
    for name in settings.names:
        nodes.power_off(settings, name)
    if keep:  # each daemon before those that it writes to
        for daemon in reversed(DAEMONS):
            pid = pid_of(settings, daemon)
            end([pid] if pid else [], signal.SIGTERM, 20.0)
    end(marked(settings))
    machine.remove_cgroups(settings.names)
    if not keep:
        shutil.rmtree(settings.state)


def describe(settings: Settings) -> str:
    """Return a text with daemons, nodes and their states in Slurm, and jobs."""
    lines = [f"{'daemon':<12} {'pid':>8}"]
    lines += [f"{name:<12} {pid_of(settings, name) or 'dead':>8}" for name in DAEMONS]
    asked = pid_of(settings, "slurmctld") is not None  # without slurmctld, Slurm's commands retry for a long time
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
    """Kill one of the four daemons, as in a crash; `up` starts it again.

    Raises:
        SandboxError: there is no such daemon.
    """
    if name not in DAEMONS:
        raise SandboxError(f"no daemon {name!r}: {', '.join(DAEMONS)}; for a node's see kill-slurmd")
    pid = pid_of(settings, name)
    if pid is not None:
        end([pid])
