"""Numbers that Python's JSON reader accepts but are not finite floats are listed with a reason or left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import zstandard
from rich.console import Console

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError
from hpc_ewc.report.build import Options, report
from hpc_ewc.report.study.collect import collect, read_record
from hpc_ewc.report.study.json_numbers import find_bad_number, finite_number
from hpc_ewc.report.study.stages import read_stages
from tests.unit.report_fixture import RunBuilder

HUGE = 10**999
BAD = {"huge": HUGE, "nan": math.nan, "infinite": -math.inf, "nested": {"a": [HUGE]}, "list": [[math.nan]]}
DIGITS = {"digits": "12"}
LARGE = {"large": 1e300, "long": 10**30, "negative": -(10**30)}
RECORD = ("step", "fraction", "chance", "shots", "limit", "seed", "batch_size", "max_length", "truncated")
OTHER = ("batch_invariance", "seconds", "gpu_hours", "versions", "ewc.strength", "train.steps")
RESULT = ("value", "stderr", "n")


def build(folder: Path, count: int) -> RunBuilder:
    run = RunBuilder(folder / "runs" / "x", strengths=tuple(2.0**i for i in range(count)), tasks=("arc_easy",), n=8)
    run.build()
    return run


def reported(run: RunBuilder, folder: Path, *formats: str) -> dict[str, Any]:
    """Return results.json of a complete report."""
    every = ("markdown", "csv", "json", "latex", "html", *formats)
    report([run.dir.root], folder / "out", Options(formats=every, resamples=100), Console(quiet=True))
    loaded: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    return loaded


def test_a_bad_number_in_any_record_field_is_listed(tmp_path: Path) -> None:
    cases = [(f, n) for f in (*RECORD, *OTHER, *RESULT) for n in (*BAD, *DIGITS, *LARGE)]
    run = build(tmp_path, 1)
    name = run.run_name(1.0, 0)
    example = run.dir.evaluate(name).cell(40, "arc_easy.en")
    text = example.read_text()
    refused = set()
    for number, (field, kind) in enumerate(cases):
        record = json.loads(text) | {"run": f"{name}{number}", "cell_key": f"{number}", "model_hash": f"{number}"}
        part = record["results"][0] if field in RESULT else record["coordinates"] if "." in field else record
        part[field] = (BAD | DIGITS | LARGE)[kind]
        path = run.dir.evaluate(f"{name}{number}").cell(40, "arc_easy.en")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
        try:
            read_record(path)
        except ArtefactError as error:
            said = str(error).removeprefix(f"{path}: ")
            assert any(words in said for words in ("corrupt or not written", "finite value", "not a finite number"))
            refused.add((field, kind))
    assert {(f, n) for f, n in cases if n in BAD} <= refused
    assert {(f, "digits") for f in ("step", "fraction", "chance", "truncated", *RESULT)} <= refused
    found = reported(run, tmp_path)
    assert len(found["not_taken"]) >= len(refused)
    assert any(row["run"] == f"{name}{cases.index(('seconds', 'large'))}" for row in found["wide"])


def test_a_bad_number_in_any_samples_field_is_listed(tmp_path: Path) -> None:
    read = {"metrics": "arc_easy.en", "loglikelihoods": "ppl_heldout.lt", "tokens": "ppl_heldout.lt"}
    read |= {"bytes": "ppl_heldout.lt"}
    cases = [(f, n) for f in (*read, "doc_id", "cluster") for n in (*BAD, *DIGITS)]
    run = build(tmp_path, len(cases))
    for strength, (field, kind) in zip(run.strengths, cases, strict=True):
        bad = (BAD | DIGITS)[kind]
        path = run.dir.evaluate(run.run_name(strength, 0)).samples(40, read.get(field, "arc_easy.lt"))
        rows = list(records.read_samples(path))
        rows[3][field] = {"metrics": {"acc": bad}, "loglikelihoods": [bad]}.get(field, bad)
        path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    problems = {problem["where"].split("/")[2] for problem in reported(run, tmp_path)["not_taken"]}
    expected = {run.run_name(s, 0) for s, (field, _) in zip(run.strengths, cases, strict=True) if field in read}
    assert expected <= problems


def test_bad_numbers_in_stage_files_are_left_out(tmp_path: Path) -> None:
    values = BAD | DIGITS | LARGE
    run = build(tmp_path, len(values) + 1)
    fisher = run.fisher().manifest_json.read_text()
    for strength, bad in zip(run.strengths, values.values(), strict=False):
        folder = run.dir.train(run.run_name(strength, 0))
        own = run.dir.fisher(f"fisher{strength:.0f}").manifest_json
        own.parent.mkdir()
        own.write_text(fisher)
        stage = json.loads(folder.stage_json.read_text())
        folder.stage_json.write_text(json.dumps(stage | {"inputs": {"fisher": str(own.parent)}}))
        for path in (folder.done, folder.manifest_json, own):
            value = json.loads(path.read_text())
            part = value.get("summary", value)
            part |= {key: bad for key, old in part.items() if isinstance(old, (int, float)) and key != "schema"}
            part |= {"overshot": bad, "parameters": bad}
            for key in ("share_by_layer", "share_by_kind"):
                part |= {key: {**part[key], "0": bad}} if key in part else {}
            path.write_text(json.dumps(value))
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        for number, key in enumerate(("step", "loss", "penalty", "distance", "tokens")):
            lines[number][key] = bad
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stopped = run.dir.train(run.run_name(run.strengths[-1], 0))
    stopped.done.unlink()
    run.dir.evaluate(stopped.path.name).cell(40, "arc_easy.en").unlink()
    stopped.progress_dir.mkdir()
    for bad in values.values():
        stopped.progress().write_text(json.dumps({"schema": 1, "done": bad, "total": 40, "unit": "step", "updated": 1}))
        (missing,) = read_stages(collect([run.dir.root])).missing
        assert missing.why.startswith("training is not finished")
    found = reported(run, tmp_path, "figures")
    assert len(found["wide"]) == len(run.strengths) + 1
    assert (tmp_path / "out" / "figures" / "training.svg").is_file()


@pytest.mark.parametrize("value", [HUGE, -HUGE, math.nan, math.inf, True, None, "1", [1.0], {}])
def test_values_that_are_not_finite_numbers_are_rejected(value: Any) -> None:
    assert finite_number(value) is None


def test_finite_numbers_pass_and_bad_ones_are_located() -> None:
    assert (finite_number(3), finite_number(1e308), finite_number(10**300)) == (3.0, 1e308, 1e300)
    assert find_bad_number({"a": [1, {"b": [2.5, True, None, "x"]}]}) is None
    assert find_bad_number({"a": [1, {"b": [math.nan]}]}) == "nan"
    assert find_bad_number([HUGE]) == "1" + 19 * "0"
