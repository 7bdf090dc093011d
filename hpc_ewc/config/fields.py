"""A TOML key as a field of a dataclass: default, allowed values, and the description below it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any


def option(
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    identifies: bool = True,
) -> Any:
    """Return a dataclass field with its allowed values: one of `choices`, or within [low, high], or > `above`."""
    metadata = {"choices": choices, "low": low, "high": high, "above": above, "identifies": identifies}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_docs(cls: type[Any]) -> dict[str, str]:
    """Return the description of each field of a dataclass, by field name, read from its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = str(following.value.value)
    return docs
