"""The local scheduler, with real submitit jobs and scripted workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc import rundir
from hpc_ewc.artefacts.artefact import Element
from hpc_ewc.artefacts.failure import read_failure
from hpc_ewc.cli import submit
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.submit import local
from hpc_ewc.launch.watch.reader import read_status
from hpc_ewc.launch.watch.status import status
from hpc_ewc.node.commands import STANDALONE, plain_command, torchrun_command
from hpc_ewc.node.environment import worker_environment
from hpc_ewc.node.local_attempt import LocalTask
from hpc_ewc.process import this_process
from hpc_ewc.rundir import RunDir
from tests.conftest import use_hub_cache
from tests.unit.launch_world import order, read_events, write_experiment, write_fake_python


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make workers follow `tmp_path/orders`; the current folder is `tmp_path`."""
    orders = tmp_path / "orders"
    orders.mkdir()
    (tmp_path / "runs" / "small" / "report").mkdir(parents=True)
    write_fake_python(orders)
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    return orders


def write_profile(sweep: Path, cpus: int = 4) -> Path:
    profile = sweep.parent / "profile.toml"
    profile.write_text(f'python = "{sweep.parent}/orders/python"\n[local]\ncpus = {cpus}\n')
    return profile


def run(sweep: Path, cpus: int = 4) -> int:
    profile = write_profile(sweep, cpus)
    return submit.run(submit.Settings(sweep=sweep, profile=profile))


def begun(orders: Path) -> list[str]:
    return [event["name"] for event in read_events(orders) if event["what"] == "begin"]


def states(root: RunDir) -> dict[str, str]:
    rows = read_status(root).rows
    return {f"{row.stage}/{row.run}".rsplit("-", 1)[0]: row.state for row in rows}


