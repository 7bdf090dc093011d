"""The exceptions of hpc_ewc.

    HpcEwcError
    ├── ConfigError      an invalid experiment, profile or command line
    ├── InputError       an invalid corpus, tokenizer, model or question set
    ├── ArtefactError    a file that is corrupt, or was not written by hpc-ewc
    ├── SubmitError      the scheduler, or this machine, refused a job
    └── StageError       a stage ran and failed

A message says what was wrong, the value, what is allowed and the fix; commands print it as one line on stderr.
`ConfigError`, `InputError` and `SubmitError` raised by a command end it with status 2: nothing was started.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpcEwcError(Exception):
    """Base class of all errors that this package raises for a user to read."""


class ConfigError(HpcEwcError):
    """An experiment, a profile or a command line is invalid."""


class InputError(HpcEwcError):
    """A corpus, a tokenizer, a model or a question set is invalid."""


class ArtefactError(HpcEwcError):
    """A file is corrupt, or was not written by hpc-ewc."""


class SubmitError(HpcEwcError):
    """The scheduler, or this machine, refused a job."""


class StageError(HpcEwcError):
    """A stage ran and failed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `word`, or `; known: …` where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
