"""`python -m hpc_ewc.report runs/NAME`: tables of an experiment to the terminal and into results/NAME."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from hpc_ewc.errors import ConfigError, HpcEwcError, did_you_mean
from hpc_ewc.report.build import FORMATS, Options, report


@dataclass(frozen=True)
class Arguments:
    """Tables and figures from the records of one or several experiments."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders runs/NAME; also folders or record files inside one, or globs."""
    out: Path | None = None
    """Folder to write to; absent: ./results/NAME."""
    format: tuple[str, ...] = FORMATS
    """What to make."""
    unpaired: bool = False
    """Do not read the samples: faster, with wider differences."""
    resamples: int = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 where nothing could be made."""
    options = tyro.cli(Arguments, args=arguments, prog="python -m hpc_ewc.report")
    try:
        for name in options.format:
            if name not in FORMATS:
                raise ConfigError(f"--format {name}: allowed are {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
        report(
            options.paths,
            options.out,
            Options(options.format, paired=not options.unpaired, resamples=options.resamples, seed=options.seed),
            Console(),
        )
    except HpcEwcError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
