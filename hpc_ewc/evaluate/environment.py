"""What must be in the environment before torch, transformers, datasets or lm-eval are imported."""

from __future__ import annotations

import os

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
    """Forbid the hub, silence progress bars, and keep lm-eval's cache out of site-packages; what is set stays."""
    settings = {**OFFLINE, **QUIET, "LM_HARNESS_CACHE_PATH": str(cache_dir() / "lm_eval")}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
