"""The command line `hpc-ewc`: the list of commands, and the handling of their errors.

Each command is a module of this package. It has `Settings`, a frozen dataclass whose field docstrings are the help, and
`run(settings)`, which returns the exit status. A command is imported when it is called; `hpc-ewc --help` imports none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from hpc_ewc.errors import HpcEwcError, did_you_mean

PROG = "hpc-ewc"
DESCRIPTION = "Teach a language model a new language, on a laptop or a cluster, without letting it forget the old one."
COMMANDS = {
    "prefetch": "Download everything that an experiment names, and prove that it loads without a network.",
    "doctor": "Check whether this machine or cluster is ready to run jobs.",
    "submit": "Run an experiment: every stage that is not done yet.",
    "status": "Show the state of an experiment, by stage and run.",
    "logs": "Show what a run printed; the error first, if it failed.",
    "cancel": "Make jobs save and stop; the next submit resumes them.",
    "evaluate": "Evaluate any checkpoints on the suites.",
    "report": "Make the tables and figures of one or several experiments.",
    "compare": "Compare two runs document by document.",
}
"""In the order of the work, each with the sentence that `--help` shows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors of this package are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else 2)
    name, *rest = words
    if name not in COMMANDS:
        print(f"{PROG}: unknown command {name!r}{did_you_mean(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    try:
        return run_command(name, rest)
    except HpcEwcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hpc-ewc status … | head`
        sys.stderr.close()
        return 141
    except OSError as error:  # a full disk or a missing permission: the message names the file
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Read the settings of one command and run it; return its exit status."""
    import tyro

    command = importlib.import_module(f"{__name__}.{name}")
    no_pairs = (tyro.conf.FlagCreatePairsOff,)  # no --no-dry-run
    settings = tyro.cli(command.Settings, args=arguments, prog=f"{PROG} {name}", config=no_pairs)
    return int(command.run(settings))


def usage() -> str:
    """The text of `hpc-ewc --help`."""
    listed = "\n".join(f"  {name:<10}{sentence}" for name, sentence in COMMANDS.items())
    return f"usage: {PROG} COMMAND …\n\n{DESCRIPTION}\n\n{listed}\n\n`{PROG} COMMAND --help` explains a command."
