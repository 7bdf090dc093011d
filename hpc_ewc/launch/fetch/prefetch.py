"""`hpc-ewc prefetch`: fetch everything that an experiment names, then prove that it loads without a network.

This process imports no torch: it asks the hub for lists and downloads files. The rows of benchmarks are read by
`datasets` in a worker process and saved as Parquet files, which any number of array elements read without locks and
without writing. A last worker, without network and token, loads a sample of everything by the code of the jobs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hpc_ewc import hub, records, suites
from hpc_ewc.config import Experiment, load_experiment, render_toml
from hpc_ewc.errors import HpcEwcError, InputError, SubmitError
from hpc_ewc.launch.fetch.download import (
    Repository,
    check_space,
    dataset_repository,
    fetch,
    format_size,
    look_up,
    model_repository,
)
from hpc_ewc.launch.inputs.absolute_paths import with_absolute_paths
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, load_profile
from hpc_ewc.launch.show.table import columns
from hpc_ewc.launch.slurm.script import inherited_environment
from hpc_ewc.model_folder import check_model
from hpc_ewc.node.environment import OFFLINE, SECRETS
from hpc_ewc.process import die_with_parent
from hpc_ewc.rundir import cache_dir
from hpc_ewc.sweep import expand

NO_HUB = "http://127.0.0.1:9"
"""An endpoint where nothing answers, so that a request to the hub fails at once."""
PACKAGE_PARENT = str(Path(hub.__file__).parents[1])
JOB_MIN = 240
"""Time limit of `--as-job`; run again, it continues."""
BENCHMARK_BYTES = 300_000_000
"""Size of the benchmark rows of both languages, and of the files that they are made from."""


class Check(NamedTuple):
    """The outcome of fetching or loading one thing."""

    ok: bool
    what: str
    detail: str


def prefetch(
    sweep: Path, profile: Path | None, *, dry_run: bool = False, update: bool = False, as_job: str | None = None
) -> int:
    """Fetch what an experiment names; see `hpc-ewc prefetch --help`. Exit status: 0 all is there, 1 something is not.

    Raises:
        HpcEwcError: refused before anything was fetched.
    """
    loaded = load_profile(profile)
    experiment = load_experiment(sweep)
    if as_job is not None:
        return _submit(sweep, loaded, as_job, update=update)
    points = _points(experiment, str(sweep))
    repositories, cells = needed_repositories(points), benchmark_cells(points)
    offline = [name for name in OFFLINE if os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE")]
    if offline and (repositories or cells):
        raise InputError(
            f"{', '.join(offline)} set in this shell: unset it for `hpc-ewc prefetch`, which needs the hub"
        )
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is imported
    for repository in repositories:
        look_up(repository, update=update)
        if repository.unreachable:
            raise InputError(
                f"{os.environ.get('HF_ENDPOINT') or hub.HOME} is out of reach from this machine: run this where there "
                "is a network (a login node; --as-job PARTITION), behind a proxy with HTTPS_PROXY set"
            )
    ours = [suites.TASKS[cell.task].sources[cell.language].path for cell in cells if cell.task in suites.TASKS]
    rows_missing = any(hub.pinned_commit(name) is None for name in ours)
    bytes_left = check_space(repositories, BENCHMARK_BYTES if rows_missing else 0)
    _say(_render_overview(repositories, cells))
    if dry_run:
        _say(f"up to {format_size(bytes_left)} to fetch into {hub.cache()}. A dry run: nothing was fetched")
        return 0
    for repository in repositories:
        if not repository.error and (missing := repository.missing):
            _say(f"fetching {repository.label}: {len(missing)} files, {format_size(repository.missing_bytes)}")
            fetch(repository)
            _say(f"  commit {repository.commit[:7]}" if not repository.error else "  failed")
    checks = [Check(False, repository.label, repository.error) for repository in repositories if repository.error]
    checks += _fetch_rows(cells, points, loaded, update=update)
    checks += _prove(sweep, points, loaded)
    failed = list(dict.fromkeys(check for check in checks if not check.ok))
    if not failed:
        _say(f"everything is there, and loads offline. Next: hpc-ewc submit {sweep}")
        return 0
    _say(f"\n{len(failed)} to fix; then run the same command again (what is there is not fetched again):")
    for check in failed:
        _say(f"- {check.what}: {check.detail}")
    return 1


# ---------------------------------------------------------------------------------------------- as a job


def _submit(sweep: Path, profile: Profile, partition: str, *, update: bool) -> int:
    """Submit the same command as a job in a partition with a network; 0 when it is in the queue.

    The job reads a token from the file of `hf auth login`: no job has one in its environment.

    Raises:
        SubmitError: the profile is no cluster's, there is no sbatch, or it refused.
    """
    label = f"--as-job {partition}"
    if profile.executor != "slurm":
        raise SubmitError(f"{label}: {profile.where} is not the profile of a cluster; name one by --profile")
    check_filled_in(profile)
    command = [profile.interpreter, "-m", "hpc_ewc", "prefetch", str(sweep.absolute())]
    command += ["--update"] if update else []
    log = Path.cwd() / f"prefetch-{sweep.stem}.log"
    similar = profile.slurm.of("tokens")  # also a job without GPUs
    flags = {"job-name": f"prefetch-{sweep.stem}", "partition": partition, "account": similar.account}
    flags |= {"time": str(JOB_MIN), "cpus-per-task": "2", "mem": "8G", "output": str(log), "open-mode": "append"}
    flags |= {
        "chdir": str(Path.cwd()),
        "qos": similar.qos,
        "wrap": "\n".join([*profile.slurm.setup, f"exec {shlex.join(command)}"]),
    }
    environment = inherited_environment(os.environ) | {"PYTHONPATH": PACKAGE_PARENT}
    environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    sbatch = ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in flags.items() if value)]
    try:
        done = subprocess.run(sbatch, env=environment, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise SubmitError(f"{label}: sbatch could not be called: {error}") from None
    if done.returncode != 0:
        raise SubmitError(f"{label}: sbatch refused (exit {done.returncode}): {' '.join(done.stderr.split())}")
    _say(f"job {done.stdout.strip().partition(';')[0]} in {partition}; its output goes to {log}")
    return 0


# ---------------------------------------------------------------------------------------------- what is needed


def _points(experiment: Experiment, where: str) -> list[Experiment]:
    """The points of the grid that read different inputs, with absolute paths."""
    found: dict[str, Experiment] = {}
    for point in expand(experiment):
        part = point.experiment
        reads = [part.model.path, part.model.revision, part.data.source, part.data.subset, part.data.files]
        reads += [part.fisher.source, part.fisher.subset, part.fisher.split, part.fisher.files, part.fisher.prompt]
        found.setdefault(records.key_of(reads), with_absolute_paths(part, where))
    return list(found.values())


def needed_repositories(points: Sequence[Experiment]) -> list[Repository]:
    """The hub's repositories of models, corpora and Fisher questions, each once for every key that needs it."""
    found = (repository for point in points for repository in _repositories(point))
    return list({(each.label, each.purpose): each for each in found}.values())


