"""A machine as frozen dataclasses: every key of `slurm/*.toml`, its type, range, default and meaning.

A profile says where and how jobs run; it never changes what they compute, so it enters no key. Its values reach
scripts and environments: a control character (a newline would be a line of the script) is refused in all of them but
`slurm.setup`, which is shell by design.
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
    """[slurm.stage.<stage>]: keys of [slurm] that are other for one stage, such as the partition of CPU jobs."""

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
    """Generic resources of jobs with GPUs, where --gpus-per-node is not accepted. "gpu:a100:4" is passed as it is; to
    "gpu:a100" the stage's gpus_per_node is added."""
    exclusive: bool = option(False)
    """Whole nodes, shared with no other job."""
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
    """chain: where requeue is forbidden, successors are submitted beforehand."""
    successors: int = option(3, low=1, high=100)
    """With continuation = "chain": how many jobs wait behind each; one that finds nothing to do leaves at once."""
    grace_time_s: int = option(300, low=0)
    """The longest GraceTime of a partition that preempts: how long a job that has saved waits for Slurm to end it."""
    max_submitted: int | None = option(None, low=1)
    """How many jobs of a user the site accepts, counting array elements; the next submit adds the rest."""
    max_submitted_in: dict[str, int] = option({}, low=1)
    """The same by partition, such as { debug = 2 }."""
    cells_per_job: str = option("gpu", choices=("gpu", "node"))
    """gpu: one evaluation element per job; node, where whole nodes are billed: one on each GPU of a node."""
    host_suffix: str = option("")
    """Suffix by which a host name is reached over the fast network, such as JSC's "i"."""
    cpu_bind: str = option("")
    """Value of srun's --cpu-bind."""
    scratch: str = option("")
    """Folder local to the node, such as "/tmp" or "$SLURM_TMPDIR" (expanded in the job): each job puts its caches of
    Triton, Inductor and data sets under it, and removes them. Absent: the caches are in their usual places."""
    stage: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    """[slurm.stage.<stage>]: what is other for one stage."""

    def of(self, stage: str) -> SlurmConfig:
        """What one stage gets: its own keys before the general ones; `sbatch` is joined."""
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
    """`submit` asks before it submits more than this."""
    env: dict[str, str] = option({})
    """Further environment variables of the jobs."""
    gpu: str = option("", choices=("", *GPUS))
    """Kind of GPU, for the forecast of a dry run; so are the next two keys."""
    gpu_memory_gb: float | None = option(None, above=0.0)
    """Memory of one GPU; absent: as in its data sheet."""
    gpu_tflops: float | None = option(None, above=0.0)
    """bf16 TFLOP/s that one GPU reaches in training, as you measured it; absent: 40 % of its data sheet."""
    local: LocalConfig = dataclasses.field(default_factory=LocalConfig)
    slurm: SlurmConfig = dataclasses.field(default_factory=SlurmConfig)
    container: ContainerConfig = dataclasses.field(default_factory=ContainerConfig)
    resources: dict[str, Resources] = dataclasses.field(default_factory=dict)
    """[resources.<stage>], key by key before the experiment's own."""
    where: str = dataclasses.field(default="the profile", compare=False)
    """The file it came from, for errors."""

    @property
    def cpus(self) -> int:
        """CPU cores that local jobs may use at once."""
        return self.local.cpus or len(os.sched_getaffinity(0))

    @property
    def interpreter(self) -> str:
        return self.python or sys.executable


SECTIONS: dict[str, type[Any]] = {"local": LocalConfig, "slurm": SlurmConfig, "container": ContainerConfig}
