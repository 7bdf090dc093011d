"""A machine as frozen dataclasses: every key of `slurm/*.toml`, its type, range, default and meaning.

A profile says where and how jobs run; it never changes what they compute, so it enters no key. Its values reach
scripts and environments: a control character (a newline would be a line of the script) is refused in all of them but
`slurm.setup`, which is shell by design.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc.config import STAGES, Experiment, Resources, build_resources, build_section, load_toml, option
from hpc_ewc.errors import ConfigError, did_you_mean
from hpc_ewc.launch.gpus import GPUS


@dataclass(frozen=True)
class LocalConfig:
    """[local]: this machine, when executor = "local"."""

    cpus: int | None = option(None, low=1)
    """CPU cores in use at once; absent: all. A job takes its cpus_per_task, and one may always run."""
    gpus: int = option(0, low=0)
    """GPUs in use at once; a job takes its gpus_per_node."""


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
    """Generic resources of jobs with GPUs, where gpus_per_node is not accepted: "gpu:a100:4" as it is; "gpu:a100" gets
    the stage's gpus_per_node."""
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
    """Elements of one array that run at once."""
    signal_delay_s: int = option(120, low=10)
    """Seconds before the time limit at which a job is told to save."""
    continuation: str = option("requeue", choices=("requeue", "chain"))
    """chain: where requeue is forbidden, successors are submitted beforehand."""
    successors: int = option(3, low=1, high=100)
    """With continuation = "chain": jobs that wait behind each; one that finds nothing to do leaves at once."""
    grace_time_s: int = option(300, low=0)
    """The longest GraceTime of a partition that preempts: how long a job that has saved waits for Slurm to end it."""
    max_submitted: int | None = option(None, low=1)
    """Jobs of a user that the site accepts, array elements counted; the next submit tops up."""
    max_submitted_in: dict[str, int] = option({}, low=1)
    """The same by partition, such as { debug = 2 }."""
    cells_per_job: str = option("gpu", choices=("gpu", "node"))
    """node: where whole nodes are billed, a worker on each GPU."""
    host_suffix: str = option("")
    """What a host name needs to be reached over the fast network, such as JSC's "i"."""
    cpu_bind: str = option("")
    """Of srun."""
    scratch: str = option("")
    """Folder of the node alone, such as "/tmp" or "$SLURM_TMPDIR" (expanded in the job): each job puts its caches of
    Triton, Inductor and data sets under it, and removes them. Absent: the caches are where they are without a job."""
    stage: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    """[slurm.stage.<stage>]: what is other for one stage."""

    def of(self, stage: str) -> SlurmConfig:
        """What one stage gets: its own keys before the general ones; `sbatch` is joined."""
        own = self.stage.get(stage, StageConfig())
        changed = {key: value for key, value in dataclasses.asdict(own).items() if value is not None}
        return dataclasses.replace(self, **changed | {"sbatch": self.sbatch | (own.sbatch or {})})


@dataclass(frozen=True)
class ContainerConfig:
    """[container]: what torchrun and the workers run in; submitit and the launcher stay on the host."""

    runtime: str = option("", choices=("", "apptainer", "singularity", "pyxis"))
    """Absent: no container. singularity: where apptainer goes by its old name."""
    image: str = option("")
    """Path of the image."""
    binds: tuple[str, ...] = option(())
    """Folders to show inside, such as "/scratch"."""
    python: str = option("python3")
    """Inside the image."""
    args: tuple[str, ...] = option(())
    """Further arguments, such as "--rocm"; absent: apptainer and singularity get --nv in jobs with GPUs."""


@dataclass(frozen=True)
class Profile:
    """One machine or cluster."""

    executor: str = option("local", choices=("local", "slurm"))
    """local: this machine, in the foreground."""
    runs: str | None = option(None)
    """Folder of the run folders; absent: ./runs."""
    python: str | None = option(None)
    """Python of the jobs; absent: this one."""
    max_gpu_hours: float = option(100.0, low=0.0)
    """A submission that asks for more wants a yes."""
    env: dict[str, str] = option({})
    """Further environment of the jobs."""
    gpu: str = option("", choices=("", *GPUS))
    """What the GPUs are: for the forecast of a dry run, as are the next two."""
    gpu_memory_gb: float | None = option(None, above=0.0)
    """Absent: by its data sheet."""
    gpu_tflops: float | None = option(None, above=0.0)
    """bf16 TFLOP/s that one reaches in training, as measured there; absent: 40 % of its data sheet."""
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


