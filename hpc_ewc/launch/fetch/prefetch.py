"""`hpc-ewc prefetch`: everything that an experiment names, fetched where there is a network; then proven offline.

The parent process imports no torch: it asks the hub for lists and fetches files. The rows of benchmarks are read by
`datasets` in a process of their own and sealed as plain Parquet files, which jobs read without locks and without
writing: any number of array elements at once. A last process, without network and token, loads a bit of everything
through the code that jobs use.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ewc import hub, records, suites
from hpc_ewc.config import Experiment, load_experiment, render_toml
from hpc_ewc.errors import HpcEwcError, InputError, SubmitError
from hpc_ewc.launch.fetch.download import Repository, check_space, fetch, look, merge, size, wanted_files, wanted_model
from hpc_ewc.launch.inputs.miniature import MINIATURE, prepare_miniature, uses_miniature
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import is_hub_id, local_path
from hpc_ewc.launch.plan.build_graph import with_absolute_paths
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, load_profile
from hpc_ewc.launch.show.table import columns
from hpc_ewc.launch.slurm.script import inherited_environment
from hpc_ewc.model_folder import check_model
from hpc_ewc.node.environment import OFFLINE, SECRETS
from hpc_ewc.process import die_with_parent
from hpc_ewc.rundir import cache_dir
from hpc_ewc.sweep import expand

NOWHERE = "http://127.0.0.1:9"
"""Nothing answers there: what asks the hub in spite of everything fails at once."""
JOB_MIN = 240
"""Time limit of `--as-job`; the next one goes on."""
BENCHMARK_BYTES = 300_000_000
"""Of the rows of both languages, and of the files that they are made from."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at, and whether it is fine."""

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
    repositories, cells = wanted(points), benchmark_cells(points)
    _check_shell(repositories, cells)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub's client is imported
    for repository in repositories:
        look(repository, update=update)
        if repository.unreachable:
            place = os.environ.get("HF_ENDPOINT") or hub.HOME
            raise InputError(
                f"{place} is out of reach from this machine: run this where there is a network (a login node; "
                "--as-job PARTITION), behind a proxy with HTTPS_PROXY set"
            )
    bytes_left = check_space(repositories, BENCHMARK_BYTES if _unsealed(cells) else 0)
    _say(_overview(repositories, cells))
    if dry_run:
        _say(f"up to {size(bytes_left)} to fetch into {hub.cache()}. A dry run: nothing was fetched")
        return 0
    if uses_miniature(experiment):
        prepare_miniature(loaded.interpreter, _say)
    _fetch_all(repositories)
    lines = [Line(False, repository.label, repository.trouble) for repository in repositories if repository.trouble]
    lines += _seal(cells, points, loaded, update=update)
    lines += prove(sweep, points, loaded)
    return _conclude(sweep, lines)


# ---------------------------------------------------------------------------------------------- as a job


def _submit(sweep: Path, profile: Profile, partition: str, *, update: bool) -> int:
    """The same command as a job in a partition with a network; 0 when it is in the queue.

    A token comes from `hf auth login`, whose file the job reads: no environment of a job holds one.

    Raises:
        SubmitError: the profile is no cluster's, there is no sbatch, or it says no.
    """
    if profile.executor != "slurm":
        raise SubmitError(
            f"--as-job {partition}: {profile.where} is not the profile of a cluster; name one by --profile"
        )
    check_filled_in(profile)
    command = [profile.interpreter, "-m", "hpc_ewc", "prefetch", str(sweep.absolute())]
    command += ["--update"] if update else []
    log = Path.cwd() / f"prefetch-{sweep.stem}.log"
    like = profile.slurm.of("tokens")  # a job of the CPU kind too
    flags = {"job-name": f"prefetch-{sweep.stem}", "partition": partition, "account": like.account}
    flags |= {"time": str(JOB_MIN), "cpus-per-task": "2", "mem": "8G", "output": str(log), "open-mode": "append"}
    flags |= {"chdir": str(Path.cwd()), "qos": like.qos}
    asked = ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in flags.items() if value)]
    script = "\n".join([*profile.slurm.setup, f"exec {shlex.join(command)}"])
    environment = inherited_environment(os.environ) | {"PYTHONPATH": str(Path(hub.__file__).parents[1])}
    environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            [*asked, f"--wrap={script}"], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SubmitError(f"--as-job {partition}: sbatch could not be called: {error}") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split())
        raise SubmitError(f"--as-job {partition}: sbatch refused (exit {done.returncode}): {words}")
    _say(f"job {done.stdout.strip().partition(';')[0]} in {partition}; what it says goes to {log}")
    return 0


