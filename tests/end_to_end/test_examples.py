"""The short examples run as they are, and what they print is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_minimal_example_keeps_the_old_text(repository: Path) -> None:
    script = repository / "examples" / "ewc_minimal.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=240)
    losses = [float(loss) for loss in re.findall(r"old text ([\d.]+)", run.stdout)]
    before, without, with_penalty = losses
    assert before < with_penalty < without / 2, run.stdout
    new = [float(loss) for loss in re.findall(r"new text ([\d.]+)", run.stdout)]
    assert new[1] < new[2] < new[0] / 2, run.stdout
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 70, "no longer on one screen"