def _repositories(point: Experiment) -> Iterator[Repository]:
    model, data, fisher = point.model, point.data, point.fisher
    if not local_path(model.path).is_dir() and hub.is_hub_id(model.path):
        yield model_repository(model.path, model.revision)
    judge = point.evaluate.judge
    if judge and not local_path(judge).is_dir() and hub.is_hub_id(judge):
        yield model_repository(judge, None, "evaluate.judge")
    if hub.is_hub_id(data.source):
        yield dataset_repository("data", data.source, data.subset, "train")
    if hub.is_hub_id(fisher.source):
        yield dataset_repository("fisher", fisher.source, fisher.subset, fisher.split)


def benchmark_cells(points: Sequence[Experiment]) -> list[suites.Cell]:
    """The evaluation cells whose rows come from the hub."""
    cells: dict[str, suites.Cell] = {}
    for point in points:
        for cell in suites.expand_suites(point.evaluate, point.data.language):
            if cell.task != "ppl_heldout" and not (point.evaluate.questions and cell.task in suites.TASKS):
                cells.setdefault(cell.name, cell)
    return list(cells.values())


def _render_overview(repositories: Sequence[Repository], cells: Sequence[suites.Cell]) -> str:
    table = [("", "what for", "files", "size", "to fetch")]
    for each in repositories:
        size, left = format_size(sum(each.files.values())), each.missing_bytes
        unknown, known = ("–", "–", "see below"), (str(len(each.files)), size, format_size(left) if left else "there")
        table.append((each.label, each.purpose, *(known if each.files else unknown)))
    names = dict.fromkeys(suites.TASKS[c.task].sources[c.language].path for c in cells if c.task in suites.TASKS)
    for name in names:
        commit = hub.pinned_commit(name)
        table.append((name, "evaluate.suites", "rows", "", f"there, {commit[:7]}" if commit else "yes"))
    others = [cell.name for cell in cells if cell.task not in suites.TASKS]
    table += [(name, "evaluate.suites", "rows", "", "chosen by lm-eval") for name in others]
    return columns(table) if len(table) > 1 else "the experiment names nothing of the hub"


