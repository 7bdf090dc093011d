"""A rank that lost a peer leaves the peer's error in failed.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_ewc.errors import StageError
from hpc_ewc.train import process_group


def test_a_rank_that_lost_a_peer_reports_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = tmp_path / "failed.json"
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        failed.write_text("{}")  # the failed rank has written its error

    monkeypatch.setattr(process_group.time, "sleep", nap)
    match = r"another rank of this job ended \(\[gloo\] Connection closed by peer \[::1\]\)"
    for _ in range(2):
        with pytest.raises(StageError, match=match), process_group.report_lost_peer(failed):
            raise RuntimeError("[gloo] Connection closed by peer [::1]\nand a long trace")
    assert len(naps) == 1, "it waits only until that error is written"


def test_a_ranks_own_error_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^shapes differ$"), process_group.report_lost_peer(tmp_path / "failed.json"):
        raise RuntimeError("shapes differ")
