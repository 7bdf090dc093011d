"""The cause of failure recorded for an attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.artefacts.failure import is_consequence
from hpc_ewc.artefacts.job_logs import RankError, killed_rank

TORCHRUN_SAYS = """\
============================================================
hpc_ewc.worker FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_08:49:25
  host      : n2
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 512)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 512
============================================================
"""


def test_the_rank_that_was_killed_is_named(tmp_path: Path) -> None:
    for restart, text in enumerate(("", TORCHRUN_SAYS)):
        logs = rundir.rank_logs(tmp_path) / f"restart_{restart}" / "node_1"
        records.write_text(rundir.torchrun_log(logs), text)
    assert killed_rank(tmp_path, 0) is None, "belongs to another attempt"
    assert killed_rank(tmp_path, 1) == RankError("rank 3: Signal 9 (SIGKILL) received by PID 512", rank=3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("StageError: another rank of this job ended (Connection closed by peer [127.0.1.1]:12689)", True),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer", True),
        ("torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store", True),
        ("ValueError: loss is nan at step 12", False),
        ("rank 1: Signal 9 (SIGKILL) received by PID 512", False),
    ],
)
def test_a_lost_peer_is_not_named_as_the_cause(error: str, expected: bool) -> None:
    assert is_consequence(error) == expected
