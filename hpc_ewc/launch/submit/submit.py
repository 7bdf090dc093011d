"""One command for a whole experiment: read it, see what is there, run what is missing, show the table."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ewc.artefacts.artefact import REPORT
from hpc_ewc.config import load_experiment
from hpc_ewc.errors import ConfigError, SubmitError
from hpc_ewc.launch.inputs.miniature import prepare_miniature, uses_miniature
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import local_path
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.ledger.lock import submit_lock
from hpc_ewc.launch.plan.build_graph import build_graph
from hpc_ewc.launch.plan.graph import Graph, gpu_hours
from hpc_ewc.launch.plan.plan import Plan, Request, check_places, fingerprint, make_plan, run_folder, write_down
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, check_time, load_profile
from hpc_ewc.launch.show.display import Display
from hpc_ewc.launch.submit import code
from hpc_ewc.rundir import RunDir, rank_logs
from hpc_ewc.sweep import expand

if TYPE_CHECKING:
    from hpc_ewc.launch.submit.slurm import Tally

DONE, FAILED, UNFINISHED, INTERRUPTED = 0, 1, 3, 130
"""Exit statuses of the commands; 2, refused, is cli.py's."""


def submit(
    sweep: Path,
    profile: Path | None,
    runs: Path | None,
    out: Path | None,
    dry_run: bool,
    yes: bool,
    scripts: bool = False,
    config: Path | None = None,
) -> int:
    """Submit an experiment; see `hpc-ewc submit --help`.

    Returns:
        The exit status of the command.

    Raises:
        HpcEwcError: refused before anything started, or a damaged artefact stands in the way.
    """
    if config is not None and not dry_run:
        raise ConfigError(f"--config {config}: for --dry-run alone; a submit reads the model itself")
    loaded = load_profile(profile)
    request = read_sweep(sweep, config)
    root = run_folder(sweep.name.removesuffix(".toml"), str(sweep), loaded, runs)
    return execute(request, loaded, root, out, dry_run, yes, scripts)


def read_sweep(sweep: Path, config: Path | None = None) -> Request:
    """The request that an experiment file is."""
    experiment = load_experiment(sweep)

    def build(resolver: Resolver, root: RunDir, profile: Profile) -> Graph:
        points = [(point, resolver.resolve(point.experiment)) for point in expand(experiment)]
        return build_graph(root, points, experiment, profile, str(sweep))

    again = shlex.join(["hpc-ewc", "submit", _short(sweep)])
    text = sweep.read_text(encoding="utf-8")
    return Request(str(sweep), text, experiment, build, again, may_lack_inputs=True, model_config=config)


def execute(
    request: Request, profile: Profile, root: RunDir, out: Path | None, dry_run: bool, yes: bool, scripts: bool = False
) -> int:
    """Run what is missing of a request, on whatever the profile names; the exit status of the command."""
    out = local_path(str(out)) if out else Path.cwd() / "results" / root.name
    check_places(root.root, out)
    display = Display()
    if dry_run:
        from hpc_ewc.launch.submit.dry_run import render

        plan = make_plan(request, profile, root, out, display, dry_run=True)
        if profile.executor == "slurm":
            check_times(plan)
        sys.stdout.write(render(plan, scripts))
        return DONE
    plan = make_plan(request, profile, root, out, display)
    if not plan.jobs:
        return nothing_to_do(plan)
    check_filled_in(profile)
    if profile.executor == "slurm":
        with submit_lock(root):
            return run_on_slurm(plan, display, yes)
    ask_for_gpu_hours(plan, plan.jobs, yes)
    with submit_lock(root):
        return run_here(plan, display)


def nothing_to_do(plan: Plan) -> int:
    """Everything is there: show the tables again."""
    show_report(plan.graph.root, plan.history.reported.get("token", ""))
    print_end(plan, "nothing to do: everything is there")
    return DONE


def run_here(plan: Plan, display: Display) -> int:
    """Everything that a local submit does while it holds the lock; what is there is looked at again under it."""
    root, profile = plan.graph.root, plan.profile
    if uses_miniature(plan.request.experiment):
        prepare_miniature(profile.interpreter, display.say)

    # submitit alone takes a tenth of a second, which `status` and a submit with nothing to do need not wait for
    from hpc_ewc.launch.ledger.reconcile import check_other_executor
    from hpc_ewc.launch.submit.local import LocalRun, wait_for_orphans

    check_other_executor(root, "local")
    lost = Ledger(root).read().live()
    wait_for_orphans([(job.process, root.job(job.job_id)) for job in lost if job.process], display)
    plan = make_plan(plan.request, profile, root, plan.out, display)
    ledger = write_down(plan)
    package = code.snapshot(root)
    with display:
        run = LocalRun(plan.graph, plan.found, profile, ledger, package, plan.out, display)
        display.say(f"{sum(plan.jobs.values())} jobs to run, {profile.cpus} cores; files in {root.root}")
        whole = run.run()
    if run.report_token:
        ledger.reported(run.report_token, fingerprint(plan.graph), str(plan.out))
        show_report(root, run.report_token)
    return conclude(plan, run.rows_by_state(), whole)


