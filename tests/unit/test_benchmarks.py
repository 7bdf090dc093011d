"""The benchmark page lists every script and result; `make bench` runs them in a valid order."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("all")
    sys.modules.pop("all", None)


def test_every_script_and_every_result_is_listed(every: Any) -> None:
    scripts = [*every.names(), "gpu"]
    assert [name for name in scripts if not re.search(rf"^\| .*`{name}\.py`", PAGE, re.M)] == []
    results = [path.name for path in (FOLDER / "results").glob("*.json")]
    assert [name for name in results if f"(results/{name})" not in PAGE] == []


def test_results_that_others_read_are_measured_first(every: Any) -> None:
    names = every.names()
    assert len(names) == len(set(names))
    assert names.index("training_step") < names.index("scaling")
    assert not {"all", "gpu", "running", "engine"} & set(names)


def run_all(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Run the script beside fake benchmarks."""
    (folder / "all.py").write_text((FOLDER / "all.py").read_text())
    for name, status in (("training_step", 0), ("first", 3), ("second", 0)):
        (folder / f"{name}.py").write_text(f'if __name__ == "__main__":\n    raise SystemExit({status})\n')
    return subprocess.run([sys.executable, str(folder / "all.py"), *names], capture_output=True, text=True)


def test_a_failed_benchmark_is_named_at_the_end_and_the_others_run(tmp_path: Path) -> None:
    done = run_all(tmp_path)
    assert done.returncode == 1
    assert re.findall(r"^== (\w+)$", done.stdout, re.M) == ["training_step", "first", "second"]
    assert re.search(r"^== first: [\d.]+ (s|min), ended with status 3$", done.stdout, re.M)
    assert re.search(r"^== 3 benchmarks: [\d.]+ (s|min); failed: first$", done.stdout, re.M)
    assert run_all(tmp_path, "second").returncode == 0


def test_an_unknown_benchmark_is_refused(tmp_path: Path) -> None:
    done = run_all(tmp_path, "third")
    assert done.returncode == 2
    assert "no benchmark of a CPU: third; there are training_step, first, second" in done.stderr


def test_a_result_names_the_commit_that_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    environment = importlib.import_module("environment")
    try:
        monkeypatch.setattr(environment, "ROOT", tmp_path)
        assert environment.commit() is None
        (tmp_path / "benchmarks" / "results").mkdir(parents=True)
        (tmp_path / "hpc_ewc").mkdir()
        code = tmp_path / "hpc_ewc" / "x.py"
        code.write_text("1\n")
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
        clean = environment.commit()
        assert re.fullmatch(r"[0-9a-f]{12}", clean)
        (tmp_path / "benchmarks" / "results" / "x.json").write_text(json.dumps({}))
        assert environment.commit() == clean, "a result is not code"
        code.write_text("2\n")
        assert environment.commit() == f"{clean}+"
    finally:
        sys.modules.pop("environment", None)
