from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hpc_ewc.errors import ConfigError
from hpc_ewc.model.attention import choose_attention

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gemma2(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "attn_logit_softcapping": 50.0}))
    return tmp_path


def test_auto_is_eager_on_a_cpu_and_flex_on_a_gpu(gemma2: Path) -> None:
    assert choose_attention("auto", gemma2, CPU) == "eager"
    assert choose_attention("auto", gemma2, GPU) == "flex_attention"
    assert choose_attention("eager", gemma2, GPU) == "eager"


def test_flex_on_a_cpu_is_refused_since_it_cannot_train(gemma2: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'attention = "flex_attention": has no backward on a CPU; allowed here: auto'
    ):
        choose_attention("flex_attention", gemma2, CPU)


def test_flash_needs_a_gpu_and_its_package(gemma2: Path) -> None:
    with pytest.raises(ConfigError, match="flash_attention_2.*needs a GPU"):
        choose_attention("flash_attention_2", gemma2, CPU)
    with pytest.raises(ConfigError, match="flash-attn is not installed; take auto"):
        choose_attention("flash_attention_2", gemma2, GPU)


def test_a_flash_attention_without_soft_cap_is_refused(gemma2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    old = types.ModuleType("flash_attn")
    old.flash_attn_func = lambda q, k, v, causal=False: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(ConfigError, match="this flash-attn has no soft cap"):
        choose_attention("flash_attention_2", gemma2, GPU)
    old.flash_attn_func = lambda q, k, v, softcap=0.0: q  # type: ignore[attr-defined]
    assert choose_attention("flash_attention_2", gemma2, GPU) == "flash_attention_2"


def test_sdpa_is_refused_where_there_is_a_soft_cap(gemma2: Path) -> None:
    with pytest.raises(ConfigError, match="sdpa.*leaves out the soft cap"):
        choose_attention("sdpa", gemma2, GPU)
