"""A rank that lost another one: whose word stands in failed.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_ewc.errors import StageError
from hpc_ewc.train import process_group


def test_a_rank_that_lost_another_says_just_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = tmp_path / "failed.json"
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        failed.write_text("{}")  # the rank that failed has spoken

    monkeypatch.setattr(process_group.time, "sleep", nap)
    match = r"another rank of this job ended \(\[gloo\] Connection closed by peer \[::1\]\)"
    for _ in range(2):
        with pytest.raises(StageError, match=match), process_group.report_lost_peer(failed):
            raise RuntimeError("[gloo] Connection closed by peer [::1]\nand a long trace")
    assert len(naps) == 1, "it waits for that word, and no longer"


def test_its_own_error_stays_its_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^shapes differ$"), process_group.report_lost_peer(tmp_path / "failed.json"):
        raise RuntimeError("shapes differ")
