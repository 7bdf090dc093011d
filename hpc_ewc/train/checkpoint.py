"""Checkpoints of a run: sharded, asynchronous, atomic, verified when read, the newest few kept.

checkpoints/<step>/  .metadata  __<rank>_<n>.distcp (torch's DCP)  done.json (sizes, sha256, position)

A checkpoint is written under a name of its own (`.<step>.<job_id>.<restart>`) and renamed when every rank's files
are on the disk and hashed. DCP's `.metadata` is a pickle, which runs code when it is read: so it is read only from a
folder of the same user that nobody else can write, after every hash was found right.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, StageError
from hpc_ewc.model.collective import raise_together
from hpc_ewc.rundir import StageDir

SHORT_WRITE = ("unexpected pos", "failed writing file")
"""What torch.save says of a file system that took fewer bytes than it was given; the OSError itself is lost there."""


class Checkpoints:
    """The checkpoints of one run. All public methods but `is_ready` are called by every rank.

    Args:
        stage_dir: of the run.
        key: of the training; another key's checkpoint is refused.
        attempt: part of the temporary name, one for each job and restart.
        keep: how many of the newest are kept.
        keep_every: those at multiples of this step are kept too.
    """

    def __init__(self, stage_dir: StageDir, key: str, attempt: str, keep: int, keep_every: int | None) -> None:
        names = [attempt]
        dist.broadcast_object_list(names, src=0)  # without a launcher each rank would name itself
        self.dir, self.key, self.attempt = stage_dir, key, names[0]
        self.keep, self.keep_every = keep, keep_every
        self.rank = dist.get_rank()
        self._saving: tuple[int, dict[str, Any], Future[dict[str, list[Any]]]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Its own group: a save runs beside training, and two threads in one group mix up their messages.
        self._group = dist.new_group(backend="gloo")

    # ------------------------------------------------------------------------------------------ write

    @property
    def is_saving(self) -> bool:
        return self._saving is not None

    def is_ready(self) -> bool:
        """This rank's part of the save that goes on is on the disk, or has failed. No collective."""
        return self._saving is not None and self._saving[2].done()

    def start(self, state: dict[str, Any], step: int, **position: Any) -> None:
        """Begin to save `state`: copied to the host's memory before this returns, written while training goes on.

        Raises:
            StageError: the folder cannot be made.
        """
        self.finish()
        beside = self._beside(step)
        error: OSError | None = None
        if self.rank == 0:
            try:
                shutil.rmtree(beside, ignore_errors=True)
                self.dir.checkpoints.mkdir(parents=True, exist_ok=True)
                beside.mkdir(mode=0o700)
            except OSError as caught:
                error = caught
        raise_together(None if error is None else _cannot_write(step, self.dir.checkpoints, error))
        written = async_save(state, checkpoint_id=str(beside), process_group=self._group)
        assert isinstance(written, Future)
        position = {"step": step, "parts": sorted(state), **position}
        self._saving = (step, position, self._thread.submit(self._hash_own_files, written, beside))

    def finish(self) -> None:
        """Wait for the save that goes on, if any, and make it count; then drop checkpoints that are not kept.

        Raises:
            StageError: it could not be written; older checkpoints are as they were.
        """
        if self._saving is None:
            return
        step, position, future = self._saving
        self._saving = None
        beside = self._beside(step)
        error: BaseException | None = None
        outputs: dict[str, list[Any]] = {}
        try:
            outputs = future.result()
        except (Exception, CheckpointException) as caught:  # DCP's own is no Exception
            error = _cannot_write(step, self.dir.checkpoints, caught)
        try:
            raise_together(error)
        except StageError:
            if self.rank == 0:
                shutil.rmtree(beside, ignore_errors=True)
            raise
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, outputs)
        if self.rank == 0:
            try:
                self._publish(step, position, {name: value for part in gathered for name, value in part.items()})
            except OSError as caught:
                error = _cannot_write(step, self.dir.checkpoints, caught)
        raise_together(error)

    def _beside(self, step: int) -> Path:
        place = self.dir.checkpoint(step)
        return place.with_name(f".{place.name}.{self.attempt}")

    def _hash_own_files(self, written: Future[Any], beside: Path) -> dict[str, list[Any]]:
        written.result()
        files = sorted(beside.glob(f"__{self.rank}_*"))
        if self.rank == 0:
            files.append(beside / ".metadata")
        return {file.name: [file.stat().st_size, records.sha256_file(file)] for file in files}

    def _publish(self, step: int, position: dict[str, Any], outputs: dict[str, list[Any]]) -> None:
        beside, place = self._beside(step), self.dir.checkpoint(step)
        done = {"schema": records.SCHEMA, "key": self.key, "finished_at": time.time()}
        records.write_json(beside / "done.json", done | {"outputs": dict(sorted(outputs.items())), "summary": position})
        if place.exists():  # a twin's, or a damaged one that this run has just made again
            _remove(place)
        beside.rename(place)
        records.flush_folder(place.parent)
        steps = self._steps()
        for old in steps[: -self.keep]:
            if not (self.keep_every and old % self.keep_every == 0):
                _remove(self.dir.checkpoint(old))

    # ------------------------------------------------------------------------------------------ read

    def load_newest(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Fill `state` in place from the newest checkpoint that is whole; its position, or None where there is none.

        A damaged one is named on stderr and the one before it is taken.

        Raises:
            StageError: a checkpoint that another user could have written, or of another model; on every rank.
        """
        if self.rank == 0:
            self._clean()
        steps = [self._steps() if self.rank == 0 else []]
        dist.broadcast_object_list(steps, src=0)
        for step in reversed(steps[0]):
            place = self.dir.checkpoint(step)
            raise_together(_fault_of_owner(place))
            position, fault = self._verify(place)
            if fault is None:
                try:
                    held = {part: state[part] for part in position["parts"]}
                    load(held, checkpoint_id=str(place), process_group=self._group)
                except CheckpointException as error:  # the same on every rank
                    raise StageError(f"{place}: is of another model or version: {_cause(error)}") from error
                return position
            if self.rank == 0:
                sys.stderr.write(
                    f"WARNING: {place}: checkpoint is damaged ({fault}); going back to the one before it\n"
                )
                sys.stderr.flush()
        return None

    def _verify(self, place: Path) -> tuple[dict[str, Any], str | None]:
        """The checkpoint's position, and what is wrong with it: each rank hashes its share of the files."""
        fault: str | None = None
        position: dict[str, Any] = {}
        try:
            done = records.read_done(place / "done.json", self.key)
            if done is None:
                raise ArtefactError(f"{place}: no done.json")
            position = done["summary"]
            for number, (name, (_, digest)) in enumerate(sorted(done["outputs"].items())):
                if number % dist.get_world_size() == self.rank and records.sha256_file(place / name) != digest:
                    fault = f"{name}: sha256 is not what done.json says"
        except (ArtefactError, OSError) as error:
            fault = str(error)
        faults: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(faults, fault)
        return position, next((text for text in faults if text is not None), None)

    def _steps(self) -> list[int]:
        if not self.dir.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.dir.checkpoints.iterdir() if path.name.isdigit())

    def _clean(self) -> None:
        """Remove what attempts that were killed have left half-written."""
        for folder in (self.dir.checkpoints, self.dir.exports):
            for path in folder.glob(".*") if folder.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True)

    def drop_before(self, step: int) -> None:
        """Remove the checkpoints of earlier steps. One rank calls it."""
        for old in self._steps():
            if old < step:
                _remove(self.dir.checkpoint(old))


