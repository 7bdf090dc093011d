"""The penalty in one process: formulas, limits, refusals, and parameters it must not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpc_ewc.errors import InputError
from hpc_ewc.ewc import EwcPenalty
from hpc_ewc.ewc.penalty import kernels
from hpc_ewc.ewc.sharding import tiles


class Two(nn.Module):
    """A matrix longer than a tile and not a multiple of it, a vector, and a frozen one."""

    def __init__(self, rows: int = 700) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(rows, 101, generator=generator))
        self.vector = nn.Parameter(torch.randn(13, generator=generator))
        self.frozen = nn.Parameter(torch.randn(5, generator=generator), requires_grad=False)


def build(model: nn.Module, fisher_dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    anchor, fisher = {}, {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            anchor[name] = (p.detach() + 0.1 * torch.randn(p.shape, generator=generator)).to(fisher_dtype)
            fisher[name] = (torch.randn(p.shape, generator=generator) ** 2).to(fisher_dtype)
            fisher[name].view(-1)[::7] = 0.0
    return anchor, fisher


def autograd(model: nn.Module, anchor: Any, fisher: Any, strength: float) -> tuple[float, list[Tensor]]:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    value = (
        strength / 2 * sum((fisher[n].double() * (p - anchor[n].double()) ** 2).sum() for n, p in parameters.items())
    )
    return float(value.detach()), list(torch.autograd.grad(value, list(parameters.values())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_and_value_equal_autograd(dtype: torch.dtype) -> None:
    model = Two()
    anchor, fisher = build(model, dtype)
    value, grads = autograd(model, anchor, fisher, 12.5)
    penalty = EwcPenalty(model, anchor, fisher, 12.5)
    assert penalty.measure().value == pytest.approx(value, rel=1e-6)
    model.matrix.grad = torch.full_like(model.matrix, 3.0)
    penalty.add_gradient_()
    torch.testing.assert_close(model.matrix.grad - 3.0, grads[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.vector.grad, grads[1], rtol=1e-5, atol=1e-6)
    assert model.frozen.grad is None


def test_float64_parameters_are_computed_in_float64() -> None:
    model = Two().double()
    anchor, fisher = build(model, torch.float64)
    _, grads = autograd(model, anchor, fisher, 1e6)
    EwcPenalty(model, anchor, fisher, 1e6).add_gradient_()
    torch.testing.assert_close(model.matrix.grad, grads[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("tile", [64, 1 << 18])
def test_the_short_and_the_careful_kernel_agree(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """For moderate λ and F, one bound on θ − θ* replaces the two bounds on its products."""
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    generator = torch.Generator().manual_seed(0)
    theta, grad, anchor = (torch.randn(1000, generator=generator) for _ in range(3))
    theta[:2] = torch.tensor([3e38, -3e38])  # the difference alone overflows
    anchor[:2] = -theta[:2]
    fisher = torch.rand(1000, generator=generator)
    fisher[0] = 0.0
    assert kernels.is_moderate(1e12, 1.0)
    assert not kernels.is_moderate(1e12, 1e6)
    assert not kernels.is_moderate(1e19, 1e-9)
    short, careful = grad.clone(), grad.clone()
    kernels.add_gradient_(theta, short, anchor, fisher, 1e12, moderate=True)
    kernels.add_gradient_(theta, careful, anchor, fisher, 1e12)
    assert bool(short.isfinite().all())
    assert short[0] == grad[0]
    torch.testing.assert_close(short[2:], careful[2:], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tile", [64, 1 << 18])
def test_logged_sums_equal_float64(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    generator = torch.Generator().manual_seed(0)
    theta, anchor, fisher = (torch.rand(1000, generator=generator) for _ in range(3))
    fisher[::7] = 0.0
    squares = (theta - anchor).double() ** 2
    want = torch.stack([(squares * fisher).sum(), squares.sum(), squares[::7].sum()])
    torch.testing.assert_close(kernels.measure_sums(theta, anchor, fisher), want, rtol=1e-12, atol=0)
    assert kernels.measure_sums(theta, anchor, fisher, zeros=False)[2] == 0.0
    torch.testing.assert_close(kernels._measure_formula(theta, anchor, fisher), want, rtol=1e-12, atol=0)
    empty = torch.empty(0)
    assert kernels.measure_sums(empty, empty, empty).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own import
def test_compiled_kernels_equal_eager_ones() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        models, measures = [Two(), Two()], []
        anchor, fisher = build(models[0], dtype)
        for model, compile in zip(models, (True, False), strict=True):
            penalty = EwcPenalty(model, anchor, fisher, 7.0, compile=compile)
            penalty.add_gradient_()
            measures.append(penalty.measure())
        assert measures[0] == pytest.approx(measures[1], rel=1e-12)
        torch.testing.assert_close(models[0].matrix.grad, models[1].matrix.grad, rtol=1e-6, atol=1e-7)
        for model, compile in zip(models, (True, False), strict=True):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            optimizer.step()
            EwcPenalty(model, anchor, fisher, 7.0, "proximal", compile=compile).proximal_step_(optimizer)
        torch.testing.assert_close(models[0].matrix, models[1].matrix, rtol=1e-6, atol=1e-7)


def test_without_a_compiler_the_penalty_warns_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        def run(*args: Any) -> None:
            raise RuntimeError("no C compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = Two()
    anchor, fisher = build(model)
    with pytest.warns(RuntimeWarning, match="runs uncompiled: RuntimeError: no C compiler"):
        penalty = EwcPenalty(model, anchor, fisher, 7.0, compile=True)
    penalty.add_gradient_()
    torch.testing.assert_close(model.matrix.grad, autograd(model, anchor, fisher, 7.0)[1][0], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------- proximal


def train(model: nn.Module, optimizer: torch.optim.Optimizer, after: Any = None, before: Any = None) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) if p.requires_grad else None
        if before:
            before()
        optimizer.step()
        if after:
            after()


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}])
def test_the_proximal_step_minimises_its_objective(options: dict[str, Any]) -> None:
    """Return argmin over θ' of metric/(2 lr) (θ'−θ)² + λ/2 F (θ'−θ*)², in float64, from AdamW's state."""
    model = Two().double()
    anchor, fisher = build(model, torch.float64)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2, **options)
    train(model, optimizer)
    theta, state = model.matrix.detach().clone(), optimizer.state[model.matrix]
    v = state["max_exp_avg_sq" if "amsgrad" in options else "exp_avg_sq"] / (1 - 0.999**4)
    metric = (v.sqrt() + 1e-8) / 3e-2
    want = (metric * theta + 50.0 * fisher["matrix"] * anchor["matrix"]) / (metric + 50.0 * fisher["matrix"])
    EwcPenalty(model, anchor, fisher, 50.0, "proximal").proximal_step_(optimizer)
    torch.testing.assert_close(model.matrix.detach(), want, rtol=1e-12, atol=1e-12)


def test_the_proximal_step_with_sgd_equals_the_textbook_formula() -> None:
    model = Two().double()
    anchor, fisher = build(model, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    a = 0.1 * 3.0 * fisher["vector"]
    want = (model.vector.detach() + a * anchor["vector"]) / (1 + a)
    EwcPenalty(model, anchor, fisher, 3.0, "proximal").proximal_step_(optimizer)
    torch.testing.assert_close(model.vector.detach(), want, rtol=1e-13, atol=1e-13)


def test_at_high_strength_parameters_equal_the_anchor_and_free_ones_move() -> None:
    model = Two()
    anchor, fisher = build(model)
    fisher = {n: f.clamp(min=1e-6) * (f > 0) for n, f in fisher.items()}
    plain = Two()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    penalty = EwcPenalty(model, anchor, fisher, 1e30, "proximal")
    train(model, optimizer, after=lambda: penalty.proximal_step_(optimizer))
    held = fisher["matrix"] > 0
    assert torch.equal(model.matrix[held], anchor["matrix"][held])
    assert torch.equal(model.matrix[~held], plain.matrix[~held])
    assert penalty.measure().value == 0.0
    assert penalty.measure()[2:] == (int((~held).sum()) + 2, pytest.approx(penalty.measure().distance))


@settings(max_examples=200, deadline=None)
@given(
    strength=st.floats(0.0, 1e30),
    fisher=st.floats(0.0, float(torch.finfo(torch.float32).max), width=32),
    lr=st.floats(0.0, 10.0),
    second=st.floats(0.0, float("inf"), width=32),
    eps=st.sampled_from([0.0, 1e-30, 1e-8, 1.0]),
    theta=st.floats(-(2.0**60), 2.0**60, width=32),
    anchor=st.floats(-(2.0**60), 2.0**60, width=32),
)
def test_no_finite_input_gives_nan(
    strength: float, fisher: float, lr: float, second: float, eps: float, theta: float, anchor: float
) -> None:
    model = nn.ParameterDict({"p": nn.Parameter(torch.tensor([theta, 0.5]))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, eps=eps)
    optimizer.state[model["p"]] = {"step": torch.tensor(3.0), "exp_avg_sq": torch.tensor([second, 0.0])}
    states = {"p": torch.tensor([anchor, 0.5])}, {"p": torch.tensor([fisher, 0.0])}
    EwcPenalty(model, *states, strength, "proximal").proximal_step_(optimizer)
    low, high = sorted((theta, anchor))
    assert low <= model["p"][0].item() <= high  # between the two for all inputs
    assert model["p"][1].item() == 0.5
    penalty = EwcPenalty(model, *states, strength)
    penalty.add_gradient_()
    if strength > 0:
        assert bool(model["p"].grad.isfinite().all())
    assert not math.isnan(penalty.measure().value) and not math.isnan(penalty.largest_step(lr))


# ---------------------------------------------------------------------------------------------- unchanged parameters


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_strength_zero_equals_plain_training_bit_for_bit(mode: Any) -> None:
    plain, held = Two(), Two()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    optimizer = torch.optim.AdamW(held.parameters(), lr=1e-2)
    penalty = EwcPenalty(held, *build(held), 0.0, mode)
    if mode == "gradient":
        train(held, optimizer, before=penalty.add_gradient_)
    else:
        train(held, optimizer, after=lambda: penalty.proximal_step_(optimizer))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), held.parameters(), strict=True))
    assert penalty.measure().value == 0.0
    assert penalty.measure().distance > 0.0


class LargestAllocation(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the largest number of elements that one operation allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        known |= {a.untyped_storage().data_ptr() for a in (kwargs or {}).values() if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known:
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_temporary_memory_does_not_grow_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE", 1 << 14)
    model = Two(rows=10_000)
    anchor, fisher = build(model, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    with LargestAllocation() as seen:
        penalty = EwcPenalty(model, anchor, fisher, 5.0)
        penalty.add_gradient_()
        penalty.measure()
        EwcPenalty(model, anchor, fisher, 5.0, "proximal").proximal_step_(optimizer)
    assert 0 < seen.elements <= tiles.CPU_TILE < model.matrix.numel() // 10


# ---------------------------------------------------------------------------------------------- refusals


def test_invalid_penalties_are_refused() -> None:
    model = Two(rows=3)
    anchor, fisher = build(model)

    def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        return {n: t for n, t in tensors.items() if n != name}

    for strength in (-1.0, float("nan"), float("inf"), 1.1e30):
        with pytest.raises(InputError, match=r"strength is .*; allowed are finite numbers in \[0, 1e\+30\]"):
            EwcPenalty(model, anchor, fisher, strength)
    with pytest.raises(InputError, match="mode is 'prox'; allowed are 'gradient' and 'proximal'"):
        EwcPenalty(model, anchor, fisher, 1.0, "prox")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the Fisher has no tensor 'vector', a trainable parameter of the model"):
        EwcPenalty(model, anchor, without(fisher, "vector"), 1.0)
    with pytest.raises(InputError, match="the anchor has a tensor 'frozen', which is no trainable parameter"):
        EwcPenalty(model, {**anchor, "frozen": model.frozen}, fisher, 1.0)
    with pytest.raises(InputError, match=r"the anchor of 'vector' has shape \[12\], the trainable .* \[13\]"):
        EwcPenalty(model, {**anchor, "vector": torch.zeros(12)}, fisher, 1.0)
    with pytest.raises(InputError, match=r"the Fisher of 'vector' is torch.int64; allowed are floating-point"):
        EwcPenalty(model, anchor, {**fisher, "vector": torch.ones(13, dtype=torch.int64)}, 1.0)
    for bad in (-1e-6, float("nan"), float("inf")):
        spoilt = fisher["vector"].clone()
        spoilt[4] = bad
        with pytest.raises(InputError, match="Fisher of 'vector' has 1 entries that are negative or not finite"):
            EwcPenalty(model, anchor, {**fisher, "vector": spoilt}, 1.0)
    with pytest.raises(InputError, match="anchor of 'vector' has 13 entries that are not finite"):
        EwcPenalty(model, {**anchor, "vector": torch.full((13,), float("nan"))}, fisher, 1.0)
    with pytest.raises(InputError, match=r"parameter 'matrix' is torch.bfloat16; the penalty needs fp32 masters"):
        EwcPenalty(Two(rows=3).bfloat16(), anchor, fisher, 1.0)
    with pytest.raises(InputError, match="no trainable parameter; the penalty would be zero"):
        EwcPenalty(model.requires_grad_(False), {}, {}, 1.0)


def test_a_mode_refuses_the_other_modes_method_and_unknown_optimizers() -> None:
    model = Two(rows=3)
    states = build(model)
    with pytest.raises(InputError, match="add_gradient_ belongs to mode 'gradient'; .* with mode 'proximal'"):
        EwcPenalty(model, *states, 1.0, "proximal").add_gradient_()
    with pytest.raises(InputError, match="proximal_step_ belongs to mode 'proximal'"):
        EwcPenalty(model, *states, 1.0).proximal_step_(torch.optim.SGD(model.parameters(), lr=1.0))
    penalty = EwcPenalty(model, *states, 1.0, "proximal")
    with pytest.raises(InputError, match="needs Adam's second moments, and Rprop keeps none; use Adam, AdamW or SGD"):
        penalty.proximal_step_(torch.optim.Rprop(model.parameters()))
    with pytest.raises(InputError, match="the optimizer does not hold parameter 'matrix'"):
        penalty.proximal_step_(torch.optim.AdamW(Two(rows=3).parameters()))
