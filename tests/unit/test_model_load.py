"""A checkpoint loaded in one process equals transformers' model; invalid checkpoints are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hpc_ewc import model_folder
from hpc_ewc.errors import InputError
from hpc_ewc.model import build
from hpc_ewc.model.build import is_tied
from hpc_ewc.model.load import find_model, load_model
from tests.distributed.training_folder import build_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model(tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_logits_and_loss_equal_transformers(tmp_path: Path, kind: str) -> None:
    build_model(tmp_path / "model", kind)
    model = load_model(tmp_path / "model", dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    ids = torch.randint(4, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits)
    labels = ids.clone()
    labels[1, 12:] = -100
    ours = model(input_ids=ids, loss_labels=labels)
    theirs = reference(input_ids=ids, labels=labels).loss * (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    ours.backward()
    theirs.backward()
    for (name, mine), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_head_and_embedding_are_one_tensor_and_the_names_are_transformers(folder: Path) -> None:
    model = load_model(folder, dtype="bfloat16")
    assert is_tied(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    reference = AutoModelForCausalLM.from_pretrained(folder)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in reference.named_parameters()]
    assert model.origin.attention == "eager"


def test_a_missing_folder_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; model.path must be a Hugging Face folder or hub id"):
        find_model(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)


def test_an_unavailable_hub_id_gives_the_prefetch_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"nobody/nothing.*hpc-ewc prefetch"):
        find_model("nobody/nothing")


def test_another_architecture_is_refused(folder: Path) -> None:
    change(folder / "config.json", model_type="llama")
    with pytest.raises(InputError, match="model_type is 'llama'; allowed are gemma2, gemma3_text"):
        load_model(folder)


def test_an_untied_head_is_refused(folder: Path) -> None:
    change(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match="tie_word_embeddings = false"):
        load_model(folder)


def test_missing_truncated_or_misshapen_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    lost = dict(tensors)
    del lost["model.norm.weight"]
    save_file(lost, file)
    with pytest.raises(InputError, match=r"1 tensors are missing, such as 'model\.norm\.weight'"):
        load_model(folder)
    save_file(tensors | {"model.norm.weight": torch.zeros(5)}, file)
    with pytest.raises(InputError, match=r"model\.norm\.weight is \[5\] in the files and \[28\] by config\.json"):
        load_model(folder)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read.*cut off"):
        load_model(folder)
    file.unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors; convert"):
        load_model(folder)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["▁outside"] = 5000
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="tokenizer does not match the model: id 5000"):
        load_model(folder)


@pytest.mark.parametrize("family", model_folder.FAMILIES)
def test_each_family_can_be_built(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "num_hidden_layers": 1}))
    assert build.build_empty(tmp_path, "eager").config.model_type == family
