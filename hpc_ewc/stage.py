"""One artefact being made, seen from inside its job: what to make, whether to stop, how far, done or failed.

`done.json` is written last, by rename: a stage is done when it is there and not before. `failed.json` says why not.
Launcher and worker agree through files and signals alone, so any line of a job can be run again by hand.
"""

from __future__ import annotations

import os
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

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
PROGRESS_EVERY_S = 1.0
_heard: list[int] = []
"""Signals that came before a stage was there to take them."""


def listen_early() -> None:
    """Take signals from now on for the stage that is yet to be opened; the first thing a worker does.

    USR1 kills a process without a handler, and the imports of a worker take seconds.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: _heard.append(number))


class Stage:
    """The stage whose folder is `folder`, as `submit` wrote it (stage.json, config.toml).

    Args:
        folder: of the artefact, such as runs/paper/train/strength=1e+06-3f2a9c1b77de.
        element: name of this array element, where several jobs make one artefact together.
        kind: what it must be of, such as "train"; None: of any.

    Raises:
        ArtefactError: stage.json is missing, half-written, foreign or of another kind.
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
            own = f"`python -m hpc_ewc.worker {self.name}` makes it"
            raise ArtefactError(f"{self.dir.path}: of {self.name}, not of {kind}: {own}")
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
        """Take USR1, USR2, TERM and INT as a wish to stop, and one that `listen_early` has heard as well."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        self._signalled = self._signalled or bool(_heard)
        _heard.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def stop_requested(self) -> bool:
        """This process was asked to stop: by a signal, by the job's stop file, or because its parent is gone.

        Ranks may see it at different steps: they agree on it by an all-reduce (MAX) before any of them leaves.
        """
        if self._signalled or os.getppid() != self._parent:
            return True
        return self._stop_file is not None and Path(self._stop_file).exists()

    # ------------------------------------------------------------------------------------------ progress

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        """Say how far this element is. Rank 0 replaces progress/<element>.json at most once a second, and at the end.

        Args:
            done: of `total`, in `unit`s; both count the whole artefact, work of earlier attempts included.
            total: 0 where it is not known yet.
            unit: such as "step", "document", "cell".
            fields: such as rate, eta_s, loss; finite numbers or text. A non-finite number is left out.
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
        """`done.json` is there, of this key, and its outputs are whole in size."""
        return records.read_done(self.dir.done, self.key) is not None

    def finish(self, outputs: Sequence[Path], **summary: Any) -> None:
        """Write `done.json`, last of all, unless it is there. Call it on one rank.

        Args:
            outputs: files under the stage's folder; their sizes and sha256 are recorded.
            summary: what status and report want to know without opening the outputs.
        """
        if self.dir.done.exists():
            return
        listed = {str(p.relative_to(self.dir.path)): [p.stat().st_size, records.sha256_file(p)] for p in outputs}
        done = {"schema": records.SCHEMA, "key": self.key, "job_id": self.job_id, "restart": self.restart}
        done |= {"finished_at": time.time(), "outputs": listed, "summary": summary}
        records.write_json(self.dir.done, done)
        self.dir.failed.unlink(missing_ok=True)

    def fail(self, error: BaseException, samples: Sequence[int] | None = None) -> None:
        """Write `failed.json`; the first rank that fails is kept, since the others follow from it."""
        if self.dir.failed.exists() and self._is_of_this_attempt():
            return
        facts = {
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
        """Remove what an earlier attempt of this element left in `failed.json`. Rank 0 calls it at the start."""
        with suppress(ArtefactError, FileNotFoundError):
            failed = records.read_checked(self.dir.failed, "failed")
            if failed.get("element", self.element) != self.element or self._is_of_this_attempt():
                return
        self.dir.failed.unlink(missing_ok=True)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Whatever is raised inside is written to `failed.json` and raised on; `samples` of the error goes with it."""
        if self.rank == 0:
            self.forget_failure()
        try:
            yield
        except Exception as error:
            try:
                self.fail(error, getattr(error, "samples", None))
            except OSError as unwritten:  # a full disk, say: the error itself must still be the one that is seen
                sys.stderr.write(f"{self.dir.failed}: cannot be written: {unwritten}\n")
            raise

    # ------------------------------------------------------------------------------------------ manifest

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Write `manifest.json`: what a stranger needs to trust or repeat this artefact."""
        records.write_json(
            self.dir.manifest_json, {"schema": records.SCHEMA, "stage": self.name, "run": self.run, **facts}
        )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
