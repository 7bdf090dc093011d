"""Shared parts of the scripts: options, separate processes, alternatives that take turns, and the results' place.

Every script takes `--device cpu|cuda`: on a CPU it measures a small Gemma 2, with one thread; on a GPU, one with the
shapes of Gemma 2 2B and random weights. Without a GPU, `--device cuda` says that it is skipped and ends with status 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import environment

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
SIZE_OF = {"cpu": "small", "cuda": "gemma2-2b"}


def start(
    doc: str | None,
    *,
    ranks: int | None = None,
    size: str | None = None,
    device: str = "cpu",
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """Parse a script's options: device, size, out, perhaps ranks; `inside` in a process that `alone` started.

    Args:
        doc: the script's docstring.
        ranks: default number of ranks, for a script that runs under torchrun.
        size: the only model size, for a script that always measures it on a CPU.
        device: default device.
        options: adds the script's own options.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu"] if size else SIZE_OF, default=device)
    sizes = [size] if size else ["tiny", *SIZE_OF.values()]
    parser.add_argument("--size", choices=sizes, default=size, help="default: small on a CPU, gemma2-2b on a GPU")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<script>-<device>.json")
    if ranks is not None:
        parser.add_argument("--ranks", type=int, default=ranks)
    if options is not None:
        options(parser)
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.size = arguments.size or SIZE_OF[arguments.device]
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(f"{Path(sys.argv[0]).name}: skipped: --device cuda needs a GPU, and torch sees none here")
            sys.exit(0)
    return arguments


def save(arguments: argparse.Namespace, result: dict[str, Any], shown: bool = True) -> None:
    """Write the result with its environment; print the text and the path, or the path alone."""
    name = Path(sys.argv[0]).stem
    usual = arguments.size == SIZE_OF[arguments.device]
    named = f"{name}-{arguments.device}{'' if usual else '-' + arguments.size}.json"
    out = arguments.out or RESULTS / named
    whole = {"benchmark": name, "device": arguments.device, "size": arguments.size, **result}
    whole["environment"] = environment(arguments.device)
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print((text if shown else "") + str(out))


# ---------------------------------------------------------------------------------------------- processes


def alone(arguments: argparse.Namespace, *inside: object, ranks: int = 0, exact_memory: bool = False) -> dict[str, Any]:
    """Run this script with `--inside …` in a new process or under torchrun; return what rank 0 reported by `say`.

    Args:
        arguments: options, of which device and size are passed on.
        inside: the values of `--inside`.
        ranks: number of ranks; 0: without torchrun.
        exact_memory: make the allocator return every freed block to the system, so that peaks are exact; slower.
    """
    ended = attempt(arguments, *inside, ranks=ranks, exact_memory=exact_memory, quiet=False)
    if ended.status != 0:
        sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(map(str, inside))}: ended with status {ended.status}")
    return ended.result


@dataclass(frozen=True)
class Ended:
    """The end of a process: exit status (negative for a signal), its reported result, the end of its output."""

    status: int
    result: dict[str, Any]
    printed: str = ""


def attempt(
    arguments: argparse.Namespace,
    *inside: object,
    ranks: int = 0,
    exact_memory: bool = False,
    quiet: bool = True,
    limit_s: float | None = None,
) -> Ended:
    """Run as `alone` does, but return a failure instead of exiting. After `limit_s`, end the process and its ranks."""
    command = [sys.executable]
    if ranks:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [sys.argv[0], "--device", arguments.device, "--size", arguments.size, "--inside", *map(str, inside)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    if exact_memory:
        environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result, printed = Path(folder) / "result.json", Path(folder) / "printed"
        with printed.open("w") as file:
            process = subprocess.Popen(
                command,
                env=environ | {"BENCHMARK_RESULT": str(result)},
                stdout=file if quiet else None,
                stderr=subprocess.STDOUT if quiet else None,
            )
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = -signal.SIGALRM
            finally:
                end(process)
        found = dict(json.loads(result.read_text())) if result.exists() else {}
        return Ended(status, found, printed.read_text(errors="replace")[-4000:])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs. On SIGTERM, torchrun first ends its ranks, which have sessions of their own."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    process.kill()
    process.wait()


def say(result: Mapping[str, Any], of_any_rank: bool = False) -> None:
    """Report a result to the parent process; only rank 0 does, unless `of_any_rank`."""
    if of_any_rank or os.environ.get("RANK", "0") == "0":
        Path(os.environ["BENCHMARK_RESULT"]).write_text(json.dumps(result))


# ---------------------------------------------------------------------------------------------- times


def synchronise(device: str) -> None:
    """Wait for the GPU, if the device is one."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call; a GPU's queue is empty before and after."""
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, after one warm-up; ways alternate, so that load affects all."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, action in ways.items():
            seconds = seconds_of(action, device)
            if number:
                times[way].append(seconds)
    return times


def ratio(times: Mapping[str, Sequence[float]], way: str, base: str) -> dict[str, Any]:
    """Return `way` over `base`: the median and the quartiles of the ratios of the rounds."""
    ratios = [a / b for a, b in zip(times[way], times[base], strict=True)]
    return {"median": rounded(statistics.median(ratios)), "quartiles": quartiles(ratios)}


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and third quartile."""
    if len(values) < 2:
        return [rounded(values[0])] * 2
    return [rounded(value) for value in statistics.quantiles(values, n=4, method="inclusive")[::2]]


def medians(times: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: rounded(statistics.median(values)) for name, values in times.items()}


def rounded(value: float) -> float:
    """Round to four significant figures."""
    return float(f"{value:.4g}")