def test_resubmit_runs_only_what_is_missing(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = write_experiment(world.parent, [0, 1e6])
    root = RunDir(world.parent / "runs" / "small")
    assert run(sweep) == 0
    out, err = capfd.readouterr()
    assert out == "the table of small\n"
    assert "done. Runs: runs/small; tables: runs/small/report" in err
    first = begun(world)
    assert sorted(name.split("/")[0] for name in first) == ["evaluate"] * 3 + ["fisher", "tokens", "train", "train"]
    assert {name.split("/")[0] for name in first[:2]} == {"tokens", "fisher"}
    assert stat.S_IMODE(root.jobs.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(job.stat().st_mode) == 0o700 for job in root.jobs.iterdir())
    assert root.experiment_toml.read_text() == sweep.read_text()
    assert status(root.root, watch=False, as_json=False) == 0
    capfd.readouterr()

    assert run(sweep) == 0
    out, err = capfd.readouterr()
    assert "nothing to do" in err
    assert out == "the table of small\n"
    assert begun(world) == first

    assert run(write_experiment(world.parent, [0, 1e3, 1e6])) == 0
    of_the_third = ["evaluate/strength=1000", "train/strength=1000"]
    second = begun(world)
    assert sorted(name.split("-")[0] for name in second[len(first) :]) == of_the_third

    shutil.rmtree(next(root.root.glob("train/strength=1000-*")))  # its next export may have other weights
    assert run(sweep) == 0
    assert sorted(name.split("-")[0] for name in begun(world)[len(second) :]) == of_the_third


def test_a_missing_report_is_the_only_stage_resubmitted(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run folders of 0.1.0 have their tables in results/NAME."""
    sweep = write_experiment(world.parent, [0])
    Path("results/small").mkdir(parents=True)
    assert submit.run(submit.Settings(sweep=sweep, profile=write_profile(sweep), out=Path("results/small"))) == 0
    before = begun(world)
    assert "tables: results/small" in capfd.readouterr().err
    assert run(sweep) == 0
    assert begun(world) == before
    assert "done. Runs: runs/small; tables: runs/small/report" in capfd.readouterr().err
    assert run(sweep) == 0
    assert "nothing to do" in capfd.readouterr().err


def test_jobs_get_no_access_tokens_and_import_the_copied_code(world: Path) -> None:
    sweep = write_experiment(world.parent, [0])
    assert run(sweep) == 0
    root = RunDir(world.parent / "runs" / "small")
    (package,) = root.root.glob("code/*/hpc_ewc")
    assert json.loads((package.parent / "code.json").read_text())["hash"] == package.parent.name
    files = [path for path in root.jobs.rglob("*") if path.is_file()]
    assert files
    assert not any(b"hf_secret" in path.read_bytes() for path in files)
    assert os.environ["HF_TOKEN"] == "hf_secret", "only jobs have no token"
    environment = worker_environment(package.parent, {"A": "b"}, 2)
    assert environment["PYTHONPATH"].split(":")[0] == str(package.parent)
    assert (environment["PYTHONSAFEPATH"], environment["OMP_NUM_THREADS"], environment["A"]) == ("1", "2", "b")


@pytest.mark.slow
def test_concurrent_runs_are_limited_by_cores(world: Path) -> None:
    order(world, "sleep 3", "train")
    more = "[resources.train]\ncpus_per_task = 2\n[resources.fisher]\ncpus_per_task = 9\n"
    assert run(write_experiment(world.parent, [0, 1, 2], more=more), cpus=4) == 0
    running: set[str] = set()
    most = 0
    for event in read_events(world):
        running = running | {event["name"]} if event["what"] == "begin" else running - {event["name"]}
        cores = sum(9 if name.startswith("fisher") else 2 if name.startswith("train") else 1 for name in running)
        assert cores <= 4 or len(running) == 1, f"more than the machine has, beside another job: {running}"
        most = max(most, sum(name.startswith("train") for name in running))
    assert most == 2


def test_a_failed_training_blocks_only_its_own_evaluation(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = write_experiment(world.parent, [0, 1e6])
    root = RunDir(world.parent / "runs" / "small")
    order(world, "raise", "train/strength=1e+06")
    assert run(sweep) == 1
    assert states(root) == {
        f"tokens/{next((root.root / 'tokens').iterdir()).name}": "done",
        f"fisher/{next((root.root / 'fisher').iterdir()).name}": "done",
        "train/strength=0": "done",
        "train/strength=1e+06": "failed",
        "evaluate/base": "done",
        "evaluate/strength=0": "done",
        "evaluate/strength=1e+06": "blocked",
        "report/": "done",
    }
    err = capfd.readouterr().err
    assert "train/strength=1e+06" in err
    assert "failed: ValueError: as it was told" in err
    assert "hpc-ewc logs runs/small strength=1e+06" in err
    assert status(root.root, watch=False, as_json=True) == 1
    before = len(begun(world))
    order(world, "finish", "train/strength=1e+06")
    assert run(sweep) == 0
    again = [name.split("-")[0] for name in begun(world)[before:]]
    assert again == ["train/strength=1e+06", "evaluate/strength=1e+06"]


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("leave", "the worker ended with status 0, not done"),
        ("die", "the worker was killed by signal 9"),
    ],
)
def test_exit_status_alone_does_not_decide_success(world: Path, what: str, error: str) -> None:
    order(world, what, "tokens")
    assert run(write_experiment(world.parent, [0])) == 1
    root = RunDir(world.parent / "runs" / "small")
    (tokens,) = (root.root / "tokens").iterdir()
    failed = read_failure(rundir.StageDir(tokens))
    assert failed["error"] == error
    assert begun(world) == [f"tokens/{tokens.name}"], "nothing that reads the tokens was started"


def test_a_cancelled_run_stops_and_the_others_continue(world: Path) -> None:
    sweep = write_experiment(world.parent, [0, 1e6])
    root = RunDir(world.parent / "runs" / "small")
    order(world, "wait", "train/strength=0")
    canceller = subprocess.Popen([sys.executable, "-c", CANCEL, str(root.root)])
    assert run(sweep) == 3
    assert canceller.wait() == 0
    found = states(root)
    assert (found["train/strength=0"], found["evaluate/strength=0"]) == ("stopped", "missing")
    assert (found["train/strength=1e+06"], found["evaluate/strength=1e+06"]) == ("done", "done")
    order(world, "finish", "train/strength=0")
    assert run(sweep) == 0


CANCEL = """
import json, sys, time
from pathlib import Path
from hpc_ewc.cli import main
root = Path(sys.argv[1])
while not list(root.glob("train/strength=0-*/progress/0.json")):
    time.sleep(0.1)
sys.exit(main(["cancel", str(root), "strength=0", "--yes"]))
"""

SUBMIT = """
import signal, sys
from hpc_ewc import cli
from hpc_ewc.launch.submit import local
local.SAVE_S = 3.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background ignores it
sys.exit(cli.main(["submit", sys.argv[1], "--profile", sys.argv[2]]))
"""


def start_submit(world: Path, sweep: Path, repository: Path) -> subprocess.Popen[str]:
    """Start a submit in its own process group, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(sweep), str(write_profile(sweep))],
        env=os.environ | {"PYTHONPATH": str(repository)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.05)


def test_ctrl_c_stops_the_jobs_and_the_same_command_resumes(world: Path, repository: Path) -> None:
    sweep = write_experiment(world.parent, [0])
    root = RunDir(world.parent / "runs" / "small")
    order(world, "wait", "train")
    process = start_submit(world, sweep, repository)
    wait_until(lambda: list(root.root.glob("train/*/progress/0.json")), "training begins")
    os.killpg(process.pid, signal.SIGINT)  # like a terminal: to submit, submitit and its task alike
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "resumes" in err
    assert not root.lock.exists()
    assert Ledger(root).read().live() == []
    assert not list(root.root.glob("train/*/failed.json")), "stopped runs have not failed"
    before = len(begun(world))
    order(world, "finish", "train")
    assert run(sweep) == 0
    assert {name.split("/")[0] for name in begun(world)[before:]} == {"train", "evaluate"}


def test_jobs_that_do_not_stop_are_killed(world: Path, repository: Path) -> None:
    sweep = write_experiment(world.parent, [0])
    root = RunDir(world.parent / "runs" / "small")
    order(world, "hang", "tokens")
    process = start_submit(world, sweep, repository)
    wait_until(lambda: begun(world), "the worker begins")
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert Ledger(root).read().live() == []
    # by its command line, since no process is left that knows its pid
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(world).encode() in _bytes(p)]
    assert left == []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_jobs_save_after_their_submit_is_killed_and_the_next_submit_waits(world: Path, repository: Path) -> None:
    sweep = write_experiment(world.parent, [0])
    root = RunDir(world.parent / "runs" / "small")
    order(world, "wait", "tokens")
    process = start_submit(world, sweep, repository)
    wait_until(lambda: list(root.root.glob("tokens/*/progress/0.json")), "the worker begins")
    process.kill()
    process.communicate()
    assert root.lock.exists()
    order(world, "finish", "tokens")
    assert run(sweep) == 0
    history = Ledger(root).read()
    assert [job.outcome for job in history.jobs.values() if job.stage == "tokens"] == ["", "finished"]
    assert history.live() == []


