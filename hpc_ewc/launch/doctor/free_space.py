"""Whether run folders and cache can be written and have free space, within the user's quota."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_ewc import rundir
from hpc_ewc.launch.doctor.findings import Finding, fail, ok, warn

LEAST_BYTES, SCARCE_BYTES = 1 << 30, 20 << 30
LEAST_FILES, SCARCE_FILES = 1_000, 50_000


@dataclass(frozen=True)
class FreeSpace:
    """Bytes and files that this user may still write; infinite where the file system does not say."""

    bytes: float = math.inf
    files: float = math.inf
    source: str = ""
    """" of your quota" if the user has one."""

    def is_below(self, size: float, files: float) -> bool:
        return self.bytes < size or self.files < files


def check_folders(runs: Path) -> Iterator[Finding]:
    for name, folder in (("runs", runs), ("cache", rundir.cache_dir())):
        error = write_error(folder)
        if error:
            key = "`runs` of the profile" if name == "runs" else "HPC_EWC_CACHE"
            yield fail(name, f"{folder}: {error}", f"set {key} to another folder")
        else:
            yield check_free_space(name, folder, free_space(folder))


def check_free_space(name: str, folder: Path, free: FreeSpace) -> Finding:
    amounts = [f"{free.bytes / 1e9:,.0f} GB" if math.isfinite(free.bytes) else ""]
    amounts += [f"{free.files:,} files" if math.isfinite(free.files) else ""]
    known = " and ".join(filter(None, amounts))
    text = f"{folder}: {f'{known} free{free.source}' if known else 'free space unknown'}"
    if free.is_below(LEAST_BYTES, LEAST_FILES):
        return fail(name, text, "delete files or set another folder: jobs fail when it is full")
    if free.is_below(SCARCE_BYTES, SCARCE_FILES):
        return warn(name, text, "a checkpoint of a 2B model takes 30 GB; see submit --dry-run")
    return ok(name, text)


def write_error(folder: Path) -> str:
    """Why the folder, or its nearest parent that exists, cannot be written; "" if it can."""
    parent = nearest_existing(folder)
    probe = parent / f".hpc_ewc-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        return f"{parent}: {error.strerror or error}"
    return ""


def nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def free_space(folder: Path) -> FreeSpace:
    """The least of what the file system has free and what the user's quota leaves."""
    place = nearest_existing(folder)
    stat = os.statvfs(place)
    size, files = stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else math.inf
    left = quota(place) or FreeSpace()
    return FreeSpace(min(size, left.bytes), min(files, left.files), left.source)


def quota(place: Path) -> FreeSpace | None:
    """The rest of the user's quota, from `lfs quota` (Lustre) or `quota`; None if neither reports a limit."""
    user = str(os.getuid())
    for command in (["lfs", "quota", "-q", "-u", user, str(place)], ["quota", "-w", "-p", "-u", user]):
        if shutil.which(command[0]) is None:
            continue
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=os.environ | {"LC_ALL": "C"})
            found = parse_quota(done.stdout, place)
            if found is not None:
                return found
    return None


def parse_quota(text: str, place: Path) -> FreeSpace | None:
    """Parse `<file system> kbytes quota limit grace files quota limit grace`, as both commands print it.

    Of several file systems, the deepest that contains the folder counts; a limit of 0 means none.
    """
    best, depth = None, -1
    for line in re.sub(r"\n\s+(?=\d)", " ", text).splitlines():  # a long name is on a line of its own
        name, *fields = line.replace("*", "").split() or [""]
        if len(fields) < 7 or not (fields[0].isdigit() and fields[2].isdigit()) or len(name) <= depth:
            continue
        if name.startswith("/") and not name.startswith("/dev/") and not place.is_relative_to(name):
            continue
        used_kb, limit_kb, files, file_limit = (int(fields[i]) if fields[i].isdigit() else 0 for i in (0, 2, 4, 6))
        if limit_kb or file_limit:
            size = max(0, limit_kb - used_kb) * 1024 if limit_kb else math.inf
            best = FreeSpace(size, max(0, file_limit - files) if file_limit else math.inf, " of your quota")
            depth = len(name)
    return best
