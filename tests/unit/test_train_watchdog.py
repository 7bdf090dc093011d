"""A hung process prints its stacks and ends, in Python and with the GIL held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from hpc_ewc.train import watchdog
watchdog.BACKSTOP_S = 0.5
dog = watchdog.Watchdog(2.0, lambda message: Path(sys.argv[1]).write_text(message))
for step in range(STEPS):
    dog.beat(f"in step {step}")
    time.sleep(0.5)
def all_reduce_that_never_ends():
    HANG
all_reduce_that_never_ends()
"""


def run(hang: str, said: Path, steps: int = 1) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("STEPS", str(steps)).replace("HANG", hang)
    return subprocess.run([sys.executable, "-c", program, str(said)], capture_output=True, text=True, timeout=240)


def test_a_hung_process_ends_with_stacks_and_a_reason(tmp_path: Path) -> None:
    """Earlier steps together exceed the watchdog's timeout, but none does alone."""
    result = run("time.sleep(1000)", tmp_path / "said", steps=5)
    assert result.returncode == 1
    assert "WATCHDOG: no progress for" in result.stderr
    assert "all_reduce_that_never_ends" in result.stderr
    assert "(train.watchdog_s = 2) while in step 4" in (tmp_path / "said").read_text()


def test_a_process_hung_with_the_gil_held_ends(tmp_path: Path) -> None:
    result = run("ctypes.PyDLL(None).sleep(1000)", tmp_path / "said")
    assert result.returncode == 1
    assert "all_reduce_that_never_ends" in result.stderr


def test_a_run_that_ends_in_time_is_not_stopped(tmp_path: Path) -> None:
    result = run("dog.close(); time.sleep(3)", tmp_path / "said")
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "said").exists()
