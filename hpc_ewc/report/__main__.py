"""`python -m hpc_ewc.report runs/NAME` and `python -m hpc_ewc.report compare A B [PATH …]`.

`hpc-ewc report` and `hpc-ewc compare` are the same two commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from hpc_ewc.errors import ConfigError, HpcEwcError, did_you_mean
from hpc_ewc.report.build import FORMATS, Options, report
from hpc_ewc.report.comparison import compare_paths, print_comparison
from hpc_ewc.report.tables.measure import GAINS
from hpc_ewc.report.tables.subsets import SUBSETS


@dataclass(frozen=True)
class Arguments:
    """Make the tables and figures of one or several experiments from their records.

    Exit status: 0 done, 1 a file cannot be written, 2 refused or nothing to report.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, such as runs/NAME; or folders or record files inside one, or globs."""
    out: Path | None = None
    """Folder to write to; absent: runs/NAME/report."""
    format: tuple[str, ...] = FORMATS
    """Formats to make."""
    subsets: tuple[str, ...] = ()
    """Also tabulate the parts of MMLU: groups, subjects."""
    max_loss: float = 1.0
    """Points of accuracy in the old language (mean over tasks) that a recommended λ may cost."""
    gain: str = "auto"
    """Measure of the gain in the new language: accuracy; text (bits per byte); auto (accuracy, unless all runs are
    at chance)."""
    paper: bool = False
    """Draw the paper's own curves beside ours; its λ has another scale."""
    unpaired: bool = False
    """Do not read the samples: faster, with wider differences and no intervals."""
    resamples: int = 2000
    """Resamples of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class CompareArguments:
    """Compare two runs, by task and overall, on the documents that both answered."""

    a: Annotated[str, tyro.conf.Positional]
    """A folder runs/NAME/evaluate/RUN, or a unique prefix of the name of a run in PATH."""
    b: Annotated[str, tyro.conf.Positional]
    """Likewise; the differences are B minus A."""
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders in which to find A and B by name."""


def run_report(arguments: Arguments) -> int:
    """Make the report and return the exit status.

    Raises:
        ConfigError: an option has a value that is not allowed.
        InputError: the paths hold nothing to report.
    """
    report(arguments.paths, arguments.out, _options(arguments), Console())
    return 0


def run_compare(arguments: CompareArguments) -> int:
    """Print the comparison and return the exit status.

    Raises:
        ConfigError: a name that fits no run, or several.
        InputError: a folder that holds no run.
    """
    print_comparison(compare_paths(arguments.a, arguments.b, arguments.paths), Console())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m hpc_ewc.report` and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = "python -m hpc_ewc.report"
    try:
        if words[:1] == ["compare"]:
            return run_compare(tyro.cli(CompareArguments, args=words[1:], prog=f"{program} compare"))
        return run_report(tyro.cli(Arguments, args=words, prog=program))
    except (HpcEwcError, OSError) as error:  # a full disk or a missing permission: the message names the file
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, HpcEwcError) else 1


def _options(arguments: Arguments) -> Options:
    if not arguments.paths:
        raise ConfigError("give a run folder, such as runs/NAME")
    lists = (("--format", arguments.format, FORMATS), ("--subsets", arguments.subsets, SUBSETS))
    for flag, values, known in (*lists, ("--gain", (arguments.gain,), GAINS)):
        for value in values:
            if value not in known:
                raise ConfigError(f"{flag} {value}: allowed are {', '.join(known)}{did_you_mean(value, known)}")
    if not 0 <= arguments.max_loss <= 100:
        raise ConfigError(f"--max-loss {arguments.max_loss:g}: allowed is 0 to 100, in points of accuracy")
    if arguments.resamples < 100:
        raise ConfigError(f"--resamples {arguments.resamples}: at least 100, else an interval's ends are its extremes")
    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: allowed is 0 or more")
    return Options(
        formats=arguments.format,
        paired=not arguments.unpaired,
        resamples=arguments.resamples,
        seed=arguments.seed,
        subsets=arguments.subsets,
        max_loss=arguments.max_loss / 100,
        gain=arguments.gain,
        paper=arguments.paper,
    )


if __name__ == "__main__":
    sys.exit(main())
