"""`python -m hpc_ewc.report runs/NAME`: tables and figures of an experiment, to the terminal and into results/NAME.

`python -m hpc_ewc.report compare A B [PATH …]`: two runs against each other, by task and overall.
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
from hpc_ewc.report.compare import compare_paths, print_comparison
from hpc_ewc.report.tables.measure import GAINS
from hpc_ewc.report.tables.subsets import KINDS


@dataclass(frozen=True)
class Arguments:
    """Make tables and figures from the records of one or several experiments; `compare A B` compares two runs instead.

    Exit status: 0, or 2 where nothing could be made.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, such as runs/NAME; or folders or record files inside one, or globs."""
    out: Path | None = None
    """Folder to write to; absent: ./results/NAME."""
    format: tuple[str, ...] = FORMATS
    """What to make."""
    subsets: tuple[str, ...] = ()
    """Tables of the parts of MMLU too: groups, subjects."""
    max_loss: float = 1.0
    """How many points of accuracy in the old language (mean over tasks) a recommended λ may cost."""
    gain: str = "auto"
    """How the gain in the new language is measured: accuracy; text (bits per byte); auto (accuracy, unless all runs are
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
    """Compare two runs on the documents that both were asked, by task and overall."""

    a: Annotated[str, tyro.conf.Positional]
    """A folder runs/NAME/evaluate/RUN, or a unique prefix of the name of a run in PATH."""
    b: Annotated[str, tyro.conf.Positional]
    """Likewise; the differences are B minus A."""
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders in which A and B are looked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where nothing could be made."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = "python -m hpc_ewc.report"
    console = Console()
    try:
        if arguments[:1] == ["compare"]:
            asked = tyro.cli(CompareArguments, args=arguments[1:], prog=f"{program} compare")
            print_comparison(compare_paths(asked.a, asked.b, asked.paths), console)
            return 0
        options = tyro.cli(Arguments, args=arguments, prog=program)
        if not options.paths:
            raise ConfigError("give a folder: python -m hpc_ewc.report runs/NAME")
        report(options.paths, options.out, _checked(options), console)
    except (HpcEwcError, OSError) as error:  # no space, no permission: the file is in the message
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _checked(options: Arguments) -> Options:
    lists = (("--format", options.format, FORMATS), ("--subsets", options.subsets, KINDS))
    for flag, values, known in (*lists, ("--gain", (options.gain,), GAINS)):
        for value in values:
            if value not in known:
                raise ConfigError(f"{flag} {value}: allowed are {', '.join(known)}{did_you_mean(value, known)}")
    if not 0 <= options.max_loss <= 100:
        raise ConfigError(f"--max-loss {options.max_loss:g}: allowed is 0 to 100, in points of accuracy")
    if options.resamples < 100:
        raise ConfigError(f"--resamples {options.resamples}: at least 100, else an interval's ends are its extremes")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed}: allowed is 0 or more")
    return Options(
        formats=options.format,
        paired=not options.unpaired,
        resamples=options.resamples,
        seed=options.seed,
        subsets=options.subsets,
        max_loss=options.max_loss / 100,
        gain=options.gain,
        paper=options.paper,
    )


if __name__ == "__main__":
    sys.exit(main())