@dataclass(frozen=True)
class JobResources:
    """What one job of a stage gets, nothing left open."""

    nodes: int
    nproc_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int | None
    time_min: int
    elements: int

    @property
    def gpu_hours(self) -> float:
        """The most that one element can use."""
        return self.nodes * self.gpus_per_node * self.time_min / 60


SECTIONS: dict[str, type[Any]] = {"local": LocalConfig, "slurm": SlurmConfig, "container": ContainerConfig}


def load_profile(path: Path | str | None) -> Profile:
    """The profile in a TOML file, checked whole; None: this machine, all its cores, no GPU.

    Raises:
        ConfigError: no such file, not TOML, unknown key, wrong type, value out of range, keys that disagree.
    """
    return Profile() if path is None else build_profile(load_toml(Path(path)), str(path))


def build_profile(table: Mapping[str, Any], where: str) -> Profile:
    """The profile a table describes; `where` is the file that errors name."""
    scalars = {f.name for f in dataclasses.fields(Profile)} - {*SECTIONS, "resources", "where"}
    known = [*scalars, *SECTIONS, "resources"]
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}")
    for key in (*SECTIONS, "resources"):
        if not isinstance(table.get(key, {}), dict):
            raise ConfigError(f"{where}: '{key}' must be a table [{key}], not {table[key]!r}")
    slurm, setup = _take_setup(table.get("slurm", {}), where)
    stages = _take_stages(slurm, where)
    tables = {name: table.get(name, {}) for name in SECTIONS} | {"slurm": slurm}
    sections = {name: build_section(cls, tables[name], name, where) for name, cls in SECTIONS.items()}
    sections["slurm"] = dataclasses.replace(sections["slurm"], setup=setup, stage=stages)
    resources = build_resources(table.get("resources", {}), where)
    top = build_section(Profile, {key: table[key] for key in table if key in scalars}, "profile", where)
    profile: Profile = dataclasses.replace(top, **sections, resources=resources, where=where)
    _check_together(profile, table, where)
    return profile


