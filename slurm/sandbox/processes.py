"""Start the processes of a sandbox with a mark in their environment, find them by it, and wait for them.

The mark is the state folder. Only daemons carry it: jobs have the environment of sbatch, and a shell that uses the
cluster through `env` has no mark. So `down` never ends more than the cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from settings import SandboxError, Settings

MARK = "HPC_EWC_SANDBOX"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 15


def client_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of Slurm's commands: this cluster, and no variables of a job that the caller runs in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH_", "SRUN_"))}
    return kept | {"SLURM_CONF": str(settings.conf), "PATH": f"{PATH}:{os.environ.get('PATH', '')}"}


def spawn(settings: Settings, daemon: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground of a new session and record its pid."""
    environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "SLURM_CONF": str(settings.conf)}
    with settings.log(daemon).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment | {MARK: str(settings.state)},
            cwd="/",
            start_new_session=True,
        )
    settings.pid_file(daemon).write_text(f"{process.pid}\n")
    return process


def pid_of(settings: Settings, daemon: str) -> int | None:
    """Return the pid of a running daemon; None if there is none, or if its pid now belongs to another process."""
    with suppress(OSError, ValueError):
        pid = int(settings.pid_file(daemon).read_text())
        if is_alive(pid) and is_marked(pid, settings):
            return pid
    return None


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def is_marked(pid: int, settings: Settings) -> bool:
    try:
        return f"{MARK}={settings.state}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def marked(settings: Settings) -> list[int]:
    """Return the pids of all running processes of the sandbox."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if is_marked(pid, settings) and is_alive(pid)]


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def end(pids: list[int], number: signal.Signals = signal.SIGKILL, timeout_s: float = 10.0) -> None:
    """Send a signal, wait for the processes to end, and kill those that exceed the time limit.

    Raises:
        SandboxError: a process survives SIGKILL.
    """
    for sent, limit in ((number, timeout_s), (signal.SIGKILL, 10.0)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, sent)
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if not any(map(is_alive, pids)):
                return
            time.sleep(0.02)
    raise SandboxError(f"processes {[pid for pid in pids if is_alive(pid)]} survive SIGKILL")


def wait_until(ready: Callable[[], bool], what: str, log: Path, timeout_s: float = 30.0, every_s: float = 0.05) -> None:
    """Poll until `ready` returns true.

    Raises:
        SandboxError: the time limit is over; the message has the tail of the log.
    """
    until = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > until:
            raise SandboxError(f"{what} after {timeout_s:.0f} s.\n{tail(log)}")
        time.sleep(every_s)


def wait_for_daemon(
    process: subprocess.Popen[bytes] | None, ready: Callable[[], bool], daemon: str, settings: Settings
) -> None:
    """Wait until a daemon answers; fail at once if it ended.

    Raises:
        SandboxError: the daemon ended or does not answer; the message has the tail of its log.
    """

    def check() -> bool:
        if process is not None and process.poll() is not None:
            raise SandboxError(
                f"{daemon} ended with status {process.returncode} at its start.\n{tail(settings.log(daemon))}"
            )
        return ready()

    wait_until(check, f"{daemon} does not answer", settings.log(daemon))


def tail(log: Path) -> str:
    """Return the last lines of a log, below its name."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        lines = []
    return "\n".join([f"{log}:", *(f"  {line}" for line in lines or ["(nothing)"])])


def ask(settings: Settings, *command: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands on this cluster; a failure is returned, not raised."""
    environment = client_environment(settings)
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout_s:.0f} s")
