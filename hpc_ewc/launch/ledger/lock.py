"""submit.lock: one submit at a time in a run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, SubmitError
from hpc_ewc.process import Process, this_process
from hpc_ewc.rundir import RunDir


@contextmanager
def submit_lock(root: RunDir) -> Iterator[None]:
    """Hold `submit.lock`, created with O_EXCL, which shared file systems honour even if they do not honour flock.

    filelock's SoftFileLock does the same, but takes over a file in another format than its own after two seconds: it
    would break the lock of a submit that another version of hpc-ewc started.

    Raises:
        SubmitError: another submit holds the lock, or the run folder cannot be made.
    """
    me = this_process()
    made = [folder for folder in (root.root, *root.root.parents) if not folder.exists()]
    try:
        root.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubmitError(f"{root.root}: cannot be made: {error.strerror}; name another folder by --runs") from None
    while True:
        try:
            file = root.lock.open("x")
            break
        except FileExistsError:
            _remove_stale(root)
    with file:
        json.dump({"host": me.host, "pid": me.pid, "started": me.started, "at": time.time()}, file)
    try:
        yield
    finally:
        if lock_holder(root) == me:
            root.lock.unlink(missing_ok=True)
        for folder in made:  # a submit that was refused leaves nothing behind; folders with contents stay
            with suppress(OSError):
                folder.rmdir()


def lock_holder(root: RunDir) -> Process | None:
    """The process that holds the lock; None if there is none, or the file cannot be read."""
    return _read_holder(root.lock)


def _read_holder(path: Path) -> Process | None:
    with suppress(FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
        facts = records.read_json(path)
        return Process(facts["host"], int(facts["pid"]), facts["started"])
    return None


def _remove_stale(root: RunDir) -> None:
    """Remove the lock of a dead process of this host.

    Raises:
        SubmitError: its holder is alive, or may be.
    """
    holder = lock_holder(root)
    if holder is None:
        time.sleep(0.5)  # it is being written at this moment, or its writer was killed before it could
        holder = lock_holder(root)
    if holder is None:
        if root.lock.exists():
            raise SubmitError(
                f"{root.lock}: another submit is starting, or was killed while starting; if none is running, delete it"
            )
        return
    if holder.is_alive():
        hint = "" if holder.is_here else f"; this host cannot tell whether it is alive: if not, delete {root.lock}"
        raise SubmitError(f"{root.root}: another submit is running: pid {holder.pid} on {holder.host}{hint}")
    # Of two that find it stale at once, the second must not remove the first one's new lock.
    aside = root.lock.with_name(f"{root.lock.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        root.lock.rename(aside)
        if _read_holder(aside) != holder:
            with suppress(FileExistsError):
                root.lock.hardlink_to(aside)
        aside.unlink()
