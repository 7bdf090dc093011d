"""Inputs are found on disk or in the cache and identified by their content."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path

import pytest

from examples.miniature.files import fisher_files
from hpc_ewc import records
from hpc_ewc.config import Experiment, load_experiment
from hpc_ewc.errors import ConfigError, InputError
from hpc_ewc.launch.inputs.hashes import HashCache
from hpc_ewc.launch.inputs.resolver import Resolver
from hpc_ewc.launch.inputs.source_files import choose_files, expand_files, hub_files
from tests.conftest import link_miniature, use_hub_cache
from tests.unit.launch_world import write_experiment, write_model


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hub")


def hub(tmp_path: Path, kind: str, name: str, files: list[str], commit: str = "c0ffee") -> Path:
    """Make a repository in huggingface_hub's layout: files are links into blobs."""
    repository = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir(exist_ok=True)
    for number, file in enumerate(files):
        blob = repository / "blobs" / f"b{number}"
        blob.write_text(file)
        link = repository / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return repository / "snapshots" / commit


def experiment_with(tmp_path: Path, *changes: tuple[str, str]) -> Experiment:
    sweep = write_experiment(tmp_path, [0])
    text = sweep.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    sweep.write_text(text)
    return load_experiment(sweep)


# ---------------------------------------------------------------------------------------------- files


def test_globs_keep_their_order_and_list_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.txt.zst", "d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("WHERE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = expand_files(["d.parquet", "$WHERE/*.jsonl", "**/*.zst", "a.jsonl"], "data.files")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "d.parquet",
        "a.jsonl",
        "b.jsonl",
        "deep/c.txt.zst",
    ]


@pytest.mark.parametrize(("name", "message"), [("no-*.jsonl", "names no file"), ("x.csv", "allowed are .jsonl")])
def test_a_glob_without_readable_files_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(ConfigError, match=re.escape(message)):
        expand_files([str(tmp_path / name)], "data.files")


def test_corpus_key_depends_on_content_and_not_on_location(tmp_path: Path) -> None:
    corpus = '"' + str(tmp_path / "corpus.jsonl") + '"'
    moved = tmp_path / "moved.jsonl"
    first = Resolver("x").resolve(experiment_with(tmp_path))
    moved.write_bytes((tmp_path / "corpus.jsonl").read_bytes())
    second = Resolver("x").resolve(experiment_with(tmp_path, (corpus, f'"{moved}"')))
    assert first.identities == second.identities
    assert first.corpus != second.corpus
    moved.write_text('{"text": "another"}')
    assert Resolver("x").resolve(experiment_with(tmp_path, (corpus, f'"{moved}"'))).identities != first.identities


def test_token_key_depends_only_on_the_models_tokenizer(tmp_path: Path) -> None:
    first = Resolver("x").resolve(experiment_with(tmp_path)).identities
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    second = Resolver("x").resolve(load_experiment(tmp_path / "small.toml")).identities
    assert (first.tokenizer, first.corpus) == (second.tokenizer, second.corpus)
    assert first.model != second.model


