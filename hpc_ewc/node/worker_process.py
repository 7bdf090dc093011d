"""Starts a worker, or torchrun with its ranks, in a session of its own.

Signals of a terminal and of Slurm reach the launcher alone, which turns them into a stop file, seen by every rank
wherever it runs, and USR2 to the ranks of its node. USR2 is ignored until a rank has its handler (an ignored signal
stays ignored through exec), so that a rank that is still importing does not die of it.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hpc_ewc.process import children, die_with_parent, send


class WorkerProcess:
    """A running worker.

    Args:
        command: its command line.
        environment: all of its environment.
        logs: folder for its stdout.log and stderr.log, or one .log file for both; None: this process's own streams.
        torchrun: the command is torchrun, and its children are the ranks.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], logs: Path | None, *, torchrun: bool):
        self.torchrun, self.stop_sent = torchrun, False
        with _open_logs(logs) as (out, err):
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_before_exec,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def request_stop(self) -> None:
        """Send USR2 to the ranks of this node, once: the stop file exists."""
        if not self.stop_sent:
            self.stop_sent = True
            for rank in children(self.pid) if self.torchrun else [self.pid]:
                send(rank, signal.SIGUSR2)


@contextmanager
def _open_logs(path: Path | None) -> Iterator[tuple[IO[bytes] | None, IO[bytes] | None]]:
    if path is None:
        yield None, None
        return
    stdout, stderr = (path, path) if path.suffix == ".log" else (path / "stdout.log", path / "stderr.log")
    stdout.parent.mkdir(parents=True, exist_ok=True)
    with stdout.open("ab") as out, stderr.open("ab") as err:
        yield out, err


def _before_exec() -> None:
    """In the child: end with the launcher (torchrun ends its ranks on TERM), and ignore USR2 until a handler is set."""
    die_with_parent()
    for number in (signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)
