"""Run all CPU benchmarks one after the other and time each; a benchmark whose results another reads runs first.

    python benchmarks/all.py [NAME …]         # or: make bench; to run only some: names such as fisher_cost

Figures of one commit belong together: start this on a commit, on a quiet machine, and commit the results.
If a script fails, the others still run; the end of the output names it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIRST = ("training_step",)
"""Run first, because scaling.py compares the memory that training_step.py measured with the formula."""
NOT_HERE = ("all", "gpu")


def main() -> None:
    """Run the benchmarks that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no benchmark of a CPU: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    began, failed = time.monotonic(), []
    for name in chosen:
        started = time.monotonic()
        print(f"== {name}", flush=True)
        status = subprocess.run([sys.executable, str(HERE / f"{name}.py")]).returncode
        print(f"== {name}: {minutes(started)}{f', ended with status {status}' if status else ''}", flush=True)
        failed += [name] if status else []
    print(f"== {len(chosen)} benchmarks: {minutes(began)}; {'failed: ' + ', '.join(failed) if failed else 'all well'}")
    sys.exit(1 if failed else 0)


def names() -> list[str]:
    """Return the names of the CPU benchmarks in the order in which they run."""
    found = sorted(path.stem for path in HERE.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    return [*FIRST, *(name for name in found if name not in (*FIRST, *NOT_HERE))]


def minutes(since: float) -> str:
    """Return the time since a reading of `time.monotonic()`, in minutes or seconds."""
    seconds = time.monotonic() - since
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