def test_a_cached_hash_avoids_reading_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text("a")
    cache = HashCache()
    digest = cache.sha256(path)
    assert digest == records.sha256_file(path)
    cache.save()
    with monkeypatch.context() as patch:
        patch.setattr(records, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
        assert HashCache().sha256(path) == digest
    status = path.stat()
    path.write_text("b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert HashCache().sha256(path) != digest


def test_a_damaged_hash_cache_costs_only_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("a")
    HashCache().path.parent.mkdir(parents=True)
    HashCache().path.write_text("{")
    assert HashCache().sha256(path) == records.sha256_file(path)


def test_slow_hashing_is_announced(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # a sparse file: no bytes are written
    said: list[str] = []
    cache = HashCache()
    cache.announced = said.append
    cache.announce([path], "data.files")
    assert said == ["hashing data.files: 3 GB, once"]


def test_held_out_text_must_exist(tmp_path: Path) -> None:
    there = tmp_path / "news.jsonl"
    there.write_text("x")
    ok = experiment_with(tmp_path, ("[evaluate]", f'[evaluate]\nheldout = {{ en = "{there}" }}'))
    assert Resolver("x").resolve(ok).heldout == {"en": str(there)}
    there.unlink()
    with pytest.raises(ConfigError, match=r"x\.toml: evaluate\.heldout\.en = .*: no such file"):
        Resolver("x.toml").resolve(ok)


def test_user_rows_replace_rows_from_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    row = folder / "en" / "arc_easy" / "test.jsonl"
    row.parent.mkdir(parents=True)
    row.write_text("{}\n")
    asked = experiment_with(tmp_path, ("[evaluate]", f'[evaluate]\nquestions = "{folder}"'))
    before = Resolver("x").resolve(asked)
    assert before.questions == str(folder)
    row.write_text("{ }\n")
    assert Resolver("x").resolve(asked).question_id != before.question_id
    row.unlink()
    with pytest.raises(
        ConfigError, match=r"x\.toml: evaluate\.questions = .*: no <language>/<task>/<split>\.jsonl in "
    ):
        Resolver("x.toml").resolve(asked)


def test_answer_words_need_rows_in_files(tmp_path: Path) -> None:
    asked = experiment_with(tmp_path, ("[evaluate]", "[evaluate]\ncloze = true"))
    with pytest.raises(ConfigError, match="evaluate.cloze = true needs rows in files"):
        Resolver("x.toml").resolve(asked)


# ---------------------------------------------------------------------------------------------- the hub


def test_a_hub_model_is_identified_by_its_commit(tmp_path: Path) -> None:
    snapshot = hub(tmp_path, "model", "org/tiny", ["config.json", "tokenizer.json", "model.safetensors"])
    write_model(snapshot)
    experiment = experiment_with(tmp_path, (f'"{tmp_path}/model"', '"org/tiny"'))
    inputs = Resolver("x").resolve(experiment)
    assert inputs.model == str(snapshot)
    assert inputs.identities.model == "org/tiny@c0ffee"


def test_a_revision_is_resolved_as_given(tmp_path: Path) -> None:
    commit, other = "a1" * 20, "b2" * 20
    hub(tmp_path, "model", "org/tiny", ["config.json"], commit=commit)
    assert hub_files("model", "org/tiny", commit, list, label="x", fix="fix")[0].name == commit
    with pytest.raises(
        InputError, match=re.escape(f"at {other}, and not a folder here; fetch it with: hpc-ewc prefetch x.toml")
    ):
        hub_files("model", "org/tiny", other, list, label="model.path", fix="hpc-ewc prefetch x.toml")


def test_errors_about_missing_hub_files_give_the_prefetch_command(tmp_path: Path) -> None:
    experiment = experiment_with(
        tmp_path, ('source = "files"\nfiles = ["' + str(tmp_path) + "/q", 'source = "cais/mmlu"\n#')
    )
    with pytest.raises(InputError, match=re.escape("x.toml: fisher.source = 'cais/mmlu': not in the cache")) as caught:
        Resolver("x.toml").resolve(experiment)
    assert "hpc-ewc prefetch x.toml" in str(caught.value)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "just-a-word"])
def test_a_model_that_is_neither_folder_nor_hub_id_is_refused(tmp_path: Path, path: str) -> None:
    experiment = experiment_with(tmp_path, (f'"{tmp_path}/model"', f'"{path}"'))
    with pytest.raises(ConfigError, match=r"model\.path = .*: no such folder, and not a hub id"):
        Resolver("x").resolve(experiment)


def test_a_source_that_is_no_hub_id_is_refused(tmp_path: Path) -> None:
    old = f'source = "files"\nfiles = ["{tmp_path}/corpus.jsonl"]'
    with pytest.raises(ConfigError, match=re.escape("data.source = 'CulturaX': allowed are a hub id (owner/name)")):
        Resolver("x").resolve(experiment_with(tmp_path, (old, 'source = "CulturaX"')))


def files_of(name: str, subset: str, split: str) -> list[Path]:
    choose = functools.partial(choose_files, subset=subset, split=split)
    return hub_files("dataset", name, None, choose, label="x", fix="fix")[1]


def test_subset_and_split_match_folders_or_file_name_prefixes(tmp_path: Path) -> None:
    names = [
        "README.md",
        "all/validation-00000-of-00001.parquet",
        "all/test-0.parquet",
        "all_more/validation-0.parquet",
    ]
    snapshot = hub(tmp_path, "dataset", "cais/mmlu", names)
    assert files_of("cais/mmlu", "all", "validation") == [snapshot / names[1]]
    names = ["lt/lt_part_00001.parquet", "lt/lt_part_00000.parquet", "en/en_part_00000.parquet"]
    snapshot = hub(tmp_path, "dataset", "uonlp/CulturaX", names)
    found = [path.name for path in files_of("uonlp/CulturaX", "lt", "train")]
    assert found == ["lt_part_00000.parquet", "lt_part_00001.parquet"], (
        "without splits the whole corpus is training data"
    )
    assert files_of("uonlp/CulturaX", "lt", "test") == []
    snapshot = hub(tmp_path, "dataset", "x/y", ["data/lt/train/0.jsonl.gz", "data/lt/test/0.jsonl.gz"])
    assert [path.parent.name for path in files_of("x/y", "lt", "train")] == ["train"]


def test_a_hub_corpus_without_the_subset_is_refused(tmp_path: Path) -> None:
    hub(tmp_path, "dataset", "uonlp/CulturaX", ["en/en_part_00000.parquet"])
    old = f'source = "files"\nfiles = ["{tmp_path}/corpus.jsonl"]'
    with pytest.raises(InputError, match=re.escape("no .jsonl, .parquet, .txt file of subset 'lt', split 'train'")):
        Resolver("x").resolve(experiment_with(tmp_path, (old, 'source = "uonlp/CulturaX"')))


# ---------------------------------------------------------------------------------------------- the miniature

FILES = """
[model]
path = "data/miniature/model"
[data]
source = "files"
files = ["data/miniature/text/train.lt.jsonl"]
[fisher]
source = "files"
files = ["data/miniature/questions/en/mmlu/validation/*.jsonl"]
[evaluate]
questions = "data/miniature/questions"
heldout = { en = "data/miniature/text/heldout.en.jsonl", lt = "data/miniature/text/heldout.lt.jsonl" }
"""


def test_the_miniature_is_identified_by_its_contents(
    tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link_miniature(tmp_path, miniature)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.toml").write_text(FILES)
    inputs = Resolver("x").resolve(load_experiment(tmp_path / "mini.toml"))
    folder = tmp_path / "data" / "miniature"
    assert (inputs.model, inputs.questions) == (str(folder / "model"), str(folder / "questions"))
    assert inputs.corpus == (str(folder / "text" / "train.lt.jsonl"),)
    assert inputs.fisher == tuple(map(str, fisher_files(folder, "paper"))), "in the order of the subjects"
    assert inputs.heldout == {name: str(folder / "text" / f"heldout.{name}.jsonl") for name in ("en", "lt")}
    ids = [*vars(inputs.identities).values(), inputs.question_id, *inputs.heldout_ids.values()]
    assert len(set(ids)) == len(ids)
    shutil.copytree(miniature, tmp_path / "elsewhere")
    (tmp_path / "mini.toml").write_text(FILES.replace("data/miniature", "elsewhere"))
    again = Resolver("x").resolve(load_experiment(tmp_path / "mini.toml"))
    assert again.identities == inputs.identities and again.question_id == inputs.question_id
    assert again.heldout_ids == inputs.heldout_ids


def test_a_judge_under_the_old_key_is_refused(tmp_path: Path) -> None:
    judged = ("[evaluate]", '[evaluate]\njudge = "miniature"')
    with pytest.raises(ConfigError, match="evaluate.judge = 'miniature': no longer built in; run `python -m examples"):
        Resolver("x").resolve(experiment_with(tmp_path, judged))
