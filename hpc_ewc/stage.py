"""The stage that a worker runs: its inputs, requests to stop, progress, and its end, done or failed.

`done.json` is written last, by rename: a stage is done if and only if it exists. `failed.json` says why it is not.
Launcher and worker communicate only through files and signals, so every command of a job can be repeated by hand.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hpc_ewc import records
from hpc_ewc.config import Experiment, load_experiment
from hpc_ewc.errors import ArtefactError
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import Done, Failure

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
PROGRESS_EVERY_S = 1.0
_heard: list[int] = []
"""Signals that arrived before the stage was opened."""


def listen_early() -> None:
    """Record signals for the stage that will be opened later; a worker calls it first.

    USR1 kills a process that has no handler, and a worker's imports take seconds.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: _heard.append(number))


class Stage:
    """A stage, read from the folder that `submit` prepared (stage.json, config.toml).

    Args:
        folder: of the artefact, such as runs/paper/train/strength=1e+06-3f2a9c1b77de.
        element: name of this array element, if several jobs make the artefact together.
        kind: the stage it must be, such as "train"; None: any.

    Raises:
        ArtefactError: stage.json is missing, corrupt, not written by hpc-ewc, or of another stage.
    """

    def __init__(self, folder: Path | str, element: str = "0", kind: str | None = None) -> None:
        self.dir = StageDir(Path(folder).absolute())
        try:
            facts = records.read_checked(self.dir.stage_json, "stage")
        except FileNotFoundError:
            raise ArtefactError(f"{self.dir.path}: no stage.json; not a folder that `hpc-ewc submit` made") from None
        self.element = element
        self.name: str = facts["stage"]
        if kind is not None and kind != self.name:
            own = f"run `python -m hpc_ewc.worker {self.name}`"
            raise ArtefactError(f"{self.dir.path}: its stage is {self.name}, not {kind}: {own}")
        self.run: str = facts["run"]
        self.key: str = facts["key"]
        self.inputs: dict[str, Any] = facts["inputs"]
        self.coordinates: dict[str, Any] = facts["coordinates"]
        self.expected: list[str] = facts["expected"]
        self.config: Experiment = load_experiment(self.dir.config_toml)
        self.rank = int(os.environ.get("RANK", "0"))
        self.job_id = os.environ.get("HPC_EWC_JOB_ID", f"local-{os.getpid()}")
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._stop_file = os.environ.get("HPC_EWC_STOP_FILE")
        self._parent = os.getppid()
        self._signalled = False
        self._written_at = 0.0

    # ------------------------------------------------------------------------------------------ stop

    def listen(self) -> None:
        """Treat USR1, USR2, TERM and INT as a request to stop, including those that `listen_early` recorded."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        self._signalled = self._signalled or bool(_heard)
        _heard.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def stop_requested(self) -> bool:
        """Return whether this process should stop: a signal, the job's stop file, or the end of its parent.

        Ranks may see the request at different steps: they agree by an all-reduce (MAX) before any of them leaves.
        """
        if self._signalled or os.getppid() != self._parent:
            return True
        return self._stop_file is not None and Path(self._stop_file).exists()

    # ------------------------------------------------------------------------------------------ progress

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        """Report how far this element is: rank 0 writes progress/<element>.json at most once a second, and at the end.

        Args:
            done: amount done, out of `total`, in `unit`s; both include the work of earlier attempts.
            total: 0 if not known yet.
            unit: for instance "step", "document", "cell".
            fields: rate, eta_s, loss and so on: finite numbers or text. A non-finite number is left out.
        """
        now = time.time()
        if self.rank != 0 or (now - self._written_at < PROGRESS_EVERY_S and done < total):
            return
        self._written_at = now
        finite = {key: value for key, value in fields.items() if value == value and abs(_number(value)) != float("inf")}
        line = {"schema": records.SCHEMA, "done": done, "total": total, "unit": unit, **finite, "updated": now}
        line |= {"job_id": self.job_id, "restart": self.restart, "node": socket.gethostname()}
        records.write_json(self.dir.progress(self.element), line)

    # ------------------------------------------------------------------------------------------ end

    def is_done(self) -> bool:
        """Return whether `done.json` exists with this key, and its outputs have their sizes."""
        return records.read_done(self.dir.done, self.key) is not None

    def finish(self, outputs: Sequence[Path], **summary: Any) -> None:
        """Write `done.json`, as the last file, unless it exists. Call it on one rank.

        Args:
            outputs: files in the stage's folder; their sizes and SHA-256 are recorded.
            summary: facts that `status` and the report show without opening the outputs.
        """
        if self.dir.done.exists():
            return
        listed = {str(p.relative_to(self.dir.path)): [p.stat().st_size, records.sha256_file(p)] for p in outputs}
        done: Done = {
            "schema": records.SCHEMA,
            "key": self.key,
            "job_id": self.job_id,
            "restart": self.restart,
            "finished_at": time.time(),
            "outputs": listed,
            "summary": summary,
        }
        records.write_json(self.dir.done, done)
        self.dir.failed.unlink(missing_ok=True)

    def fail(self, error: BaseException, samples: Sequence[int] | None = None) -> None:
        """Write `failed.json`, unless another rank of this attempt has: later failures follow from the first."""
        if self.dir.failed.exists() and self._is_of_this_attempt():
            return
        facts: Failure = {
            "schema": records.SCHEMA,
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
            "rank": self.rank,
            "element": self.element,
            "node": socket.gethostname(),
            "job_id": self.job_id,
            "restart": self.restart,
            "samples": list(samples) if samples is not None else None,
        }
        records.write_json(self.dir.failed, facts)

    def _is_of_this_attempt(self) -> bool:
        with suppress(ArtefactError, FileNotFoundError):
            failed = records.read_checked(self.dir.failed, "failed")
            return (failed.get("job_id"), failed.get("restart")) == (self.job_id, self.restart)
        return False

    def forget_failure(self) -> None:
        """Remove the `failed.json` of an earlier attempt of this element. Rank 0 calls it at the start."""
        with suppress(ArtefactError, FileNotFoundError):
            failed = records.read_checked(self.dir.failed, "failed")
            if failed.get("element", self.element) != self.element or self._is_of_this_attempt():
                return
        self.dir.failed.unlink(missing_ok=True)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Write an exception raised inside, and its `samples` attribute, to `failed.json`, and re-raise it."""
        if self.rank == 0:
            self.forget_failure()
        try:
            yield
        except Exception as error:
            try:
                self.fail(error, getattr(error, "samples", None))
            except OSError as unwritten:  # a full disk, for instance: the original error must still be raised
                sys.stderr.write(f"{self.dir.failed}: cannot be written: {unwritten}\n")
            raise

    # ------------------------------------------------------------------------------------------ manifest

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Write `manifest.json`: the facts needed to trust or repeat this artefact."""
        records.write_json(
            self.dir.manifest_json, {"schema": records.SCHEMA, "stage": self.name, "run": self.run, **facts}
        )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
