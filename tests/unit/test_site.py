"""`make site`: pages are valid for mkdocs, links resolve, and nothing is loaded from a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import yaml

from tests.conftest import REPOSITORY, require


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    if importlib.util.find_spec("mkdocs") is None:
        require("mkdocs", "`make site` installs it")
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(entry: object) -> list[str]:
    """Return every page in a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [place for part in parts for place in places(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation() -> None:
    nav = places(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = REPOSITORY / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")} - {"README.md"}
    assert pages <= set(nav) and len(nav) == len(set(nav))
    for place in set(nav) - pages - {"index.md"}:
        assert (REPOSITORY / place).is_file(), f"mkdocs.yml: {place}"


def test_the_site_builds_without_warnings_and_loads_nothing(hooks: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    offline = os.environ | {"NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=REPOSITORY, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    home = pages[site / "index.html"]
    assert "tutorial.html" in home and "fonts.googleapis" not in home
    assert "EwcPenalty" in pages[site / "api" / "ewc.html"] and "load_records" in pages[site / "api" / "report.html"]
    for path, html in pages.items():
        for target in re.findall(r'(?:href|src)="(?!\w+:|//)([^"#?]+)', html):
            place = site / target[1:] if target.startswith("/") else path.parent / target
            assert Path(unquote(str(place))).exists(), f"{path.relative_to(site)} leads to {target}"


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://unpkg.com/x"></script>',
        "<img src=//example.org/a.png>",
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>',
        '@import "https://example.org/a.css"',
        "src: url(https://example.org/a.woff2)",
    ],
)
def test_external_resources_on_a_page_are_found(hooks: ModuleType, text: str) -> None:
    assert hooks.LOADED.search(text)


@pytest.mark.parametrize(
    "text", ['<a href="https://arxiv.org">', '<link rel="stylesheet" href="a.css">', "<img src=a.svg>"]
)
def test_allowed_links_on_a_page_are_accepted(hooks: ModuleType, text: str) -> None:
    assert not hooks.LOADED.search(text)


SOURCE = """\
First:
- one
  two
  - three

1. **Four**

   ```bash
   - five
     six
   ```
   seven

Text
| a |
|---|
"""
WRITTEN = """\
First:

- one
    two
    - three

1. **Four**

    ```bash
    - five
      six
    ```

    seven

Text

| a |
|---|
"""


def test_lists_follow_python_markdown_syntax(hooks: ModuleType) -> None:
    assert "".join(f"{line}\n" for line, _ in hooks.python_markdown(SOURCE)) == WRITTEN


def test_links_are_rewritten_for_the_site(hooks: ModuleType) -> None:
    assert (
        hooks.site_path("docs/tutorial.md") == "tutorial.md"
        and hooks.repository_path("tutorial.md") == "docs/tutorial.md"
    )
    assert hooks.site_path("README.md") == "index.md" and hooks.repository_path("index.md") == "README.md"
    assert hooks.site_path("results/LOG.md") == "results/LOG.md" == hooks.repository_path("results/LOG.md")
