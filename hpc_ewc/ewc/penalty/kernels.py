"""The penalty's arithmetic on 1D tensors of one length: tile by tile in eager mode, or fused by `torch.compile`.

Both forms of a kernel are equal up to rounding. The fused one reads θ, θ*, F and the gradient once and writes once,
20 bytes an element with fp32 states and 16 with bf16 ones; the eager one gets close to that on a CPU, where a tile
stays in cache between its operations. No function here runs a collective.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hpc_ewc.ewc.sharding.tiles import tile_buffer, tiles

LARGEST_GRADIENT = 1e37
"""Entries of the penalty's gradient are clamped to ± this: an infinite one would turn clipping into NaN (∞ · 0)."""
_LARGEST_DIFFERENCE = 1e20
"""θ − θ* is clamped to ± this where λ and λF are small enough that their products with it stay in bounds."""
_LARGEST = 1e38
_SMALLEST = 1e-37
"""Bounds that keep products finite, and num / (num + metric) a number in [0, 1], in fp32, for any λ, F ≥ 0, v ≥ 0."""

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
DtypePairs = Iterable[tuple[torch.dtype, torch.dtype]]
"""(dtype of the anchor, dtype of the Fisher) of each parameter."""


def is_moderate(strength: float, largest_fisher: float) -> bool:
    """Returns whether λ and λF are small enough for `add_gradient_` to clamp θ − θ* alone: one clamp instead of two."""
    difference = _LARGEST_DIFFERENCE
    return strength * difference <= _LARGEST and strength * largest_fisher * difference <= LARGEST_GRADIENT


def add_gradient_(
    theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor, strength: float, *, moderate: bool = False
) -> None:
    """Adds λ F (θ − θ*) to `grad`, in place.

    Args:
        theta: [n] θ, fp32 master.
        grad: [n] the gradient to add to.
        anchor: [n] θ*, any floating dtype.
        fisher: [n] F ≥ 0, any floating dtype.
        strength: λ.
        moderate: `is_moderate` of λ and the largest F.
    """
    buffer = tile_buffer(theta)
    for x, g, a, f in tiles(theta, grad, anchor, fisher):
        delta = torch.sub(x, a, out=buffer[: x.numel()])
        if moderate:
            g.addcmul_(delta.clamp_(-_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE), f, value=strength)
            continue
        # clamped before λ too: F and λ may both be near their ends, and ∞·0 would be NaN
        delta.mul_(f).clamp_(-_LARGEST, _LARGEST).mul_(strength).clamp_(-LARGEST_GRADIENT, LARGEST_GRADIENT)
        g.add_(delta)


def proximal_(theta: Tensor, anchor: Tensor, fisher: Tensor, second_moment: Tensor, scalars: Tensor) -> None:
    """Moves θ to θ + w (θ* − θ), in place, with w = s F / (s F + sqrt(v / c) + eps).

    `lerp` is exact at both ends: θ stays bitwise where F = 0, and is bitwise θ* where w rounds to 1. The form
    θ − (θ−θ*) a/(1+a) would leave a rounding residue at the second, θ* + (θ−θ*)/(1+a) at the first.

    Args:
        theta: [n] fp32 master.
        anchor: [n] θ*, any floating dtype.
        fisher: [n] F, any floating dtype.
        second_moment: [n] Adam's v.
        scalars: [s = lr·λ, c = 1 − β₂^step, eps], of θ's dtype, on its device.
    """
    weights, metrics = tile_buffer(theta), tile_buffer(theta)
    scale, correction, eps = scalars.unbind()
    for x, a, f, v in tiles(theta, anchor, fisher, second_moment):
        weight, metric = weights[: x.numel()], metrics[: x.numel()]
        torch.div(v, correction, out=metric).sqrt_().add_(eps)
        # clamped first: s reaches 1e30 and F its dtype's largest, and ∞/∞ would be NaN; F = 0 stays 0
        weight.copy_(f).mul_(scale).clamp_(max=_LARGEST)
        metric.clamp_(min=_SMALLEST).add_(weight)
        weight.div_(metric)
        torch.lerp(x, a.to(x.dtype), weight, out=x)


