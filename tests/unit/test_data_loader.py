"""Every rank gets its share of each step, in one shape, read ahead."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc.data import StepLoader, TokenDataset, batch_indices, read_tokens
from hpc_ewc.data.loader import positions_in_document
from hpc_ewc.data.tokenise import tokenise
from tests.unit.data_corpus import make_data, make_stage, make_texts, write_jsonl, write_model

BOS = 2


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenDataset]:
    folder = tmp_path_factory.mktemp("loader")
    model = write_model(folder / "model")
    files = [write_jsonl(folder / "a.jsonl", [{"text": text} for text in make_texts(80)])]
    found = {}
    for packing in ("concatenate", "truncate"):
        assert tokenise(make_stage(folder / packing, model, files, make_data(packing=packing)))
        found[packing] = read_tokens(folder / packing)
    return found


def build(dataset: TokenDataset, **changes: int | bool) -> StepLoader:
    given = {"seed": 3, "global_batch_size": 10, "local_batch_size": 2, "rank": 0, "world_size": 1}
    return StepLoader(dataset, **(given | {"start_step": 0, "steps": 4} | changes))


def test_one_rank_gets_the_samples_of_each_step_in_order(datasets: dict[str, TokenDataset]) -> None:
    dataset = datasets["concatenate"]
    with build(dataset, local_batch_size=4) as loader:
        batches = list(loader)
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    for batch in batches:
        indices = batch_indices(3, batch.step, 10, len(dataset))
        assert (batch.samples == indices).all()
        rows = torch.cat([microbatch["input_ids"] for microbatch in batch.microbatches])
        assert rows.tolist() == [dataset[i].tolist() for i in indices]
        assert all(torch.equal(m["labels"], m["input_ids"]) for m in batch.microbatches)
        assert [len(m["input_ids"]) for m in batch.microbatches] == [4, 3, 3]  # evenly, not 4 + 4 + 2
        assert batch.scored_tokens == 10 * 15


@given(
    batch=st.integers(1, 24),
    local=st.integers(1, 9),
    world=st.integers(1, 7),
    packing=st.sampled_from(["concatenate", "truncate"]),
    step=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_ranks_scores_the_same_tokens_of_the_same_samples(
    datasets: dict[str, TokenDataset], batch: int, local: int, world: int, packing: str, step: int
) -> None:
    dataset = datasets[packing]
    ranks = [
        build(dataset, global_batch_size=batch, local_batch_size=local, rank=rank, world_size=world).read(step)
        for rank in range(world)
    ]
    shapes = {tuple(m["input_ids"].shape for m in rank.microbatches) for rank in ranks}
    assert len(shapes) == 1  # under FSDP an extra forward or another shape on one rank hangs or recompiles
    assert all(shape[0] <= local for shape in next(iter(shapes)))
    assert len({rank.scored_tokens for rank in ranks}) == 1
    labels = torch.cat([m["labels"] for rank in ranks for m in rank.microbatches])
    assert int((labels[:, 1:] != -100).sum()) == ranks[0].scored_tokens
    scored = sorted(tuple(row[row != -100].tolist()) for row in labels if (row != -100).any())
    samples = [dataset[i][: dataset.length(i)] for i in batch_indices(3, step, batch, len(dataset))]
    assert scored == sorted(tuple(sample.tolist()) for sample in samples)


def test_padding_is_not_scored(datasets: dict[str, TokenDataset]) -> None:
    dataset = datasets["truncate"]
    batch = build(dataset, global_batch_size=30, local_batch_size=30).read(0)
    (microbatch,) = batch.microbatches
    for row, i in enumerate(batch.samples):
        length = dataset.length(int(i))
        assert microbatch["labels"][row, :length].tolist() == microbatch["input_ids"][row, :length].tolist()
        assert microbatch["labels"][row, length:].tolist() == [-100] * (16 - length)
        assert microbatch["input_ids"][row, length:].tolist() == [dataset.pad_id] * (16 - length)
    assert batch.scored_tokens == sum(dataset.length(int(i)) - 1 for i in batch.samples)


def test_a_resumed_run_reads_the_same_samples_as_an_uninterrupted_one(datasets: dict[str, TokenDataset]) -> None:
    dataset = datasets["concatenate"]
    with build(dataset, steps=9) as whole, build(dataset, start_step=5, steps=9) as rest:
        expected, found = list(whole)[5:], list(rest)
    for a, b in zip(expected, found, strict=True):
        assert a.step == b.step
        for m, n in zip(a.microbatches, b.microbatches, strict=True):
            assert torch.equal(m["input_ids"], n["input_ids"])


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_reading_ahead_changes_nothing(datasets: dict[str, TokenDataset], ahead: int) -> None:
    with build(datasets["concatenate"], ahead=ahead) as loader:
        found = [m["input_ids"].tolist() for batch in loader for m in batch.microbatches]
    expected = build(datasets["concatenate"])
    assert found == [m["input_ids"].tolist() for step in range(4) for m in expected.read(step).microbatches]
    assert loader.waited_s > 0


def test_steps_are_read_ahead(datasets: dict[str, TokenDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    loader = build(datasets["concatenate"], steps=50, ahead=4)
    read, enough = [], threading.Event()
    original = loader.read

    def noted(step: int) -> object:
        read.append(step)
        if step == 4:
            enough.set()
        return original(step)

    monkeypatch.setattr(loader, "read", noted)
    with loader:
        batches = iter(loader)
        assert next(batches).step == 0
        assert enough.wait(30)
        time.sleep(0.05)
        assert read == [0, 1, 2, 3, 4]  # no further: memory is bounded


def test_closing_ends_the_thread(datasets: dict[str, TokenDataset]) -> None:
    with build(datasets["concatenate"], steps=1000) as loader:
        batches = iter(loader)
        next(batches)
        (thread,) = [t for t in threading.enumerate() if t.name.startswith("read tokens")]
    assert not thread.is_alive()
    with build(datasets["concatenate"]) as unused:
        pass
    unused.close()


def test_an_error_in_the_thread_is_raised_when_its_step_is_requested(
    datasets: dict[str, TokenDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = datasets["concatenate"]

    def fail(indices: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(dataset, "batch", fail)
    with build(dataset) as loader, pytest.raises(OSError, match="stale file handle"):
        next(iter(loader))


# ---------------------------------------------------------------------------------------------- across documents


def test_positions_restart_at_each_document() -> None:
    ids = np.array([[9, 9, BOS, 5, 6, BOS, BOS, 7], [BOS, 1, 1, 1, 1, 1, 1, 1]])
    assert positions_in_document(ids, BOS).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_positions_are_given_only_if_attention_must_not_cross_documents(datasets: dict[str, TokenDataset]) -> None:
    dataset = datasets["concatenate"]
    (across, *_) = build(dataset).read(0).microbatches
    (apart, *_) = build(dataset, attend_across_documents=False).read(0).microbatches
    assert set(across) == {"input_ids", "labels"}
    expected = positions_in_document(apart["input_ids"].numpy(), BOS)
    assert apart["position_ids"].tolist() == expected.tolist()
    assert torch.equal(across["input_ids"], apart["input_ids"])


def test_gemma_reads_each_document_separately_with_these_positions(
    datasets: dict[str, TokenDataset], tmp_path: Path
) -> None:
    """Oracle: each document of a packed row gives the same logits as alone, including the sliding window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    dataset = datasets["concatenate"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8, "sliding_window": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=dataset.vocab_size, **sizes, **heads)).eval()
    microbatch = build(dataset, local_batch_size=10, attend_across_documents=False).read(0).microbatches[0]
    with torch.no_grad():
        packed = model(
            input_ids=microbatch["input_ids"], position_ids=microbatch["position_ids"], use_cache=False
        ).logits
        crossed = model(input_ids=microbatch["input_ids"], use_cache=False).logits
        apart = torch.zeros_like(packed)
        for row, positions in enumerate(microbatch["position_ids"]):
            begins = [t for t in range(16) if positions[t] == 0]
            for begin, end in zip(begins, [*begins[1:], 16], strict=True):
                ids = microbatch["input_ids"][row : row + 1, begin:end]
                apart[row, begin:end] = model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(crossed, apart, atol=1e-3)
