"""Nodes: each has its own slurmd in its own pid, hostname and mount namespaces, and shares this machine's files.

The namespaces give a node its own name, an /etc/hosts with all nodes, and an end that takes all its processes along.
The first process of a pid namespace is the node; killing it is a power loss.
"""

from __future__ import annotations

from machine import remove_cgroups
from processes import arguments_of, ask, children, end, marked, pid_of, spawn, wait_until
from settings import SandboxError, Settings

GOOD = {"idle", "mixed", "allocated", "completing"}
# $1 name, $2 hosts, $3 slurm.conf. The shell stays as the namespace's init: it reaps, and survives its slurmd.
INIT = """
hostname "$1" && mount --bind "$2" /etc/hosts || exit 1
slurmd -D -N "$1" -f "$3" &
while :; do wait -n || sleep 0.5; done
"""


def power_on(settings: Settings, name: str) -> None:
    """Start a node that is off."""
    settings.number(name)
    if pid_of(settings, name) is not None:
        return
    remove_cgroups([name])  # left from an earlier start: slurmd would look for its jobs in them
    spaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    init = ["bash", "-c", INIT, "bash", name, str(settings.state / "etc" / "hosts"), str(settings.conf)]
    spawn(settings, name, [*spaces, *init])


def power_off(settings: Settings, name: str) -> None:
    """End every process of a node at once, as a power loss does; Slurm finds out by itself."""
    settings.number(name)
    pid = pid_of(settings, name)
    if pid is not None:
        inside = children(pid)
        end([*slurmd_pids(settings, name), *inside, pid])
    remove_cgroups([name])


def slurmd_pids(settings: Settings, name: str) -> list[int]:
    """Return the pids of a node's slurmd outside its namespace; its own pid file has the number inside."""
    found = [(pid, arguments_of(pid)) for pid in marked(settings)]
    return [pid for pid, words in found if words[:1] and words[0].endswith("slurmd") and name in words]


def kill_slurmd(settings: Settings, name: str) -> None:
    """Kill only a node's slurmd; its jobs keep running without it.

    Raises:
        SandboxError: no such node, or its slurmd does not run.
    """
    settings.number(name)
    pids = slurmd_pids(settings, name)
    if not pids:
        raise SandboxError(f"{name}: slurmd does not run")
    end(pids)


def restart_slurmd(settings: Settings, name: str) -> None:
    """Start the slurmd of a running node that lost it.

    Raises:
        SandboxError: no such node, or it is off.
    """
    settings.number(name)
    node = pid_of(settings, name)
    if node is None:
        raise SandboxError(f"{name} is off: power-on starts it")
    if slurmd_pids(settings, name):
        return
    (init,) = children(node)
    enter = ["nsenter", f"--target={init}", "--mount", "--uts", "--pid"]
    spawn(settings, f"{name}.slurmd", [*enter, "slurmd", "-D", "-N", name, "-f", str(settings.conf)])


def states(settings: Settings) -> dict[str, str]:
    """Return each node's state in slurmctld; "*" marks a node that does not answer."""
    listed = ask(settings, "sinfo", "-hN", "-o", "%N %T").stdout.splitlines()
    return {words[0]: words[1] for words in map(str.split, listed) if len(words) == 2}


def are_ready(settings: Settings, names: list[str]) -> bool:
    """Whether Slurm would start jobs on all these nodes."""
    seen = states(settings)
    return all(seen.get(name, "") in GOOD for name in names) and all(slurmd_pids(settings, name) for name in names)


def wait_for_nodes(settings: Settings, names: list[str]) -> None:
    """Wait until Slurm would start jobs on these nodes; resume those that it marked as down earlier."""

    def ready() -> bool:
        seen = states(settings)
        for name in names:
            if seen.get(name, "").rstrip("*") in ("down", "drained", "draining"):
                ask(settings, "scontrol", "update", f"NodeName={name}", "State=RESUME")
        return are_ready(settings, names)

    wait_until(ready, f"nodes {', '.join(names)} are not ready", settings.log(names[0]), 60.0, 0.1)
