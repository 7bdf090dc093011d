"""A login node has the six packages that pyproject.toml lists first; its commands must not want more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import link_miniature

LOGIN_PACKAGES = ("huggingface_hub", "numpy", "rich", "safetensors", "submitit", "tyro")


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions that `names` need to be installed, themselves included; optional extras are not."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # a requirement of another platform or Python
        found.add(name)
        waiting += [re.split(r"[ ;<>=!~\[(]", line)[0] for line in requirements if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def login_environment(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, str]:
    """An environment whose Python finds the six packages, what they need, and this one: nothing more."""
    site = tmp_path_factory.mktemp("site")
    for name in closure(LOGIN_PACKAGES):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(source)
    (site / "hpc_ewc").symlink_to(repository / "hpc_ewc")
    cache = tmp_path_factory.mktemp("cache")
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HPC_EWC_CACHE": str(cache), "HOME": str(cache)}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S: no site-packages, so nothing but PYTHONPATH is found
    command = [sys.executable, "-S", "-m", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_environment_is_bare(login_environment: dict[str, str], tmp_path: Path) -> None:
    names = ["torch", "transformers", "datasets", "scipy", "zstandard", "pytest"]
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    bare = subprocess.run([sys.executable, "-S", "-c", code], env=login_environment, capture_output=True, text=True)
    assert bare.stdout.strip() == "[]", bare.stderr


def test_help(login_environment: dict[str, str], tmp_path: Path) -> None:
    done = run(login_environment, tmp_path, "hpc_ewc", "--help")
    assert done.returncode == 0, done.stderr
    assert "submit" in done.stdout


def test_dry_run_and_status(
    login_environment: dict[str, str], tmp_path: Path, repository: Path, miniature: Path
) -> None:
    link_miniature(tmp_path, miniature)
    sweep = str(repository / "sweeps" / "miniature.toml")
    done = run(login_environment, tmp_path, "hpc_ewc", "submit", sweep, "--dry-run")
    assert done.returncode == 0, done.stderr
    for stage in ("tokens", "fisher", "train", "evaluate", "report"):
        assert stage in done.stdout
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
    missing = run(login_environment, tmp_path, "hpc_ewc", "status", "runs/miniature")
    assert missing.returncode == 2
    assert "runs/miniature" in missing.stderr
    assert "Traceback" not in missing.stderr
