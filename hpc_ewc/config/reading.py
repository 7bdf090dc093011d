"""Read TOML into dataclasses, strictly.

An unknown key, a wrong type or a value out of range is a `ConfigError` that names the file, the key, the value, what is
allowed and the nearest name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_ewc.config.fields import option_docs
from hpc_ewc.config.keys import GRID_SECTIONS, LANGUAGE, SECTIONS, STAGES, Experiment, Resources, replace_at
from hpc_ewc.errors import ConfigError, did_you_mean

INTEGER_BITS = 63
"""Bits of an integer, as TOML guarantees them."""


def load_experiment(path: Path | str) -> Experiment:
    """Return the experiment in a TOML file, completely checked.

    Raises:
        ConfigError: no such file, not TOML, unknown key, wrong type, value out of range, invalid grid.
    """
    path = Path(path)
    return build_experiment(load_toml(path), str(path))


def load_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file; ConfigError if it cannot be read."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark in front
        _check_integers(table, str(path))
        return table
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it as that"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: brackets are nested too deep") from None
    except ValueError as error:  # a TOMLDecodeError; of a number with thousands of digits its parent alone
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _check_integers(value: Any, where: str, key: str = "") -> None:
    """Refuse integers that do not fit: Python reads any length, but cannot convert the longest to float or text."""
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        bits = value.bit_length()
        raise ConfigError(f"{where}: {key}: a whole number of {bits} bits; allowed are at most {INTEGER_BITS}")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_integers(item, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            _check_integers(item, where, key)


def build_experiment(table: Mapping[str, Any], where: str) -> Experiment:
    """Return the experiment in a table; `where` is the file that errors name."""
    known = [*SECTIONS, "grid", "resources"]
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown table '{key}'{did_you_mean(key, known)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: '{key}' must be a table [{key}], not {value!r}")
    parts = {name: build_section(cls, table.get(name, {}), name, where) for name, cls in SECTIONS.items()}
    resources = build_resources(table.get("resources", {}), where)
    grid = _build_grid(table.get("grid", {}), where)
    experiment = Experiment(**parts, grid=grid, resources=resources)
    for values in itertools.product(*grid.values()):
        _check_point(replace_at(experiment, dict(zip(grid, values, strict=True))), where)
    return experiment


def build_resources(table: Mapping[str, Any], where: str) -> dict[str, Resources]:
    """Return the [resources.<stage>] tables, which experiments and profiles share."""
    result: dict[str, Resources] = {}
    for stage, values in table.items():
        if stage not in STAGES:
            raise ConfigError(f"{where}: unknown table 'resources.{stage}'{did_you_mean(stage, STAGES)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: 'resources.{stage}' must be a table, not {values!r}")
        result[stage] = build_section(Resources, values, f"resources.{stage}", where)
    return result


def build_section(cls: type[Any], values: Mapping[str, Any], name: str, where: str) -> Any:
    """Return one dataclass from one TOML table, each key and value checked against its field."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{name}.{key}'{did_you_mean(key, fields)}")
    checked = {
        key: _check_value(value, fields[key], hints[key], f"{where}: {name}.{key}") for key, value in values.items()
    }
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in checked:
            raise ConfigError(f"{where}: '{name}.{key}' is required; {option_docs(cls).get(key, '')}")
    return cls(**checked)


