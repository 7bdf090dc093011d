"""Sealed benchmark rows: the rows read equal the rows fetched, and reading changes no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from hpc_ewc import hub, suites
from hpc_ewc.evaluate.sealed import seal, sealed_rows
from hpc_ewc.evaluate.task_files import hub_sources, write_task_files
from hpc_ewc.suites import Cell
from tests.conftest import use_hub_cache

NAME = "allenai/ai2_arc"


class Hub:
    """Fake hub with a newest commit and available configurations; it records requests."""

    def __init__(self) -> None:
        self.commit = "a" * 40
        self.refused: set[str] = set()
        self.asked: list[tuple[str | None, str]] = []

    def dataset_info(self, name: str) -> Any:
        return type("Info", (), {"sha": self.commit})

    def load_dataset(self, path: str, name: str | None, *, revision: str, cache_dir: str) -> datasets.DatasetDict:
        self.asked.append((name, revision[0]))
        if name in self.refused:
            raise ConnectionError(f"{name}: no route")
        label = datasets.Features(
            {"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        rows = [{"question": f"{name} {revision[0]} {i}", "label": i % 2} for i in range(3)]
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows, features=label)})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    fake = Hub()
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    return fake


def test_rows_keep_their_features_in_a_read_only_folder(fake: Hub) -> None:
    assert seal(NAME, ["ARC-Easy"]) == f"3 rows, {'a' * 7}"
    folder = hub.sealed_rows_dir(NAME, "ARC-Easy")
    assert folder is not None
    folder.chmod(0o555)
    before = sorted(hub.benchmark_dir(NAME).rglob("*"))
    try:
        rows = sealed_rows(str(folder), version=1.0)["test"]
        mapped = rows.map(lambda row: {"long": row["question"] * 2})  # like process_docs of a task
        assert rows.features["label"].names == ["no", "yes"]
        assert mapped[2]["long"] == "ARC-Easy a 2" * 2
        assert rows.cache_files == mapped.cache_files == []
    finally:
        folder.chmod(0o755)
    assert sorted(hub.benchmark_dir(NAME).rglob("*")) == before


def test_a_commit_is_kept_until_another_is_requested_and_complete(fake: Hub) -> None:
    seal(NAME, ["x", "y"])
    fake.commit = "b" * 40
    seal(NAME, ["x", "y", "z"])
    assert fake.asked == [("x", "a"), ("y", "a"), ("z", "a")]
    assert suites.hub_commit(NAME) == "a" * 40
    fake.refused.add("y")
    with pytest.raises(ConnectionError):
        seal(NAME, ["x", "y"], update=True)
    assert hub.pinned_commit(NAME) == "a" * 40, "an incomplete new commit is not used"
    fake.refused.clear()
    fake.asked.clear()
    seal(NAME, ["x", "y"], update=True)
    assert fake.asked == [("y", "b")]
    assert hub.pinned_commit(NAME) == "b" * 40


def test_task_files_read_sealed_rows_or_else_the_datasets_cache(fake: Hub, tmp_path: Path) -> None:
    cell = Cell("arc_easy", "en")
    write_task_files(tmp_path / "before", cell)
    seal(NAME, ["ARC-Easy"])
    write_task_files(tmp_path / "after", cell)
    before, after = ((tmp_path / when / "arc_easy.en.yaml").read_text() for when in ("before", "after"))
    assert "custom_dataset" not in before and f"dataset_path: {NAME}" in before
    assert "custom_dataset: !function" in after and "sealed_rows" in after and "a" * 40 in after
    assert suites.data_hash(cell, questions=None, heldout=None) == f"{NAME}@{'a' * 40}"


def test_mmlu_has_57_configurations_and_held_out_text_none() -> None:
    assert len(hub_sources(Cell("mmlu", "lt"))) == 57
    assert hub_sources(Cell("belebele", "lt")) == [("facebook/belebele", "lit_Latn")]
    assert hub_sources(Cell("ppl_heldout", "en")) == []
