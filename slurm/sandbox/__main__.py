"""Run a real Slurm cluster on this machine, to try Slurm out and for tests: munge, slurmdbd with MariaDB, slurmctld and
four nodes with two GPUs each (null devices, on which no program computes).

    python slurm/sandbox up                       start it, in seconds; run again to restart what died
    eval "$(python slurm/sandbox env)"            point sinfo, sbatch, hpc-ewc … at it, in this shell
    sinfo; srun -N2 hostname
    python -m examples.miniature                  make the files of the experiment, once
    hpc-ewc submit sweeps/miniature.toml --profile slurm/sandbox.toml
    python slurm/sandbox power-off node2          the job then continues on other nodes
    python slurm/sandbox down                     stop it and remove all its files

Do not use it in production: it runs as root, has no limits and keeps nothing. It needs root and Debian's packages
(apt-get install --no-install-recommends slurm-wlm slurmdbd munge mariadb-server).

Partitions: main (jobs are preempted after 15 s of grace), nograce (preempted at once), urgent (preempts both). A
requeued job starts again after about 10 s; Slurm notices a dead node after about 15 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cluster
import machine
import nodes
from settings import SandboxError, Settings, choose, default_state, load, make_state

COMMANDS = {
    "up": "start the cluster, or those parts of it that do not run",
    "down": "stop the cluster: end its processes, remove its cgroups and folder",
    "status": "show daemons, nodes and jobs; exit status 0 if healthy, otherwise 3",
    "env": 'print the environment for a shell: eval "$(python slurm/sandbox env)"',
    "power-off": "kill everything on a node, as a power loss does",
    "power-on": "start a node that is off",
    "kill-slurmd": "kill only a node's slurmd; its jobs keep running",
    "restart-slurmd": "start a node's slurmd again",
    "kill-daemon": "kill munged, mariadbd, slurmdbd or slurmctld; up starts it again",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return run(options)
    except SandboxError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python slurm/sandbox", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument(
            "--state", type=Path, metavar="DIR", help=f"folder of the cluster's files; default: {default_state()}"
        )
        if name == "up":
            command.add_argument("--nodes", type=int, metavar="N", help="1 to 16; default: 4")
            command.add_argument("--gpus", type=int, metavar="N", help="GPUs per node; default: 2")
            command.add_argument("--cpus", type=int, metavar="N", help="CPUs per node; default: half of this machine's")
            trackers = ("auto", "cgroup", "linuxproc")
            command.add_argument("--proctrack", choices=trackers, help="default: auto, cgroup if it is writable")
        if name == "down":
            command.add_argument(
                "--keep", action="store_true", help="keep the folder and its accounting for the next up"
            )
        if name in ("power-off", "power-on", "kill-slurmd", "restart-slurmd"):
            command.add_argument("name", metavar="NODE")
        if name == "kill-daemon":
            command.add_argument("name", metavar="DAEMON")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    state = Path.cwd() / (options.state or default_state())
    if options.command in ("env", "status"):
        return look(options.command, state)
    machine.check()
    with cluster.locked(state):
        if options.command == "up":
            start(options, state)
            return 0
        settings = load(state)
        if settings is None:
            if options.command != "down":
                raise SandboxError(f"no sandbox in {state}: python slurm/sandbox up")
            if state.is_dir():
                state.rmdir()
            return 0
        change(options, settings)
    return 0


def look(command: str, state: Path) -> int:
    settings = load(state)
    if settings is None:
        raise SandboxError(f"no sandbox in {state}: python slurm/sandbox up")
    if command == "env":
        sys.stdout.write(f"export SLURM_CONF={settings.conf}\n")
        return 0
    sys.stdout.write(cluster.describe(settings) + "\n")
    return 0 if cluster.is_healthy(settings) else 3


def start(options: argparse.Namespace, state: Path) -> None:
    began = time.monotonic()
    make_state(state)
    settings = load(state)
    if settings is None:
        settings = choose(
            state,
            default=state == default_state(),
            nodes=4 if options.nodes is None else options.nodes,
            gpus=2 if options.gpus is None else options.gpus,
            cpus=options.cpus,
            proctrack=machine.choose_proctrack(options.proctrack or "auto"),
        )
    else:
        check_same(options, settings)
    cluster.up(settings)
    sys.stderr.write(
        f"{len(settings.names)} nodes are ready ({time.monotonic() - began:.1f} s): {', '.join(settings.names)}\n"
    )


def check_same(options: argparse.Namespace, settings: Settings) -> None:
    """Check that the options agree with the running cluster, whose shape cannot change.

    Raises:
        SandboxError: an option differs from the cluster.
    """
    for name in ("nodes", "gpus", "cpus", "proctrack"):
        wanted, has = getattr(options, name), getattr(settings, name)
        if wanted not in (None, "auto", has):
            raise SandboxError(f"--{name} {wanted}: the sandbox in {settings.state} has {has}; down comes first")


def change(options: argparse.Namespace, settings: Settings) -> None:
    """Run a command other than `up` on an existing cluster."""
    match options.command:
        case "down":
            cluster.down(settings, options.keep)
        case "power-off":
            nodes.power_off(settings, options.name)
        case "power-on":
            nodes.power_on(settings, options.name)
            nodes.wait_for_nodes(settings, [options.name])
        case "kill-slurmd":
            nodes.kill_slurmd(settings, options.name)
        case "restart-slurmd":
            nodes.restart_slurmd(settings, options.name)
            nodes.wait_for_nodes(settings, [options.name])
        case "kill-daemon":
            cluster.kill_daemon(settings, options.name)


if __name__ == "__main__":
    sys.exit(main())