# ---------------------------------------------------------------------------------------------- the launcher


IMPORTS = (
    "import sys; from hpc_ewc.process import Process; from hpc_ewc.node.local_attempt import LocalTask; "
    "from hpc_ewc.node.container import ContainerConfig; from hpc_ewc.artefacts.artefact import Element"
)


def local_task(tmp_path: Path, stage: str, *arguments: str, ranks: int = 1) -> LocalTask:
    return LocalTask(
        name=f"small/{stage}",
        stage=stage,
        folder=str(tmp_path),
        jobs=str(tmp_path),
        token="job",
        elements=((Element("0", arguments),),),
        python="py",
        environment={},
        nproc_per_node=ranks,
    )


def printed(tmp_path: Path) -> str:
    return (rundir.node_logs(tmp_path / "job", 0, 0) / "0" / "0" / "stdout.log").read_text()


def launch(tmp_path: Path, program: str, **changes: Any) -> subprocess.Popen[str]:
    """Start a launcher in its own process, with a small worker."""
    (tmp_path / "job").mkdir(exist_ok=True)
    (tmp_path / "program.py").write_text(program)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/program.py\n")
    python.chmod(0o755)
    job = replace(local_task(tmp_path, "tokens"), python=str(python), **changes)
    code = f"{IMPORTS}; sys.exit({job!r}())"
    return subprocess.Popen([sys.executable, "-c", code], text=True)


