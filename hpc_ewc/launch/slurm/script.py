"""The batch script of a job: the profile's values as submitit's parameters, and the shell lines before the task.

Everything that a job needs is on disk before sbatch is called, in a folder named by the token in the ledger, so that a
submit that dies at any moment leaves no job without its pickle. The script itself makes the folder of the job, whose id
is known only then, and links the pickle into it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission

# SlurmExecutor calls this too. The executor itself needs srun on this machine, even for a dry run, and names a job's
# files only after sbatch.
from submitit.slurm.slurm import _make_sbatch_string

from hpc_ewc import records, rundir
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.profile.keys import Profile, SlurmConfig
from hpc_ewc.launch.profile.resources import JobResources
from hpc_ewc.node.environment import replaced_environment
from hpc_ewc.rundir import RunDir

INHERITED = re.compile(
    r"(HOME|USER|LOGNAME|SHELL|PATH|LD_LIBRARY_PATH|LANG|LC_ALL|LC_CTYPE|TZ|SLURM_CONF|SLURM_CLUSTERS"
    r"|VIRTUAL_ENV|CONDA_PREFIX|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|HF_DATASETS_CACHE|HPC_EWC_CACHE)$"
    r"|MODULE|LMOD_|__LMOD|_LMFILES_|LOADEDMODULES|BASH_FUNC_(module|ml)\b"
)
"""Variables that jobs inherit from the shell of `submit`, such as those of environment modules; no token among them."""
NO_TIMEOUT_LIMIT = 10**6
"""Time-outs that submitit allows; here the progress of a job decides whether it is requeued."""


@dataclass(frozen=True)
class Script:
    """One call of sbatch: the files of the submission and the parameters of its batch script."""

    token: str
    folder: Path
    """runs/NAME/jobs/<token>."""
    name: str
    parameters: dict[str, Any]
    array: int | None
    """Number of elements; None: a single job."""
    python: str

    def render(self) -> str:
        """Return the batch script, as submitit writes it."""
        jobs = self.folder.parent / "%j"
        command = f"{shlex.quote(self.python)} -u -m submitit.core._submit {shlex.quote(str(jobs))}"
        return str(_make_sbatch_string(command=command, folder=jobs, map_count=self.array, **self.parameters))

    def write(self, task: Any) -> None:
        """Write the script and the pickle of its task."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        delayed = DelayedSubmission(task)
        delayed.set_timeout(int(self.parameters["time"]), NO_TIMEOUT_LIMIT)
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
    """Return the submission of one stage.

    Args:
        root: the run folder.
        stage: tokens, fisher, train, evaluate or report.
        run: name of the artefact's folder, or "".
        token: name of the submission in the ledger.
        resources: resources of one job.
        profile: the cluster.
        code: folder of the package for the jobs.
        array: number of elements; None: a single job.
        dependency: value of sbatch's `--dependency`, or "".
    """
    slurm = profile.slurm.of(stage)
    name = "/".join(filter(None, (root.name, stage, run)))
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
        # srun does not inherit --cpus-per-task since Slurm 22.05; a task that dies ends the whole job at once
        "srun_args": [
            *("--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}", "--export=ALL"),
            *([f"--cpu-bind={slurm.cpu_bind}"] if slurm.cpu_bind else []),
            *slurm.srun_args,
        ],
    }
    if resources.mem_gb is not None:
        parameters["mem"] = f"{resources.mem_gb}GB"
    parameters |= gpu_request(resources, slurm)
    keys = ("partition", "account", "qos", "constraint", "exclude", "exclusive")
    parameters |= {key: getattr(slurm, key) for key in keys if getattr(slurm, key)}
    if dependency:
        parameters["dependency"] = dependency
    further: dict[str, Any] = {"chdir": str(root.root), "export": "ALL", "kill-on-invalid-dep": "yes"}
    further["requeue" if slurm.continuation == "requeue" else "no-requeue"] = True
    further["output"] = further["error"] = str(folder / ("%A_%a_batch.out" if array is not None else "%j_batch.out"))
    parameters["additional_parameters"] = further | {flag: value or True for flag, value in slurm.sbatch.items()}
    return Script(token, folder, name, parameters, array, profile.interpreter)


def gpu_request(resources: JobResources, slurm: SlurmConfig) -> dict[str, Any]:
    """Return `--gres` or `--gpus-per-node` of a job with GPUs."""
    if not resources.gpus_per_node:
        return {}
    if not slurm.gres:
        return {"gpus_per_node": resources.gpus_per_node}
    counted = re.search(r":\d+(\(|$)", slurm.gres)
    return {"gres": slurm.gres if counted else f"{slurm.gres}:{resources.gpus_per_node}"}


def setup_lines(root: RunDir, token: str, code: Path, profile_lines: tuple[str, ...]) -> list[str]:
    """Return the shell lines before the task: the profile's, the path of the package, the job's folder and pickle."""
    lines = ["type module >/dev/null 2>&1 || . /etc/profile", *profile_lines] if profile_lines else []
    path = shlex.quote(str(code))
    lines += [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"]
    lines += ['ID="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"']
    lines += [f'JOB={shlex.quote(str(root.jobs))}/"$ID"']
    pickle = shlex.quote(str(rundir.task_file(Path("..") / token)))
    link = '"$JOB/${ID}_submitted.pkl"'
    # A reinstalled cluster gives ids again: the folder of an earlier job with this id is moved away. A folder without
    # a link belongs to no job yet: `hpc-ewc cancel` made it for the stop file of a job that just starts.
    lines += [f'[ ! -L {link} ] || [ "$(readlink {link})" = {pickle} ] || mv "$JOB" "$JOB.$(date +%s)"']
    lines += [f'mkdir -p "$JOB" && ln -sfn {pickle} {link} || exit 1']
    return lines


def check_paths(root: RunDir) -> None:
    """Raise ConfigError if Slurm would read the path of a run folder differently: `%` is a pattern there."""
    found = re.search(r"""[%"'\\`$#\x00-\x1f\x7f]""", str(root.root))
    if found:
        raise ConfigError(
            f"{root.root}: {found[0]!r} in the path of a run folder has a meaning for Slurm; choose another by --runs"
        )


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that sbatch gets, and which therefore every job inherits.

    Variables in the paths of caches (`HF_HOME=$SCRATCH/hf`) are expanded, because jobs do not inherit them.
    """
    found = {name: value for name, value in environment.items() if INHERITED.match(name)}
    caches = [name for name in found if name.startswith(("HF_", "HUGGINGFACE_", "XDG_"))]
    return found | {name: os.path.expandvars(found[name]) for name in caches}


def clean_environment() -> AbstractContextManager[None]:
    """Give this process only the variables that jobs may inherit; SBATCH_… of the site or user change no script."""
    return replaced_environment(inherited_environment(os.environ))
