"""What happens to an experiment on a cluster, one function a misfortune; each leaves the cluster whole again.

Only this experiment's processes and this sandbox's daemons are touched, found by their folders.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slurm.sandbox import Sandbox, all_pids, read
from tests.slurm.world import World

STAGES = ("tokens", "fisher", "train", "evaluate")
URGENT = ("-p", "urgent", "--exclusive", "-o/dev/null")


@dataclass(frozen=True)
class Victim:
    """One experiment on one cluster, and the dice."""

    world: World
    cluster: Sandbox
    dice: random.Random
    disk: Path | None = None
    """File system of the run folder that may be filled; None: not here."""

    def running(self) -> list[str]:
        """Ids of jobs that run; none while Slurm does not answer."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            return sorted(job.job_id for job in self.world.jobs() if job.state == "RUNNING")
        return []

    def processes(self, word: str) -> list[int]:
        """Of this experiment, with a word in their command line."""
        root = str(self.world.root.root).encode()
        lines = {pid: read(pid, "cmdline") for pid in all_pids()}
        return sorted(pid for pid, line in lines.items() if word.encode() in line.split(b"\0") and root in line)

    def wait(self, low: float, high: float) -> float:
        """Leave it so for a while."""
        seconds = round(self.dice.uniform(low, high), 1)
        time.sleep(seconds)
        return seconds


Facts = dict[str, Any]
Fault = Callable[[Victim], Facts]
"""What was done, or {} where there was nothing to do it to."""


def of_a_job(act: Callable[[Victim, str], Any]) -> Fault:
    """A fault of one running job."""

    def fault(victim: Victim) -> Facts:
        jobs = victim.running()
        if not jobs:
            return {}
        job = victim.dice.choice(jobs)
        done = act(victim, job)
        return {"job": job, "exit": done.returncode}

    return fault


def preempted(victim: Victim) -> Facts:
    """A job of a higher partition wants some nodes, or all."""
    nodes = victim.dice.randint(1, 4)
    wrap = f"sleep {victim.dice.randint(1, 8)}"
    done = victim.cluster.ask("sbatch", *URGENT, f"-N{nodes}", f"--wrap={wrap}")
    return {"nodes": nodes, "exit": done.returncode}


def rank_killed(victim: Victim) -> Facts:
    ranks = [(pid, stage) for stage in STAGES for pid in victim.world.ranks(stage)]
    if not ranks:
        return {}
    pid, stage = victim.dice.choice(sorted(ranks))
    return {"stage": stage, "killed": kill(pid)}


def launcher_killed(victim: Victim) -> Facts:
    """submitit's task on one node, in which our launcher runs: nobody is left to tell how the ranks ended."""
    launchers = victim.processes("submitit.core._submit")
    return {"killed": kill(victim.dice.choice(launchers))} if launchers else {}


def submit_killed(victim: Victim) -> Facts:
    """The login node dies while somebody submits."""
    command = victim.world.command(*victim.world.submit_arguments)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=victim.world.folder, env=victim.world.environment, **quiet)
    seconds = victim.wait(0.3, 4.0)
    killed = process.poll() is None
    process.kill()
    process.wait()
    return {"after_s": seconds, "killed": killed}


def power_lost(victim: Victim) -> Facts:
    node = victim.dice.choice(node_names(victim))
    victim.cluster.do("power-off", node)
    seconds = victim.wait(1, 25)  # shorter and longer than Slurm's time-out
    victim.cluster.do("power-on", node)
    return {"node": node, "for_s": seconds}


def slurmd_killed(victim: Victim) -> Facts:
    """The job lives on, watched by nobody."""
    node = victim.dice.choice(node_names(victim))
    killed = victim.cluster.run("kill-slurmd", node).returncode == 0
    seconds = victim.wait(1, 25)
    victim.cluster.do("restart-slurmd", node)
    return {"node": node, "killed": killed, "for_s": seconds}


def daemon_killed(daemon: str) -> Fault:
    def fault(victim: Victim) -> Facts:
        victim.cluster.do("kill-daemon", daemon)
        seconds = victim.wait(1, 15)
        victim.cluster.do("up")
        return {"for_s": seconds}

    return fault


def disk_filled(victim: Victim) -> Facts:
    if victim.disk is None:
        return {}
    filler = victim.disk / "filler"
    try:
        fill(filler)
        seconds = victim.wait(1, 12)
    finally:
        filler.unlink(missing_ok=True)
    return {"for_s": seconds}


FAULTS: dict[str, Fault] = {
    "preempted": preempted,
    "requeued": of_a_job(lambda victim, job: victim.cluster.ask("scontrol", "requeue", job)),
    "time limit near": of_a_job(lambda victim, job: victim.cluster.ask("scancel", "-s", "USR2", job)),
    "cancelled": of_a_job(lambda victim, job: victim.cluster.ask("scancel", job)),
    "rank killed": rank_killed,
    "launcher killed": launcher_killed,
    "submit killed": submit_killed,
    "power lost": power_lost,
    "slurmd killed": slurmd_killed,
    "slurmctld killed": daemon_killed("slurmctld"),
    "slurmdbd killed": daemon_killed("slurmdbd"),
    "mariadbd killed": daemon_killed("mariadbd"),
    "disk filled": disk_filled,
}


def node_names(victim: Victim) -> list[str]:
    """From the configuration: also while Slurm does not answer."""
    text = (victim.cluster.state / "etc" / "slurm.conf").read_text()
    return [line.split()[0].partition("=")[2] for line in text.splitlines() if line.startswith("NodeName=")]


def kill(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            os.fsync(file.fileno())
