"""Rendezvous of a job's nodes, and their local caches."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_ewc import records, rundir
from hpc_ewc.errors import StageError
from hpc_ewc.node import rendezvous
from hpc_ewc.node.environment import node_caches, node_folder
from hpc_ewc.node.task import JobContext


def test_the_published_port_is_reserved_for_the_listener(tmp_path: Path) -> None:
    context = JobContext("7", "7", 0, 0, 0, ("n1", "n2"))
    with rendezvous.rendezvous_arguments(context, tmp_path, "i") as arguments:
        assert arguments is not None
        port = int(rundir.port_file(tmp_path, 0).read_text())
        assert f"--rdzv-endpoint=n1i:{port}" in arguments
        assert {"--rdzv-id=7.0", "--local-addr=n1i", "--nnodes=2"} <= set(arguments)
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("", port))
        with socket.socket() as server:  # like torch's store
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
            server.listen()
            with rendezvous.rendezvous_arguments(replace(context, node=1), tmp_path) as others:
                assert others is not None and f"--rdzv-endpoint=n1:{port}" in others


def test_a_node_does_not_wait_for_the_port_of_an_ended_attempt(tmp_path: Path) -> None:
    context = JobContext("7", "7", 0, 0, 1, ("n1", "n2"))
    with rendezvous.rendezvous_arguments(context, tmp_path, is_over=lambda: True) as arguments:
        assert arguments is None


def test_a_missing_port_names_the_log_to_read(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="node 0 published no port within 0.1 s: did its task start"):
        rendezvous.read_port(tmp_path / "port.0", timeout_s=0.1)


def test_node_caches_are_on_the_local_disk_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    shared = tmp_path / "datasets" / "a"
    records.write_text(shared / "a.arrow", "rows")
    records.write_text(shared / "a.lock", "")
    with node_folder("$NODE_DISK", "7_1.0") as place:
        assert place is not None
        found = node_caches(place, "evaluate", {"HF_DATASETS_CACHE": str(shared.parent)})
        assert Path(found["TRITON_CACHE_DIR"]).is_dir()
        mirrored = Path(found["HF_DATASETS_CACHE"]) / "a"
        assert (mirrored / "a.arrow").read_text() == "rows" and not (mirrored / "a.lock").exists()
        (mirrored / "cache-1.arrow").write_text("derived")
    assert not place.exists()
    assert sorted(path.name for path in shared.iterdir()) == ["a.arrow", "a.lock"]


def test_a_missing_scratch_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StageError, match=r"slurm\.scratch = .*name a folder that exists on every node"),
        node_folder(str(tmp_path / "file" / "x"), "7.0"),
    ):
        pass
