"""`python -m hpc_ewc.miniature build|pretrain [--folder DIR]`: make the miniature's files, or its base model too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpc_ewc import miniature
from hpc_ewc.errors import HpcEwcError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.miniature", description=__doc__)
    parser.add_argument(
        "what", choices=["build", "pretrain"], help="build: text and questions; pretrain: the model too"
    )
    parser.add_argument("--folder", type=Path, help="where to (default: the cache, under the miniature's version)")
    chosen = parser.parse_args(arguments)
    try:
        made = miniature.build(chosen.folder) if chosen.what == "build" else miniature.pretrain(chosen.folder)
    except HpcEwcError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
