"""`python -m examples.miniature`: write the texts and questions of the miniature, and pretrain its base model.

What is there already and of this version of the recipe is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from examples.miniature import files
from hpc_ewc.errors import HpcEwcError


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing and print the folder; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=__doc__)
    parser.add_argument("--folder", type=Path, default=str(files.DEFAULT_FOLDER), help="where to write")
    parser.add_argument("--without-model", action="store_true", help="only texts and questions, which need no torch")
    chosen = parser.parse_args(arguments)
    try:
        folder = files.build(chosen.folder)
        if not chosen.without_model and not files.is_pretrained(folder):
            # Before torch is imported: on a busy machine, threads that spin while they wait take ten times as long.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            from examples.miniature import base_model

            sys.stderr.write("miniature: pretraining its base model, once (about a minute)\n")
            base_model.make(folder)
    except HpcEwcError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