def _take_setup(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """[slurm] without `setup`, and `setup`: the one value that may hold control characters, being shell itself."""
    rest = dict(table)
    setup = rest.pop("setup", [])
    if not isinstance(setup, list) or not all(isinstance(line, str) and "\0" not in line for line in setup):
        raise ConfigError(f"{where}: slurm.setup = {setup!r}: must be a list of shell lines")
    return rest, tuple(setup)


def _take_stages(slurm: dict[str, Any], where: str) -> dict[str, StageConfig]:
    """[slurm.stage.<stage>], taken out of [slurm]."""
    tables = slurm.pop("stage", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{where}: 'slurm.stage' must be tables [slurm.stage.<stage>], not {tables!r}")
    found = {}
    for stage, values in tables.items():
        if stage not in STAGES:
            raise ConfigError(f"{where}: unknown table 'slurm.stage.{stage}'{did_you_mean(stage, STAGES)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: 'slurm.stage.{stage}' must be a table, not {values!r}")
        found[stage] = build_section(StageConfig, values, f"slurm.stage.{stage}", where)
    return found


def _check_together(profile: Profile, table: Mapping[str, Any], where: str) -> None:
    other = "slurm" if profile.executor == "local" else "local"
    for name in (other, "container") if profile.executor == "local" else (other,):
        if name in table:
            raise ConfigError(f'{where}: [{name}] has no meaning with executor = "{profile.executor}"; take it out')
    for name in profile.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"{where}: env.{name!r}: not a name of an environment variable")
        if name in SECRETS or re.search(r"TOKEN$|PASSWORD|SECRET|API_KEY", name):
            raise ConfigError(
                f"{where}: env.{name}: jobs work offline and get no tokens, since scripts and logs are read by others; "
                "take it out"
            )
    if bool(profile.container.runtime) != bool(profile.container.image):
        raise ConfigError(f"{where}: container.runtime and container.image go together; set both or neither")
    if profile.executor == "slurm":
        _check_slurm(profile, where)
        for stage, resources in profile.resources.items():
            check_time(stage, resources.time_min, profile, where)


FILL_IN = "FILL IN"
"""Stands in the shipped profiles where only the user knows the value."""


def check_filled_in(profile: Profile) -> None:
    """Raise ConfigError while a value of a shipped profile still waits for the user's own."""
    values = {f"slurm.{f.name}": getattr(profile.slurm, f.name) for f in dataclasses.fields(SlurmConfig)}
    values |= {f"container.{f.name}": getattr(profile.container, f.name) for f in dataclasses.fields(ContainerConfig)}
    values |= {"runs": profile.runs, "python": profile.python, "env": profile.env}
    waiting = [key for key, value in values.items() if FILL_IN in str(value)]
    if waiting:
        raise ConfigError(
            f"{profile.where}: {', '.join(waiting)}: still to be filled in; the comments there say with what"
        )


OURS = {
    "array": "it is made of the elements",
    "chdir": "jobs never depend on it",
    "comment": "it carries the key by which a submit finds its jobs again",
    "cpus-per-task": "resources.<stage>.cpus_per_task says it",
    "dependency": "the graph says it",
    "error": "logs stand in jobs/",
    "export": "the environment of jobs is a list; env says more",
    "gpus-per-node": "resources.<stage>.gpus_per_node says it",
    "job-name": "a submit finds its jobs by it",
    "kill-on-invalid-dep": "dependants of a failed job must leave the queue",
    "mem": "resources.<stage>.mem_gb says it",
    "no-requeue": 'continuation = "chain" says it',
    "nodes": "resources.<stage>.nodes says it",
    "ntasks": "one task runs on each node",
    "ntasks-per-node": "one task runs on each node",
    "open-mode": "a requeued job adds to its log",
    "output": "logs stand in jobs/",
    "requeue": 'continuation = "requeue" says it',
    "signal": "signal_delay_s says it",
    "time": "resources.<stage>.time_min says it",
    "wrap": "the script is made",
}
"""Flags of sbatch that are not free, each with who says it."""
OWN_KEYS = ("partition", "account", "qos", "constraint", "exclude", "gres", "exclusive")


def _check_slurm(profile: Profile, where: str) -> None:
    """What reaches a batch script: submitit quotes values, and sbatch's own reading of quotes is no shell's."""
    slurm = profile.slurm
    tables = {"slurm": slurm} | {f"slurm.stage.{name}": own for name, own in slurm.stage.items()}
    for label, part in tables.items():
        for flag in part.sbatch or ():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", flag):
                raise ConfigError(f"{where}: {label}.sbatch.{flag!r}: not a long flag of sbatch, such as reservation")
            if flag in OURS or flag in OWN_KEYS:
                reason = OURS.get(flag, f"slurm.{flag} says it")
                raise ConfigError(f"{where}: {label}.sbatch.{flag}: not free, {reason}; take it out")
        values = {key: getattr(part, key) for key in (*OWN_KEYS, "cpu_bind")}
        values |= {f"sbatch.{flag}": value for flag, value in (part.sbatch or {}).items()}
        for key, value in values.items():
            if isinstance(value, str) and re.search(r"""["'\\`$#]""", value):
                raise ConfigError(
                    f"{where}: {label}.{key} = {value!r}: quotes, backslash, backquote, $ and # have no place in a "
                    "value of sbatch; take them out"
                )


SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY")
"""Not for jobs: they work offline, and a log shows an environment sooner or later."""


def check_time(stage: str, time_min: int | None, profile: Profile, where: str) -> None:
    """A job needs time to start before it is told to stop: USR2 before its handler is up ends it (FACTS: 60 s)."""
    least = profile.slurm.signal_delay_s + 180
    if time_min is not None and time_min * 60 < least:
        raise ConfigError(
            f"{where}: resources.{stage}.time_min = {time_min}: allowed is at least {-(-least // 60)}, "
            f"slurm.signal_delay_s = {profile.slurm.signal_delay_s} and 180 s to start"
        )


DEFAULT_TIME_MIN = 60


def job_resources(stage: str, experiment: Experiment, profile: Profile) -> JobResources:
    """What a job of this stage gets: the profile's keys, then the experiment's, then defaults."""
    chosen = dataclasses.asdict(experiment.resources.get(stage, Resources()))
    for key, value in dataclasses.asdict(profile.resources.get(stage, Resources())).items():
        if value is not None:
            chosen[key] = value
    gpus = chosen["gpus_per_node"] or 0
    nproc = chosen["nproc_per_node"] or gpus or 1
    found = JobResources(
        nodes=chosen["nodes"] or 1,
        nproc_per_node=nproc,
        gpus_per_node=gpus,
        cpus_per_task=chosen["cpus_per_task"] or nproc,
        mem_gb=chosen["mem_gb"],
        time_min=chosen["time_min"] or DEFAULT_TIME_MIN,
        elements=chosen["elements"] or 1,
    )
    side = slots(stage, found, profile)  # a GPU that is billed has something to do
    return dataclasses.replace(found, elements=-(-found.elements // side) * side)


def slots(stage: str, resources: JobResources, profile: Profile) -> int:
    """Elements that one job runs side by side: several where whole nodes are billed, one on each GPU."""
    whole = profile.executor == "slurm" and profile.slurm.cells_per_job == "node" and stage == "evaluate"
    return max(resources.gpus_per_node, resources.nproc_per_node) if whole else 1
