"""The EWC state written by one number of ranks and read by another; every way it can be damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.ewc import EwcPenalty, EwcState, load_ewc_state, save_ewc_state
from hpc_ewc.ewc.files import tensor_files
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_gemma import build_gemma, build_mesh, full, shard_gemma, shard_like

FACTS = {
    "dataset": "cais/mmlu",
    "split": "validation",
    "labels": "gold",
    "examples": 1531,
    "model_hash": "abc",
    "seed": 0,
}
NAME = "model.layers.1.mlp.up_proj.weight"


def states(model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(fisher, anchor): one anchor tensor fits bf16, one fp16, the rest need fp32."""
    generator = torch.Generator().manual_seed(3)
    fisher, anchor = {}, {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        fisher[name] = torch.randn(parameter.shape, generator=generator) ** 2 * 10.0 ** (-index % 9)
        anchor[name] = torch.randn(parameter.shape, generator=generator)
    first, second = list(anchor)[:2]
    anchor[first] = anchor[first].bfloat16().float()
    anchor[second] = anchor[second].half().float()
    return fisher, anchor


def save_from_ranks(rank: int, world_size: int, folder: Path, replicate: int, dtype: torch.dtype) -> list[str]:
    tensor_files.FILE_BYTES = 20_000  # several files, each written by several ranks
    model = build_gemma()
    fisher, anchor = states(model)
    layout = dict(shard_gemma(model, build_mesh(world_size, replicate)).named_parameters())
    fisher = {n: shard_like(t, layout[n]) for n, t in fisher.items()}
    anchor = {n: shard_like(t, layout[n]) for n, t in anchor.items()}
    return [path.name for path in save_ewc_state(folder, fisher, anchor, FACTS, dtype)]


def load_on_ranks(rank: int, world_size: int, folder: Path, replicate: int, dtype: torch.dtype) -> None:
    model = build_gemma()
    fisher, anchor = states(model)
    model = shard_gemma(model, build_mesh(world_size, replicate))
    state = load_ewc_state(folder, model, model_hash="abc")
    for name, parameter in model.named_parameters():
        got = state.fisher[name]
        assert (got.placements, got.device_mesh) == (parameter.placements, parameter.device_mesh)
        assert got.to_local().shape == parameter.to_local().shape
        assert torch.equal(full(got), fisher[name].to(dtype))
        assert torch.equal(full(state.anchor[name]).float(), anchor[name])
    EwcPenalty(model, state.anchor, state.fisher, 1.0)  # laid out as it wants them
    if world_size == 2:
        refuse_on_every_rank(rank, folder, model)


def refuse_on_every_rank(rank: int, folder: Path, model: torch.nn.Module) -> None:
    """What one rank finds, all raise: else the others hang."""
    file = next(folder.glob("fisher-00002-*"))
    whole = file.read_bytes()
    torch.distributed.barrier()
    if rank == 0:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    torch.distributed.barrier()
    with pytest.raises(ArtefactError, match=r"changed since it was written \(sha256 \w+\); run the fisher stage again"):
        load_ewc_state(folder, model)
    torch.distributed.barrier()
    if rank == 0:
        file.write_bytes(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_the_world_size_and_load_at_any(tmp_path: Path, dtype: torch.dtype) -> None:
    names = {
        (ranks, replicate): run_ranks(ranks, save_from_ranks, tmp_path / f"{ranks}x{replicate}", replicate, dtype)
        for ranks, replicate in [(1, 1), (3, 1), (4, 2)]
    }
    assert len(set(map(tuple, names.values()))) == 1
    for name in names[1, 1][:-1]:
        contents = {(tmp_path / folder / name).read_bytes() for folder in ("1x1", "3x1", "4x2")}
        assert len(contents) == 1, name
    assert sorted(p.name for p in (tmp_path / "4x2").iterdir()) == sorted(names[4, 2])  # no temporary file is left
    for ranks, replicate in [(2, 1), (4, 2)]:
        run_ranks(ranks, load_on_ranks, tmp_path / "3x1", replicate, dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    save_ewc_state(folder, *states(build_gemma()), FACTS)
    return folder


def test_any_safetensors_reader_opens_the_files_and_anchors_take_the_smallest_lossless_dtype(saved: Path) -> None:
    fisher, anchor = states(build_gemma())
    files = [
        load_file(saved / "fisher-00001-of-00001.safetensors"),
        load_file(saved / "anchor-00001-of-00001.safetensors"),
    ]
    assert all(torch.equal(files[0][name], tensor) for name, tensor in fisher.items())
    first, second, third = list(anchor)[:3]
    assert [files[1][name].dtype for name in (first, second, third)] == [torch.bfloat16, torch.float16, torch.float32]
    state = load_ewc_state(saved)
    assert isinstance(state, EwcState)
    assert all(torch.equal(state.anchor[name].float(), tensor) for name, tensor in anchor.items())
    assert state.manifest["dataset"] == "cais/mmlu"


def test_the_manifest_sums_the_fisher_up(saved: Path) -> None:
    fisher, _ = states(build_gemma())
    summary = json.loads((saved / "manifest.json").read_text())["summary"]
    entries = torch.cat([f.double().flatten() for f in fisher.values()])
    assert summary["trace"] == pytest.approx(float(entries.sum()), rel=1e-9)
    assert summary["parameters"] == entries.numel()
    for q, value in summary["quantiles"].items():
        below, above = (entries.quantile(min(1.0, float(q) + d / entries.numel())) for d in (-2, 2))
        assert float(below) * 0.996 <= value <= float(above) * 1.004
    layer = sum(float(f.double().sum()) for n, f in fisher.items() if ".layers.1." in n) / float(entries.sum())
    assert summary["share_by_layer"]["1"] == pytest.approx(layer, rel=1e-9)
    kind = sum(float(f.double().sum()) for n, f in fisher.items() if n.endswith("mlp.up_proj.weight"))
    assert summary["share_by_kind"]["mlp.up_proj.weight"] == pytest.approx(kind / float(entries.sum()), rel=1e-9)
    assert sum(summary["share_by_layer"].values()) == pytest.approx(1.0)


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder: Path) -> None:
    file = folder / "fisher-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_and_hide_it(folder: Path) -> None:
    """Cut off, with a manifest that agrees: the reader itself must see it."""
    truncate(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["fisher-00001-of-00001.safetensors"]["size"] -= 100
    rewrite_manifest(folder, files=files)


def flip_a_bit(folder: Path) -> None:
    file = folder / "anchor-00001-of-00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 4
    file.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "message", "verify"),
    [
        (
            lambda f: (f / "manifest.json").unlink(),
            r"no manifest.json: no EWC state, or one not finished",
            True,
        ),
        (
            lambda f: (f / "manifest.json").write_text('{"sch'),
            r"manifest.json: corrupt or not written by hpc-ewc",
            True,
        ),
        (lambda f: (f / "manifest.json").write_text("{}"), r"not the manifest of an EWC state \(ewc_state\)", True),
        (lambda f: rewrite_manifest(f, schema=9), r"schema 9, this version reads 1", True),
        (lambda f: (f / "anchor-00001-of-00001.safetensors").unlink(), r"anchor-00001.*: missing, though", True),
        (truncate, r"fisher-00001.*bytes, manifest.json says", True),
        (truncate_and_hide_it, r"fisher-00001.*not a complete safetensors file", False),
        (flip_a_bit, r"anchor-00001.*changed since it was written", True),
        (lambda f: rewrite_manifest(f, model_hash="other"), r"belong to model other, not to abc", True),
    ],
)
def test_damage_is_named(saved: Path, tmp_path: Path, damage: Any, message: str, verify: bool) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ArtefactError, match=message):
        load_ewc_state(folder, build_gemma(), model_hash="abc", verify=verify)


