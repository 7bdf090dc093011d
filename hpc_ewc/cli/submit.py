"""`hpc-ewc submit SWEEP`."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_ewc.cli.options import OptionalPath, SubmitOptions, Sweep
from hpc_ewc.errors import ConfigError
from hpc_ewc.launch.plan.request import load_request, run_folder
from hpc_ewc.launch.profile.reading import load_profile
from hpc_ewc.launch.submit.submit import submit


@dataclass(frozen=True, kw_only=True)
class Settings(SubmitOptions):
    """Run an experiment: every stage that is not done yet. Run it again to make only what is still missing.

    On this machine it runs in the foreground. On Slurm it returns once everything is submitted: you can log out, and
    follow it with `hpc-ewc status RUNS/NAME --watch`. What is queued, running or done is not submitted again.

    Exit status: 0 done (on Slurm: submitted), 1 something failed, 2 refused, 3 not finished (on Slurm: the limit on
    submitted jobs is reached), 130 interrupted (the same command resumes).
    """

    sweep: Sweep
    """The experiment, such as sweeps/miniature.toml."""
    scripts: bool = False
    """With --dry-run on Slurm: show every batch script, not one per stage."""
    config: OptionalPath = None
    """With --dry-run: config.json of a model that is not downloaded yet and whose shape is not known."""


def run(settings: Settings) -> int:
    """Submit an experiment, or show what a submit would do; return the exit status."""
    if settings.config is not None and not settings.dry_run:
        raise ConfigError(f"--config {settings.config}: only for --dry-run; a submit reads the model itself")
    profile = load_profile(settings.profile)
    request = load_request(settings.sweep, settings.config)
    folder = run_folder(settings.sweep.name.removesuffix(".toml"), str(settings.sweep), profile, settings.runs)
    return submit(
        request,
        profile,
        folder,
        settings.out,
        dry_run=settings.dry_run,
        all_scripts=settings.scripts,
        yes=settings.yes,
    )
