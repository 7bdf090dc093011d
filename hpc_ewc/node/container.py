"""[container]: the image that workers run in, as keys of a profile."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_ewc.config import option


@dataclass(frozen=True)
class ContainerConfig:
    """[container]: what torchrun and the workers run in; submitit and the launcher stay on the host."""

    runtime: str = option("", choices=("", "apptainer", "singularity", "pyxis"))
    """Absent: no container. singularity: apptainer under its old name."""
    image: str = option("")
    """Path of the image."""
    binds: tuple[str, ...] = option(())
    """Folders to make visible inside, such as "/scratch"."""
    python: str = option("python3")
    """Python inside the image."""
    args: tuple[str, ...] = option(())
    """Further arguments of the runtime, such as "--rocm"; absent: --nv for apptainer, singularity in jobs with GPUs."""
