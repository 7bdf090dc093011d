"""An experiment as frozen dataclasses whose fields are the TOML keys.

fields   one key: its default, allowed values and description
keys     all keys
reading  TOML → dataclasses, strictly
writing  dataclasses → TOML
"""

from __future__ import annotations

from hpc_ewc.config.fields import option, option_docs
from hpc_ewc.config.keys import (
    GRID_SECTIONS,
    LANGUAGE,
    NAME_PATTERN,
    SECTIONS,
    STAGES,
    DataConfig,
    EvaluateConfig,
    EwcConfig,
    Experiment,
    FisherConfig,
    ModelConfig,
    Resources,
    TrainConfig,
    replace_at,
)
from hpc_ewc.config.reading import build_experiment, build_resources, build_section, load_experiment, load_toml
from hpc_ewc.config.writing import render_toml, render_value

__all__ = [
    "GRID_SECTIONS",
    "LANGUAGE",
    "NAME_PATTERN",
    "SECTIONS",
    "STAGES",
    "DataConfig",
    "EvaluateConfig",
    "EwcConfig",
    "Experiment",
    "FisherConfig",
    "ModelConfig",
    "Resources",
    "TrainConfig",
    "build_experiment",
    "build_resources",
    "build_section",
    "load_experiment",
    "load_toml",
    "option",
    "option_docs",
    "render_toml",
    "render_value",
    "replace_at",
]
