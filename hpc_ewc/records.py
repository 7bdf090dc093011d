"""Read and write the files of a run folder: each appears complete or not at all.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so two writers (a job
that was requeued while its lost twin still runs) can at worst replace one complete file by another. A file that is
truncated, changed or foreign raises an `ArtefactError` that names it; it is never taken for a result.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, overload

from hpc_ewc.errors import ArtefactError
from hpc_ewc.schemas import Done, Failure, Record, Sample, StageFacts

FOREIGN = "corrupt or not written by hpc-ewc"

SCHEMA = 1
"""Version of all JSON files; raised when a file changes its meaning, and named in CHANGELOG.md."""


# ---------------------------------------------------------------------------------------------- writing


def write_bytes(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write `data` to `path`, completely or not at all: a temporary file is flushed and renamed, the folder flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666 if mode is None else mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write text as UTF-8, completely or not at all."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON, completely or not at all; ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line, in one write, flushed to the disk. Only one process at a time may write to such a file.

    An incomplete last line, left by a writer that was killed, is cut off first, so that it never ends up in the middle.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with path.open("ab+") as file:
        size = file.tell()
        if size:
            file.seek(max(0, size - (1 << 20)))
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ArtefactError: it is truncated, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: {FOREIGN}: {error}; delete it and resubmit") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: {FOREIGN}: {type(value).__name__}, not an object; delete it and resubmit")
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; an incomplete last line (its writer was killed) is skipped.

    Lines are split at the line feed only: U+2028 may occur in a JSON string.

    Raises:
        ArtefactError: a line that is not the last is not a JSON object.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            raise ArtefactError(f"{path}:{number}: not a JSON line: {line[:80]!r}") from None
        if not isinstance(value, dict):
            raise ArtefactError(f"{path}:{number}: not an object: {line[:80]!r}")
        yield value


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- files by name

REQUIRED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "stage": {"stage": str, "run": str, "key": str, "inputs": dict, "coordinates": dict, "expected": list},
    "done": {"key": str, "finished_at": (int, float), "outputs": dict, "summary": dict},
    "failed": {"error": str, "traceback": str},
    "progress": {"done": (int, float), "total": (int, float), "unit": str, "updated": (int, float)},
    "record": {
        "status": str,
        "cell_key": str,
        "experiment": str,
        "run": str,
        "step": int,
        "fraction": (int, float),
        "coordinates": dict,
        "model_hash": str,
        "base_hash": str,
        "task": str,
        "language": str,
        "variant": str,
        "results": list,
    },
}
"""Keys that a file of each kind must have, besides `schema`. docs/schemas/ has an example of each."""


@overload
def read_checked(path: Path, kind: Literal["stage"]) -> StageFacts: ...
@overload
def read_checked(path: Path, kind: Literal["done"]) -> Done: ...
@overload
def read_checked(path: Path, kind: Literal["failed"]) -> Failure: ...
@overload
def read_checked(path: Path, kind: Literal["record"]) -> Record: ...
@overload
def read_checked(path: Path, kind: Literal["progress"]) -> dict[str, Any]: ...
@overload
def read_checked(path: Path, kind: str) -> Any: ...
def read_checked(path: Path, kind: str) -> Any:
    """Return the object in a JSON file, with the schema and the required keys of its kind checked.

    Raises:
        FileNotFoundError: no such file.
        ArtefactError: corrupt, not written by hpc-ewc, or of another schema.
    """
    value = read_json(path)
    if value.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{path}: schema {value.get('schema')!r}, this version reads {SCHEMA}; not written by hpc-ewc, or by a "
            "newer version"
        )
    for key, types in REQUIRED[kind].items():
        if key not in value or not isinstance(value[key], types) or not _is_plain(value[key]):
            raise ArtefactError(f"{path}: {FOREIGN}: '{key}' is missing or has the wrong type; delete it and resubmit")
    return value


def _is_plain(value: Any) -> bool:
    """Return False for a boolean (a number to Python), a non-finite float and an integer of more than 64 bits."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, bool) and not (isinstance(value, int) and value.bit_length() > 63)


def read_done(path: Path, key: str) -> Done | None:
    """Return a stage's `done.json` if its outputs exist, else None.

    Compares sizes, not hashes, because every submit calls it for every stage. Readers of an output that can be damaged
    silently (checkpoints, Fisher) verify its hash when they read it.

    Raises:
        ArtefactError: `done.json` is corrupt or has another key, or an output is missing or of another size.
    """
    try:
        done = read_checked(path, "done")
    except FileNotFoundError:
        return None
    if done["key"] != key:
        raise ArtefactError(f"{path}: has key {done['key']}, not {key}; delete the folder {path.parent} and resubmit")
    for name, facts in done["outputs"].items():
        if not (isinstance(facts, list) and len(facts) == 2):
            raise ArtefactError(
                f"{path}: {FOREIGN}: 'outputs' has no size and sha256 of {name}; delete it and resubmit"
            )
        size = facts[0]
        output = path.parent / name
        if not output.exists():
            raise ArtefactError(f"{output}: listed in {path} but missing; delete {path} and resubmit")
        if output.stat().st_size != size:
            found = output.stat().st_size
            raise ArtefactError(f"{output}: {found} bytes, but {path.name} says {size}; delete both and resubmit")
    return done


def write_samples(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON line per document and filter, zstd-compressed."""
    import zstandard

    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, zstandard.ZstdCompressor(level=6, write_checksum=True).compress("".join(lines).encode()))


def read_samples(path: Path) -> list[Sample]:
    """Return the rows of a samples file.

    Raises:
        ArtefactError: missing, truncated, or not written by hpc-ewc.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        lines = decompressor.decompress(path.read_bytes())
        if not decompressor.eof:  # a truncated stream decompresses without an error
            raise ValueError("truncated")
        rows = _parsed(b"[" + lines.rstrip().replace(b"}\n", b"},") + b"]")
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise ArtefactError(f"{path}: samples cannot be read: {error}; delete it and its record and resubmit") from None
    if set(map(type, rows)) - {dict}:
        raise ArtefactError(f"{path}: samples are not objects; not written by hpc-ewc")
    return list(rows)


def _parsed(text: bytes) -> Any:
    """Parse with orjson if installed, in a third of the time; json reads or explains what orjson refuses (NaN)."""
    with suppress(ModuleNotFoundError, ValueError):
        import orjson

        return orjson.loads(text)
    return json.loads(text)


def canonical_json(value: Any) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, floats by `repr`."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(value: Any) -> str:
    """Return the first 12 hex digits of the SHA-256 of `canonical_json`: the name of an artefact."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def model_hash(folder: Path) -> str:
    """Return the hex SHA-256 of the names and contents of a Hugging Face folder's weights, config and tokenizer.

    Two folders with the same hash give the same scores. `hpc_ewc.json`, which carries this hash, is not part of it.
    """
    files = sorted({path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern)}.items())
    return hashlib.sha256(canonical_json({name: sha256_file(path) for name, path in files}).encode()).hexdigest()
