"""The penalty's arithmetic on 1D tensors of one length: tile by tile in eager mode, or fused by `torch.compile`.

Both forms of a kernel are equal to rounding. The fused one reads θ, θ*, F and the gradient once and writes once,
20 bytes an element with fp32 states and 16 with bf16 ones; the eager one gets close to that on a CPU, where a tile
stays in cache between its operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

CPU_TILE = 1 << 17
"""Elements a CPU kernel works on at a time: its buffer (512 KiB) stays in cache between operations, and a tile is long
enough that calling them costs little."""
CUDA_TILE = 1 << 26
"""On a GPU a tile only bounds the buffers (256 MiB each); smaller ones would be lost in launches."""
LARGEST_GRADIENT = 1e37
"""Entries of the penalty's gradient are held to ± this: an infinite one would turn clipping into NaN (∞ · 0)."""
_LARGEST_DIFFERENCE = 1e20
"""θ − θ* is held to ± this where λ and λF are small enough that their products with it are in bounds then."""
_LARGEST = 1e38
_SMALLEST = 1e-37
"""Bounds that keep products finite, and num / (num + metric) a number in [0, 1], in fp32, for any λ, F ≥ 0, v ≥ 0."""

GradientKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
ProximalKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
MeasureKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Dtypes = Iterable[tuple[torch.dtype, torch.dtype]]
"""Of the anchor and the Fisher, in pairs."""


def tile_size(tensor: Tensor) -> int:
    """Elements in a tile on the device of `tensor`."""
    return CUDA_TILE if tensor.is_cuda else CPU_TILE


def tiles(*flats: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching slices of 1D tensors of one length, each small enough that its buffers do not grow with the model."""
    if flats[0].numel() <= tile_size(flats[0]):
        return iter((flats,) if flats[0].numel() else ())  # a rank's shard may be empty
    return zip(*(torch.split(flat, tile_size(flats[0])) for flat in flats), strict=True)


def tile_buffer(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Work space for one tile of `like`, on its device, and of its dtype unless another is given."""
    size = min(tile_size(like), max(like.numel(), 1))
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device)


def is_moderate(strength: float, largest_fisher: float) -> bool:
    """λ and λF are small enough for `add_gradient_` to bound the difference alone, one pass for three."""
    difference = _LARGEST_DIFFERENCE
    return strength * difference <= _LARGEST and strength * largest_fisher * difference <= LARGEST_GRADIENT


def add_gradient_(
    theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor, strength: float, moderate: bool = False
) -> None:
    """Grad ← grad + λ F (θ − θ*), in place. `moderate`: as `is_moderate` says of λ and the largest F."""
    buffer = tile_buffer(theta)
    for x, g, a, f in tiles(theta, grad, anchor, fisher):
        delta = torch.sub(x, a, out=buffer[: x.numel()])
        if moderate:
            g.addcmul_(delta.clamp_(-_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE), f, value=strength)
            continue
        # bounded before λ too: F and λ may both be near their ends, and ∞·0 would be NaN
        delta.mul_(f).clamp_(-_LARGEST, _LARGEST).mul_(strength).clamp_(-LARGEST_GRADIENT, LARGEST_GRADIENT)
        g.add_(delta)


def proximal_(theta: Tensor, anchor: Tensor, fisher: Tensor, second_moment: Tensor, scalars: Tensor) -> None:
    """θ ← θ + w (θ* − θ), in place, with w = s F / (s F + sqrt(v / c) + eps).

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
        # bounded first: s reaches 1e30 and F its dtype's largest, and ∞/∞ would be NaN; F = 0 stays 0
        weight.copy_(f).mul_(scale).clamp_(max=_LARGEST)
        metric.clamp_(min=_SMALLEST).add_(weight)
        weight.div_(metric)
        torch.lerp(x, a.to(x.dtype), weight, out=x)


def measure_sums(theta: Tensor, anchor: Tensor, fisher: Tensor, zeros: bool = True) -> Tensor:
    """Σ F (θ−θ*)², Σ (θ−θ*)², and that sum over F = 0 alone. [3] fp64.

    Differences are of θ's dtype, products and sums fp64: F (θ−θ*)² of fp32 numbers may overflow fp32.

    Args:
        theta: [n].
        anchor: [n] θ*, any floating dtype.
        fisher: [n] F, any floating dtype.
        zeros: F may have zeros; where it has none, the third is 0 without being looked for.
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


def penalty_gradient(theta: Tensor, anchor: Tensor, fisher: Tensor, strength: Tensor) -> Tensor:
    """λF(θ−θ*), bounded, as a formula for the compiler: outside of a compiled kernel it makes whole tensors."""
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


def compiled_gradient(dtypes: Dtypes, device: torch.device) -> GradientKernel | None:
    """`add_gradient_` in one pass over memory, with λ as a 0-d tensor; None, and a warning, where compiling fails."""

    def trial(kernel: GradientKernel, anchor: Tensor, fisher: Tensor) -> Tensor:
        theta, grad = torch.ones(4096, device=device), torch.zeros(4096, device=device)
        kernel(theta, grad, anchor, fisher, torch.tensor(1.0, device=device))
        return grad

    return compiled_kernel(_gradient_formula, trial, dtypes, device)


def compiled_proximal(dtypes: Dtypes, device: torch.device) -> ProximalKernel | None:
    """`proximal_` in one pass over memory; None, and a warning, where compiling fails."""

    def trial(kernel: ProximalKernel, anchor: Tensor, fisher: Tensor) -> Tensor:
        theta = torch.ones(4096, device=device)
        kernel(theta, anchor, fisher, torch.ones_like(theta), torch.tensor([1.0, 1.0, 0.0], device=device))
        return theta

    return compiled_kernel(_proximal_formula, trial, dtypes, device)


def compiled_measure(dtypes: Dtypes, device: torch.device) -> MeasureKernel | None:
    """`measure_sums` in one pass over memory; None, and a warning, where compiling fails."""

    def trial(kernel: MeasureKernel, anchor: Tensor, fisher: Tensor) -> Tensor:
        return kernel(torch.ones(4096, device=device), anchor, fisher) / 4096

    return compiled_kernel(_measure_formula, trial, dtypes, device)


def compiled_kernel(
    formula: Kernel, trial: Callable[[Kernel, Tensor, Tensor], Tensor], dtypes: Dtypes, device: torch.device
) -> Kernel | None:
    """`formula` compiled and tried on 4,096 elements of each pair of dtypes of (anchor, fisher); None where it fails.

    `trial` calls a kernel and returns what shows whether it did its work, to be compared with what the formula gives.
    Those of this module have θ = 1, θ* = 0, F = 2, and λ, lr, v and c 1: the gradient is then 2, and θ moves to 1/3.
    """
    try:
        kernel = cast(Kernel, torch.compile(formula, dynamic=True))
        for anchor_dtype, fisher_dtype in dict.fromkeys(dtypes):
            anchor = torch.zeros(4096, device=device, dtype=anchor_dtype)
            fisher = torch.full((4096,), 2.0, device=device, dtype=fisher_dtype)
            got, want = trial(kernel, anchor, fisher), trial(formula, anchor, fisher)
            if not torch.allclose(got, want, rtol=1e-6):
                raise RuntimeError(f"the compiled kernel gives {got[0].item()}, not {want[0].item()}")
    except Exception as error:  # a missing C compiler, an old driver: what inductor raises is not one type
        warnings.warn(
            f"torch.compile does not work here, so the EWC penalty runs uncompiled: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernel
