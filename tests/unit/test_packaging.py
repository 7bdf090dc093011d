"""pyproject.toml names what is imported, and CI's versions are within its bounds."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hpc_ewc

OPTIONAL = {"liger_kernel": "liger-kernel", "flash_attn": None, "vllm": "vllm"}
"""Optional imports: the distribution in an extra, or None if each site builds its own."""


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return dict(tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def imported(package: Path) -> set[str]:
    """Return the top-level names of all third-party imports, at any place in a module."""
    names = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {package.name}


def test_every_imported_package_is_a_dependency(project: dict[str, Any], repository: Path) -> None:
    listed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    extras = {Requirement(line).name for lines in project["optional-dependencies"].values() for line in lines}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        name
        for name in imported(repository / "hpc_ewc") - OPTIONAL.keys()
        if not listed & {canonicalize_name(each) for each in distributions[name]}
    }
    assert not missing, "pip would not install these, or only since another package happens to need them"
    assert {name for name in OPTIONAL.values() if name} <= extras


def test_ci_versions_are_exact_and_within_bounds(project: dict[str, Any], repository: Path) -> None:
    text = (repository / "constraints.txt").read_text(encoding="utf-8")
    pinned = {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["dev"], *extras["docs"]):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), line


def test_the_wheel_is_typed_and_contains_only_the_package(repository: Path) -> None:
    files = {file.distribution_path for file in WheelBuilder(str(repository)).recurse_included_files()}
    assert "hpc_ewc/py.typed" in files
    assert {name.split("/")[0] for name in files} == {"hpc_ewc"}
    assert not any("miniature" in name for name in files), "examples are run from a checkout"


def test_the_citation_names_this_version(project: dict[str, Any], repository: Path) -> None:
    cited = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == hpc_ewc.__version__
    assert cited["license"] == project["license"]
    assert len(cited["references"]) == 2


def test_hosted_ci_and_commit_hooks_run_local_commands(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step][-1] == ".ci/run"
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert all(source["repo"] == "local" for source in hooks["repos"]), "a hook is downloaded"
