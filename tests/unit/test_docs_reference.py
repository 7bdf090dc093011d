"""docs/reference and the front page's picture equal what the code writes."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import runpy
import sys
from types import ModuleType

import pytest

from hpc_ewc import cli, config
from hpc_ewc.launch.profile import keys
from hpc_ewc.report import __main__ as report
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "reference"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference_generate", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_reference_pages_equal_the_generated_ones(generate: ModuleType) -> None:
    before = set(sys.modules)
    pages = generate.pages()
    assert sorted(pages) == sorted(path.name for path in FOLDER.glob("*.md"))
    for name, text in pages.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"docs/reference/{name}: run `make docs`"
    assert not {"cluster", "machine", "nodes", "settings"} & (set(sys.modules) - before), (
        "the sandbox's modules are unloaded"
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_reference_pages_list_the_options_of_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare with tyro's own parser."""
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert options_of("commands.md", f"hpc-ewc {name}") == flags(capsys.readouterr().out) - {"-h", "--help"}


@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_module_accepts_the_options_of_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([*(["compare"] if name == "compare" else []), "--help"])
    shown = flags(capsys.readouterr().out) - {"-h", "--help"}
    assert options_of("commands.md", f"hpc-ewc {name}") == {flag for flag in shown if not flag.startswith("--no-")}


def options_of(page: str, heading: str) -> set[str]:
    text = (FOLDER / page).read_text(encoding="utf-8")
    (block,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return {flag for cell in re.findall(r"^\| `([^`]+)`", block, re.M) for flag in flags(cell)}


def flags(text: str) -> set[str]:
    """Return the options at the beginning of lines or of a cell: `-y, --yes`, `--profile PATH`."""
    beginnings = re.findall(r"^[│ ]*(-\S.*?)(?=  |$)", text, re.M)
    return {flag for beginning in beginnings for flag in re.findall(r"(?:^|[\s,|])(--?[a-z][a-z-]*)", beginning)}


def test_the_front_page_figure_equals_the_committed_numbers() -> None:
    drawn = runpy.run_path(str(REPOSITORY / "docs" / "images" / "front.py"))["render"]()
    assert (REPOSITORY / "docs" / "images" / "front.svg").read_text(encoding="utf-8") == drawn, "run `make docs`"


def test_every_key_is_documented() -> None:
    for page, classes in {
        "experiment.md": [*config.SECTIONS.values(), config.Resources],
        "profile.md": [keys.Profile, *keys.SECTIONS.values(), config.Resources],
    }.items():
        text = (FOLDER / page).read_text(encoding="utf-8")
        for cls in classes:
            for field in dataclasses.fields(cls):
                assert not field.metadata or re.search(rf"^\| `{field.name}` \|.*\S \|$", text, re.M), field.name
