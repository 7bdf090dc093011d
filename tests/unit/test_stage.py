"""A stage, as used by its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc import stage as stage_module
from hpc_ewc.errors import ArtefactError, StageError
from hpc_ewc.stage import Stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    facts = {"schema": 1, "stage": "train", "run": "r", "key": "k", "inputs": {}, "coordinates": {}, "expected": []}
    records.write_json(tmp_path / "stage.json", facts)
    (tmp_path / "config.toml").write_text('[model]\npath = "m"\n[data]\nsource = "a/corpus"\n')
    return tmp_path


def test_a_folder_not_made_by_submit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no stage.json; not a folder that `hpc-ewc submit` made"):
        Stage(tmp_path)


def test_done_json_is_written_last_and_once(folder: Path) -> None:
    stage = Stage(folder)
    assert not stage.is_done()
    (folder / "out.bin").write_bytes(b"1234")
    stage.finish([folder / "out.bin"], steps=3)
    assert stage.is_done()
    done = records.read_json(folder / "done.json")
    assert done["outputs"]["out.bin"] == [4, records.sha256_file(folder / "out.bin")]
    stage.finish([], steps=99)
    assert records.read_json(folder / "done.json") == done


def test_an_error_is_kept_with_its_samples_and_cleared_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = StageError("loss is nan")
    error.samples = [3, 4]  # type: ignore[attr-defined]
    with pytest.raises(StageError), Stage(folder).attempt():
        raise error
    failed = records.read_checked(folder / "failed.json", "failed")
    assert failed["error"] == "StageError: loss is nan"
    assert failed["samples"] == [3, 4]
    assert "raise error" in failed["traceback"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Stage(folder).attempt():
        assert not (folder / "failed.json").exists()


def test_the_error_of_the_first_failed_rank_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_JOB_ID", "7")
    Stage(folder).fail(StageError("the cause"))
    monkeypatch.setenv("RANK", "1")
    Stage(folder).fail(StageError("connection closed by peer"))
    assert records.read_json(folder / "failed.json")["error"] == "StageError: the cause"


def test_one_array_element_does_not_hide_the_failure_of_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_JOB_ID", "7_1")
    Stage(folder, "1").fail(StageError("of element 1"))
    monkeypatch.setenv("HPC_EWC_JOB_ID", "7_2")
    with Stage(folder, "2").attempt():
        assert records.read_json(folder / "failed.json")["error"] == "StageError: of element 1"


def test_progress_is_written_at_most_once_a_second_and_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(stage_module.time, "time", lambda: now[0])
    stage = Stage(folder, "3")
    stage.progress(1, 10, "step", loss=2.5, rate=float("nan"))
    line = records.read_json(folder / "progress" / "3.json")
    assert (line["done"], line["total"], line["unit"], line["loss"]) == (1, 10, "step", 2.5)
    assert "rate" not in line
    for done, after, written in ((2, 0.5, 1), (3, 0.5, 3), (4, 0.5, 3), (10, 0.0, 10)):
        now[0] += after
        stage.progress(done, 10, "step")
        assert records.read_json(folder / "progress" / "3.json")["done"] == written


def test_other_ranks_write_no_progress(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    Stage(folder).progress(1, 2, "step")
    assert not (folder / "progress").exists()


def test_a_stop_file_requests_a_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_STOP_FILE", str(folder / "stop.0"))
    stage = Stage(folder)
    assert not stage.stop_requested()
    (folder / "stop.0").touch()
    assert stage.stop_requested()


LISTENER = """
import sys, time
from hpc_ewc.stage import Stage
stage = Stage(sys.argv[1]); stage.listen(); print("up", flush=True)
end = time.monotonic() + 100
while not stage.stop_requested() and time.monotonic() < end: time.sleep(0.02)
print("asked to stop" if stage.stop_requested() else "not asked", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop(folder: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked to stop\n"
    assert process.returncode == 0


EARLY = """
import os, signal, sys
import hpc_ewc.worker.__main__ as worker
from hpc_ewc.worker import train

class Slow:  # replaces torch, which `record` imports before the stage is opened
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and "told" not in vars(Slow):
            Slow.told = True
            os.kill(os.getpid(), signal.SIGUSR1)

def opened(argv):
    from hpc_ewc.stage import Stage
    stage = Stage(argv[0]); stage.listen()
    print("torch" in sys.modules, Slow.told, stage.stop_requested())

train.main = opened
sys.meta_path.insert(0, Slow())
sys.argv = ["worker", "train", sys.argv[1]]
sys.exit(worker.run())
"""


def test_a_signal_while_the_worker_imports_torch_requests_a_stop(folder: Path) -> None:
    """Run under torchrun, whose `record` imports torch before the stage is opened."""
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "-c", EARLY, str(folder)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (process.returncode, process.stdout) == (0, "True True True\n"), process.stderr


def test_a_worker_stops_after_its_launcher_died(folder: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", program, "-c", LISTENER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "up\n"
        launcher.kill()
        assert launcher.stdout.readline() == "asked to stop\n"  # printed by the worker, on the same pipe
