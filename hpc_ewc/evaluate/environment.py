"""The software environment of an evaluation: variables to set before heavy imports, and versions to record."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec

import hpc_ewc
from hpc_ewc.rundir import cache_dir

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare() -> None:
    """Forbid the hub, silence progress bars, and keep lm-eval's cache out of site-packages.

    Call it before torch, transformers, datasets or lm-eval are imported. Variables that are already set stay.
    """
    settings = {**OFFLINE, **QUIET, "LM_HARNESS_CACHE_PATH": str(cache_dir() / "lm_eval")}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a score."""
    packages = ["torch", "transformers", "tokenizers", "lm_eval", "datasets"]
    packages += ["vllm"] if find_spec("vllm") is not None else []
    return {
        "hpc_ewc": hpc_ewc.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
