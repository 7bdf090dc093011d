"""The programs that `hpc-ewc doctor` runs on nodes: facts about a node, and an all-reduce over all ranks.

    python   -m hpc_ewc.worker.probe node       --out FOLDER [--nonce FILE]
    torchrun … -m hpc_ewc.worker.probe all-reduce --out FOLDER

They write `node-<host>.json` and `all-reduce.json` into FOLDER. Errors go into the file: a node without torch is a
finding, not a crash.
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
CONNECT_TIMEOUT_S = 120.0
NEEDED = ("submitit", "transformers", "datasets", "lm_eval", "safetensors", "tokenizers", "accelerate", "zstandard")
"""Packages that jobs import, besides torch."""
DRIVER_FILES = ("/proc/driver/nvidia/version", "/sys/module/nvidia/version", "/sys/module/amdgpu/version")
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def probe_node(out: Path, nonce: Path | None) -> None:
    """Write the facts about this node to `out`."""
    host = socket.gethostname()
    facts: dict[str, Any] = {
        "host": host,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "package": hpc_ewc.__version__,
        "package_folder": str(Path(hpc_ewc.__file__).parent),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(_memory_limit() / 2**30, 1),
        "driver": _driver(),
        "missing": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        **_torch(),
    }
    if nonce is not None:
        facts["nonce"] = _read(nonce)
    out.mkdir(parents=True, exist_ok=True)
    mark = out / f".clock-{host}"
    mark.touch()
    # the file's time is the file server's: the clocks of two machines are compared through it
    facts["clock"], facts["file_clock"] = time.time(), mark.stat().st_mtime
    mark.unlink()
    records.write_json(out / f"node-{host}.json", facts)


def _torch() -> dict[str, Any]:
    """The version of torch and the GPUs on which it computed a small sum, or the error."""
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
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
    return next((text.splitlines()[0] for path in DRIVER_FILES if (text := _read(Path(path)))), "")


def _memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or its cgroup's limit."""
    limits = [int(text) for path in MEMORY_LIMITS if (text := _read(Path(path))).isdigit()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def all_reduce(out: Path) -> None:
    """Sum one tensor over all ranks and write the speed; all ranks call it.

    `bus_gb_s` is 2 (n − 1)/n · bytes / seconds, the bus bandwidth of nccl-tests: what each link carried.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend, mib = ("nccl", 512) if cuda else ("gloo", 64)
    dist.init_process_group(backend, timeout=timedelta(seconds=CONNECT_TIMEOUT_S))
    try:
        world_size = dist.get_world_size()
        tensor = torch.ones(mib * 2**18, device="cuda" if cuda else "cpu")
        for _ in range(WARM_UP):
            dist.all_reduce(tensor)
        correct = bool((tensor == float(world_size) ** WARM_UP).all())
        tensor.fill_(1.0)
        tensor[0].item()  # waits for the GPU, as below
        started = time.perf_counter()
        for _ in range(MEASURED):
            dist.all_reduce(tensor)
        tensor[0].item()
        seconds = (time.perf_counter() - started) / MEASURED
        hosts: list[Any] = [None] * world_size
        dist.all_gather_object(hosts, socket.gethostname())
        if dist.get_rank() == 0:
            bus = 2 * (world_size - 1) / world_size * mib * 2**20 / seconds / 1e9
            facts: dict[str, Any] = {"backend": backend, "world_size": world_size, "mib": mib}
            facts |= {"hosts": sorted(set(hosts)), "seconds": seconds, "bus_gb_s": bus, "correct": correct}
            records.write_json(out / "all-reduce.json", facts)
    finally:
        dist.destroy_process_group()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker.probe")
    parser.add_argument("what", choices=("node", "all-reduce"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nonce", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.what == "node":
        probe_node(arguments.out, arguments.nonce)
    else:
        all_reduce(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
