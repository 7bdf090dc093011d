"""Render dataclasses as TOML that loads to an equal object."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpc_ewc.config.keys import SECTIONS, Experiment


def render_toml(experiment: Experiment, sections: tuple[str, ...] = tuple(SECTIONS)) -> str:
    """Return the experiment as TOML; with all `sections`, `load_experiment` reads an equal object from it.

    Absent keys (None) are omitted. With fewer `sections`, required keys of the others are kept.
    """
    blocks: list[str] = []
    for name, cls in SECTIONS.items():
        part = getattr(experiment, name)
        lines = []
        for field in dataclasses.fields(cls):
            value = getattr(part, field.name)
            if value is None or (name not in sections and field.default is not dataclasses.MISSING):
                continue
            if name not in sections and field.default_factory is not dataclasses.MISSING:
                continue
            lines.append(f"{field.name} = {render_value(value)}")
        if lines:
            blocks.append("\n".join([f"[{name}]", *lines]))
    if experiment.grid:
        blocks.append("\n".join(["[grid]", *(f"{key} = {render_value(v)}" for key, v in experiment.grid.items())]))
    for stage, resources in experiment.resources.items():
        values = {key: value for key, value in dataclasses.asdict(resources).items() if value is not None}
        blocks.append("\n".join([f"[resources.{stage}]", *(f"{k} = {render_value(v)}" for k, v in values.items())]))
    return "\n\n".join(blocks) + "\n"


def render_value(value: Any) -> str:
    """Return one TOML value. Strings are basic strings, so a key or a value never leaves its line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _render_string(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_render_string(key)} = {render_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _render_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if ord(c) >= 32 and ord(c) != 127 else f"\\u{ord(c):04x}" for c in escaped) + '"'
