"""The commands. Each imports what it needs when it is called, so that `--help` answers at once and loads no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from hpc_ewc.errors import HpcEwcError

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalStage = Annotated[str | None, tyro.conf.arg(metavar="STAGE")]
OptionalFiles = Annotated[str | None, tyro.conf.arg(metavar="LANGUAGE=FILE,…")]
PROG = "hpc-ewc"
DESCRIPTION = "Teach a language model a new language, on a laptop or a cluster, without letting it forget the old one."


def submit(
    sweep: tyro.conf.Positional[Path],
    /,
    profile: OptionalPath = None,
    runs: OptionalPath = None,
    out: OptionalPath = None,
    dry_run: bool = False,
    scripts: bool = False,
    config: OptionalPath = None,
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False,
) -> int:
    """Run an experiment: every stage that is not there yet. Run it again to make only what is still missing.

    On this machine it runs in the foreground. On Slurm it returns once everything is submitted: you can log out, and
    follow it with `hpc-ewc status RUNS/NAME --watch`. What is queued, running or done is not submitted again.

    Exit status: 0 done (on Slurm: submitted), 1 something failed, 2 refused, 3 not finished (on Slurm: no room for
    all jobs), 130 interrupted (the same command continues).

    Args:
        sweep: The experiment, such as sweeps/miniature.toml.
        profile: Where and how jobs run, such as slurm/local.toml; absent: this machine.
        runs: Folder that holds the run folders; absent: the profile's, else ./runs.
        out: Folder of the tables; absent: ./results/NAME.
        dry_run: Show the graph (what is done, missing and shared), what it will cost, and on Slurm the batch scripts;
            write nothing.
        scripts: With --dry-run on Slurm: show every batch script, not one per stage.
        config: With --dry-run: config.json of a model that is not fetched yet and whose shape is not known.
        yes: Do not ask before submitting more than max_gpu_hours.
    """
    from hpc_ewc.launch.submit.submit import submit

    return submit(sweep, profile, runs, out, dry_run, yes, scripts, config)


def evaluate(
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT…")],
    /,
    suites: str = "en,lt,fluency",
    shots: Annotated[str | None, tyro.conf.arg(metavar="TASK=N,…")] = None,
    prompts: str = "core",
    heldout: OptionalFiles = None,
    include: Annotated[str | None, tyro.conf.arg(metavar="FOLDER,…")] = None,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    batch_size: int = 16,
    max_length: int = 2048,
    dtype: str = "bfloat16",
    backend: str = "hf",
    backend_args: Annotated[str, tyro.conf.arg(metavar="NAME=VALUE,…")] = "",
    questions: OptionalPath = None,
    judge: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    judge_questions: OptionalFiles = None,
    base: Annotated[str | None, tyro.conf.arg(metavar="CHECKPOINT")] = None,
    name: str = "checkpoints",
    profile: OptionalPath = None,
    runs: OptionalPath = None,
    out: OptionalPath = None,
    dry_run: bool = False,
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False,
) -> int:
    """Evaluate any checkpoints on the suites. Run it again to compute only what is still missing.

    Exit status: as for submit.

    Args:
        checkpoints: Folders, globs, or hub ids (owner/name, owner/name@revision).
        suites: Suites, tasks, single cells or lm-eval tasks, separated by commas.
        shots: Worked examples by task; absent: gsm8k=5,mmlu=5. Other built-in tasks get 0.
        prompts: core, native, or core,native.
        heldout: Held-out text by language, such as en=news.en.jsonl,lt=news.lt.jsonl.
        include: Folders of further lm-eval task files, separated by commas.
        limit: Only the first N documents of each task.
        batch_size: Requests that are scored at once.
        max_length: Tokens of context.
        dtype: Data type of the model: bfloat16 or float32.
        backend: hf or vllm.
        backend_args: Further arguments of vllm, such as gpu_memory_utilization=0.8,enforce_eager=True.
        questions: Folder of rows to use instead of the hub's data sets: <language>/<task>/<split>.jsonl.
        judge: Model by whose perplexity the checkpoints' answers are judged (judged_answers); absent: no such cell.
        judge_questions: Questions for that, by language, such as lt=asked.jsonl; absent: TruthfulQA's.
        base: Model that they were trained from; it is evaluated too, and the report's differences are to it.
        name: Name of the run folder.
        profile: Where and how jobs run; absent: this machine.
        runs: Folder that holds the run folders; absent: the profile's, else ./runs.
        out: Folder of the tables; absent: ./results/NAME.
        dry_run: Show what is done and missing; write nothing.
        yes: Do not ask before submitting more than max_gpu_hours.
    """
    from hpc_ewc.launch.submit.evaluate_checkpoints import Options, evaluate, read_settings

    settings = read_settings(
        suites,
        shots,
        prompts,
        heldout,
        include,
        limit,
        batch_size,
        max_length,
        backend,
        judge,
        judge_questions,
        questions,
        backend_args,
    )
    options = Options(base, name, dtype, settings)
    return evaluate(checkpoints, options, profile, runs, out, dry_run, yes)


def prefetch(
    sweep: tyro.conf.Positional[Path],
    /,
    profile: OptionalPath = None,
    dry_run: bool = False,
    update: bool = False,
    as_job: Annotated[str | None, tyro.conf.arg(metavar="PARTITION")] = None,
) -> int:
    """Fetch everything that an experiment names, then prove that it loads without a network.

    Run it again after an interruption: what is there is not fetched again.

    Exit status: 0 everything is there, 1 something is not (it says what to do), 2 refused.

    Args:
        sweep: The experiment, such as sweeps/paper.toml.
        profile: Profile whose Python is used for the proof; absent: the Python of this command.
        dry_run: Show what there is to fetch, and how much; fetch nothing.
        update: Look for newer commits of what is there. Records made before are then of other data.
        as_job: Do it in a job in this partition, which must have a network; --profile names the cluster.
    """
    from hpc_ewc.launch.fetch.prefetch import prefetch

    return prefetch(sweep, profile, dry_run, update, as_job)


def status(
    folder: tyro.conf.Positional[Path],
    /,
    watch: Annotated[bool, tyro.conf.arg(aliases=["-w"])] = False,
    json: bool = False,
) -> int:
    """Show how an experiment stands, by stage and run.

    Exit status: 0 all done, 1 something failed and nothing runs any more, 2 not a run folder, 3 not finished.

    Args:
        folder: The run folder, such as runs/miniature.
        watch: Keep showing it until nothing runs any more.
        json: Print JSON, for programs.
    """
    from hpc_ewc.launch.watch.status import status

    return status(folder, watch=watch, as_json=json)


def logs(
    folder: tyro.conf.Positional[Path],
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    stage: OptionalStage = None,
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False,
    rank: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    element: Annotated[str | None, tyro.conf.arg(metavar="N")] = None,
    restart: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> int:
    """Show what a run printed; the error first, if it failed.

    Args:
        folder: The run folder, such as runs/miniature.
        run: Any unique prefix of the name of a run, or of a key of tokens or Fisher; or a stage with one run: report.
        stage: tokens, fisher, train or evaluate; absent: the one that failed, else one that runs, else the last.
        follow: Keep printing what is added, until the job is over.
        rank: Only this rank.
        element: Only this element of an array, by its number or its job id.
        restart: Only this attempt of a job that Slurm started again, from 0; absent: the last.
    """
    from hpc_ewc.launch.watch.logs import logs

    return logs(folder, run, stage=stage, element=element, restart=restart, rank=rank, follow=follow)


def cancel(
    folder: tyro.conf.Positional[Path],
    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None,
    /,
    stage: OptionalStage = None,
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False,
) -> int:
    """Make jobs save and stop; the next submit continues from there.

    Args:
        folder: The run folder, such as runs/miniature.
        run: Any unique prefix of the name of a run, or a stage with one run; absent: the whole experiment.
        stage: Only this stage of that run, or of all runs.
        yes: Do not ask.
    """
    from hpc_ewc.launch.watch.cancel import cancel

    return cancel(folder, run, stage, yes=yes)


def doctor(
    sweep: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP]")] = None,
    /,
    profile: OptionalPath = None,
    quick: bool = False,
    json: bool = False,
) -> int:
    """Check whether this cluster, or this machine, is ready: one line per finding, and what to do about it.

    On a cluster it submits one job on at most two nodes, for a few minutes. Exit status: 0 ready, 1 something is wrong.

    Args:
        sweep: An experiment: check also that its resources are granted and its inputs are here.
        profile: Where jobs are to run, such as slurm/lumi.toml; absent: this machine.
        quick: Submit no job; check only what can be seen from here.
        json: Print JSON, for programs.
    """
    from hpc_ewc.launch.doctor.doctor import doctor

    return doctor(profile, sweep, quick=quick, as_json=json)


COMMANDS: dict[str, Callable[..., Any]] = {
    "prefetch": prefetch,
    "doctor": doctor,
    "submit": submit,
    "evaluate": evaluate,
    "status": status,
    "logs": logs,
    "cancel": cancel,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; our errors are one line on stderr."""
    try:
        plain = (tyro.conf.FlagCreatePairsOff,)  # no --no-dry-run
        return int(
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS, args=arguments, prog=PROG, description=DESCRIPTION, config=plain
            )
        )
    except HpcEwcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hpc-ewc status … | head`
        sys.stderr.close()
        return 141
    except OSError as error:  # no space, no permission: the file is in the message
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