def measure_sums(theta: Tensor, anchor: Tensor, fisher: Tensor, *, zeros: bool = True) -> Tensor:
    """Returns Σ F (θ−θ*)², Σ (θ−θ*)², and the second sum over the entries with F = 0 alone.

    Differences are of θ's dtype, products and sums fp64: F (θ−θ*)² of fp32 numbers may overflow fp32.

    Args:
        theta: [n] θ.
        anchor: [n] θ*, any floating dtype.
        fisher: [n] F, any floating dtype.
        zeros: F may have zeros; if False, the third sum is 0 and is not computed.

    Returns:
        [3] fp64, sums over this rank's elements.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=theta.device)
    deltas, products = tile_buffer(theta, torch.float64), tile_buffer(theta, torch.float64)
    for x, a, f in tiles(theta, anchor, fisher):
        delta, product = deltas[: x.numel()], products[: x.numel()]
        torch.sub(x, a, out=delta)
        sums[1] += torch.dot(delta, delta)
        torch.mul(delta, f, out=product)
        sums[0] += torch.dot(product, delta)
        if zeros:
            torch.eq(f, 0.0, out=product)
            product.mul_(delta)
            sums[2] += torch.dot(product, product)
    return sums


# ---------------------------------------------------------------------------------------------- fused kernels


def penalty_gradient(theta: Tensor, anchor: Tensor, fisher: Tensor, strength: Tensor) -> Tensor:
    """Returns λF(θ−θ*), clamped: a formula for the compiler, which makes whole tensors outside a compiled kernel."""
    penalty = (fisher.float() * (theta - anchor.float())).clamp(-_LARGEST, _LARGEST) * strength
    return penalty.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)


def _gradient_formula(theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor, strength: Tensor) -> None:
    grad.add_(penalty_gradient(theta, anchor, fisher, strength))


def _proximal_formula(theta: Tensor, anchor: Tensor, fisher: Tensor, second_moment: Tensor, scalars: Tensor) -> None:
    metric = (second_moment / scalars[1]).sqrt() + scalars[2]
    pull = (fisher.float() * scalars[0]).clamp(max=_LARGEST)
    weight = pull / (metric.clamp(min=_SMALLEST) + pull)
    theta.copy_(torch.lerp(theta, anchor.float(), weight))


def _measure_formula(theta: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    squares = (theta - anchor.float()).double().square()
    return torch.stack([(squares * fisher.double()).sum(), squares.sum(), torch.where(fisher == 0, squares, 0.0).sum()])


def compiled_gradient(dtypes: DtypePairs, device: torch.device) -> Callable[..., None] | None:
    """Returns `add_gradient_` as one pass over memory, λ a 0-d tensor; None, with a warning, if compiling fails."""

    def example(anchor: Tensor, fisher: Tensor) -> list[Tensor]:
        return [ones_like(anchor), ones_like(anchor), anchor, fisher, torch.tensor(1.0, device=device)]

    return compile_kernel(_gradient_formula, example, dtypes, device)


def compiled_proximal(dtypes: DtypePairs, device: torch.device) -> Callable[..., None] | None:
    """Returns `proximal_` as one pass over memory; None, with a warning, if compiling fails."""

    def example(anchor: Tensor, fisher: Tensor) -> list[Tensor]:
        return [ones_like(anchor), anchor, fisher, ones_like(anchor), torch.tensor([1.0, 1.0, 0.0], device=device)]

    return compile_kernel(_proximal_formula, example, dtypes, device)


def compiled_measure(dtypes: DtypePairs, device: torch.device) -> Callable[..., Tensor] | None:
    """Returns `measure_sums` as one pass over memory; None, with a warning, if compiling fails."""
    return compile_kernel(_measure_formula, lambda anchor, fisher: [ones_like(anchor), anchor, fisher], dtypes, device)


def ones_like(tensor: Tensor) -> Tensor:
    """Returns fp32 ones, for example arguments of a kernel."""
    return torch.ones_like(tensor, dtype=torch.float32)


def compile_kernel(
    formula: Kernel, example: Callable[[Tensor, Tensor], list[Tensor]], dtypes: DtypePairs, device: torch.device
) -> Kernel | None:
    """Returns `formula` compiled, after comparing it with the formula on 4,096 elements of each pair of dtypes.

    Args:
        formula: a function of tensors that changes some of them or returns one.
        example: (θ* = 0, F = 2, both [4096]) → new arguments for the formula.
        dtypes: of the parameters' anchors and Fishers.
        device: of the parameters.

    Returns:
        The kernel; None, with a warning, where it does not compile or gives other numbers.
    """
    try:
        kernel = cast(Kernel, torch.compile(formula, dynamic=True))
        for anchor_dtype, fisher_dtype in dict.fromkeys(dtypes):
            anchor = torch.zeros(4096, device=device, dtype=anchor_dtype)
            fisher = torch.full((4096,), 2.0, device=device, dtype=fisher_dtype)
            results = (_results(function, example(anchor, fisher)) for function in (kernel, formula))
            for got, want in zip(*results, strict=True):
                if not torch.allclose(got, want, rtol=1e-6):
                    raise RuntimeError(f"the compiled kernel gives {got.flatten()[0]}, not {want.flatten()[0]}")
    except Exception as error:  # a missing C compiler, an old driver: inductor raises many types
        warnings.warn(
            f"torch.compile does not work here, so the EWC penalty runs uncompiled: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernel


def _results(function: Callable[..., Any], arguments: list[Tensor]) -> list[Tensor]:
    """Returns all that a kernel may have changed or returned."""
    returned = function(*arguments)
    return arguments if returned is None else [*arguments, returned]
