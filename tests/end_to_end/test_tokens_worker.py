"""The tokens stage as a job runs it: processes of their own, stopped, killed, asked for the impossible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.data import read_tokens
from hpc_ewc.data.plan import build_plan, save_plan
from hpc_ewc.rundir import StageDir
from hpc_ewc.worker.tokens import main
from tests.unit.data_corpus import make_data, make_texts, write_jsonl, write_model, write_stage

PARTS = 25
IN_PROCESSES = """
import sys
from hpc_ewc.data import tokenise
from hpc_ewc.worker.tokens import main

if __name__ == "__main__":
    tokenise.PARALLEL_FROM_BYTES = 0
    tokenise.available_cores = lambda: 2
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 5 MB: seconds of work, in which to be interrupted."""
    texts = [text * 6 for text in make_texts(5000)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", [{"text": text} for text in texts])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path, corpus: Path) -> dict[str, bytes]:
    """What one undisturbed worker writes."""
    folder = make_folder(tmp_path_factory.mktemp("whole") / "tokens", model, corpus)
    assert run(folder).wait(120) == 0
    return outputs(folder)


def make_folder(folder: Path, model: Path, corpus: Path) -> Path:
    """A tokens folder as `submit` makes it, with a plan of `PARTS` parts."""
    data = make_data(heldout_documents=30)
    write_stage(folder, model, [corpus], data)
    save_plan(StageDir(folder).plan, build_plan([str(corpus)], data, part_records=5000 // PARTS))
    return folder


def run(folder: Path, *arguments: str, program: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
    start = ["-m", "hpc_ewc.worker", "tokens"] if program is None else [str(program)]
    root = str(Path(records.__file__).parents[1])
    given = {"PYTHONPATH": root, "PYTHONSAFEPATH": "1", "RAYON_NUM_THREADS": "1"} | environment
    command = [sys.executable, *start, str(folder), *arguments]
    with errors_file(folder).open("wb") as errors:
        return subprocess.Popen(command, env=os.environ | given, stderr=errors)


def errors_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.stderr")


def outputs(folder: Path) -> dict[str, bytes]:
    stage = StageDir(folder)
    return {path.name: path.read_bytes() for path in [*stage.parts.iterdir(), stage.heldout, stage.manifest_json]}


def parts(folder: Path) -> int:
    return len(list(StageDir(folder).parts.glob("[0-9]*.json")))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, "nothing happened for 100 s"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Process ids of the children, from /proc."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_two_workers_at_once_write_what_one_does(
    tmp_path: Path, model: Path, corpus: Path, whole: dict[str, bytes]
) -> None:
    folder = make_folder(tmp_path / "t", model, corpus)
    workers = [run(folder, "--part", f"{i}/2") for i in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert outputs(folder) == whole
    assert len(read_tokens(folder)) == records.read_json(StageDir(folder).done)["summary"]["samples"]
    assert sorted(path.stem for path in StageDir(folder).progress_dir.iterdir()) == ["0", "1"]
    assert run(folder).wait(60) == 0  # again: nothing to do


def test_a_worker_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, model: Path, corpus: Path, whole: dict[str, bytes]
) -> None:
    folder = make_folder(tmp_path / "t", model, corpus)
    for more in (2, 7):
        before = parts(folder)
        worker = run(folder)
        wait_for(lambda goal=before + more: parts(folder) >= goal, worker)
        worker.kill()
        worker.wait(30)
        assert before < parts(folder) < PARTS
        assert not StageDir(folder).done.exists()
    assert run(folder).wait(120) == 0
    found = outputs(folder)
    # what a killed writer left beside its place is nobody's file
    assert {name: content for name, content in found.items() if not name.startswith(".")} == whole


@pytest.mark.parametrize("how", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, "file"])
def test_a_worker_that_is_asked_to_stop_leaves_whole_parts_and_no_error(
    tmp_path: Path, model: Path, corpus: Path, whole: dict[str, bytes], how: signal.Signals | str
) -> None:
    folder, flag = make_folder(tmp_path / "t", model, corpus), tmp_path / "stop.0"
    worker = run(folder, HPC_EWC_STOP_FILE=str(flag))
    wait_for(lambda: parts(folder) >= 3, worker)
    flag.touch() if isinstance(how, str) else worker.send_signal(how)
    assert worker.wait(60) == 0
    stage = StageDir(folder)
    assert not stage.done.exists() and not stage.failed.exists()
    assert not [path for path in stage.parts.iterdir() if path.name.startswith(".")]
    made = outputs_of_parts(folder)
    assert 0 < len(made) < len(whole)
    assert all(whole[name] == content for name, content in made.items())


def outputs_of_parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in StageDir(folder).parts.iterdir()}


def test_processes_stop_and_die_with_their_parent(
    tmp_path: Path, model: Path, corpus: Path, whole: dict[str, bytes]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_PROCESSES)
    folder = make_folder(tmp_path / "t", model, corpus)
    worker = run(folder, program=program)
    wait_for(lambda: parts(folder) >= 3, worker)
    worker.terminate()
    assert worker.wait(60) == 0
    assert not StageDir(folder).done.exists()
    before = parts(folder)
    worker = run(folder, program=program)
    wait_for(lambda: parts(folder) >= before + 2, worker)
    pool = children(worker.pid)
    assert len(pool) >= 2
    worker.kill()
    worker.wait(30)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pool):
        assert time.monotonic() < end, "a process of the pool outlived its parent"
        time.sleep(0.02)
    worker = run(folder, program=program)
    assert worker.wait(120) == 0
    assert {n: c for n, c in outputs(folder).items() if not n.startswith(".")} == whole


def pool_of(pid: int) -> list[int]:
    """The processes of its pool, and not multiprocessing's own tracker of semaphores."""
    return [child for child in children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_term_to_every_process_of_the_job_is_a_wish_to_stop(tmp_path: Path, model: Path, corpus: Path) -> None:
    """Slurm signals all of them."""
    program = tmp_path / "program.py"
    program.write_text(IN_PROCESSES)
    folder = make_folder(tmp_path / "t", model, corpus)
    worker = run(folder, program=program)
    wait_for(lambda: parts(folder) >= 2, worker)
    for pid in [*pool_of(worker.pid), worker.pid]:
        os.kill(pid, signal.SIGTERM)
    assert worker.wait(60) == 0
    assert not StageDir(folder).done.exists() and not StageDir(folder).failed.exists()


def test_a_process_killed_for_memory_is_named(tmp_path: Path, model: Path, corpus: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_PROCESSES)
    folder = make_folder(tmp_path / "t", model, corpus)
    worker = run(folder, program=program)
    wait_for(lambda: parts(folder) >= 2, worker)
    os.kill(pool_of(worker.pid)[-1], signal.SIGKILL)
    assert worker.wait(60) == 1
    errors = errors_file(folder).read_text()
    assert "StageError: a process of the tokens stage was killed, most often for memory; raise mem_gb" in errors


def test_a_bad_corpus_ends_with_one_line_and_failed_json(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*({"text": text} for text in make_texts(20)), {"text": None}])
    folder = write_stage(tmp_path / "t", model, [path], make_data())
    worker = run(folder)
    assert worker.wait(60) == 1
    errors = errors_file(folder).read_text()
    assert errors.count("\n") == 1
    assert f"InputError: {path}:21: column 'text' holds NoneType, not text; repair it, or set" in errors
    failed = json.loads(StageDir(folder).failed.read_text())
    assert failed["error"] in errors
    assert "in tokenise" in failed["traceback"]
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:20]) + b"\n")  # repaired, and asked again
    StageDir(folder).plan.unlink(missing_ok=True)
    assert run(folder).wait(60) == 0
    assert not StageDir(folder).failed.exists()


@pytest.mark.parametrize("part", ["3/3", "1", "-1/2", "a/b", "0/0", "1/2/3"])
def test_a_part_that_cannot_be_is_refused(tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), f"--part={part}"]) == 1
    assert f"ConfigError: --part '{part}': must be I/N with 0 ≤ I < N, such as 0/4" in capsys.readouterr().err


def test_a_folder_that_submit_did_not_make_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no stage.json; not a folder that `hpc-ewc submit` made" in capsys.readouterr().err
