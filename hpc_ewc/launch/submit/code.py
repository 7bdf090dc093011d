"""A copy of the package for the jobs of a submission, so that editing the checkout does not change them half-way."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hpc_ewc
from hpc_ewc import records
from hpc_ewc.rundir import RunDir

PACKAGE = Path(hpc_ewc.__file__).parent
CACHE = "__pycache__"


def snapshot(root: RunDir) -> Path:
    """Copy the package into the run folder, once per hash of its files; return the folder for PYTHONPATH."""
    digest = code_hash()
    place = root.code(digest)
    if not (place / "code.json").is_file():
        beside = place.with_name(f".{digest}.{os.getpid()}")
        shutil.copytree(PACKAGE, beside / PACKAGE.name, ignore=shutil.ignore_patterns(CACHE))
        records.write_json(beside / "code.json", {"schema": records.SCHEMA, "hash": digest, **commit()})
        if place.is_dir():  # somebody removed a part of it
            shutil.rmtree(place)
        beside.rename(place)
    return place


def code_hash() -> str:
    """Return 12 hex digits of a sha256 over the names and contents of the package's files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and CACHE not in path.parts:
            digest.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> dict[str, Any]:
    """Return the git commit of the package's checkout, and whether its files differ; None outside a checkout."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(_git("status", "--porcelain", "--", str(PACKAGE)))}


def _git(*arguments: str) -> str | None:
    """Return git's answer; None without git or if the package is not tracked by it."""
    try:
        tracked = ["git", "-C", str(PACKAGE), "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(tracked, check=True, capture_output=True, timeout=20)
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
