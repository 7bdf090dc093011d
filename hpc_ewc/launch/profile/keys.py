"""A machine as frozen dataclasses: every key of `slurm/*.toml`, its type, range, default and meaning.

A profile says where and how jobs run and never changes what they compute, so it is in no key of an artefact. Its values
reach scripts and environments: a control character (a newline would start a line of the script) is refused everywhere
but in `slurm.setup`, which is shell by design.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

from hpc_ewc.config import Resources, option
from hpc_ewc.launch.profile.gpus import GPUS
from hpc_ewc.node.container import ContainerConfig


@dataclass(frozen=True)
class LocalConfig:
    """[local]: this machine, when executor = "local"."""

    cpus: int | None = option(None, low=1)
    """CPU cores that jobs may use at once; absent: all. A job takes its cpus_per_task; one job may always run."""
    gpus: int = option(0, low=0)
    """GPUs that jobs may use at once; a job takes its gpus_per_node."""


@dataclass(frozen=True)
class StageConfig:
    """[slurm.stage.<stage>]: keys of [slurm] that differ for one stage, such as the partition of CPU jobs."""

    partition: str | None = option(None)
    account: str | None = option(None)
    qos: str | None = option(None)
    constraint: str | None = option(None)
    exclude: str | None = option(None)
    gres: str | None = option(None)
    exclusive: bool | None = option(None)
    srun_args: tuple[str, ...] | None = option(None)
    sbatch: dict[str, str] | None = option(None)
    max_running: int | None = option(None, low=1)
    cpu_bind: str | None = option(None)


@dataclass(frozen=True)
class SlurmConfig:
    """[slurm]: a cluster, when executor = "slurm". Slurm's own spellings."""

    partition: str = option("")
    """Partition(s) of the jobs."""
    account: str = option("")
    """Account that is charged."""
    qos: str = option("")
    """Quality of service."""
    constraint: str = option("")
    """Node features, such as "a100"."""
    exclude: str = option("")
    """Nodes to avoid."""
    gres: str = option("")
    """Generic resources of jobs with GPUs, where --gpus-per-node is not accepted. "gpu:a100:4" is passed unchanged; to
    "gpu:a100" the stage's gpus_per_node is added."""
    exclusive: bool = option(False)
    """Use whole nodes, not shared with other jobs."""
    setup: tuple[str, ...] = option(())
    """Shell lines before the job, such as "module load LUMI"."""
    srun_args: tuple[str, ...] = option(())
    """Further arguments of srun."""
    sbatch: dict[str, str] = option({})
    """Any further flag of sbatch by its long name, such as reservation = "x"."""
    max_array_size: int = option(1000, low=1)
    """The cluster's MaxArraySize."""
    max_running: int = option(64, low=1)
    """How many elements of one array may run at once."""
    signal_delay_s: int = option(120, low=10)
    """Seconds before the time limit at which a job is told to save."""
    continuation: str = option("requeue", choices=("requeue", "chain"))
    """How a job continues after its time limit. chain, where requeue is forbidden: successors are submitted with it."""
    successors: int = option(3, low=1, high=100)
    """With continuation = "chain": how many successors each job gets; one that finds nothing to do ends at once."""
    grace_time_s: int = option(300, low=0)
    """The longest GraceTime of a partition with preemption: how long a job that has saved waits for Slurm to end it."""
    max_submitted: int | None = option(None, low=1)
    """How many jobs of a user the site accepts, array elements included; the next submit adds the rest."""
    max_submitted_in: dict[str, int] = option({}, low=1)
    """The same limit by partition, such as { debug = 2 }."""
    cells_per_job: str = option("gpu", choices=("gpu", "node"))
    """gpu: one evaluation element per job; node, where whole nodes are billed: one per GPU of a node."""
    host_suffix: str = option("")
    """Suffix of host names on the fast network, such as JSC's "i"."""
    cpu_bind: str = option("")
    """Value of srun's --cpu-bind."""
    scratch: str = option("")
    """Folder local to the node, such as "/tmp" or "$SLURM_TMPDIR" (expanded in the job), for the caches of Triton,
    Inductor and data sets; each job removes its own. Absent: the caches are in their usual folders."""
    stage: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    """[slurm.stage.<stage>]: keys that differ for one stage."""

    def of(self, stage: str) -> SlurmConfig:
        """Return [slurm] of one stage: its own keys override the general ones; `sbatch` is merged."""
        own = self.stage.get(stage, StageConfig())
        changed = {key: value for key, value in dataclasses.asdict(own).items() if value is not None}
        return dataclasses.replace(self, **changed | {"sbatch": self.sbatch | (own.sbatch or {})})


@dataclass(frozen=True)
class Profile:
    """One machine or cluster."""

    executor: str = option("local", choices=("local", "slurm"))
    """local: this machine, in the foreground."""
    runs: str | None = option(None)
    """Folder that holds the run folders; absent: ./runs."""
    python: str | None = option(None)
    """Python of the jobs; absent: the one that runs hpc-ewc."""
    max_gpu_hours: float = option(100.0, low=0.0)
    """`submit` asks before it submits more GPU-hours than this."""
    env: dict[str, str] = option({})
    """Further environment variables of the jobs."""
    gpu: str = option("", choices=("", *GPUS))
    """Kind of GPU, for the forecast of a dry run, as are the next two keys."""
    gpu_memory_gb: float | None = option(None, above=0.0)
    """Memory of one GPU; absent: as in its data sheet."""
    gpu_tflops: float | None = option(None, above=0.0)
    """Measured bf16 TFLOP/s of one GPU in training; absent: 40 % of its data sheet."""
    local: LocalConfig = dataclasses.field(default_factory=LocalConfig)
    slurm: SlurmConfig = dataclasses.field(default_factory=SlurmConfig)
    container: ContainerConfig = dataclasses.field(default_factory=ContainerConfig)
    resources: dict[str, Resources] = dataclasses.field(default_factory=dict)
    """[resources.<stage>]: each key overrides the experiment's."""
    where: str = dataclasses.field(default="the profile", compare=False)
    """The profile's file, for errors."""

    @property
    def cpus(self) -> int:
        """CPU cores that local jobs may use at once."""
        return self.local.cpus or len(os.sched_getaffinity(0))

    @property
    def interpreter(self) -> str:
        return self.python or sys.executable


SECTIONS: dict[str, type[Any]] = {"local": LocalConfig, "slurm": SlurmConfig, "container": ContainerConfig}
