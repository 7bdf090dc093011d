"""Processes of this machine, told apart from later ones with the same pid."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType


@dataclass(frozen=True)
class Process:
    """A process: its pid may be given again, its pid and start time together are not."""

    host: str
    pid: int
    started: str
    """Boot id and clock ticks since the boot."""

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it still runs. This host cannot tell for a process of another host, which counts as alive."""
        return not self.is_here or (bool(self.started) and start_time(self.pid) == self.started)


def this_process() -> Process:
    return process(os.getpid())


def process(pid: int) -> Process:
    return Process(socket.gethostname(), pid, start_time(pid))


def start_time(pid: int) -> str:
    """When a process of this host started; "" if it is gone or a zombie.

    psutil's `create_time` adds the wall clock's boot time, so that it changes when the clock is set; this does not.
    """
    with suppress(OSError):
        # the fields after the name, which may contain spaces and brackets itself
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{_boot_id()}.{fields[18]}" if state not in "ZX" else ""
    return ""


@cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return ""


def children(pid: int, *, recursive: bool = False) -> list[int]:
    """Children of a process, or with `recursive` all its descendants, parents first."""
    import psutil  # here, since few commands need it

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=recursive)]
    return []


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, whatever process groups and sessions they are in.

    From the top: a dead parent starts no more children.
    """
    for target in [pid, *children(pid, recursive=True)]:
        send(target, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


@contextmanager
def signal_handler(handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Handle these signals by `handler` inside, and as before afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Make this process get TERM when its parent dies, however that ends; call it between fork and exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