def _fault_of_owner(place: Path) -> StageError | None:
    """Why a checkpoint must not be read: unpickling it would run what another user put there."""
    status = place.stat()
    if status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return None
    return StageError(
        f"{place}: belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}; a checkpoint is read only "
        "from a folder of your own that nobody else can write: copy it, or chmod go-w"
    )


def _remove(place: Path) -> None:
    """Take a checkpoint away so that no moment shows a half of it."""
    hidden = place.with_name(f".{place.name}.removed.{os.getpid()}")
    place.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _cannot_write(step: int, folder: Path, error: BaseException) -> StageError:
    """One clear line out of what DCP wraps around the error of the file system."""
    reason = _cause(error)
    if any(words in reason for words in SHORT_WRITE):
        reason = f"a write was cut short, as by a full disk or a quota [{reason[:80]}]"
    try:
        free = f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free there"
    except OSError:
        free = "the folder cannot be read"
    return StageError(
        f"checkpoint of step {step} could not be written to {folder}: {reason} ({free}); "
        "the last good checkpoint is as it was: make room, and submit again to go on from it"
    )


def _cause(error: BaseException) -> str:
    """What one rank met, on one line, out of the exception that DCP makes of all of theirs."""
    causes = [failure[0] for failure in getattr(error, "failures", {}).values()] or [error]
    cause = next((c for c in causes if isinstance(c, OSError)), causes[0])
    return " ".join(str(cause).split())[:300] or type(cause).__name__
