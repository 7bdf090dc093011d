"""Processes of this machine, told apart from others that came to have the same pid."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process: a pid alone comes round again, with its start time it does not."""

    host: str
    pid: int
    started: str
    """Boot and clock ticks since."""

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it still runs, as far as this host can say: one of another host is taken to live."""
        return not self.is_here or (bool(self.started) and start_time(self.pid) == self.started)


def this_process() -> Process:
    return process(os.getpid())


def process(pid: int) -> Process:
    return Process(socket.gethostname(), pid, start_time(pid))


def start_time(pid: int) -> str:
    """When a process of this host started; "" if there is none, or only its remains (a zombie)."""
    fields = _stat(pid)
    return f"{_boot()}.{fields[19]}" if fields and fields[0] not in "ZX" else ""


def _stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from its third field on: the name before may hold spaces and brackets."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


@cache
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return ""


def children(pid: int) -> list[int]:
    """Direct children of a process, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, nearest first."""
    found: list[int] = []
    waiting = children(pid)
    while waiting:
        child = waiting.pop(0)
        found.append(child)
        waiting += children(child)
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL a process and everything under it, whatever groups and sessions they made for themselves.

    From the top: a parent that is gone starts no more.
    """
    for target in [pid, *descendants(pid)]:
        send(target, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Between fork and exec: this process gets TERM when its parent is gone, however that ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
