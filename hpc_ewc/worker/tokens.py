"""`python -m hpc_ewc.worker tokens DIR [--part I/N]`: tokenise the parts I, I+N, … of a corpus."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from hpc_ewc.data.tokenise import tokenise
from hpc_ewc.errors import ConfigError, HpcEwcError
from hpc_ewc.stage import Stage


def main(argv: list[str]) -> int:
    """Returns 0 when these parts are done or the job was asked to stop; 1, with a line on stderr, when they failed."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker tokens", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder of the artefact, with its stage.json")
    parser.add_argument(
        "--part", default="0/1", metavar="I/N", help="this worker's number, from 0, and how many there are"
    )
    arguments = parser.parse_args(argv)
    try:
        part, of = parse_part(arguments.part)
        stage = Stage(arguments.dir, element=str(part), kind="tokens")
        stage.listen()
        with stage.attempt():
            tokenise(stage, part=part, of=of)
    except HpcEwcError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def parse_part(text: str) -> tuple[int, int]:
    """Returns `I/N` as two numbers, 0 ≤ I < N."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--part {text!r}: must be I/N with 0 ≤ I < N, such as 0/4")
    return int(match[1]), int(match[2])
