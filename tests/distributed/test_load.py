"""A checkpoint straight into shards: what one process loads, on any number of ranks, and back out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from hpc_ewc import records
from hpc_ewc.model.build import is_tied
from hpc_ewc.model.export import export_model
from hpc_ewc.model.load import load_model
from hpc_ewc.model.mesh import build_mesh
from tests.distributed.ranks import RankError, run_ranks
from tests.distributed.training_folder import build_model

FACTS = {"run": "r", "step": 1, "fraction": 1.0, "tokens": 1, "coordinates": {}, "train_key": "k", "base_hash": "b"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("load")
    for kind in ("gemma2", "gemma3_text"):
        build_model(base / kind, kind)
    return {kind: base / kind for kind in ("gemma2", "gemma3_text")}


def check(rank: int, world_size: int, folders: dict[str, Path], replicate: int, out: Path) -> list[str]:
    mesh = build_mesh("cpu", replicate)
    ids = torch.randint(4, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    hashes = []
    for kind, folder in folders.items():
        plain = load_model(folder, dtype="float32")
        model = load_model(folder, mesh, dtype="float32")
        assert is_tied(model)
        shards = world_size // replicate
        for (name, sharded), whole in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert isinstance(sharded, DTensor)
            assert sharded.dtype == torch.float32
            assert sharded.to_local().numel() <= -(-whole.shape[0] // shards) * whole[0].numel(), name
            assert torch.equal(sharded.full_tensor(), whole), name
        export_model(model, out / kind, FACTS)
        hashes.append(records.read_json(out / kind / "hpc_ewc.json")["model_hash"])
        parameters = dict(model.named_parameters())  # before a forward: after it the root's are whole and plain
        loss, want = model(input_ids=ids, loss_labels=ids), plain(input_ids=ids, loss_labels=ids)
        assert torch.equal(loss, want)
        loss.backward()
        want.backward()
        for name, whole in plain.named_parameters():
            grad: Any = parameters[name].grad
            torch.testing.assert_close(grad.full_tensor(), whole.grad, rtol=1e-4, atol=1e-5, msg=name)
        half = load_model(folder, mesh, dtype="bfloat16")
        parameters = dict(half.named_parameters())
        half(input_ids=ids, loss_labels=ids).backward()
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters.values())
    return hashes


@pytest.mark.parametrize(("world_size", "replicate"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_shards_hold_what_one_process_loads_and_export_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, world_size: int, replicate: int
) -> None:
    hashes = run_ranks(world_size, check, folders, replicate, tmp_path / "sharded")
    for (kind, folder), exported in zip(folders.items(), hashes, strict=True):
        export_model(load_model(folder, dtype="float32"), tmp_path / "plain" / kind, FACTS)
        assert records.model_hash(tmp_path / "plain" / kind) == exported


def refuse_replicas(rank: int, world_size: int) -> None:
    build_mesh("cpu", 2)


def test_replicas_that_do_not_divide_the_ranks_are_refused() -> None:
    with pytest.raises(RankError, match="train.dp_replicate = 2: does not divide the 3 ranks"):
        run_ranks(3, refuse_replicas)
