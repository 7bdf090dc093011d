"""Checkpoints of a training: sharded, asynchronous, atomic, verified when read; the newest few are kept.

checkpoints/<step>/  .metadata  __<rank>_<n>.distcp (torch's DCP)  done.json (sizes, sha256, position)

A checkpoint is written under a temporary name (`.<step>.<job_id>.<restart>`) and renamed when every rank's files are
on the disk and hashed. DCP's `.metadata` is a pickle, and reading a pickle runs code: so it is read only from a folder
of the same user that nobody else can write, after every hash was found right.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, StageError
from hpc_ewc.ewc.sharding.ranks import gather_objects
from hpc_ewc.model.collective import raise_together
from hpc_ewc.rundir import StageDir
from hpc_ewc.schemas import CheckpointPosition

SHORT_WRITE = ("unexpected pos", "failed writing file")
"""torch.save's messages when a file system took fewer bytes than it was given; it loses the OSError itself."""

State = dict[str, Any]
"""{"model": {fqn: tensor}, "optimizer": {moment: {fqn: tensor}}}: sharded tensors, read and written in place."""
Outputs = dict[str, list[Any]]
"""{file: [size, sha256]}"""


class Checkpoints:
    """The checkpoints of one training. Every rank calls the public methods, except `is_ready` and `drop_before`.

    Args:
        stage_dir: of the training.
        key: of the training; a checkpoint with another key is refused.
        attempt: part of the temporary name, one for each job and restart.
        keep: the number of newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are kept too.
    """

    def __init__(self, stage_dir: StageDir, key: str, attempt: str, keep: int, keep_every: int | None) -> None:
        self.dir, self.key = stage_dir, key
        self.attempt = gather_objects(attempt)[0]  # without a launcher each rank has a name of its own
        self.keep, self.keep_every = keep, keep_every
        self.rank = dist.get_rank()
        self._saving: tuple[CheckpointPosition, Future[Outputs]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # a group of its own: a save runs beside training, and two threads in one group mix up their messages
        self._group = dist.new_group(backend="gloo")

    # ------------------------------------------------------------------------------------------ write

    @property
    def is_saving(self) -> bool:
        return self._saving is not None

    def is_ready(self) -> bool:
        """Returns whether this rank's part of the current save is on the disk or has failed. No collective."""
        return self._saving is not None and self._saving[1].done()

    def start(self, state: State, step: int, *, tokens: int, loss: float, seconds: float) -> None:
        """Copies `state` to the host's memory, and begins to write it while training continues.

        Raises:
            StageError: on every rank: the folder cannot be made.
        """
        self.finish()
        temporary = self._temporary(step)

        def make_folder() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            self.dir.checkpoints.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)

        self._on_rank_zero(step, make_folder)
        written = async_save(state, checkpoint_id=str(temporary), process_group=self._group)
        assert isinstance(written, Future)
        position: CheckpointPosition = {
            "step": step,
            "parts": sorted(state),
            "tokens": tokens,
            "loss": loss,
            "seconds": seconds,
        }
        self._saving = (position, self._thread.submit(self._hash_own_files, written, temporary))

    def finish(self) -> None:
        """Waits for the current save, if any, and publishes it; then removes checkpoints that are not kept.

        Raises:
            StageError: on every rank: it could not be written; older checkpoints are intact.
        """
        if self._saving is None:
            return
        position, future = self._saving
        self._saving = None
        step = position["step"]
        error: BaseException | None = None
        outputs: Outputs = {}
        try:
            outputs = future.result()
        except (Exception, CheckpointException) as caught:  # CheckpointException is no Exception
            error = _cannot_write(step, self.dir.checkpoints, caught)
        try:
            raise_together(error)
        except StageError:
            if self.rank == 0:
                shutil.rmtree(self._temporary(step), ignore_errors=True)
            raise
        all_outputs = {name: facts for part in gather_objects(outputs) for name, facts in part.items()}
        self._on_rank_zero(step, lambda: self._publish(position, all_outputs))

    def _on_rank_zero(self, step: int, write: Callable[[], None]) -> None:
        """Runs `write` on rank 0; every rank raises its OSError, as a StageError."""
        error: StageError | None = None
        if self.rank == 0:
            try:
                write()
            except OSError as caught:
                error = _cannot_write(step, self.dir.checkpoints, caught)
        raise_together(error)

    def _temporary(self, step: int) -> Path:
        place = self.dir.checkpoint(step)
        return place.with_name(f".{place.name}.{self.attempt}")

    def _hash_own_files(self, written: Future[Any], temporary: Path) -> Outputs:
        written.result()
        files = sorted(temporary.glob(f"__{self.rank}_*"))
        if self.rank == 0:
            files.append(temporary / ".metadata")
        return {file.name: [file.stat().st_size, records.sha256_file(file)] for file in files}

    def _publish(self, position: CheckpointPosition, outputs: Outputs) -> None:
        temporary, place = self._temporary(position["step"]), self.dir.checkpoint(position["step"])
        done = {"schema": records.SCHEMA, "key": self.key, "finished_at": time.time()}
        done |= {"outputs": dict(sorted(outputs.items())), "summary": position}
        records.write_json(temporary / "done.json", done)
        if place.exists():  # written by a second job of this run, or a damaged one that this job has replaced
            _remove(place)
        temporary.rename(place)
        records.flush_folder(place.parent)
        for old in self._steps()[: -self.keep]:
            if not (self.keep_every and old % self.keep_every == 0):
                _remove(self.dir.checkpoint(old))

    # ------------------------------------------------------------------------------------------ read

    def load_newest(self, state: State) -> CheckpointPosition | None:
        """Fills `state` in place from the newest complete checkpoint and returns its position; None without one.

        A damaged checkpoint is named on stderr, and the one before it is read. Collectives: object all-gathers, and
        DCP's.

        Raises:
            StageError: on every rank: another user could have written a checkpoint, or it belongs to another model.
        """
        if self.rank == 0:
            self._clean()
        for step in reversed(gather_objects(self._steps() if self.rank == 0 else [])[0]):
            place = self.dir.checkpoint(step)
            raise_together(_owner_error(place))
            position, fault = self._verify(place)
            if position is not None and fault is None:
                try:
                    parts = {part: state[part] for part in position["parts"]}
                    load(parts, checkpoint_id=str(place), process_group=self._group)
                except CheckpointException as error:  # the same on every rank
                    raise StageError(f"{place}: belongs to another model or version: {_cause(error)}") from error
                return position
            if self.rank == 0:
                sys.stderr.write(f"WARNING: {place}: checkpoint is damaged ({fault}); reading the one before it\n")
                sys.stderr.flush()
        return None

    def _verify(self, place: Path) -> tuple[CheckpointPosition | None, str | None]:
        """Returns the position and the first fault that a rank finds; each rank hashes its share of the files."""
        fault: str | None = None
        position: CheckpointPosition | None = None
        try:
            done = records.read_done(place / "done.json", self.key)
            if done is None:
                raise ArtefactError(f"{place}: no done.json")
            position = cast(CheckpointPosition, done["summary"])
            for number, (name, (_, digest)) in enumerate(sorted(done["outputs"].items())):
                if number % dist.get_world_size() == self.rank and records.sha256_file(place / name) != digest:
                    fault = f"{name}: sha256 is not what done.json says"
        except (ArtefactError, OSError) as error:
            fault = str(error)
        return position, next((text for text in gather_objects(fault) if text is not None), None)

    def _steps(self) -> list[int]:
        if not self.dir.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.dir.checkpoints.iterdir() if path.name.isdigit())

    def _clean(self) -> None:
        """Removes what killed attempts left incomplete."""
        for folder in (self.dir.checkpoints, self.dir.exports):
            for path in folder.glob(".*") if folder.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True)

    def drop_before(self, step: int) -> None:
        """Removes the checkpoints of earlier steps. One rank calls it."""
        for old in self._steps():
            if old < step:
                _remove(self.dir.checkpoint(old))


