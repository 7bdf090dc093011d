"""What `hpc-ewc doctor` runs on a node: what is there, and how fast ranks reach each other.

    python   -m hpc_ewc.worker.probe look       --out FOLDER [--nonce FILE]
    torchrun … -m hpc_ewc.worker.probe all-reduce --out FOLDER [--mib 256]

Each writes one JSON file into FOLDER, `look-<host>.json` and `all-reduce.json`. Whatever cannot be found out is said in
the file instead of raised: a node without torch is a finding, not a crash.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import hpc_ewc
from hpc_ewc import records

WARM_UP, MEASURED = 2, 5
JOIN_S = 120.0
NEEDED = ("submitit", "transformers", "datasets", "lm_eval", "safetensors", "tokenizers", "accelerate", "zstandard")
"""What jobs import beside torch."""
DRIVER_FILES = ("/proc/driver/nvidia/version", "/sys/module/nvidia/version", "/sys/module/amdgpu/version")
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def look(out: Path, nonce: Path | None) -> dict[str, Any]:
    """Write what this node has to `out`."""
    host = socket.gethostname()
    facts: dict[str, Any] = {
        "host": host,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "package": hpc_ewc.__version__,
        "package_folder": str(Path(hpc_ewc.__file__).parent),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(_memory() / 2**30, 1),
        "driver": _driver(),
        "missing": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        **_torch(),
    }
    if nonce is not None:
        facts["nonce"] = _read(nonce)
    out.mkdir(parents=True, exist_ok=True)
    mark = out / f".clock-{host}"
    mark.touch()
    # the file's time is the file server's: against it, the clocks of two machines can be compared
    facts["clock"], facts["file_clock"] = time.time(), mark.stat().st_mtime
    mark.unlink()
    records.write_json(out / f"look-{host}.json", facts)
    return facts


def _torch() -> dict[str, Any]:
    """Version and GPUs as torch sees them, each tried with one small sum; or why not."""
    try:
        import torch
    except Exception as error:  # a half-built installation raises what it likes
        return {"torch": None, "torch_error": f"{type(error).__name__}: {error}", "gpus": []}
    found: dict[str, Any] = {"torch": torch.__version__, "runtime": torch.version.cuda or torch.version.hip, "gpus": []}
    try:
        for index in range(torch.cuda.device_count()):
            if float(torch.ones(2, device=f"cuda:{index}").sum()) == 2.0:
                found["gpus"].append(torch.cuda.get_device_name(index))
    except Exception as error:
        found["gpu_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _driver() -> str:
    for path in DRIVER_FILES:
        text = _read(Path(path))
        if text:
            return text.splitlines()[0]
    return ""


def _memory() -> int:
    """Bytes that this process may have: the machine's, or what its cgroup allows."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in MEMORY_LIMITS:
        text = _read(Path(path))
        if text.isdigit():
            sizes.append(int(text))
    return min(sizes)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def all_reduce(out: Path, mib: int | None) -> None:
    """Sum one tensor over all ranks and write how fast that was; all ranks call it.

    `bus_gb_s` is 2 (n − 1)/n · bytes / seconds, as nccl-tests has it: what each link carried.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=JOIN_S))
    try:
        world_size, rank = dist.get_world_size(), dist.get_rank()
        mib = mib or (512 if cuda else 64)
        tensor = torch.ones(mib * 2**18, device="cuda" if cuda else "cpu")
        for _ in range(WARM_UP):
            dist.all_reduce(tensor)
        right = bool((tensor == float(world_size) ** WARM_UP).all())
        tensor.fill_(1.0)
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(MEASURED):
            dist.all_reduce(tensor)
        if cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / MEASURED
        hosts: list[Any] = [None] * world_size
        dist.all_gather_object(hosts, socket.gethostname())
        if rank == 0:
            bus = 2 * (world_size - 1) / world_size * mib * 2**20 / seconds / 1e9
            facts: dict[str, Any] = {"backend": "nccl" if cuda else "gloo", "world_size": world_size, "mib": mib}
            facts |= {"hosts": sorted(set(hosts)), "seconds": seconds, "bus_gb_s": bus, "right": right}
            records.write_json(out / "all-reduce.json", facts)
    finally:
        dist.destroy_process_group()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker.probe")
    parser.add_argument("what", choices=("look", "all-reduce"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nonce", type=Path)
    parser.add_argument("--mib", type=int, help="size of the tensor; absent: 512 on GPUs, 64 elsewhere")
    arguments = parser.parse_args(argv)
    if arguments.what == "look":
        look(arguments.out, arguments.nonce)
    else:
        all_reduce(arguments.out, arguments.mib)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
