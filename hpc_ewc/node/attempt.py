"""One attempt of a job: signals become a stop file, the worker hears of it, and the exit file says how it ended.

A local job (local_attempt.py) and a job on Slurm (slurm_attempt.py) share this. It runs as submitit's task in the
host's Python and imports no torch.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.outcome import read_outcome
from hpc_ewc.node.worker_process import WorkerProcess

POLL_S = 0.2


class Attempt:
    """One attempt of a job on this machine.

    Args:
        job: runs/NAME/jobs/<job_id>.
        restart: number of the attempt.
    """

    def __init__(self, job: Path, restart: int) -> None:
        self.job, self.restart = job, restart
        self.stop_file = rundir.stop_file(job, restart)
        self.exit_file = rundir.exit_file(job, restart)
        self.signals: set[int] = set()
        """Signals that this process has received."""

    def handle_signals(self) -> None:
        """From now on USR2 and TERM request a stop."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.add(number)
        self.request_stop(signal.Signals(number).name)

    def request_stop(self, reason: str) -> None:
        """Write the stop file, unless it exists or the attempt has ended."""
        if not self.stop_file.exists() and read_outcome(self.exit_file) is None:
            with suppress(OSError):  # a full or lost file system: on Slurm the ranks still get Slurm's own signal
                self.stop_file.write_text(reason)

    def run_worker(
        self, command: Sequence[str], environment: Mapping[str, str], logs: Path | None, *, torchrun: bool
    ) -> int:
        """Run one worker to its end and return its exit status; arguments as in `WorkerProcess`."""
        worker = WorkerProcess(command, environment, logs, torchrun=torchrun)
        while (status := worker.poll()) is None:
            self.forward_stop(worker)
            time.sleep(POLL_S)
        return status

    def forward_stop(self, worker: WorkerProcess) -> None:
        """Tell the worker to stop once the stop file exists."""
        if self.stop_file.exists():
            worker.request_stop()

    def write_exit(self, status: int | None, **facts: Any) -> None:
        """Write the exit file, for the other nodes and for whoever looks at the job later."""
        common = {"status": status, "stopped": self.stop_file.exists(), "ended_at": time.time()}
        with warn_if_unwritable(self.exit_file):
            records.write_json(self.exit_file, common | facts)


@contextmanager
def warn_if_unwritable(path: Path) -> Iterator[None]:
    """Print an error of writing `path`, on a full disk say, and go on: it must not hide what was to be written."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"{path}: cannot be written: {error}\n")


def poll_until(limit_s: float, every_s: float = POLL_S) -> Iterator[None]:
    """Yield every `every_s` seconds until `limit_s` seconds have passed."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        yield
        time.sleep(every_s)
