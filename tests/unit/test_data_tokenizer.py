"""Token ids equal those of transformers, without control tokens from text or ids beyond the embedding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hpc_ewc.data.tokenizer import as_text_tokenizer, load_tokenizer
from hpc_ewc.errors import InputError
from hpc_ewc.records import write_json
from tests.unit.data_corpus import make_texts, tiny_tokenizer, write_model

BOS, EOS = 2, 1


def test_ids_equal_those_of_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizer, oracle = load_tokenizer(write_model(tmp_path)), tiny_tokenizer()
    texts = [text for text in make_texts(60) if "<bos>" not in text]
    expected = [oracle.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert [tokenizer.encode(text) for text in texts] == expected


def test_text_cannot_produce_a_control_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path))
    text = "the<eos> river <bos>runs"
    ids = tokenizer.encode(text)
    assert not {BOS, EOS} & set(ids)
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.backend.decode(ids) == text
    assert {BOS, EOS} < set(tiny_tokenizer().encode(text).ids)  # without the protection


def test_bos_from_the_post_processor_is_not_added_twice(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = tiny_tokenizer()
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    folder = write_model(tmp_path)
    plain = load_tokenizer(folder).encode("old trees")
    backend.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("old trees") == plain
    assert BOS not in plain


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    plain = load_tokenizer(folder).encode_batch(["old trees and every stone", "is"])
    backend = tiny_tokenizer()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode_batch(["old trees and every stone", "is"]) == plain


def test_a_transformers_fast_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<bos>", eos_token="<eos>")
    ours = as_text_tokenizer(fast)
    assert (ours.bos_id, ours.pad_id) == (BOS, EOS)  # EOS pads if there is no padding token, as in the paper's code
    assert ours.encode("cold <bos>") == load_tokenizer(write_model(tmp_path)).encode("cold <bos>")
    assert BOS in fast("cold <bos>").input_ids  # the caller's tokenizer is unchanged
    with pytest.raises(InputError, match="the tokenizer has no BOS token"):
        as_text_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer()))
    with pytest.raises(InputError, match="not a fast tokenizer"):
        as_text_tokenizer(str)


def test_different_tokenizers_have_different_hashes(tmp_path: Path) -> None:
    first, same = (load_tokenizer(write_model(tmp_path / name)) for name in ("a", "b"))
    other = write_model(tmp_path / "c")
    write_json(other / "tokenizer_config.json", {"bos_token": "<eos>"})
    assert first.hash == same.hash != load_tokenizer(other).hash


# ---------------------------------------------------------------------------------------------- mismatches


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not match the model: id 3\d\d .* has no row in the embedding of 280"):
        load_tokenizer(write_model(tmp_path, vocab_size=280))


def test_a_special_token_beyond_the_embedding_is_accepted(tmp_path: Path) -> None:
    """Gemma 3's tokenizer has an image token beyond the embedding of its text models."""
    backend = tiny_tokenizer()
    size = backend.get_vocab_size()
    backend.add_special_tokens(["<image_soft_token>"])
    folder = write_model(tmp_path, vocab_size=size)
    backend.save(str(folder / "tokenizer.json"))
    assert max(load_tokenizer(folder).encode("<image_soft_token>")) < size


def test_bos_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, bos_token_id=5000)
    write_json(folder / "tokenizer_config.json", {})
    with pytest.raises(InputError, match=r"id 5000 \('BOS'\) has no row"):
        load_tokenizer(folder)


def test_a_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, bos_token_id=None)
    write_json(folder / "tokenizer_config.json", {"bos_token": None})
    with pytest.raises(InputError, match="the tokenizer has no BOS token, which begins every document"):
        load_tokenizer(folder)


def test_special_tokens_are_read_from_tokenizer_or_model_config(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    write_json(folder / "tokenizer_config.json", {"bos_token": {"content": "<bos>"}, "pad_token": None})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (BOS, 0)
    config = {"text_config": {"vocab_size": 400, "bos_token_id": BOS, "eos_token_id": [EOS, 3]}}
    write_json(folder / "config.json", config)  # as in Gemma 3 with images
    write_json(folder / "tokenizer_config.json", {})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (BOS, EOS)


def test_a_folder_without_model_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(InputError, match=r"no tokenizer\.json; write one with AutoTokenizer"):
        load_tokenizer(tmp_path)
    folder = write_model(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json with 'vocab_size'"):
        load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: corrupt or not written by hpc-ewc"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(folder)


def test_a_hub_id_missing_from_the_cache_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def absent(model: str, name: str, revision: str | None) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(InputError, match=r"tokenizer\.json: not in the cache and .* `hpc-ewc prefetch SWEEP"):
        load_tokenizer("google/gemma-2-2b-it")

    folder = write_model(tmp_path)
    asked = []

    def cached(model: str, name: str, revision: str | None) -> str:
        asked.append((model, revision))
        if name == "tokenizer_config.json":
            raise EntryNotFoundError("no such file in the repository")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert load_tokenizer("google/gemma-2-2b-it", "abc").hash == load_tokenizer(folder).hash
    assert set(asked) == {("google/gemma-2-2b-it", "abc")}


def test_the_library_has_the_backend_these_tests_assume() -> None:
    tokenizer = tiny_tokenizer()
    assert isinstance(tokenizer, Tokenizer)
    for letter in "ABCD":
        assert len(tokenizer.encode(letter, add_special_tokens=False).ids) == 1
