"""The batch script of a job: a profile's values as submitit's parameters, and what the script does before the task.

submitit writes the script and calls sbatch. Beyond it, everything that a job needs lies in its place before sbatch is
called, under the token that the ledger has: a submitter that dies at any moment leaves no job without its pickle.
The script itself makes the job's folder, when its id is known, and links the pickle into it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission

# What SlurmExecutor itself calls: the executor would need srun on this machine, also for a dry run, and would name a
# job's files only after sbatch.
from submitit.slurm.slurm import _make_sbatch_string

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.profile.keys import Profile, SlurmConfig
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.rundir import RunDir

INHERITED = (
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "SLURM_CONF",
    "SLURM_CLUSTERS",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HPC_EWC_CACHE",
)
"""What jobs inherit from the shell of `submit`; nothing else reaches them, and so no token."""
INHERITED_PATTERN = re.compile(r"(MODULE|LMOD_|__LMOD|_LMFILES_|LOADEDMODULES|BASH_FUNC_(module|ml)\b)")
"""Of environment modules, whose lines stand in `setup`."""
ENDLESS = 10**6
"""Time-outs that submitit lets pass: whether a job goes on is decided by its progress."""


@dataclass(frozen=True)
class Script:
    """One submission: what is to be run, and how its batch script reads."""

    token: str
    folder: Path
    """runs/NAME/jobs/<token>."""
    name: str
    parameters: dict[str, Any]
    array: int | None
    """Elements; None: a single job."""
    python: str

    def render(self) -> str:
        """The batch script, as submitit words it."""
        jobs = self.folder.parent / "%j"
        command = f"{shlex.quote(self.python)} -u -m submitit.core._submit {shlex.quote(str(jobs))}"
        return str(_make_sbatch_string(command=command, folder=jobs, map_count=self.array, **self.parameters))

    def write(self, task: Any) -> None:
        """Put script and pickle in their places."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        delayed = DelayedSubmission(task)
        delayed.set_timeout(int(self.parameters["time"]), ENDLESS)
        delayed.dump(rundir.task_file(self.folder))
        records.write_text(rundir.script_file(self.folder), self.render(), mode=0o700)


def build_script(
    *,
    root: RunDir,
    stage: str,
    run: str,
    token: str,
    resources: JobResources,
    profile: Profile,
    code: Path,
    array: int | None,
    dependency: str,
) -> Script:
    """The submission of one stage.

    Args:
        root: of the experiment.
        stage: tokens, fisher, train, evaluate, report.
        run: name of the artefact's folder, or "".
        token: of the ledger.
        resources: of one job.
        profile: the cluster.
        code: folder of the package as it was.
        array: elements; None: a single job.
        dependency: as sbatch takes it, or "".
    """
    slurm = profile.slurm.of(stage)
    name = job_name(root, stage, run)
    folder = root.job(token)
    parameters: dict[str, Any] = {
        "job_name": name,
        "comment": token,
        "time": resources.time_min,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus_per_task,
        "signal_delay_s": slurm.signal_delay_s,
        "array_parallelism": slurm.max_running,
        "wckey": None,  # submitit's own default names a key that sites with TrackWCKey refuse
        "setup": setup_lines(root, token, code, slurm.setup),
        "srun_args": srun_arguments(resources, slurm),
    }
    if resources.mem_gb is not None:
        parameters["mem"] = f"{resources.mem_gb}GB"
    parameters |= gpu_request(resources, slurm)
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if getattr(slurm, key):
            parameters[key] = getattr(slurm, key)
    if slurm.exclusive:
        parameters["exclusive"] = True
    if dependency:
        parameters["dependency"] = dependency
    further: dict[str, Any] = {"chdir": str(root.root), "export": "ALL", "kill-on-invalid-dep": "yes"}
    further["requeue" if slurm.continuation == "requeue" else "no-requeue"] = True
    further["output"] = further["error"] = str(folder / ("%A_%a_batch.out" if array is not None else "%j_batch.out"))
    parameters["additional_parameters"] = further | {flag: value or True for flag, value in slurm.sbatch.items()}
    return Script(token, folder, name, parameters, array, profile.interpreter)


def job_name(root: RunDir, stage: str, run: str) -> str:
    """NAME/stage/run."""
    return "/".join(filter(None, (root.name, stage, run)))


def gpu_request(resources: JobResources, slurm: SlurmConfig) -> dict[str, Any]:
    """`--gres` or `--gpus-per-node`, of jobs with GPUs."""
    if not resources.gpus_per_node:
        return {}
    if not slurm.gres:
        return {"gpus_per_node": resources.gpus_per_node}
    counted = re.search(r":\d+(\(|$)", slurm.gres)
    return {"gres": slurm.gres if counted else f"{slurm.gres}:{resources.gpus_per_node}"}


def srun_arguments(resources: JobResources, slurm: SlurmConfig) -> list[str]:
    """Srun no longer inherits --cpus-per-task (Slurm 22.05); a task that dies takes the job down at once."""
    arguments = ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}", "--export=ALL"]
    arguments += [f"--cpu-bind={slurm.cpu_bind}"] if slurm.cpu_bind else []
    return [*arguments, *slurm.srun_args]


def setup_lines(root: RunDir, token: str, code: Path, own: tuple[str, ...]) -> list[str]:
    """Shell lines before the task: the profile's own, the package as it was, the job's folder with its pickle."""
    lines = ["type module >/dev/null 2>&1 || . /etc/profile", *own] if own else []
    path = shlex.quote(str(code))
    lines += [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"]
    lines += ['ID="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"']
    lines += [f'JOB={shlex.quote(str(root.jobs))}/"$ID"']
    pickle = shlex.quote(str(rundir.task_file(Path("..") / token)))
    link = '"$JOB/${ID}_submitted.pkl"'
    # A cluster that was made anew gives ids again: what another job of this id left is none of this one's. A folder
    # without a link is of no job yet: `hpc-ewc cancel` made it, for the stop file of a job that just begins.
    lines += [f'[ ! -L {link} ] || [ "$(readlink {link})" = {pickle} ] || mv "$JOB" "$JOB.$(date +%s)"']
    lines += [f'mkdir -p "$JOB" && ln -sfn {pickle} {link} || exit 1']
    return lines


def check_paths(root: RunDir) -> None:
    """A run folder whose name Slurm takes as it is: `%` is a pattern there, and quotes are read in another way.

    Raises:
        ConfigError: it is not such a name.
    """
    found = re.search(r"""[%"'\\`$#\x00-\x1f\x7f]""", str(root.root))
    if found:
        raise ConfigError(
            f"{root.root}: {found[0]!r} in the path of a run folder has a meaning for Slurm; choose another by --runs"
        )


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that sbatch is given, and so all that a job inherits.

    Variables inside the places of caches (`HF_HOME=$SCRATCH/hf`) are expanded, since jobs do not inherit them.
    """
    found = {name: value for name, value in environment.items() if name in INHERITED or INHERITED_PATTERN.match(name)}
    places = [name for name in found if name.startswith(("HF_", "HUGGINGFACE_", "XDG_"))]
    return found | {name: os.path.expandvars(found[name]) for name in places}


@contextmanager
def clean_environment() -> Iterator[None]:
    """Inside, this process has only what jobs may inherit; the site's or the user's SBATCH_… change no script."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(inherited_environment(before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
