"""The sandbox as its user drives it, and what a test asks of the cluster in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True)
class Sandbox:
    """One cluster by its state folder; started by `up`."""

    tool: Path
    state: Path

    def run(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """One command of the tool, whatever it answers."""
        command = [sys.executable, str(self.tool), arguments[0], *arguments[1:], "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)

    def do(self, *arguments: str) -> str:
        """One command of the tool that must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @cached_property
    def environment(self) -> dict[str, str]:
        """What `eval "$(… env)"` gives a shell that is not itself part of a job."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        (line,) = self.do("env").splitlines()
        name, _, value = line.removeprefix("export ").partition("=")
        return kept | {name: value}

    @property
    def nodes(self) -> list[str]:
        return self.slurm("sinfo", "-hN", "-p", "main", "-o", "%N").split()

    def slurm(self, *command: str) -> str:
        """What a command of Slurm prints; it must succeed."""
        done = self.ask(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def save_state(self) -> None:
        """Wait until slurmctld wrote down what it knows, as it does every few seconds.

        One that dies before forgets: a job that ended runs again, one that runs is started twice (and then held).
        """
        saved, now = self.state / "ctld" / "job_state", time.time()
        self.slurm("scancel", self.slurm("sbatch", "--parsable", "--hold", "-o/dev/null", "--wrap=true").strip())
        wait_for(lambda: saved.exists() and saved.stat().st_mtime > now, "slurmctld saves its state")

    def marked(self) -> list[int]:
        """Every process that carries the cluster's mark."""
        mark = f"HPC_EWC_SANDBOX={self.state}".encode()
        return [pid for pid in all_pids() if mark in read(pid, "environ").split(b"\0")]


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def read(pid: int, name: str) -> bytes:
    """A file of /proc; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def wait_for(
    look: Callable[[], Found], what: str, timeout_s: float = 300.0, every_s: float = 0.2, context: str = ""
) -> Found:
    """Poll until the answer is true, and return it."""
    until = time.monotonic() + timeout_s
    while not (answer := look()):
        assert time.monotonic() < until, f"not within {timeout_s:.0f} s: {what} {context}"
        time.sleep(every_s)
    return answer
