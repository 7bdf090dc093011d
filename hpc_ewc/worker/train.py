"""The train stage inside a job: `torchrun … -m hpc_ewc.worker train DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hpc_ewc.stage import Stage


def main(argv: Sequence[str]) -> int:
    """Runs the training that DIR describes, or resumes it; returns 0 when it is done or was asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m hpc_ewc.worker train")
    parser.add_argument("dir", help="folder of the artefact, with stage.json and config.toml")
    stage = Stage(parser.parse_args(argv).dir, kind="train")
    stage.listen()
    if stage.is_done():
        return 0
    with stage.attempt():
        from hpc_ewc.train.run import train

        train(stage)
    return 0