def _check_value(value: Any, field: dataclasses.Field[Any], hint: Any, label: str) -> Any:
    """Return `value` as the field's type; ConfigError with the allowed values otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{label} = {value!r}: must be a list")
        if Ellipsis not in args and len(value) != len(args):
            raise ConfigError(f"{label} = {value!r}: must have {len(args)} values")
        return tuple(_check_scalar(item, args[0], field, label) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{label} = {value!r}: must be a table")
        return {key: _check_scalar(item, args[1], field, f"{label}.{key}") for key, item in value.items()}
    return _check_scalar(value, hint, field, label)


def _check_scalar(value: Any, kind: type, field: dataclasses.Field[Any], label: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{label} = {value!r}: must be {names[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{label} = {value!r}: must be finite")
    if isinstance(value, str) and any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ConfigError(f"{label} = {value!r}: must not hold control characters")
    limits = field.metadata
    if limits.get("choices") and value not in limits["choices"]:
        allowed = ", ".join(map(str, limits["choices"]))
        raise ConfigError(f"{label} = {value!r}: allowed are {allowed}{_near(str(value), limits['choices'])}")
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or (high is not None and value > high):
        left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
        raise ConfigError(f"{label} = {value!r}: allowed is {left}, {'inf)' if high is None else f'{high:g}]'}")
    return value


def _near(word: str, choices: tuple[Any, ...]) -> str:
    hint = did_you_mean(word, map(str, choices))
    return hint if hint.startswith("; did") else ""


def _build_grid(table: Mapping[str, Any], where: str) -> dict[str, tuple[Any, ...]]:
    """Return the [grid] table by dotted key; each value is a list of values of that field."""
    grid: dict[str, tuple[Any, ...]] = {}
    for section, leaves in table.items():
        if section not in GRID_SECTIONS:
            reason = did_you_mean(section, GRID_SECTIONS)
            raise ConfigError(f"{where}: grid over unknown table 'grid.{section}'{reason}")
        if not isinstance(leaves, dict):
            raise ConfigError(f"{where}: 'grid.{section}' must name a key, such as ewc.strength = [0, 1e6]")
        fields = {field.name: field for field in dataclasses.fields(SECTIONS[section])}
        hints = typing.get_type_hints(SECTIONS[section])
        for key, values in leaves.items():
            label = f"{where}: grid.{section}.{key}"
            if key not in fields:
                raise ConfigError(f"{where}: grid over unknown key '{section}.{key}'{did_you_mean(key, fields)}")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{label} = {values!r}: must be a list of at least one value")
            if not fields[key].metadata["identifies"]:
                raise ConfigError(f"{label}: '{key}' changes no result, so its runs would be the same run; remove it")
            grid[f"{section}.{key}"] = tuple(_check_value(value, fields[key], hints[key], label) for value in values)
            if len(set(grid[f"{section}.{key}"])) < len(values):
                raise ConfigError(f"{label} = {values!r}: a value appears twice, which would be a duplicate run")
    return grid


def _check_point(experiment: Experiment, where: str) -> None:
    """Check rules between keys at one point of the grid; ConfigError names the keys that disagree."""
    train, data, fisher, ewc = experiment.train, experiment.data, experiment.fisher, experiment.ewc
    if train.steps is not None and train.epochs is not None:
        raise ConfigError(f"{where}: train.steps and train.epochs are both set; keep one of the two")
    if not re.fullmatch(r"final|all|every [1-9][0-9]*", experiment.evaluate.checkpoints):
        raise ConfigError(
            f'{where}: evaluate.checkpoints = {experiment.evaluate.checkpoints!r}: allowed are final, all, "every 2"'
        )
    if not experiment.evaluate.prompts:
        raise ConfigError(f"{where}: evaluate.prompts = []: name at least one of core, native")
    if not LANGUAGE.fullmatch(data.language):
        raise ConfigError(f"{where}: data.language = {data.language!r}: must be small letters, such as lt")
    exports = list(train.export_at)
    if not exports or exports[-1] != 1.0 or exports != sorted(set(exports)):
        raise ConfigError(f"{where}: train.export_at = {exports}: must rise and end in 1.0")
    for name, part in (("data", data), ("fisher", fisher)):
        if (part.source == "files") != bool(part.files):
            raise ConfigError(f'{where}: {name}.files and {name}.source = "files" go together; set both or neither')
    if ewc.update == "one_pass" and ewc.mode == "proximal":
        raise ConfigError(f'{where}: ewc.update = "one_pass": only with ewc.mode = "gradient"; take "auto"')
    if fisher.labels == "gold" and fisher.samples != 1:
        raise ConfigError(f'{where}: fisher.samples = {fisher.samples}: only with fisher.labels = "sampled"')
