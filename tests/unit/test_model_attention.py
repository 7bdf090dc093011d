from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc.errors import ConfigError
from hpc_ewc.model.attention import choose_attention
from tests.distributed.tiny_gemma import VOCABULARY, build_gemma

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


def test_flash_attention_without_soft_cap_is_refused(gemma2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    old = types.ModuleType("flash_attn")
    old.flash_attn_func = lambda q, k, v, causal=False: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(ConfigError, match="this flash-attn has no soft cap"):
        choose_attention("flash_attention_2", gemma2, GPU)
    old.flash_attn_func = lambda q, k, v, softcap=0.0: q  # type: ignore[attr-defined]
    assert choose_attention("flash_attention_2", gemma2, GPU) == "flash_attention_2"


def test_sdpa_is_refused_with_a_soft_cap(gemma2: Path) -> None:
    with pytest.raises(ConfigError, match="sdpa.*leaves out the soft cap"):
        choose_attention("sdpa", gemma2, GPU)


def run(attention: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **settings: Any) -> list[torch.Tensor]:
    """Return logits of random Gemma 2 with active soft cap (1) and window (4 of 24 tokens), on a GPU gradients too."""
    settings = {"attn_logit_softcapping": 1.0, "head_dim": 16, "attn_implementation": attention} | settings
    model = build_gemma(**settings).to(device, dtype)
    ids = torch.randint(1, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.set_grad_enabled(device != "cpu"):
        logits = model(input_ids=ids).logits.float()
    if device == "cpu":
        return [logits]
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.float() for p in model.parameters() if p.grad is not None)]


def worst(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def test_the_soft_cap_in_these_tests_changes_the_logits() -> None:
    assert worst(run("eager", attn_logit_softcapping=None), run("eager")) > 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has a backward on a GPU alone")
@pytest.mark.filterwarnings("ignore")  # deprecated mask construction in transformers and imports in inductor
def test_flex_attention_equals_eager_with_gradients_on_a_gpu() -> None:
    assert worst(run("flex_attention", "cuda"), run("eager", "cuda")) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash-attn needs a GPU")
def test_flash_attention_equals_eager_with_gradients_on_a_gpu() -> None:
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    want = run("eager", "cuda")
    rounded = worst(run("eager", "cuda", torch.bfloat16), want)
    assert worst(run("flash_attention_2", "cuda", torch.bfloat16), want) < 2 * rounded