# ---------------------------------------------------------------------------------------------- workers


def _fetch_rows(
    cells: Sequence[suites.Cell], points: Sequence[Experiment], profile: Profile, *, update: bool
) -> list[Check]:
    """Save the rows of benchmarks by a worker that may import `datasets`."""
    if not cells:
        return []
    _say(f"fetching the rows of {len(cells)} benchmarks")
    arguments = ["--fetch", ",".join(cell.name for cell in cells), *(["--update"] if update else [])]
    return _run_worker(points[:1], profile, arguments, {})


def _prove(sweep: Path, points: Sequence[Experiment], profile: Profile) -> list[Check]:
    """Load a sample of everything by the code of the jobs, in a worker without network and token."""
    _say("loading a sample of everything, offline")
    checks, resolved = [], []
    for point in points:
        try:
            inputs = Resolver(str(sweep)).resolve(point)
            for folder in [inputs.model, *([inputs.judge["folder"]] if inputs.judge else [])]:
                check_model(Path(folder))
        except HpcEwcError as error:
            checks.append(Check(False, "submit", str(error)))
        else:
            resolved.append((point, inputs))
    if resolved:
        keys = ("model", "corpus", "fisher", "questions", "heldout", "judge")
        facts = json.dumps([{key: getattr(inputs, key) for key in keys} for _, inputs in resolved])
        offline = OFFLINE | {"HF_ENDPOINT": NO_HUB}
        checks += _run_worker([point for point, _ in resolved], profile, ["--prove", facts], offline)
    return checks


def _run_worker(
    points: Sequence[Experiment], profile: Profile, arguments: Sequence[str], more: dict[str, str]
) -> list[Check]:
    """The checks of `python -m hpc_ewc.worker prefetch …`, printed as they arrive."""
    environment = {name: value for name, value in os.environ.items() if not (more and name in SECRETS)} | more
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_PARENT, environment.get("PYTHONPATH")]))
    environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    checks = []
    with tempfile.TemporaryDirectory(prefix="hpc_ewc-prefetch-") as folder:
        for number, point in enumerate(points):
            Path(folder, f"{number}.toml").write_text(render_toml(point), encoding="utf-8")
        command = [*worker_python(profile, folder), "-m", "hpc_ewc.worker", "prefetch", folder, *arguments]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
        )
        assert process.stdout is not None
        for line in process.stdout:
            try:
                facts = json.loads(line)
                check = Check(bool(facts["ok"]), str(facts["what"]), str(facts["detail"]))
            except (ValueError, KeyError, TypeError):  # printed by some library
                sys.stderr.write(line)
                continue
            checks.append(check)
            _say(f"  {'ok' if check.ok else '✗ '}  {': '.join(filter(None, check[1:]))}")
        if process.wait() != 0:
            problem = f"ended with status {process.returncode}; its output is above"
            checks.append(Check(False, " ".join(command[:5]), problem))
    return checks


def worker_python(profile: Profile, folder: str) -> list[str]:
    """The Python of the jobs: in the container image where that can be started from here, else the profile's."""
    box = profile.container
    if box.runtime not in ("apptainer", "singularity"):
        return [profile.interpreter]
    caches = [str(hub.cache()), str(cache_dir())]
    for place in caches:
        Path(place).mkdir(parents=True, exist_ok=True)
    binds = [part for place in [folder, *caches, PACKAGE_PARENT, *box.binds] for part in ("--bind", place)]
    return [box.runtime, "exec", *binds, box.image, box.python]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
