"""sha256 of files, cached by path, size and mtime, so that a second submit reads no corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_ewc import records, rundir
from hpc_ewc.errors import ArtefactError


class HashCache:
    """sha256 of files, cached on the disk.

    Attributes:
        announced: called with a message before something long.
    """

    def __init__(self) -> None:
        self.path = rundir.cache_dir() / "hashes.json"
        self.known: dict[str, Any] = {}
        self.changed = False
        self.announced: Callable[[str], None] | None = None
        with suppress(FileNotFoundError, ArtefactError):
            self.known = records.read_json(self.path)

    def sha256(self, path: Path) -> str:
        """The sha256 of a file, which is read only if it is unknown or its size or mtime changed."""
        status = path.stat()
        entry = [status.st_size, status.st_mtime_ns]
        known = self.known.get(str(path))
        if isinstance(known, list) and len(known) == 3 and known[:2] == entry:
            return str(known[2])
        digest = records.sha256_file(path)
        self.known[str(path)] = [*entry, digest]
        self.changed = True
        return digest

    def save(self) -> None:
        """Write what was computed; a cache that cannot be written only costs time."""
        if self.changed:
            with suppress(OSError):
                records.write_json(self.path, self.known)
            self.changed = False

    def announce(self, files: Sequence[Path], what: str) -> None:
        """Announce that more than 2 GB will be hashed."""
        unknown = [path for path in files if path.is_file() and str(path) not in self.known]
        size = sum(path.stat().st_size for path in unknown)
        if self.announced is not None and size > 2e9:
            self.announced(f"hashing {what}: {size / 1e9:.0f} GB, once")