def run_on_slurm(plan: Plan, display: Display, yes: bool) -> int:
    """Everything that a submit to Slurm does while it holds the lock: ask what lives, and give it what is missing."""
    from hpc_ewc.launch.ledger.reconcile import check_other_executor, reconcile
    from hpc_ewc.launch.slurm.script import check_paths
    from hpc_ewc.launch.submit.slurm import SlurmSubmit

    root, profile = plan.graph.root, plan.profile
    check_paths(root)
    check_times(plan)
    check_other_executor(root, "slurm")
    if uses_miniature(plan.request.experiment):
        prepare_miniature(profile.interpreter, display.say)
    live = reconcile(root)
    plan = make_plan(plan.request, profile, root, plan.out, display)
    if not plan.jobs:
        return nothing_to_do(plan)
    under_way = Counter(job.node for job in live.jobs)
    asked = {name: max(0, jobs - under_way[name]) for name, jobs in plan.jobs.items()}
    ask_for_gpu_hours(plan, asked, yes)
    ledger = write_down(plan, ready=False)
    package = code.snapshot(root)
    run = SlurmSubmit(plan.graph, plan.found, profile, ledger, package, plan.out, live, display.say)
    try:
        run.run()
    except (SubmitError, KeyboardInterrupt) as error:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by the error"
        again = f"{plan.request.again} adds the rest"
        display.say(f"{stopped} after {run.tally.submitted} jobs were submitted; they stay, and {again}")
        raise
    return conclude_submission(plan, run.tally)


def conclude_submission(plan: Plan, tally: Tally) -> int:
    """Say what was submitted, and what found no room."""
    kept = f" ({tally.kept} were queued or running already)" if tally.kept else ""
    follow = f"follow them: hpc-ewc status {_short(plan.graph.root.root)} --watch"
    if not tally.submitted and not tally.left:
        print_end(plan, f"nothing to submit{kept}; {follow}")
        return DONE
    sys.stderr.write(f"submitted {tally.submitted} jobs in {tally.batches} submissions{kept}; {follow}\n")
    if tally.left:
        shown = ", ".join(tally.left[:5]) + (f" and {len(tally.left) - 5} more" if len(tally.left) > 5 else "")
        print_end(plan, f"no room for {len(tally.left)} stages: {shown}; later, {plan.request.again} adds them")
        return UNFINISHED
    print_end(plan, "all is submitted")
    return DONE


def check_times(plan: Plan) -> None:
    """Every stage has the time to start before it is told to stop; the experiment's own limits count too.

    Raises:
        ConfigError: a time limit is too short.
    """
    for node in plan.graph.nodes.values():
        check_time(node.stage, node.resources.time_min, plan.profile, plan.request.label)


def ask_for_gpu_hours(plan: Plan, jobs: dict[str, int], yes: bool) -> None:
    """Above `max_gpu_hours`, ask; where nobody can answer, refuse.

    Raises:
        SubmitError: more GPU-hours than the profile allows without a yes.
    """
    hours = gpu_hours(plan.graph, jobs)
    if yes or hours <= plan.profile.max_gpu_hours:
        return
    asked = f"this asks for up to {hours:.0f} GPU-hours, max_gpu_hours = {plan.profile.max_gpu_hours:g}"
    if sys.stdin.isatty():
        sys.stderr.write(f"{asked}. Submit? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise SubmitError(f"{asked}; say --yes, or raise it in the profile")


# ---------------------------------------------------------------------------------------------- what is shown


def show_report(root: RunDir, token: str) -> None:
    """Print what the report job printed: its tables."""
    for path in sorted(rank_logs(root.job(token)).rglob("stdout.log")) if token else ():
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()


def conclude(plan: Plan, rows: dict[str, list[tuple[str, str]]], whole: bool) -> int:
    """Say what failed and what is left, and the exit status."""
    root = plan.graph.root.root
    for name, note in rows.get("failed", []):
        sys.stderr.write(f"{name} failed: {note}\n")
        if not name.startswith(REPORT):
            stage, _, run = name.partition("/")
            sys.stderr.write(f"  see: hpc-ewc logs {_short(root)} {run} --stage {stage}\n")
    for name, note in rows.get("blocked", []):
        sys.stderr.write(f"{name} was not started: {note}\n")
    again = f"{plan.request.again} goes on from here"
    if not whole:
        print_end(plan, f"interrupted; what was done is kept: {again}")
        return INTERRUPTED
    if rows.get("failed"):
        print_end(plan, f"{len(rows['failed'])} failed; {again}")
        return FAILED
    if rows.get("stopped"):
        print_end(plan, f"{len(rows['stopped'])} stopped; {again}")
        return UNFINISHED
    print_end(plan, "done")
    return DONE


def print_end(plan: Plan, text: str) -> None:
    sys.stderr.write(f"{text}. Runs: {_short(plan.graph.root.root)}; tables: {_short(plan.out)}\n")


def _short(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
