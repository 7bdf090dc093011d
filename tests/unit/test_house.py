"""The shape of the house: imports run one way, and the login node needs four packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hpc_ewc

HEAVY = {"torch", "transformers", "datasets", "lm_eval", "accelerate", "safetensors", "tokenizers"}
LOGIN = [
    "errors",
    "config",
    "hub",
    "model_folder",
    "suites",
    "sweep",
    "rundir",
    "records",
    "stage",
    "miniature",
    "launch",
    "report",
    "cli",
]
# What each room may import of ours, besides itself and what those import. Anything else is a wrong turn.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "records": {"errors"},
    "rundir": set(),
    "hub": {"records", "rundir", "errors"},
    "model_folder": {"records", "errors"},
    "sweep": {"config", "records", "errors"},
    "suites": {"config", "hub", "records", "rundir", "errors"},
    "stage": {"config", "records", "rundir", "errors"},
    "miniature": {"config", "records", "rundir", "errors"},
    "launch": {"config", "hub", "model_folder", "suites", "sweep", "rundir", "records", "stage", "miniature", "errors"},
    "report": {"config", "suites", "sweep", "rundir", "records", "errors"},
    "cli": {"config", "suites", "sweep", "rundir", "records", "stage", "miniature", "launch", "report", "errors"},
    "data": {"config", "hub", "rundir", "records", "stage", "errors"},
    "model": {"config", "hub", "rundir", "records", "stage", "errors", "data"},
    "ewc": {"errors"},
    "train": {"config", "rundir", "records", "stage", "errors", "data", "model", "ewc"},
    "evaluate": {"config", "hub", "model_folder", "suites", "rundir", "records", "stage", "errors", "data", "model"},
    "worker": {
        "config",
        "hub",
        "suites",
        "rundir",
        "records",
        "stage",
        "errors",
        "data",
        "model",
        "ewc",
        "train",
        "evaluate",
    },
}


def room(path: Path, package: Path) -> str:
    relative = path.relative_to(package)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_one_way(repository: Path) -> None:
    package = repository / "hpc_ewc"
    wrong = []
    for path in sorted(package.rglob("*.py")):
        here = room(path, package)
        if here in ("__init__", "__main__"):
            continue
        assert here in MAY_IMPORT, f"{path}: a new room needs a line in MAY_IMPORT"
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("hpc_ewc.")}
        wrong += [
            f"{path}: {here} imports {other}" for other in sorted(ours - MAY_IMPORT[here] - {here, "__version__"})
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", LOGIN)
def test_the_login_side_never_imports_torch(name: str) -> None:
    program = f"import sys, hpc_ewc.{name}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())


def test_no_room_is_a_drawer(repository: Path) -> None:
    names = {path.stem for path in (repository / "hpc_ewc").rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_the_newest_version_of_the_changelog_is_this_one(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d\S*) – \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert versions[0] == hpc_ewc.__version__
