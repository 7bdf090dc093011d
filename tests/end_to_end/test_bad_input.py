"""Everything that is refused, and with which words: the one table, through the command itself.

Each case ends with its status and one line on stderr; no traceback, no run folder, no job. What is only found inside a
job is marked there: tests/end_to_end/test_tokens_worker.py, test_train_kill.py, test_evaluate.py have those.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpc_ewc.cli import main
from tests.conftest import use_hub_cache
from tests.end_to_end.bad_input import Case, build_world
from tests.end_to_end.bad_input_commands import COMMANDS, PROFILES
from tests.end_to_end.bad_input_experiments import EXPERIMENTS
from tests.end_to_end.bad_input_found import CHECKPOINTS, FILES
from tests.end_to_end.bad_input_left import MACHINE, RECORDS, REFUSALS
from tests.unit import fake_slurm

CASES = [*EXPERIMENTS, *PROFILES, *COMMANDS, *FILES, *CHECKPOINTS, *RECORDS, *MACHINE, *REFUSALS]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "cache" / "hf")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    monkeypatch.setattr("hpc_ewc.launch.submit.local.LocalRun.run", lambda self: pytest.fail("jobs were started"))
    build_world(tmp_path)
    return tmp_path


def files_of(world: Path) -> set[str]:
    """All but the cache of hashes, which a dry run writes too."""
    found = {str(path.relative_to(world)) for path in world.rglob("*")}
    return {name for name in found if not name.startswith("cache")}


def test_the_world_is_good_where_nothing_is_changed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(world)
    for command in ("submit x.toml --dry-run", "submit x.toml --profile cluster.toml --dry-run"):
        assert main(command.split()) == 0, capsys.readouterr().err
    assert main(["evaluate", "model", "--suites", "arc_easy.en", "--dry-run"]) == 0
    assert files_of(world) == before


def test_the_table_covers_what_it_says() -> None:
    about = {"experiment", "profile", "command line", "corpus", "tokenizer", "model", "Fisher", "checkpoint", "record"}
    assert {case.about for case in CASES} == about | {"environment", "cluster"}
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_before_anything_starts(
    case: Case, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.change(world)
    refusing = {"refuse_after": 0, "words": case.sbatch_says} if case.sbatch_says else {}
    slurm = fake_slurm.install(world / "bin", **refusing)
    monkeypatch.setenv("PATH", str(slurm), prepend=":")
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    before = files_of(world)
    assert main(case.command.split("|" if "|" in case.command else None)) == case.status
    out, err = capsys.readouterr()
    line, *said_before = reversed(err.splitlines())
    assert line.startswith(f"{case.error}: ")
    assert case.says.replace("{here}", str(world)) in line
    assert "Traceback" not in err and out == ""
    assert fake_slurm.load(slurm)["jobs"] == []
    if case.sbatch_says:  # the script is left to be read; its name is in the line
        assert Path(re.search(r"Script: (\S+)$", line)[1]).is_file()  # type: ignore[index]
    else:
        assert said_before == []
        assert files_of(world) == before
