"""What a figure depends on beside the code: machine, threads, versions. And the memory of a process at its highest."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "liger-kernel", "flash-attn")


def environment(device: str) -> dict[str, Any]:
    """Facts for a benchmark's JSON."""
    import torch

    models = (
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    return {
        "commit": commit(),
        "cpu": next(models, platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def commit() -> str | None:
    """Of the code that was measured, with a + where it was changed since; None outside a repository."""
    code = ["hpc_ewc", "benchmarks", ":!benchmarks/results"]
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", *code])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class PeakMemory:
    """Bytes above those at its creation that the process, or the GPU, had at its highest.

    On a CPU it is the resident memory, so run it in a process whose allocator gives back what it frees
    (`running.alone(…, exact_memory=True)`): else a way that comes second finds the first one's memory ready.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
            self._base = resident()

    def bytes(self) -> int:
        """Since then."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._base
        return max(0, _status("VmHWM") - self._base)


class OwnMemory:
    """Bytes above those at its creation that the process itself held at its highest, files that are mapped left out.

    Mapped files are the system's cache: shared by the ranks of a machine, and given back when something needs the room.
    The kernel keeps no high-water mark of the rest, so a thread looks every millisecond.
    """

    def __init__(self) -> None:
        self._base = self._highest = own()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def bytes(self) -> int:
        """Since then; ends the watch."""
        self._ended.set()
        self._thread.join()
        return max(self._highest, own()) - self._base

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self._highest = max(self._highest, own())


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def own() -> int:
    """Of these, what no file stands behind."""
    return _status("RssAnon")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
