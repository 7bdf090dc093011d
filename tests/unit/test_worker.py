"""A worker run by hand: errors in its command line take one line, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.evaluate import environment
from hpc_ewc.worker import __main__ as worker

MORE = {"evaluate": ["--checkpoint", "1.0", "--cells", "arc_easy.en"]}


def make_stage(folder: Path, stage: str) -> None:
    facts = {"schema": 1, "stage": stage, "run": "r", "key": "k", "inputs": {}, "coordinates": {}, "expected": []}
    records.write_json(folder / "stage.json", facts)
    (folder / "config.toml").write_text('[model]\npath = "m"\n[data]\nsource = "a/corpus"\n')


@pytest.mark.parametrize("stage", worker.STAGES)
def test_a_wrong_folder_gives_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    line = [stage, str(tmp_path), *MORE.get(stage, [])]
    assert worker.main([stage, str(tmp_path / "nowhere"), *MORE.get(stage, [])]) == 1
    said = capsys.readouterr().err
    assert said == f"ArtefactError: {tmp_path}/nowhere: no stage.json; not a folder that `hpc-ewc submit` made\n"

    other = "train" if stage == "evaluate" else "evaluate"
    make_stage(tmp_path, other)
    assert worker.main(line) == 1
    said = capsys.readouterr().err
    own = f"run `python -m hpc_ewc.worker {other}`"
    assert said == f"ArtefactError: {tmp_path}: its stage is {other}, not {stage}: {own}\n"

    (tmp_path / "stage.json").write_text('{"schema": 1, "sta')
    assert worker.main(line) == 1
    said = capsys.readouterr().err
    assert "stage.json: corrupt or not written" in said and said.count("\n") == 1
    (tmp_path / "stage.json").unlink()
    make_stage(tmp_path, stage)
    (tmp_path / "config.toml").write_text('[model]\npath = "m"\ndtpye = "x"\n')
    assert worker.main(line) == 1
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ") and "dtpye" in said and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"stage.json", "config.toml"}


def test_torchrun_gets_the_original_error_for_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ArtefactError, match="no stage.json"):
        worker.main(["train", str(tmp_path)])


def test_an_element_without_cells_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        worker.main(["evaluate", str(tmp_path), "--checkpoint", "1.0", "--cells", ","])
    assert end.value.code == 2
    assert "--cells names none; `expected` in stage.json lists the cells" in capsys.readouterr().err


def test_a_job_stays_offline_and_keeps_set_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surrounding = {"HPC_EWC_CACHE": str(tmp_path), "HF_DATASETS_OFFLINE": "0"}
    monkeypatch.setattr(os, "environ", surrounding)
    environment.prepare()
    assert (surrounding["HF_HUB_OFFLINE"], surrounding["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert surrounding["HF_DATASETS_OFFLINE"] == "0"
    assert surrounding["LM_HARNESS_CACHE_PATH"] == f"{tmp_path}/lm_eval"  # lm-eval's default lies in site-packages
