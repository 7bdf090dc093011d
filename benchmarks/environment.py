"""Describe what a figure depends on besides the code (machine, threads, versions), and measure peak memory."""

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
    """Return the environment for a benchmark's JSON."""
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
    """Return the measured commit, with a + if the code has uncommitted changes; None outside a repository."""
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
    """Measures the peak memory of the process, or of the GPU, above its level when this object was made.

    On a CPU it is the resident memory, so use it in a process whose allocator gives back what it frees
    (`running.alone(…, exact_memory=True)`): otherwise the second alternative reuses the memory of the first.
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
        """Return the peak since this object was made, in bytes above the level then."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._base
        return max(0, _status("VmHWM") - self._base)


class OwnMemory:
    """Measures the peak memory of the process above its level when this object was made, without mapped files.

    Mapped files are the system's cache: the ranks of a machine share them, and the system frees them when memory is
    short. The kernel keeps no high-water mark for the remaining memory, so a thread reads it every millisecond.
    """

    def __init__(self) -> None:
        self._base = self._highest = own()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def bytes(self) -> int:
        """Stop measuring and return the peak, in bytes above the level at the start."""
        self._ended.set()
        self._thread.join()
        return max(self._highest, own()) - self._base

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self._highest = max(self._highest, own())


def resident() -> int:
    """Return the resident bytes of this process."""
    return _status("VmRSS")


def own() -> int:
    """Return the resident bytes of this process that no file backs."""
    return _status("RssAnon")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
