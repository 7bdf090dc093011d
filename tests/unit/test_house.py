"""The package's structure: three places where code runs, one-way imports, no circles, folders of readable size.

Packages and modules are found by walking the tree, so that no `__init__.py` hides what lies behind it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import hpc_ewc

PACKAGE = Path(hpc_ewc.__file__).parent

HEAVY = {"torch", "transformers", "datasets", "lm_eval", "accelerate", "tokenizers"}
"""Packages that take seconds to import or are optional on a login node. safetensors is not one: it reads headers,
imports neither torch nor numpy by itself, and loads in milliseconds."""

# Where code runs. Modules in no place are imported in all of them, so they are as light as the login node needs.
PLACES = {
    "login node": {"cli", "launch", "report"},
    "node": {"node"},  # between Slurm and torch
    "rank": {"data", "model", "ewc", "train", "evaluate", "worker"},
}
SHARED = {
    "errors",
    "config",
    "records",
    "rundir",
    "hub",
    "model_folder",
    "sweep",
    "suites",
    "stage",
    "process",
    "schemas",
    "artefacts",
}
LIGHT = SHARED | PLACES["login node"] | PLACES["node"]

# What each room may import of ours, besides itself. Anything else is a wrong turn.
MAY_IMPORT = {
    "errors": set(),
    "rundir": set(),
    "process": set(),
    "schemas": set(),
    "config": {"errors"},
    "records": {"schemas", "errors"},
    "hub": {"records", "rundir", "errors"},
    "model_folder": {"records", "errors"},
    "sweep": {"config", "records", "errors"},
    "suites": {"schemas", "config", "hub", "records", "rundir", "errors"},
    "stage": {"config", "records", "rundir", "schemas", "errors"},
    "artefacts": {"config", "records", "rundir", "schemas", "suites", "errors"},
    "node": {"artefacts", "config", "process", "records", "rundir", "schemas", "errors"},
    "launch": SHARED | {"node"},
    "report": {"config", "suites", "sweep", "rundir", "records", "errors"},
    "cli": SHARED | {"launch", "report"},
    "data": {"config", "hub", "rundir", "records", "schemas", "stage", "errors"},
    "model": {"config", "hub", "model_folder", "rundir", "records", "schemas", "stage", "errors", "data"},
    "ewc": {"errors"},
    "train": {"config", "rundir", "records", "schemas", "stage", "errors", "data", "model", "ewc"},
    "evaluate": {"config", "hub", "model_folder", "suites", "rundir", "records", "schemas", "stage", "errors"}
    | {"data", "model"},
    "worker": {"config", "hub", "suites", "rundir", "records", "schemas", "stage", "errors"}
    | {"data", "model", "ewc", "train", "evaluate"},
}
LINES_IN_A_FOLDER = 2500


def module_files() -> dict[str, Path]:
    """Return every module of the package by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = module_files()


def imports_of(name: str) -> Iterator[tuple[str, bool]]:
    """Return the modules that a module imports anywhere, and whether at load time."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    late = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.Lambda))
        or (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test))
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), id(node) not in late


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the import circles: sets of names that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(arrows.get(start, ()))
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen.add(one)
                waiting += arrows.get(one, ())
        return seen

    behind = {name: reached(name) for name in arrows}
    looped = {name for name, names in behind.items() if name in names}
    return [{other for other in looped if other in behind[name] and name in behind[other]} for name in sorted(looped)]


def test_every_room_is_in_one_place() -> None:
    rooms = {room(name) for name in MODULES} - {"", "__main__"}
    placed = [*SHARED, *(one for place in PLACES.values() for one in place)]
    assert sorted(placed) == sorted(rooms), "a new room: say in PLACES or SHARED where its code runs"
    assert set(MAY_IMPORT) == rooms


def test_imports_run_one_way() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        for other, _ in imports_of(name)
        if other.startswith("hpc_ewc.") and room(name) not in ("", "__main__")
        if room(other) not in MAY_IMPORT[room(name)] | {room(name), "__version__"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_does_not_import_its_examples() -> None:
    wrong = [name for name in MODULES for other, _ in imports_of(name) if other.split(".")[0] in ("examples", "tests")]
    assert not wrong


def test_no_module_and_no_package_is_in_a_circle() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    packages: dict[str, set[str]] = defaultdict(set)

    def package_of(name: str) -> str:
        folder = MODULES[name].parent
        return name if folder == PACKAGE else ".".join(folder.relative_to(PACKAGE.parent).parts)

    for name in MODULES:
        for other, _ in imports_of(name):
            if other in MODULES and other != "hpc_ewc":
                modules[name].add(other)
                if package_of(name) != package_of(other):
                    packages[package_of(name)].add(package_of(other))
    assert circles(modules) == []
    assert circles(packages) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}, {"b", "c"}]


def test_the_login_node_and_the_node_never_import_torch() -> None:
    """Each module is imported separately in one process that refuses heavy packages."""
    light = [name for name in MODULES if room(name) in LIGHT]
    assert len(light) > 100, "too few modules found"
    program = f"""
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
for name in {light!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, "imports", error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not run.stdout, run.stdout


def test_no_light_module_imports_a_heavy_package_later_either() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        if room(name) in LIGHT
        for other, _ in imports_of(name)
        if other.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_no_public_function_of_the_login_node_takes_a_positional_boolean() -> None:
    """`submit(sweep, None, True, False)` cannot be read; `dry_run=True` can."""
    wrong = [
        f"{name}.{function.name}({argument.arg})"
        for name, path in MODULES.items()
        if room(name) in LIGHT
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_")
        for argument in (*function.args.posonlyargs, *function.args.args)
        if argument.annotation is not None and ast.unparse(argument.annotation).startswith("bool")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_a_folder_can_be_read(folder: Path) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
    assert lines <= LINES_IN_A_FOLDER, f"{folder}: {lines} lines; split it by purpose"


def test_no_module_is_a_miscellany() -> None:
    assert not {name.split(".")[-1] for name in MODULES} & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_the_newest_version_of_the_changelog_is_this_one(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d\S*) – \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert versions[0] == hpc_ewc.__version__
