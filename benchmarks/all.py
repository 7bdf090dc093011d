"""Every benchmark of a CPU, one after the other, each with its time; what the JSON of one reads of another comes first.

    python benchmarks/all.py [NAME …]         # or: make bench; names such as fisher_cost, for some alone

Figures of one commit belong together: start it on a commit, on a quiet machine, and commit the results that it writes.
A script that fails ends nothing: the others run, it is named at the end, and the status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIRST = ("training_step",)
"""scaling.py compares its memory with the formula."""
NOT_HERE = ("all", "gpu")


def main() -> None:
    """Run them."""
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
    """Of all scripts here that can be run, in the order in which they are."""
    found = sorted(path.stem for path in HERE.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    return [*FIRST, *(name for name in found if name not in (*FIRST, *NOT_HERE))]


def minutes(since: float) -> str:
    """Until now."""
    seconds = time.monotonic() - since
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
