"""Invalid checkpoints are refused before scoring starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.miniature.base_model import build_model, train_tokenizer
from hpc_ewc import records
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.evaluate.checkpoint import (
    attention_kernel,
    find_export,
    find_model,
    load_model,
    load_tokenizer,
)
from hpc_ewc.rundir import StageDir

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a tiny model and its tokenizer, as saved by transformers."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["Ona gyvena Vilniuje. Anna lives in Vilnius."] * 4, vocabulary=320)
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Copy the folder, to be damaged by a test."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def export(whole: Path, train: Path, **changes: Any) -> Path:
    place = StageDir(train).export(7)
    shutil.copytree(whole, place)
    facts = {"run": "r-abc", "step": 7, "fraction": 1.0, "tokens": 99, "coordinates": {"ewc.strength": 1e6}}
    facts |= {"train_key": "abc", "model_hash": records.model_hash(place), "base_hash": "b", **changes}
    records.write_json(place / "hpc_ewc.json", {name: value for name, value in facts.items() if value is not None})
    return place


def load(folder: Path) -> Any:
    return load_model(folder, dtype="float32", attention="auto", device=CPU, tokenizer=load_tokenizer(folder))


def test_an_export_is_found_by_its_fraction_with_its_facts(whole: Path, tmp_path: Path) -> None:
    place = export(whole, tmp_path)
    found = find_export(StageDir(tmp_path), 1.0)
    assert (found.folder, found.step, found.run, found.identity, found.base_hash) == (place, 7, "r-abc", "abc", "b")
    assert found.coordinates == {"ewc.strength": 1e6}
    assert load(found.folder).config.model_type == "gemma2"


def test_a_plain_model_is_its_own_base(whole: Path) -> None:
    found = find_model(whole, "base", "key")
    assert (found.step, found.fraction, found.run, found.identity) == (0, 0.0, "base", "key")
    assert found.model_hash == found.base_hash == records.model_hash(whole)


def test_a_missing_or_incomplete_export_is_named(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no export at fraction 1.0; exported are none; resubmit the experiment"):
        find_export(StageDir(tmp_path), 1.0)
    export(whole, tmp_path, fraction=0.5)
    StageDir(tmp_path).export(9).mkdir()
    with pytest.raises(ArtefactError, match=r"exported are 0.5; without hpc_ewc.json, so incomplete: 00000009"):
        find_export(StageDir(tmp_path), 1.0)


def test_an_export_whose_files_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    place = export(whole, tmp_path)
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtefactError, match=r"its files hash to \w+, hpc_ewc.json says \w+; incompletely copied or"):
        find_export(StageDir(tmp_path), 1.0)


def test_an_export_without_its_facts_is_refused(whole: Path, tmp_path: Path) -> None:
    export(whole, tmp_path, train_key=None)
    with pytest.raises(ArtefactError, match=r"hpc_ewc.json: lacks train_key; corrupt or not written by hpc-ewc"):
        find_export(StageDir(tmp_path), 1.0)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; set model.path"):
        find_model(tmp_path / "nowhere", "base", "key")
    with pytest.raises(InputError, match=r"no config.json, so not a Hugging Face model"):
        find_model(tmp_path, "base", "key")


def test_missing_or_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"model.safetensors: not a complete safetensors file \(\d+ bytes\): .*not fully covered; copy"
    ):
        load(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no \*.safetensors; an incomplete export, or another format"):
        load(folder)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"1 of 2 weight files missing, such as model-2.safetensors"):
        load(folder)


def test_a_missing_weight_is_an_error(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks model.layers.0.mlp.up_proj.weight"):
        load(folder)


def test_a_tokenizer_that_adds_no_bos_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"encodes 'a' as \['a'\], not as '<bos>' and the text; .* TemplateProcessing"):
        load_tokenizer(folder)


def test_a_tokenizer_without_bos_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="its tokenizer has no BOS token"):
        load_tokenizer(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    more = "Jonas augina šunį, o Petras katę; rytais jie eina į darbą, vakarais grįžta namo. John keeps a dog."
    train_tokenizer([more] * 4, vocabulary=400).save_pretrained(folder)
    with pytest.raises(InputError, match=r"tokenizer has \d+ tokens, the model embeds \d+: files of two models"):
        load(folder)


def test_a_bos_id_that_differs_from_the_models_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 3}))
    with pytest.raises(InputError, match="BOS is 2 to its tokenizer, 3 to its config: files of two models"):
        load(folder)


def test_attention_is_eager_unless_flash_attention_runs_or_another_is_set(whole: Path) -> None:
    assert attention_kernel("auto", whole, CPU, "float32") == "eager"
    assert attention_kernel("auto", whole, torch.device("cuda"), "bfloat16") == "eager"  # flash-attn is not installed
    assert attention_kernel("flex_attention", whole, CPU, "float32") == "flex_attention"
