"""Print the lowest version of each dependency that pyproject.toml allows, as pip takes it: `numpy==2.0 rich==13.7 …`.

`python tests/lowest_versions.py [NAME]`: all of them, or one. Only the standard library; `make test-lowest` uses it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest_versions() -> dict[str, str]:
    """By name, the version after `>=` of each dependency of the package."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    found = [re.match(r"([\w.-]+)>=([\d.]+)", line) for line in project["dependencies"]]
    assert all(found), "every dependency has a lower bound"
    return {match[1]: match[2] for match in found if match}


if __name__ == "__main__":
    versions = lowest_versions()
    print(*(f"{name}=={versions[name]}" for name in (sys.argv[1:] or versions)))