# ---------------------------------------------------------------------------------------------- what


def _points(experiment: Experiment, where: str) -> list[Experiment]:
    """The points of the grid that differ in what they read, with absolute paths."""
    found: dict[str, Experiment] = {}
    for point in expand(experiment):
        part = point.experiment
        reads = [part.model.path, part.model.revision, part.data.source, part.data.subset, part.data.files]
        reads += [part.fisher.source, part.fisher.subset, part.fisher.split, part.fisher.files, part.fisher.prompt]
        found.setdefault(records.key_of(reads), with_absolute_paths(part, where))
    return list(found.values())


def wanted(points: Sequence[Experiment]) -> list[Repository]:
    """The repositories of models, corpora and Fisher questions, each once."""
    return merge(repository for point in points for repository in _wanted(point))


def _wanted(point: Experiment) -> Iterator[Repository]:
    model, data, fisher = point.model, point.data, point.fisher
    if model.path != MINIATURE and not local_path(model.path).is_dir() and is_hub_id(model.path):
        yield wanted_model(model.path, model.revision)
    if point.evaluate.judge and not local_path(point.evaluate.judge).is_dir() and is_hub_id(point.evaluate.judge):
        yield wanted_model(point.evaluate.judge, None, "evaluate.judge")
    if is_hub_id(data.source):
        yield wanted_files("data", data.source, data.subset, "train")
    if is_hub_id(fisher.source):
        yield wanted_files("fisher", fisher.source, fisher.subset, fisher.split)


def benchmark_cells(points: Sequence[Experiment]) -> list[suites.Cell]:
    """The cells whose rows are the hub's."""
    cells: dict[str, suites.Cell] = {}
    for point in points:
        for cell in suites.expand_suites(point.evaluate, point.data.language):
            local = point.model.path == MINIATURE or point.evaluate.questions
            if cell.task != "ppl_heldout" and not (local and cell.task in suites.TASKS):
                cells.setdefault(cell.name, cell)
    return list(cells.values())


def _unsealed(cells: Sequence[suites.Cell]) -> list[suites.Cell]:
    """Those of our tasks that no row was fetched for yet."""
    ours = [cell for cell in cells if cell.task in suites.TASKS]
    return [cell for cell in ours if hub.pinned(suites.TASKS[cell.task].sources[cell.language].path) is None]


