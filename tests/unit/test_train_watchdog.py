"""A process that hangs says where, and ends: in Python, and with the interpreter's lock held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from hpc_ewc.train import watchdog
watchdog.BACKSTOP_S = 0.5
dog = watchdog.Watchdog(0.5, lambda message: Path(sys.argv[1]).write_text(message))
for step in range(3):
    dog.beat(f"in step {step}")
    time.sleep(0.3)
def all_reduce_that_never_ends():
    HANG
all_reduce_that_never_ends()
"""


def run(hang: str, said: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.replace("HANG", hang), str(said)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_hang_ends_with_stacks_and_a_reason(tmp_path: Path) -> None:
    result = run("time.sleep(1000)", tmp_path / "said")
    assert result.returncode == 1
    assert "WATCHDOG: no progress for" in result.stderr
    assert "all_reduce_that_never_ends" in result.stderr
    assert "(train.watchdog_s = 0.5) while in step 2" in (tmp_path / "said").read_text()


def test_a_hang_that_holds_the_interpreter_ends_too(tmp_path: Path) -> None:
    result = run("ctypes.PyDLL(None).sleep(1000)", tmp_path / "said")
    assert result.returncode == 1
    assert "all_reduce_that_never_ends" in result.stderr


def test_a_run_that_ends_in_time_is_left_alone(tmp_path: Path) -> None:
    result = run("dog.close(); time.sleep(1.5)", tmp_path / "said")
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "said").exists()
