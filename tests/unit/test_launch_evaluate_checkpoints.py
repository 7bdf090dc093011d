"""`hpc-ewc evaluate CHECKPOINT…`: finding checkpoints, choosing cells, and error messages. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpc_ewc.cli import evaluate
from hpc_ewc.errors import ConfigError, HpcEwcError, InputError
from hpc_ewc.launch.inputs.checkpoints import find_checkpoints
from hpc_ewc.model_folder import check_model
from tests.conftest import use_hub_cache
from tests.unit.launch_world import safetensors, write_model

FACTS = {"run": "strength=1-abc", "step": 20, "fraction": 1.0, "train_key": "k1", "model_hash": "m", "base_hash": "b"}


def checkpoint(folder: Path, *, facts: dict[str, Any] | None = None) -> Path:
    write_model(folder)
    if facts is not None:
        (folder / "hpc_ewc.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")


def test_folders_globs_and_hub_ids_are_listed_once_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint(tmp_path / "models" / name)
    found = find_checkpoints(["models/*", "models/a", "org/tiny", "org/tiny@v1"])
    names = [given.name for given in found]
    assert names == [f"{tmp_path}/models/a", f"{tmp_path}/models/b", "org/tiny", "org/tiny@v1"]
    assert (found[3].model.path, found[3].model.revision) == ("org/tiny", "v1")


def test_two_folders_with_the_same_name_are_two_runs(tmp_path: Path) -> None:
    found = find_checkpoints([str(checkpoint(tmp_path / where / "model")) for where in ("x", "y")])
    runs = [given.run for given in found]
    assert all(re.fullmatch("model-[0-9a-f]{12}", run) for run in runs)
    assert len(set(runs)) == 2


def test_two_copies_of_the_same_export_are_refused(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        checkpoint(tmp_path / name, facts=FACTS)
    with pytest.raises(
        ConfigError, match=r"one and .*copy: both say they are run strength=1-abc at fraction 1; give one"
    ):
        find_checkpoints(["one", "copy"])


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    for name in ("empty", "readme"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        InputError, match=r"empty: no config\.json.*; .*readme: no config\.json.*; .*gone: no such folder"
    ):
        find_checkpoints(["empty", "readme", "./gone"])


def test_no_checkpoint_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint given; name folders, globs or hub ids"):
        find_checkpoints([])


def test_refused_run_folder_names_its_exports(tmp_path: Path) -> None:
    export = checkpoint(tmp_path / "runs" / "x" / "train" / "r" / "exports" / "00000020", facts=FACTS)
    with pytest.raises(InputError, match=rf"not a Hugging Face model; checkpoints below it: {export}"):
        find_checkpoints(["runs/x"])


def spoil(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    match what:
        case "no weights":
            weights.unlink()
        case "cut off":
            weights.write_bytes(safetensors(4, data=5))
        case "no header":
            weights.write_bytes(b"\x10")
        case "shards":
            index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "other tokenizer":
            (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {str(i): i for i in range(9)}}}))
        case "config":
            (folder / "config.json").write_text("{")
        case "facts":
            (folder / "hpc_ewc.json").write_text('{"run": "x"}')


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no weights", r"no \*\.safetensors; an incomplete export, or another format"),
        ("cut off", r"model\.safetensors: not a complete safetensors file \(\d+ bytes\): .*; copy or fetch it again"),
        ("no header", r"not a complete safetensors file \(1 bytes\): .*header too small; copy"),
        ("shards", r"1 of 2 weight files missing, such as model-1\.safetensors; an incomplete export or copy"),
        ("no tokenizer", r"no tokenizer\.json or tokenizer\.model; copy the base model's tokenizer into it"),
        ("other tokenizer", r"its tokenizer has 9 tokens, the model embeds 4: the files of two different models"),
        ("config", r"config\.json"),
        ("facts", r"hpc_ewc\.json: lacks step, fraction, train_key, model_hash, base_hash; corrupt or not written by"),
    ],
)
def test_incomplete_checkpoints_are_refused_before_a_job_starts(tmp_path: Path, what: str, message: str) -> None:
    folder = checkpoint(tmp_path / "model")
    check_model(folder)
    spoil(folder, what)
    with pytest.raises(InputError, match=message):
        find_checkpoints(["model"])


def test_an_export_without_its_last_file_is_incomplete(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "exports" / "00000020")
    with pytest.raises(InputError, match=r"no hpc_ewc\.json, which is written last: incomplete export"):
        find_checkpoints([str(folder)])


def keys(**options: Any) -> dict[str, Any]:
    """Return the keys of [evaluate] that a command line with these options sets."""
    return evaluate.evaluate_keys(evaluate.Settings(checkpoints=("model",), **{"suites": "arc_easy.en"} | options))


def ask(*checkpoints: str, name: str = "mine", **options: Any) -> int:
    options = {"suites": "arc_easy.en", "dtype": "float32", "dry_run": True} | options
    return evaluate.run(evaluate.Settings(checkpoints=checkpoints, name=name, **options))


def test_command_line_options_set_configuration_keys() -> None:
    found = keys(shots="gsm8k=5,mmlu=0", heldout="en=a.jsonl, lt=b.jsonl", prompts="core,native", limit=4)
    assert found["shots"] == {"gsm8k": 5, "mmlu": 0}
    assert found["heldout"] == {"en": "a.jsonl", "lt": "b.jsonl"}
    assert (found["prompts"], found["suites"], found["limit"]) == (["core", "native"], ["arc_easy.en"], 4)
    assert keys(backend="vllm", backend_args="swap_space=1")["backend_args"] == "swap_space=1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": "arc_esay.en"}, r"unknown .*'arc_esay\.en'"),
        ({"suites": "fluenzy"}, r"did you mean 'fluency'\?"),
        ({"suites": "ppl_heldout"}, r"--suites ppl_heldout: no text; name a file: --heldout"),
        ({"shots": "gsm8k"}, r"--shots gsm8k: 'gsm8k' is not name=value, such as gsm8k=5"),
        ({"shots": "gsm8k=many"}, r"--shots gsm8k=many: 'gsm8k=many': not a whole number"),
        ({"heldout": "en="}, r"--heldout en=: 'en' is not name=value"),
        ({"backend_args": "x=1"}, r"evaluate\.backend_args = 'x=1': backend 'hf' takes none: .* set evaluate\.backend"),
        ({"backend": "gguf"}, r"hpc-ewc evaluate: evaluate\.backend = 'gguf': allowed are hf, vllm"),
        ({"limit": 0}, r"evaluate\.limit = 0: allowed is \[1, inf\)"),
        ({"name": "No Such"}, r"--name No Such: its name becomes the name of the run folder"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        ask("model", **changes)


def test_an_experiments_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "runs" / "paper").mkdir(parents=True)
    (tmp_path / "runs" / "paper" / "experiment.toml").write_text("[model]\n")
    with pytest.raises(ConfigError, match=r"--name paper: .* is the run folder of an experiment; give another name"):
        ask("model", name="paper")


def test_a_hub_model_missing_from_the_cache_is_an_error() -> None:
    with pytest.raises(HpcEwcError, match=r"model\.path = 'org/tiny': not in the cache .*fetch it with: hf download"):
        ask("org/tiny")


def test_rows_from_the_users_folder_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"evaluate\.questions = '.*/mine': no <language>/<task>/<split>\.jsonl"):
        ask("model", questions=Path("mine"))
    (tmp_path / "mine" / "en" / "arc_easy").mkdir(parents=True)
    (tmp_path / "mine" / "en" / "arc_easy" / "test.jsonl").write_text("{}\n")
    assert ask("model", questions=Path("mine")) == 0
    assert "evaluate 0 of 1 done" in capsys.readouterr().out


def test_exports_of_one_training_share_a_run_and_other_checkpoints_have_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "early", facts={**FACTS, "step": 10, "fraction": 0.5})
    checkpoint(tmp_path / "late", facts=FACTS)
    checkpoint(tmp_path / "other")
    checkpoint(tmp_path / "first")
    assert ask("early", "late", "other", base="first") == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("evaluate ")]
    assert [row[1] for row in rows[:1]] == ["base"]
    assert "strength=1-abc" in {row[1] for row in rows}
    assert len(rows) == 3 + 1  # and the line of totals
    assert not (tmp_path / "runs").exists()