def save_changed(folder: Path, name: str, change: Any) -> Path:
    """A state with one Fisher tensor replaced (None: left out), its checksums right."""
    fisher, anchor = states(build_gemma())
    fisher[name] = change(fisher[name])
    anchor[name] = change(anchor[name])
    if fisher[name] is None:
        del fisher[name], anchor[name]
    save_ewc_state(folder, fisher, anchor, FACTS)
    return folder


def test_the_state_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    model = build_gemma()
    with pytest.raises(ArtefactError, match=f"fisher has no tensor '{NAME}', a trainable parameter of this model"):
        load_ewc_state(save_changed(tmp_path / "missing", NAME, lambda t: None), model)
    with pytest.raises(ArtefactError, match=rf"fisher of '{NAME}' has shape \[43, 28\], the .* this model \[44, 28\]"):
        load_ewc_state(save_changed(tmp_path / "shape", NAME, lambda t: t[1:]), model)
    with pytest.raises(ArtefactError, match=r"has a tensor 'model.layers.2.*no trainable parameter.*did you mean"):
        three_layers = build_gemma(num_hidden_layers=3)
        save_ewc_state(tmp_path / "layers", *states(three_layers), FACTS)
        load_ewc_state(tmp_path / "layers", model)


def test_a_fisher_that_cannot_be_one_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    for bad, where in [(-1e-9, "Fisher"), (float("nan"), "Fisher"), (float("inf"), "anchor")]:
        fisher, anchor = states(build_gemma())
        (fisher if where == "Fisher" else anchor)[NAME][3, 4] = bad
        with pytest.raises(InputError, match=f"the {where} of '{NAME}' has 1 entries .*nothing was saved"):
            save_ewc_state(tmp_path / "bad", fisher, anchor, FACTS)
    assert not (tmp_path / "bad").exists()
    fisher, anchor = states(build_gemma())
    save_ewc_state(tmp_path / "good", fisher, anchor, FACTS)
    file = tmp_path / "good" / "fisher-00001-of-00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] |= 0x80  # the sign of the last entry
    file.write_bytes(whole)
    with pytest.raises(ArtefactError, match=r"entries that are negative or not finite; run the fisher stage again"):
        load_ewc_state(tmp_path / "good", verify=False)


def test_facts_and_dtypes_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    fisher, anchor = states(build_gemma())
    with pytest.raises(InputError, match=r"facts have a key 'files', which save_ewc_state writes itself"):
        save_ewc_state(tmp_path, fisher, anchor, {"files": 1})
    with pytest.raises(InputError, match="facts are not JSON"):
        save_ewc_state(tmp_path, fisher, anchor, {"seed": float("nan")})
    with pytest.raises(InputError, match=r"fisher_dtype is torch.float16; allowed are"):
        save_ewc_state(tmp_path, fisher, anchor, {}, torch.float16)
    with pytest.raises(InputError, match="the Fisher has no tensor"):
        save_ewc_state(tmp_path, {}, {}, {})
    del anchor[NAME]
    with pytest.raises(InputError, match=f"the Fisher has a tensor '{NAME}', which is no tensor of the anchor"):
        save_ewc_state(tmp_path, fisher, anchor, {})


def test_a_second_writer_leaves_the_same_state(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_ewc_state(folder, *states(build_gemma()), FACTS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
