"""Make the miniature's files for the benchmarks that use them, in `data/miniature` of this checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "data" / "miniature"


def make_miniature(*, with_model: bool = True) -> Path:
    """Make what is missing (the base model takes a minute) and return the folder."""
    command = [sys.executable, "-m", "examples.miniature", "--folder", str(FOLDER)]
    command += [] if with_model else ["--without-model"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return FOLDER
