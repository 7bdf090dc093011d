"""GPUs by name, from their makers' data sheets, and the rates that a forecast assumes. Nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU as Slurm counts it; an MI250X counts as two."""

    bf16_tflops: float
    """Dense."""
    fp32_tflops: float
    """For matrix products, in TF32 where the GPU has it."""
    bandwidth_tb_s: float
    memory_gb: float


GPUS = {
    "H200": Gpu(989.0, 494.5, 4.8, 141.0),
    "GH200": Gpu(989.0, 494.5, 4.0, 96.0),
    "H100": Gpu(989.0, 494.5, 3.35, 80.0),
    "A100": Gpu(312.0, 156.0, 2.0, 80.0),
    "A100-40GB": Gpu(312.0, 156.0, 1.55, 40.0),
    "A100-64GB": Gpu(312.0, 156.0, 1.64, 64.0),
    "MI300X": Gpu(1307.0, 653.5, 5.3, 192.0),
    "MI250X": Gpu(191.5, 47.9, 1.6, 64.0),
}
ASSUMED = "H100"
"""For a profile that names no GPU."""
SHARES = {"train": 0.40, "fisher": 0.25, "evaluate": 0.10}
"""Assumed share of the data sheet's TFLOP/s, by stage. `gpu_tflops` of a profile replaces the rate of train and scales
the others."""


@dataclass(frozen=True)
class Rates:
    """Assumed TFLOP/s of a GPU by stage, its bandwidth and memory."""

    train: float
    fisher: float
    evaluate: float
    bandwidth_tb_s: float
    memory_gb: float
    stated: str
    """Source of the rates, in words."""


def rates(name: str, tflops: float | None) -> Rates:
    """Return the rates that a forecast assumes; `name` and `tflops` are the profile's `gpu` and `gpu_tflops`."""
    known = name or ASSUMED
    gpu = GPUS[known]
    usual = SHARES["train"] * gpu.bf16_tflops
    scale = 1.0 if tflops is None else tflops / usual
    source = "gpu_tflops of the profile" if tflops is not None else f"{SHARES['train']:.0%} of the data sheet"
    guess = "" if name else f", which is assumed: the profile names none (gpu = …: {', '.join(GPUS)})"
    return Rates(
        train=usual * scale,
        fisher=SHARES["fisher"] * gpu.fp32_tflops * scale,
        evaluate=SHARES["evaluate"] * gpu.bf16_tflops * scale,
        bandwidth_tb_s=gpu.bandwidth_tb_s,
        memory_gb=gpu.memory_gb,
        stated=f"{usual * scale:.0f} TFLOP/s in training ({source}, {known}{guess})",
    )
