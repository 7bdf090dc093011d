"""Token shards equal a plain loop over the documents, for any number of workers and interruptions."""

from __future__ import annotations

import json
import os
import random
import re
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc import records
from hpc_ewc.config import DataConfig
from hpc_ewc.data import load_tokenizer, read_tokens
from hpc_ewc.data import parts as parts_module
from hpc_ewc.data import tokenise as tokenise_module
from hpc_ewc.data.plan import build_plan, save_plan, text_hash
from hpc_ewc.data.tokenise import tokenise
from hpc_ewc.errors import ArtefactError, InputError
from hpc_ewc.stage import Stage
from tests.unit.data_corpus import (
    make_data,
    make_stage,
    make_texts,
    write_jsonl,
    write_model,
    write_parquet,
)

BOS, PAD = 2, 0
TEXTS = make_texts(60)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: these tests write hundreds of small parts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    return [
        write_jsonl(folder / "a.jsonl", [{"text": text} for text in TEXTS[:25]]),
        write_parquet(folder / "b.parquet", {"text": TEXTS[25:]}),
    ]


def planned(folder: Path, model: Path, files: list[Path], data: DataConfig, part_records: int = 9) -> Stage:
    """Make a stage whose plan has small parts."""
    stage = make_stage(folder, model, files, data)
    save_plan(stage.dir.plan, build_plan(list(stage.inputs["files"]), data, part_records=part_records))
    return stage


def stream_of(model: Path, texts: list[str]) -> list[int]:
    """Return the oracle stream: BOS and the ids of each document, concatenated."""
    tokenizer = load_tokenizer(model)
    return [i for text in texts for i in (BOS, *tokenizer.encode(text))]


def samples_of(stream: list[int], length: int) -> list[list[int]]:
    """Return the oracle samples: the stream split, with BOS in place of each sample's first token."""
    return [[BOS, *stream[at + 1 : at + length]] for at in range(0, len(stream) - length + 1, length)]


def bytes_of(stage: Stage) -> dict[str, bytes]:
    """Return everything that must not depend on the workers."""
    names = [*stage.dir.parts.iterdir(), stage.dir.heldout, stage.dir.plan, stage.dir.manifest_json]
    return {path.name: path.read_bytes() for path in names}


