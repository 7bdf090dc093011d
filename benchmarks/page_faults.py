"""What it costs a CPU to have its tensors' pages cleared anew at every step, and what keeping them holds.

    python benchmarks/page_faults.py [--out FILE]

Our engine at λ = 0 under the vocabulary of Gemma 3 270M, one process, one thread. `given back` is glibc as it is;
`kept` is hpc_ewc/model/heap.py, for trainings and Fishers without a GPU. Each runs in processes of its own, in turns.
Seconds are of CPU, so that other work on the machine weighs little.
"""

from __future__ import annotations

import os
import resource
import statistics
from argparse import Namespace
from typing import Any

from engine import build_engine, synthetic_batch
from models import BATCH, CONFIGS, DTYPE
from running import alone, ratio, rounded, save, say, start

SIZE = "wide"
WAYS = ("given back", "kept")
ROUNDS, STEPS = 3, 5


def main() -> None:
    """Both ways in turns; one JSON."""
    arguments = start(__doc__, size=SIZE)
    if arguments.inside:
        steps(arguments)
        return
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            rounds[way].append(alone(arguments, way))
    result: dict[str, Any] = {"tokens": BATCH[SIZE], "vocabulary": CONFIGS[SIZE]["vocab_size"], "dtype": DTYPE[SIZE]}
    for way in WAYS:
        result[way] = {name: rounded(statistics.median(one[name] for one in rounds[way])) for name in rounds[way][0]}
    totals = {way: [one["user_s of a step"] + one["system_s of a step"] for one in rounds[way]] for way in WAYS}
    save(arguments, result | {"CPU time, kept / given back": ratio(totals, "kept", "given back")})


def steps(arguments: Namespace) -> None:
    """One way: seconds and faults of a step after the first, and the most that the process held."""
    if arguments.inside[0] == "given back":
        os.environ["GLIBC_TUNABLES"] = (
            ""  # heap.py leaves alone what the environment speaks of; glibc has read it before
        )
    engine, batch = build_engine(SIZE, 0.0), synthetic_batch(SIZE)
    engine.step(batch, 1e-5)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(STEPS):
        engine.step(batch, 1e-5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    say(
        {
            "user_s of a step": (after.ru_utime - before.ru_utime) / STEPS,
            "system_s of a step": (after.ru_stime - before.ru_stime) / STEPS,
            "page faults of a step": (after.ru_minflt - before.ru_minflt) / STEPS,
            "peak_mb": after.ru_maxrss / 1024,
        }
    )


if __name__ == "__main__":
    main()