WORKER = """
import os, signal, sys, time
told = []
open("job/born", "w").close()
time.sleep({before})
signal.signal(signal.SIGUSR2, lambda *_: told.append("USR2"))
open("job/ready", "w").close()
end = time.time() + 20
while not told and time.time() < end and not ({by_file} and os.path.exists(os.environ["HPC_EWC_STOP_FILE"])):
    time.sleep(0.05)
print("told" if told else "saw the file")
"""


def test_sigterm_becomes_a_stop_file_and_sigusr2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launcher = launch(tmp_path, WORKER.format(before=0, by_file=False))
    wait_until(lambda: (tmp_path / "job" / "ready").exists(), "the worker is ready")
    launcher.terminate()
    assert launcher.wait(timeout=120) == 0
    assert (tmp_path / "job" / "stop.0").exists()
    assert printed(tmp_path) == "told\n"
    assert json.loads((tmp_path / "job" / "exit.0").read_text())["status"] == 0


def test_sigusr2_before_the_handler_is_installed_kills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launcher = launch(tmp_path, WORKER.format(before=1, by_file=True))
    wait_until(lambda: (tmp_path / "job" / "born").exists(), "the worker is born")
    (tmp_path / "job" / "stop.0").touch()
    assert launcher.wait(timeout=120) == 0
    assert (
        tmp_path / "job" / "ranks" / "restart_0" / "node_0" / "0" / "0" / "stdout.log"
    ).read_text() == "saw the file\n"


def test_a_worker_does_not_outlive_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write = "open('job/pid', 'w').write(str(os.getpid())); os.rename('job/pid', 'job/born')"
    program = f"import os, time; {write}; time.sleep(60)"
    launcher = launch(tmp_path, program)
    wait_until(lambda: (tmp_path / "job" / "born").exists(), "the worker is born")
    worker = int((tmp_path / "job" / "born").read_text())
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not local.process(worker).started, "the worker ends")


def test_a_job_stops_after_its_submit_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gone = this_process()
    owner = type(gone)(gone.host, gone.pid, gone.started + "0")
    launcher = launch(tmp_path, WORKER.format(before=0, by_file=True), owner=owner)
    assert launcher.wait(timeout=120) == 0
    assert (tmp_path / "job" / "stop.0").exists()


def test_a_job_stopped_before_it_starts_runs_no_worker(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "stop.0").touch()
    launcher = launch(tmp_path, "open('/nowhere/x')")
    assert launcher.wait(timeout=120) == 0
    assert not (tmp_path / "job" / "ranks").exists()


def test_torchrun_starts_all_ranks_of_all_nodes(tmp_path: Path) -> None:
    task = local_task(tmp_path, "train", ranks=4)
    command = torchrun_command(task, task.elements[0][0], STANDALONE, tmp_path / "job")
    assert command[:3] == ("py", "-m", "torch.distributed.run")
    assert "--nproc-per-node=4" in command
    assert command[-4:] == ("-m", "hpc_ewc.worker", "train", str(tmp_path))
    task = local_task(tmp_path, "tokens", "--part", "0/2")
    plain = plain_command(task, task.elements[0][0])
    assert plain == ("py", "-m", "hpc_ewc.worker", "tokens", str(tmp_path), "--part", "0/2")
