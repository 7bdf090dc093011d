"""The package as it is at a submission, kept for its jobs: editing the checkout does not change a run half-way."""

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
LEFT_OUT = ("__pycache__",)


def snapshot(root: RunDir) -> Path:
    """The folder for PYTHONPATH: a copy of the package under the hash of its files; one that is there is kept."""
    digest = code_hash()
    place = root.code(digest)
    if not (place / "code.json").is_file():
        beside = place.with_name(f".{digest}.{os.getpid()}")
        shutil.copytree(PACKAGE, beside / PACKAGE.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        records.write_json(beside / "code.json", {"schema": records.SCHEMA, "hash": digest, **commit()})
        if place.is_dir():  # half of it was removed by hand
            shutil.rmtree(place)
        beside.rename(place)
    return place


def code_hash() -> str:
    """First 12 hex digits of a sha256 over the names and contents of the package's files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and not set(path.parts) & set(LEFT_OUT):
            digest.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> dict[str, Any]:
    """The git commit of the checkout that the package stands in, and whether its files differ from it; else None."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(_git("status", "--porcelain", "--", str(PACKAGE)))}


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that holds the package; None where there is no git, or the package is not in it."""
    try:
        tracked = ["git", "-C", str(PACKAGE), "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(tracked, check=True, capture_output=True, timeout=20)
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
