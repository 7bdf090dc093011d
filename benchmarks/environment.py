"""What a figure depends on beside the code: machine, threads, versions. And the memory of a process at its highest."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """Facts for a benchmark's JSON."""
    import torch

    models = (
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    return {
        "cpu": next(models, platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


class PeakMemory:
    """Bytes above those at its creation that the process, or the GPU, had at its highest."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
            self._base = _resident("VmRSS")

    def bytes(self) -> int:
        """Since then."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._base
        return max(0, _resident("VmHWM") - self._base)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
