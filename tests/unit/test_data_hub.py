"""Files of a configuration and split in data sets with the hub's layout. No network is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_ewc.config import FisherConfig
from hpc_ewc.data import hub, load_tokenizer, question_batches
from hpc_ewc.errors import InputError
from tests.unit.data_corpus import make_texts, write_compressed, write_model, write_parquet

CARD = """---
configs:
- config_name: lt
  data_files:
  - split: train
    path: lt/*.parquet
- config_name: questions
  data_files:
  - split: validation
    path: questions/validation.parquet
  - split: test
    path: questions/test.parquet
- config_name: table
  data_files: table.csv
---
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a data set folder in the layout of the hub's cache, with a card that names its configurations."""
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    for name in ("lt", "questions"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    texts = make_texts(20)
    for i in range(2):
        write_parquet(folder / "lt" / f"lt_part_0000{i}.parquet", {"text": texts[10 * i : 10 * i + 10]})
    for split in ("validation", "test"):
        rows = {"question": [f"{split}?"], "choices": [["a", "b", "c", "d"]], "answer": [1], "subject": ["x"]}
        write_parquet(folder / "questions" / f"{split}.parquet", rows)
    write_compressed(folder / "table.csv", b"text\na\n")
    return folder


def test_the_dataset_card_lists_the_files_of_a_split(repository: Path) -> None:
    files = hub.resolve(str(repository), "lt", "train")
    assert [Path(name).name for name in files] == ["lt_part_00000.parquet", "lt_part_00001.parquet"]
    assert all(Path(name).is_file() for name in files)


def test_questions_come_from_the_hub_if_submit_gave_no_files(repository: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path / "model"))
    config = FisherConfig(source=str(repository), subset="questions", split="validation", prompt="text")
    (batch,) = question_batches(config, None, tokenizer, rank=0, world_size=1)
    decoded = tokenizer.backend.decode(batch["input_ids"][0].tolist())
    assert decoded == "Question: validation?\nAnswer: b"


def test_missing_splits_subsets_and_unreadable_files_are_named(repository: Path) -> None:
    with pytest.raises(InputError, match=r"\(questions\): no split 'tests'; did you mean 'test'\?"):
        hub.resolve(str(repository), "questions", "tests")
    with pytest.raises(InputError, match=r"data set .*\(et\): .*BuilderConfig 'et' not found"):
        hub.resolve(str(repository), "et", "train")
    with pytest.raises(InputError, match=r"table\.csv: cannot be read; allowed are \.jsonl \.parquet \.txt"):
        hub.resolve(str(repository), "table", "train")


class GatedRepoError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("403"),
            r"\(lt\): gated: accept its terms on the hub, at .*/datasets/uonlp/CulturaX, then set HF_TOKEN",
        ),
        (ConnectionError("no route"), r"the hub is out of reach; run `hpc-ewc prefetch SWEEP\.toml` where"),
        (ValueError("odd  card"), r"data set 'uonlp/CulturaX' \(lt\): ValueError: odd card"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(InputError, match=message):
        hub.resolve("uonlp/CulturaX", "lt", "train")


def test_hub_urls_use_the_commit_and_the_token_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = [f"hf://datasets/uonlp/CulturaX@abc123/lt/lt_part_0000{i}.parquet" for i in range(2)]

    class Builder:
        class config:  # noqa: N801 - as `datasets` spells it
            data_files = {"train": urls}  # noqa: RUF012

    asked = []

    def load(source: str, subset: str, *, token: str | None) -> type[Builder]:
        asked.append((source, subset, token))
        return Builder

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.resolve("uonlp/CulturaX", "lt", "train") == urls
    assert asked == [("uonlp/CulturaX", "lt", "secret")]