# ---------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("part_records", [1, 9, 100])
def test_concatenated_samples_equal_the_stream_of_all_documents(
    tmp_path: Path, model: Path, corpus: list[Path], part_records: int
) -> None:
    assert tokenise(planned(tmp_path, model, corpus, make_data(sequence_length=16), part_records))
    dataset, stream = read_tokens(tmp_path), stream_of(model, TEXTS)
    assert len(dataset) == len(stream) // 16
    assert [sample.tolist() for sample in dataset] == samples_of(stream, 16)
    assert dataset[3].dtype == np.int64 and dataset[3].shape == (16,)
    assert {dataset.length(i) for i in range(len(dataset))} == {16}
    summary = records.read_json(tmp_path / "done.json")["summary"]
    assert summary["tokens"] == len(stream)
    assert summary["tokens_left_over"] == len(stream) % 16
    assert summary["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert summary["documents"] == summary["records"] == 60


def test_truncated_samples_are_the_first_tokens_of_each_document(
    tmp_path: Path, model: Path, corpus: list[Path]
) -> None:
    assert tokenise(planned(tmp_path, model, corpus, make_data(sequence_length=16, packing="truncate")))
    dataset = read_tokens(tmp_path)
    whole = [stream_of(model, [text]) for text in TEXTS]
    assert len(dataset) == 60
    for i, ids in enumerate(whole):
        kept = ids[:16]
        assert dataset[i].tolist() == kept + [PAD] * (16 - len(kept))
        assert dataset.length(i) == len(kept)
    assert {len(ids) > 16 for ids in whole} == {True, False}  # both kinds occur
    assert dataset.lengths(np.arange(60)).tolist() == [min(len(ids), 16) for ids in whole]
    summary = records.read_json(tmp_path / "done.json")["summary"]
    assert summary["tokens_cut"] == sum(max(0, len(ids) - 16) for ids in whole)
    assert summary["tokens"] + summary["tokens_cut"] == len(stream_of(model, TEXTS))


def test_a_batch_equals_its_samples(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    for packing in ("concatenate", "truncate"):
        assert tokenise(planned(tmp_path / packing, model, corpus, make_data(packing=packing), 3))
        dataset = read_tokens(tmp_path / packing)
        indices = np.array([5, 0, len(dataset) - 1, 5])
        samples, lengths = dataset.batch(indices)
        assert (samples == np.stack([dataset[i] for i in indices])).all()
        assert lengths.tolist() == [dataset.length(i) for i in indices] == dataset.lengths(indices).tolist()


def test_many_parts_need_few_open_files(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_ewc.data.dataset.OPEN_PARTS", 2)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:9]])
    assert tokenise(planned(tmp_path / "t", model, [path], make_data(sequence_length=16), 1))
    dataset, samples = read_tokens(tmp_path / "t"), samples_of(stream_of(model, TEXTS[:9]), 16)
    for i in random.Random(0).choices(range(len(dataset)), k=100):
        assert dataset[i].tolist() == samples[i]
    assert dataset._map.cache_info().currsize == 2


def test_a_part_with_only_held_out_documents_is_empty(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:6]])
    stage = planned(tmp_path / "t", model, [path], make_data(heldout_documents=5), 1)
    assert tokenise(stage)
    assert 0 in [p.stat().st_size for p in stage.dir.parts.glob("*.bin")]
    left = [text for text in TEXTS[:6] if text not in read_heldout(stage)]
    assert read_tokens(tmp_path / "t")[0].tolist() == stream_of(model, left)[:16]


def read_heldout(stage: Stage) -> list[str]:
    return [row["text"] for row in records.read_lines(stage.dir.heldout)]


def test_held_out_documents_and_their_copies_are_never_trained_on(tmp_path: Path, model: Path) -> None:
    copied = TEXTS + TEXTS[::2] + TEXTS[::3]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in copied])
    stage = planned(tmp_path / "t", model, [path], make_data(heldout_documents=8))
    assert tokenise(stage)
    rows = list(records.read_lines(stage.dir.heldout))
    expected = sorted(TEXTS, key=text_hash)[:8]
    # in document order, each once, with its first location
    assert [row["text"] for row in rows] == [text for text in TEXTS if text in expected]
    assert [row["line"] for row in rows] == [TEXTS.index(row["text"]) + 1 for row in rows]
    assert {(row["file"], row["doc_hash"] == text_hash(row["text"])) for row in rows} == {(str(path), True)}
    trained = [text for text in copied if text not in expected]
    dataset, stream = read_tokens(stage.dir.path), stream_of(model, trained)
    assert [sample.tolist() for sample in dataset] == samples_of(stream, 16)
    summary = records.read_json(stage.dir.done)["summary"]
    assert summary["heldout_documents"] == 8
    assert summary["heldout_copies"] == len(copied) - len(trained) - 8
    assert summary["documents"] == len(trained)


