"""The commands start fast and never import torch. Refused input: tests/end_to_end/test_bad_input.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_ewc.cli import COMMANDS, main
from hpc_ewc.worker import __main__ as worker
from tests.conftest import use_hub_cache
from tests.unit.launch_world import write_experiment

HEAVY = {"torch", "transformers", "datasets", "lm_eval", "submitit", "numpy"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")
    monkeypatch.chdir(tmp_path)


def modules_after(code: str, repository: Path) -> set[str]:
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy(repository: Path) -> None:
    code = "from hpc_ewc.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert not (HEAVY | {"tyro", "rich"}) & modules_after(code, repository)


def test_submitit_is_imported_only_if_there_are_jobs_to_submit(tmp_path: Path, repository: Path) -> None:
    sweep = write_experiment(tmp_path)
    code = f"from hpc_ewc.cli import main\nassert main(['submit', {str(sweep)!r}, '--dry-run']) == 0"
    assert not HEAVY - {"numpy"} & modules_after(code, repository), "numpy: safetensors reads the model's header"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*([command] if command else []), "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "--no-" not in out


def test_help_lists_commands_in_workflow_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = re.findall(r"^  (\w+) +([A-Z].*)\.$", capsys.readouterr().out, re.MULTILINE)
    order = ["prefetch", "doctor", "submit", "status", "logs", "cancel", "evaluate", "report", "compare"]
    assert [name for name, _ in lines] == order
    assert not [sentence for _, sentence in lines if ". " in sentence], "one sentence each"
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: hpc-ewc COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "tables"), [((), "runs/small/report"), (("--out", "results/x"), "results/x")])
def test_tables_go_into_the_run_folder_unless_out_is_given(
    out: tuple[str, ...], tables: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(write_experiment(tmp_path)), "--dry-run", *out]) == 0
    assert f"tables: {tmp_path}/{tables}. A dry run" in capsys.readouterr().out


def test_python_m_runs_the_command_line(repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "hpc_ewc", "status", "nowhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: nowhere: not a run folder")


def test_dry_run_of_a_slurm_profile_works_without_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "p.toml").write_text('executor = "slurm"\n[resources.train]\ngpus_per_node = 4\nnodes = 2\n')
    sweep = str(write_experiment(tmp_path))
    assert main(["submit", sweep, "--profile", "p.toml", "--dry-run"]) == 0
    assert "up to 16.0 GPU-hours" in capsys.readouterr().out
    assert main(["submit", sweep, "--profile", "p.toml"]) == 2
    assert "is this a login node of a Slurm cluster" in capsys.readouterr().err


def test_dry_run_shows_shared_stages_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_experiment(tmp_path, [0, 1, 2])
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert main(["submit", str(sweep), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"tokens +\w{12} +missing +1 +4 stages", out)
    assert re.search(r"fisher +\w{12} +missing +1 +2 stages", out)
    assert "tokens 0 of 1 done, fisher 0 of 1 done, train 0 of 3 done, evaluate 0 of 4 done" in out
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


@pytest.mark.parametrize("arguments", [["submit"], ["sbumit", "x"], ["status", "a", "b"], ["logs", "x"]])
def test_invalid_command_lines_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_worker_lists_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main(["tran", "x"]) == 2
    assert "usage: python -m hpc_ewc.worker tokens|fisher|train|evaluate DIR" in capsys.readouterr().err