def _check_shell(repositories: Sequence[Repository], cells: Sequence[suites.Cell]) -> None:
    """Raise InputError where this shell forbids the hub."""
    forbidding = [name for name in OFFLINE if os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE")]
    if forbidding and (repositories or cells):
        raise InputError(
            f"{', '.join(forbidding)} set in this shell: unset it for `hpc-ewc prefetch`, which needs the hub"
        )


def _overview(repositories: Sequence[Repository], cells: Sequence[suites.Cell]) -> str:
    table = [("", "what for", "files", "size", "to fetch")]
    for repository in repositories:
        purposes = ", ".join(selection.purpose for selection in repository.selections)
        if repository.trouble and not repository.files:
            table.append((repository.label, purposes, "–", "–", "see below"))
            continue
        whole, left = sum(repository.files.values()), repository.bytes_absent
        table.append(
            (repository.label, purposes, str(len(repository.files)), size(whole), size(left) if left else "there")
        )
    names = dict.fromkeys(suites.TASKS[c.task].sources[c.language].path for c in cells if c.task in suites.TASKS)
    for name in names:
        commit = hub.pinned(name)
        table.append((name, "evaluate.suites", "rows", "", f"there, {commit[:7]}" if commit else "yes"))
    others = [cell.name for cell in cells if cell.task not in suites.TASKS]
    table += [(name, "evaluate.suites", "rows", "", "as lm-eval asks") for name in others]
    return columns(table) if len(table) > 1 else "nothing of the hub is named"


# ---------------------------------------------------------------------------------------------- fetch


def _fetch_all(repositories: Sequence[Repository]) -> None:
    for repository in repositories:
        if repository.trouble or not repository.absent:
            continue
        absent, left = repository.absent, repository.bytes_absent
        _say(f"fetching {repository.label}: {len(absent)} files, {size(left)}")
        fetch(repository)
        if not repository.trouble:
            _say(f"  there: {repository.commit[:7]}")


def _seal(cells: Sequence[suites.Cell], points: Sequence[Experiment], profile: Profile, *, update: bool) -> list[Line]:
    """The rows of benchmarks, read from the hub by a process that may import `datasets`; what went wrong."""
    if not cells:
        return []
    _say(f"fetching the rows of {len(cells)} benchmarks")
    names = ",".join(cell.name for cell in cells)
    arguments = ["--fetch", names, *(["--update"] if update else [])]
    return [line for line in _worker(points[:1], profile, arguments, {}) if not line.ok]


def prove(sweep: Path, points: Sequence[Experiment], profile: Profile) -> list[Line]:
    """A bit of everything, loaded through the code of jobs, by a process without network and token."""
    _say("loading a bit of everything, offline")
    lines, inputs = [], []
    for point in points:
        try:
            found = Resolver(str(sweep)).resolve(point)
            for folder in [found.model, *([found.judge["folder"]] if found.judge else [])]:
                check_model(Path(folder))
        except HpcEwcError as error:
            lines.append(Line(False, "submit", str(error)))
            continue
        facts = {"model": found.model, "corpus": found.corpus, "fisher": found.fisher}
        inputs.append((point, facts | {"questions": found.questions, "heldout": found.heldout, "judge": found.judge}))
    return list(dict.fromkeys(lines)) + (_prove(inputs, profile) if inputs else [])


def _prove(inputs: Sequence[tuple[Experiment, dict[str, Any]]], profile: Profile) -> list[Line]:
    environment = OFFLINE | {"HF_ENDPOINT": NOWHERE}
    points = [point for point, _ in inputs]
    return _worker(points, profile, ["--prove", json.dumps([facts for _, facts in inputs])], environment)


def _worker(
    points: Sequence[Experiment], profile: Profile, arguments: Sequence[str], more: dict[str, str]
) -> list[Line]:
    """Lines of `python -m hpc_ewc.worker prefetch …`, shown as they come."""
    environment = {name: value for name, value in os.environ.items() if not (more and name in SECRETS)} | more
    root = str(Path(hub.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="hpc_ewc-prefetch-") as folder:
        for number, point in enumerate(points):
            Path(folder, f"{number}.toml").write_text(render_toml(point), encoding="utf-8")
        command = [*worker_python(profile, folder), "-m", "hpc_ewc.worker", "prefetch", folder, *arguments]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
        )
        assert process.stdout is not None
        lines = []
        for text in process.stdout:
            try:
                facts = json.loads(text)
                lines.append(Line(bool(facts["ok"]), str(facts["what"]), str(facts["detail"])))
            except (ValueError, KeyError, TypeError):  # some library's own word
                sys.stderr.write(text)
                continue
            _say(
                f"  {'ok' if lines[-1].ok else '✗ '}  {lines[-1].what}{': ' * bool(lines[-1].detail)}{lines[-1].detail}"
            )
        if process.wait() != 0:
            lines.append(
                Line(False, " ".join(command[:5]), f"ended with status {process.returncode}; its words are above")
            )
    return lines


def worker_python(profile: Profile, folder: str) -> list[str]:
    """The Python of the jobs: in the image where that can be started from here, since the host's may lack the rest."""
    box = profile.container
    if box.runtime not in ("apptainer", "singularity"):
        return [profile.interpreter]
    shown = [folder, str(hub.cache()), str(cache_dir()), str(Path(hub.__file__).parents[1])]
    for place in shown[1:3]:
        Path(place).mkdir(parents=True, exist_ok=True)
    binds = [part for place in [*shown, *box.binds] for part in ("--bind", place)]
    return [box.runtime, "exec", *binds, box.image, box.python]


# ---------------------------------------------------------------------------------------------- end


def _conclude(sweep: Path, lines: Sequence[Line]) -> int:
    """What is still to do, and the exit status."""
    wrong = list(dict.fromkeys(line for line in lines if not line.ok))
    if not wrong:
        _say(f"everything is there, and loads offline. Next: hpc-ewc submit {sweep}")
        return 0
    _say(f"\n{len(wrong)} to be mended, then the same command again (what is there is not fetched again):")
    for line in wrong:
        _say(f"- {line.what}: {line.detail}")
    return 1


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
