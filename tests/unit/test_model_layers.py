"""Recomputed activations and compiled layers: the same gradients, under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_ewc.model.layers import prepare_layers
from hpc_ewc.model.load import load_model
from tests.distributed.training_folder import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("layers") / "model"
    build_model(place)
    return place


def run(folder: Path, checkpointing: str, compiled: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return gradients by name, and how often each operation ran in the backward pass."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: dict[str, int] = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[str(func)] = counts.get(str(func), 0) + 1
            return func(*args, **(kwargs or {}))

    model = load_model(folder, dtype="float32")
    prepare_layers(model, checkpointing, compile_layers=compiled)
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=ids, loss_labels=ids)
    if compiled:
        loss.backward()
    else:
        with Count():
            loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, counts


def test_selective_and_full_recompute_their_layers_with_the_same_gradients(folder: Path) -> None:
    plain, base = run(folder, "none")
    selective, some = run(folder, "selective")
    full, most = run(folder, "full")
    assert plain.keys() == selective.keys() == full.keys()
    for name in plain:
        assert torch.equal(plain[name], selective[name])
        assert torch.equal(plain[name], full[name])
    mm, tanh, layers = "aten.mm.default", "aten.tanh.default", 2
    assert some[mm] == base[mm]
    assert most[mm] >= base[mm] + 6 * layers  # torch stops recomputing after the last tensor it needs
    assert some[tanh] == most[tanh] == base.get(tanh, 0) + layers


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # dynamo accesses tensors in ways that warn, and inductor imports deprecated modules
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_compiled_layers_give_the_same_gradients(folder: Path, checkpointing: str) -> None:
    plain, _ = run(folder, "none")
    compiled, _ = run(folder, checkpointing, compiled=True)
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-4, atol=1e-5, msg=name)
