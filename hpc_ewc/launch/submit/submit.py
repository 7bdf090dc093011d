"""Submit a request: plan it, then show the plan, run it on this machine, or give it to Slurm."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from hpc_ewc.errors import SubmitError
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.ledger.lock import submit_lock
from hpc_ewc.launch.plan.graph import gpu_hours
from hpc_ewc.launch.plan.plan import Plan, fingerprint, make_plan, record_plan
from hpc_ewc.launch.plan.request import Request, tables_folder
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import check_filled_in, check_time
from hpc_ewc.launch.show.display import Display
from hpc_ewc.launch.submit import code, outcome
from hpc_ewc.rundir import RunDir


def submit(
    request: Request,
    profile: Profile,
    root: RunDir,
    out: Path | None,
    *,
    dry_run: bool = False,
    all_scripts: bool = False,
    yes: bool = False,
) -> int:
    """Run what is missing of a request where the profile says, or show it; return the exit status.

    Args:
        request: the stages.
        profile: this machine or a cluster.
        root: the run folder.
        out: folder of the tables; None: the run folder's own.
        dry_run: show the plan and change nothing.
        all_scripts: in a dry run, show every batch script, not one per stage.
        yes: do not ask before more GPU-hours than the profile allows.

    Raises:
        HpcEwcError: refused before anything started, or an artefact is damaged.
    """
    tables = tables_folder(root, out)
    display = Display()
    plan = make_plan(request, profile, root, tables, display, dry_run=dry_run)
    on_slurm = profile.executor == "slurm"
    if dry_run:
        from hpc_ewc.launch.submit.dry_run import render

        if on_slurm:
            check_times(plan)
        sys.stdout.write(render(plan, all_scripts=all_scripts))
        return outcome.DONE
    if not plan.jobs:
        return outcome.nothing_to_do(plan)
    check_filled_in(profile)
    if on_slurm:
        with submit_lock(root):
            return submit_to_slurm(plan, display, yes=yes)
    confirm_gpu_hours(plan, plan.jobs, yes=yes)
    with submit_lock(root):
        return run_locally(plan, display)


def run_locally(plan: Plan, display: Display) -> int:
    """Run a plan on this machine, which holds the lock; return the exit status.

    The plan is made again, because another submit may have finished before this one got the lock.
    """
    root, profile = plan.graph.root, plan.profile
    # importing submitit takes a tenth of a second, which `status` and a submit with nothing to do need not wait for
    from hpc_ewc.launch.ledger.reconcile import check_other_executor
    from hpc_ewc.launch.submit.local import LocalRun, wait_for_orphans

    check_other_executor(root, "local")
    lost = Ledger(root).read().live()
    wait_for_orphans([(job.process, root.job(job.job_id)) for job in lost if job.process], display)
    plan = make_plan(plan.request, profile, root, plan.out, display)
    ledger = record_plan(plan)
    package = code.snapshot(root)
    with display:
        run = LocalRun(plan, ledger, package, display)
        display.say(f"{sum(plan.jobs.values())} jobs to run, {profile.cpus} cores; files in {root.root}")
        completed = run.run()
    if run.report_token:
        ledger.reported(run.report_token, fingerprint(plan.graph), str(plan.out))
        outcome.show_report(root, run.report_token)
    return outcome.of_local_run(plan, run.rows_by_state(), completed=completed)


def submit_to_slurm(plan: Plan, display: Display, *, yes: bool) -> int:
    """Submit what is missing of a plan to Slurm, holding the lock; return the exit status."""
    from hpc_ewc.launch.ledger.reconcile import check_other_executor, reconcile
    from hpc_ewc.launch.slurm.script import check_paths
    from hpc_ewc.launch.submit.slurm import SlurmSubmit

    root, profile = plan.graph.root, plan.profile
    check_paths(root)
    check_times(plan)
    check_other_executor(root, "slurm")
    live = reconcile(root)
    plan = make_plan(plan.request, profile, root, plan.out, display)
    if not plan.jobs:
        return outcome.nothing_to_do(plan)
    queued = Counter(job.node for job in live.jobs)
    confirm_gpu_hours(plan, {name: max(0, jobs - queued[name]) for name, jobs in plan.jobs.items()}, yes=yes)
    ledger = record_plan(plan, prepare_folders=False)
    run = SlurmSubmit(plan, ledger, code.snapshot(root), live, display.say)
    try:
        run.run()
    except (SubmitError, KeyboardInterrupt) as error:
        cause = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped by the error"
        display.say(
            f"{cause} after {run.summary.submitted} jobs were submitted; they stay in the queue, and "
            f"{plan.request.resume_command} submits the rest"
        )
        raise
    return outcome.of_submission(plan, run.summary)


def check_times(plan: Plan) -> None:
    """Raise ConfigError if a stage's time limit leaves it no time to start before it is told to stop."""
    for node in plan.graph.nodes.values():
        check_time(node.stage, node.resources.time_min, plan.profile, plan.request.label)


def confirm_gpu_hours(plan: Plan, jobs: dict[str, int], *, yes: bool) -> None:
    """Ask before jobs that may use more than `max_gpu_hours`; refuse where nobody can answer.

    Raises:
        SubmitError: nobody agreed to so many GPU-hours.
    """
    hours = gpu_hours(plan.graph, jobs)
    if yes or hours <= plan.profile.max_gpu_hours:
        return
    question = f"this asks for up to {hours:.0f} GPU-hours, max_gpu_hours = {plan.profile.max_gpu_hours:g}"
    if sys.stdin.isatty():
        sys.stderr.write(f"{question}. Submit? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise SubmitError(f"{question}; say --yes, or raise it in the profile")