def test_skipped_documents_are_counted_by_reason(tmp_path: Path, model: Path) -> None:
    rows = [{"text": TEXTS[0]}, {"txt": ""}, "{", {"text": ""}, {"text": TEXTS[1]}, {"text": " "}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = make_data(on_bad_document="skip")
    stage = planned(tmp_path / "t", model, [path], data, 2)
    assert tokenise(stage)
    manifest = records.read_json(stage.dir.manifest_json)
    assert manifest["skipped"] == {"broken line": 1, "empty": 2, "missing column": 1}
    assert (manifest["documents"], manifest["used_records"]) == (2, 6)
    assert manifest["files"] == [[str(path), path.stat().st_size]]
    assert manifest["tokenizer_hash"] == load_tokenizer(model).hash
    assert {"python", "tokenizers", "numpy", "pyarrow"} <= set(manifest["versions"])
    progress = records.read_json(stage.dir.progress())
    assert (progress["done"], progress["total"], progress["unit"]) == (6, 6, "document")


def test_samples_are_described_by_their_source_lines(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    a, b = map(str, corpus)
    assert tokenise(planned(tmp_path / "t", model, corpus, make_data(packing="truncate"), 7))
    dataset = read_tokens(tmp_path / "t")
    assert dataset.describe(0) == f"{a}:1"
    assert dataset.describe(24) == f"{a}:25"
    assert dataset.describe(25) == f"{b}: row 1"
    assert tokenise(planned(tmp_path / "c", model, corpus, make_data(sequence_length=200), 10))
    dataset, ends = read_tokens(tmp_path / "c"), np.cumsum([len(stream_of(model, [text])) for text in TEXTS])
    for i in range(len(dataset)):
        first, last = np.searchsorted(ends, [200 * i, 200 * (i + 1) - 1], side="right")
        where = dataset.describe(i)
        lines = [int(n) for n in re.findall(r"\d+", where.replace(a, "").replace(b, ""))]
        assert lines[0] == first + 1 - 25 * (first >= 25)
        assert lines[-1] == last + 1 - 25 * (last >= 25)
        assert (a in where, b in where) == (first < 25, last >= 25)


# ---------------------------------------------------------------------------------------------- workers


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    data, found = make_data(heldout_documents=5), []
    for of in (1, 2, 3):
        stage = planned(tmp_path / str(of), model, corpus, data, 7)
        ends = [tokenise(Stage(stage.dir.path, str(part)), part=part, of=of) for part in reversed(range(of))]
        assert ends == [False] * (of - 1) + [True]  # the last one finds all parts complete
        found.append(bytes_of(stage))
    assert found[0] == found[1] == found[2]
    assert len(list((tmp_path / "1" / "parts").glob("*.bin"))) == 9


def test_processes_write_the_same_bytes(
    tmp_path: Path, model: Path, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(heldout_documents=5)
    alone = planned(tmp_path / "alone", model, corpus, data, 20)
    assert tokenise(alone)
    monkeypatch.setattr(tokenise_module, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(tokenise_module, "available_cores", lambda: 2)
    monkeypatch.setattr(tokenise_module, "write_part", None)  # only in this process
    together = planned(tmp_path / "together", model, corpus, data, 20)
    assert tokenise(together)
    assert bytes_of(together) == bytes_of(alone)


def test_an_error_in_a_process_is_a_readable_message(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*({"text": text} for text in TEXTS[:20]), {"text": 7}])
    monkeypatch.setattr(tokenise_module, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(tokenise_module, "available_cores", lambda: 2)
    stage = planned(tmp_path / "t", model, [path], make_data())
    with pytest.raises(InputError, match=r"a\.jsonl:21: column 'text' holds int"):
        tokenise(stage)


def test_a_stopped_part_leaves_no_files_and_the_next_worker_resumes(
    tmp_path: Path, model: Path, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "BLOCK_BYTES", 300)
    whole = planned(tmp_path / "whole", model, corpus, make_data())
    assert tokenise(whole)
    stage = planned(tmp_path / "stopped", model, corpus, make_data())
    for after in count(2, 3):  # each attempt is stopped a little later, within a part
        asked = count()
        monkeypatch.setattr(stage, "stop_requested", lambda asked=asked, after=after: next(asked) >= after)
        before = {path.name: path.stat().st_mtime_ns for path in stage.dir.parts.glob("*")}
        done = tokenise(stage)
        names = {path.name for path in stage.dir.parts.glob("*")}
        assert all({f"{name[:5]}.bin", f"{name[:5]}.index", f"{name[:5]}.json"} <= names for name in names)
        assert all((stage.dir.parts / name).stat().st_mtime_ns == at for name, at in before.items())  # kept
        if done:
            break
        assert not stage.dir.done.exists()
    assert after > 2
    assert bytes_of(stage) == bytes_of(whole)


@pytest.mark.parametrize("ending", ["bin", "index", "json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_incomplete_part_is_rebuilt(
    tmp_path: Path, model: Path, corpus: list[Path], ending: str, damage: str
) -> None:
    stage = planned(tmp_path, model, corpus, make_data())
    assert tokenise(stage)
    before = bytes_of(stage)
    victim = stage.dir.parts / f"00002.{ending}"
    victim.write_bytes(victim.read_bytes()[:-5]) if damage == "cut" else victim.unlink()
    stage.dir.done.unlink()
    assert tokenise(stage)
    assert bytes_of(stage) == before


def test_a_finished_folder_is_not_changed(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    stage = planned(tmp_path, model, corpus, make_data())
    assert tokenise(stage)
    before = stage.dir.done.read_bytes()
    assert tokenise(Stage(tmp_path), part=5, of=9)
    assert stage.dir.done.read_bytes() == before


# ---------------------------------------------------------------------------------------------- refusals


def test_too_little_text_for_one_sample_is_refused(tmp_path: Path, model: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "old trees"}, {"text": 1}])
    stage = planned(tmp_path / "t", model, [path], make_data(sequence_length=64, on_bad_document="skip"))
    match = (
        r"has \d tokens in 1 documents \(1 skipped: \{'not text': 1\}\), less than one sample of 64; lower data\.seq"
    )
    with pytest.raises(InputError, match=match):
        tokenise(stage)
    assert not stage.dir.done.exists()


def test_parts_of_another_tokenizer_are_refused(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    other = write_model(tmp_path / "other")
    records.write_json(other / "tokenizer_config.json", {"bos_token": "<eos>"})
    first = planned(tmp_path / "t", other, corpus, make_data())
    tokenise(first, part=0, of=2)
    with pytest.raises(ArtefactError, match="was made with another tokenizer"):
        tokenise(make_stage(tmp_path / "t", model, corpus, make_data()))


def test_an_unfinished_folder_is_refused(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    with pytest.raises(ArtefactError, match=r"no done\.json; the tokens stage has not finished there"):
        read_tokens(tmp_path)


def damage(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    stage = planned(tmp_path, model, corpus, make_data())
    assert tokenise(stage)
    done = json.loads(stage.dir.done.read_text())
    binary = stage.dir.parts / "00001.bin"
    content = binary.read_bytes()
    binary.write_bytes(content[:-4])
    with pytest.raises(ArtefactError, match=r"00001\.bin: \d+ bytes, but done\.json says \d+; delete both"):
        read_tokens(tmp_path)
    damage(stage.dir.done, {"outputs": {}})  # without the list of outputs the sizes of the parts are still checked
    with pytest.raises(
        ArtefactError, match=r"00001\.bin: \d+ bytes, .* \d+ bytes: truncated or not written by hpc-ewc"
    ):
        read_tokens(tmp_path)
    binary.unlink()
    with pytest.raises(ArtefactError, match=r"00001\.bin: missing, expected \d+ bytes"):
        read_tokens(tmp_path)
    binary.write_bytes(content)
    damage(stage.dir.done, {"summary": {"loss": 1.0}})
    with pytest.raises(ArtefactError, match=r"done\.json: not written by a tokens stage"):
        read_tokens(tmp_path)
    stage.dir.done.write_text(json.dumps(done))
    assert len(read_tokens(tmp_path)) > 0


def test_a_sample_out_of_range_is_an_index_error(tmp_path: Path, model: Path, corpus: list[Path]) -> None:
    assert tokenise(planned(tmp_path, model, corpus, make_data()))
    dataset = read_tokens(tmp_path)
    for i in (-1, len(dataset)):
        with pytest.raises(IndexError, match=rf"sample {i} of {len(dataset)}"):
            dataset[i]


# ---------------------------------------------------------------------------------------------- any corpus


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip), min_size=1
    ),
    part_records=st.integers(1, 4),
    packing=st.sampled_from(["concatenate", "truncate"]),
)
@settings(max_examples=12, deadline=None)
def test_any_corpus_gives_the_oracle_stream(
    tmp_path_factory: pytest.TempPathFactory, model: Path, texts: list[str], part_records: int, packing: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    files = [write_jsonl(folder / "a.jsonl", [{"text": text} for text in [*texts, "a stone is wet " * 4]])]
    stage = planned(folder / "t", model, files, make_data(sequence_length=8, packing=packing), part_records)
    assert tokenise(stage)
    dataset = read_tokens(folder / "t")
    documents = [stream_of(model, [text]) for text in [*texts, "a stone is wet " * 4]]
    if packing == "truncate":
        assert [dataset[i][: dataset.length(i)].tolist() for i in range(len(dataset))] == [d[:8] for d in documents]
    else:
        stream = [i for document in documents for i in document]
        assert [dataset[n].tolist() for n in range(len(dataset))] == samples_of(stream, 8)


def test_real_lithuanian_text_gives_the_oracle_stream(tmp_path: Path, model: Path, shared_data: Path) -> None:
    files = [shared_data / "lt_text" / name for name in ("ntrex_news_lt.jsonl", "sib200_flores_lt.jsonl")]
    stage = planned(tmp_path / "t", model, files, make_data(sequence_length=512, heldout_documents=20), 50)
    assert tokenise(stage)
    held = set(read_heldout(stage))
    texts = [json.loads(line)["text"] for path in files for line in path.read_bytes().split(b"\n") if line]
    dataset, stream = read_tokens(tmp_path / "t"), stream_of(model, [text for text in texts if text not in held])
    assert len(held) == 20
    assert [dataset[n].tolist() for n in range(len(dataset))] == samples_of(stream, 512)
