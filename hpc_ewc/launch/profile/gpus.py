"""GPUs by name, from their makers' data sheets, and how much of it a forecast assumes is reached. Nothing measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU as Slurm counts them (of an MI250X: one of its two dies)."""

    bf16_tflops: float
    """Dense."""
    fp32_tflops: float
    """Of matrices: TF32 where there is one."""
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
"""Where a profile names none."""
SHARES = {"train": 0.40, "fisher": 0.25, "evaluate": 0.10}
"""Of the data sheet's TFLOP/s that each stage is assumed to reach. `gpu_tflops` of a profile replaces the first, and
scales the others."""


@dataclass(frozen=True)
class Rates:
    """TFLOP/s that are assumed of a GPU, by stage, and its memory."""

    name: str
    train: float
    fisher: float
    evaluate: float
    bandwidth_tb_s: float
    memory_gb: float
    stated: str
    """Where they come from, in words."""


def rates(name: str, tflops: float | None) -> Rates:
    """What a forecast assumes of the GPUs of a profile.

    Args:
        name: the profile's `gpu`; "" for none.
        tflops: its `gpu_tflops`.
    """
    known = name or ASSUMED
    gpu = GPUS[known]
    usual = SHARES["train"] * gpu.bf16_tflops
    scale = 1.0 if tflops is None else tflops / usual
    source = "gpu_tflops of the profile" if tflops is not None else f"{SHARES['train']:.0%} of the data sheet"
    guess = "" if name else f", which is assumed: the profile names none (gpu = …: {', '.join(GPUS)})"
    return Rates(
        known,
        usual * scale,
        SHARES["fisher"] * gpu.fp32_tflops * scale,
        SHARES["evaluate"] * gpu.bf16_tflops * scale,
        gpu.bandwidth_tb_s,
        gpu.memory_gb,
        f"{usual * scale:.0f} TFLOP/s in training ({source}, {known}{guess})",
    )
