"""The fused step equals clipping, penalty and AdamW applied in turn; unsupported input is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpc_ewc.errors import InputError
from hpc_ewc.ewc import EwcPenalty, FusedAdamW

STEPS, STRENGTH, MAX_NORM = 4, 7.0, 3.0


class Two(nn.Module):
    """Build a matrix large enough for compiled kernels, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(700, 101, generator=generator))
        self.vector = nn.Parameter(torch.randn(13, generator=generator))


def build(dtype: torch.dtype, device: str = "cpu") -> tuple[nn.Module, EwcPenalty, torch.optim.AdamW]:
    model = Two().to(device)
    generator = torch.Generator().manual_seed(1)
    anchor, fisher = {}, {}
    for name, p in model.named_parameters():
        anchor[name] = (p.detach() + 0.1 * torch.randn(p.shape, generator=generator).to(device)).to(dtype)
        fisher[name] = (torch.randn(p.shape, generator=generator) ** 2).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    return model, EwcPenalty(model, anchor, fisher, STRENGTH, compile=False), optimizer


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def apart(clip: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Run the oracle: the penalty, torch's clipping and torch's AdamW."""
    model, penalty, optimizer = build(dtype, device)
    norms = []
    for step in range(STEPS):
        set_gradients(model, step)
        if clip == "total":
            penalty.add_gradient_()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))
        if clip == "task":
            penalty.add_gradient_()
        optimizer.step()
    moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq", "step")]
    return [torch.stack(norms), *(p.detach() for p in model.parameters()), *moments]


def at_once(clip: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    model, penalty, optimizer = build(dtype, device)
    fused = FusedAdamW(penalty, optimizer)
    assert fused.works
    norms = []
    for step in range(STEPS):
        set_gradients(model, step)
        if clip == "total":
            norm = fused.norm()
        else:
            norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        factor = min(1.0, MAX_NORM / (float(norm) + 1e-6))
        fused.step_(factor, factor if clip == "total" else 1.0)
        norms.append(norm)
    moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq", "step")]
    return [torch.stack(norms), *(p.detach() for p in model.parameters()), *moments]


def compare(clip: str, dtype: torch.dtype, device: str = "cpu") -> None:
    for got, want in zip(at_once(clip, dtype, device), apart(clip, dtype, device), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ["total", "task"])
def test_fused_step_equals_clipping_penalty_and_adamw(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda formula, **options: formula)
    for dtype in (torch.float32, torch.bfloat16):
        compare(clip, dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own import
def test_compiled_fused_step_equals_eager() -> None:
    for clip in ("total", "task"):
        compare(clip, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled for a GPU")
@pytest.mark.parametrize("clip", ["total", "task"])
def test_fused_step_on_a_gpu_equals_the_reference(clip: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare(clip, dtype, "cuda")


def test_without_a_compiler_the_fused_step_warns_and_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", broken)
    _, penalty, optimizer = build(torch.float32)
    with pytest.warns(RuntimeWarning, match="runs uncompiled: RuntimeError: no C compiler"):
        assert not FusedAdamW(penalty, optimizer).works


def test_unsupported_optimizers_and_penalties_are_refused() -> None:
    model, penalty, optimizer = build(torch.float32)
    parameters = list(model.parameters())
    tensors = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    with pytest.raises(InputError, match="mode 'gradient', not 'proximal'"):
        FusedAdamW(EwcPenalty(model, tensors, tensors, 1.0, "proximal"), optimizer)
    with pytest.raises(InputError, match="is AdamW's with one group.*this is SGD with 1"):
        FusedAdamW(penalty, torch.optim.SGD(parameters, lr=0.1))
    groups = [{"params": [parameter]} for parameter in parameters]
    with pytest.raises(InputError, match="this is AdamW with 2"):
        FusedAdamW(penalty, torch.optim.AdamW(groups))
    with pytest.raises(InputError, match="hold other parameters; build both from the same model"):
        FusedAdamW(penalty, torch.optim.AdamW(parameters[:1]))