def _owner_error(place: Path) -> StageError | None:
    """Returns an error for a checkpoint that another user could have written, since unpickling it runs code."""
    status = place.stat()
    if status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return None
    return StageError(
        f"{place}: belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}; a checkpoint is read only "
        "from a folder of your own that nobody else can write: copy it, or chmod go-w"
    )


def _remove(place: Path) -> None:
    """Removes a checkpoint such that no incomplete one is ever visible."""
    hidden = place.with_name(f".{place.name}.removed.{os.getpid()}")
    place.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _cannot_write(step: int, folder: Path, error: BaseException) -> StageError:
    """Returns one clear line instead of what DCP wraps around the error of the file system."""
    reason = _cause(error)
    if any(words in reason for words in SHORT_WRITE):
        reason = f"a write was cut short, as by a full disk or a quota [{reason[:80]}]"
    try:
        free = f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free there"
    except OSError:
        free = "the folder cannot be read"
    return StageError(
        f"checkpoint of step {step} could not be written to {folder}: {reason} ({free}); "
        "the last checkpoint is intact: free space, and resubmit to resume from it"
    )


def _cause(error: BaseException) -> str:
    """Returns one rank's error, on one line, from DCP's exception for all ranks."""
    causes = [failure[0] for failure in getattr(error, "failures", {}).values()] or [error]
    cause = next((c for c in causes if isinstance(c, OSError)), causes[0])
    return " ".join(str(cause).split())[:300] or type(cause).__name__
