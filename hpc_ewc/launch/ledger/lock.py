"""submit.lock: one submit at a time for a run folder."""

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
    """Hold `submit.lock`: created with O_EXCL, which shared file systems honour where they do not honour flock.

    Raises:
        SubmitError: another submit holds it, or its folder cannot be made.
    """
    me = this_process()
    made = [folder for folder in (root.root, *root.root.parents) if not folder.exists()]
    try:
        root.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubmitError(f"{root.root}: cannot be made: {error.strerror}; name another folder by --runs") from None
    while True:
        try:
            descriptor = os.open(root.lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            _clear_stale(root)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"host": me.host, "pid": me.pid, "started": me.started, "at": time.time()}, file)
    try:
        yield
    finally:
        if lock_holder(root) == me:
            root.lock.unlink(missing_ok=True)
        for folder in made:  # a submit that was refused leaves nothing; a folder that holds something stays
            with suppress(OSError):
                folder.rmdir()


def lock_holder(root: RunDir) -> Process | None:
    """Who holds the lock; None if nobody does, or what it holds cannot be read."""
    return _holder_in(root.lock)


def _holder_in(path: Path) -> Process | None:
    try:
        facts = records.read_json(path)
        return Process(facts["host"], int(facts["pid"]), facts["started"])
    except (FileNotFoundError, ArtefactError, KeyError, TypeError, ValueError):
        return None


def _clear_stale(root: RunDir) -> None:
    """Remove the lock of a process of this host that is gone.

    Raises:
        SubmitError: its holder lives, or cannot be asked.
    """
    holder = lock_holder(root)
    if holder is None:
        time.sleep(0.5)  # being written this moment, or its writer was killed between creating and writing it
        holder = lock_holder(root)
    if holder is None:
        if root.lock.exists():
            raise SubmitError(
                f"{root.lock}: another submit is starting, or was killed at its start; if none is, remove it"
            )
        return
    if holder.is_alive():
        hint = (
            "" if holder.is_here else f"; whether it lives cannot be seen from here: if it does not, remove {root.lock}"
        )
        raise SubmitError(f"{root.root}: another submit is at work: pid {holder.pid} on {holder.host}{hint}")
    # Two who find it stale at once must not both remove it, the second one the first one's new lock.
    aside = root.lock.with_name(f"{root.lock.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        root.lock.rename(aside)
        if _holder_in(aside) != holder:
            with suppress(FileExistsError):
                root.lock.hardlink_to(aside)
        aside.unlink()
