"""Arbitrary TOML, records, ledgers and text give an object or one of our errors."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc import records
from hpc_ewc.config import SECTIONS, Experiment, build_experiment, load_experiment
from hpc_ewc.data.files import BadText, Record, parse_text
from hpc_ewc.errors import ArtefactError, ConfigError, InputError
from hpc_ewc.launch.inputs.first_record import check_first_record
from hpc_ewc.launch.ledger.job_history import Ledger
from hpc_ewc.launch.profile.keys import Profile
from hpc_ewc.launch.profile.reading import build_profile, load_profile
from hpc_ewc.launch.watch.reader import StatusReader
from hpc_ewc.model_folder import check_model
from hpc_ewc.report.study.collect import read_record
from hpc_ewc.rundir import RunDir
from tests.unit.launch_world import write_model

FEW = settings(max_examples=60)
GOOD = """[model]
path = "a/model"
[data]
source = "a/corpus"
[train]
betas = [0.9, 0.99]
[grid]
ewc.strength = [0, 1e6]
"""
CLUSTER = 'executor = "slurm"\n[slurm]\npartition = "main"\nsbatch = { hint = "x" }\n[resources.train]\nnodes = 2\n'


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )


SCALARS = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
OF_TOML = nested(SCALARS | st.integers(-(2**63), 2**63 - 1))
"""load_toml refuses longer integers anywhere in a file."""
VALUES = nested(SCALARS | st.integers() | st.just(10**400))
SPLICES = st.tuples(
    st.integers(0, 400), st.integers(0, 20), st.binary(max_size=20) | st.sampled_from([b"[" * 3000, b"9" * 5000])
)


def spliced(text: str, splice: tuple[int, int, bytes]) -> bytes:
    """Return the text with some bytes replaced by others."""
    at, gone, new = splice
    data = text.encode()
    at %= len(data) + 1
    return data[:at] + new + data[at + gone :]


@FEW
@given(SPLICES)
def test_randomly_edited_toml_loads_or_is_refused(splice: tuple[int, int, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        for text, load, kind in ((GOOD, load_experiment, Experiment), (CLUSTER, load_profile, Profile)):
            path.write_bytes(spliced(text, splice))
            try:
                assert isinstance(load(path), kind)
            except ConfigError as error:
                assert str(error).startswith(f"{path}: ")


SMALL = [
    ("ewc", "strength"),
    ("train", "betas"),
    ("evaluate", "shots"),
    ("data", "files"),
    ("grid", "ewc"),
    ("resources", "train"),
]


@FEW
@given(st.sampled_from(SMALL), OF_TOML)
def test_any_experiment_value_loads_or_is_refused(key: tuple[str, str], value: Any) -> None:
    table = {name: {} for name in SECTIONS} | {"model": {"path": "a/model"}, "data": {"source": "a/corpus"}}
    table[key[0]] = table.get(key[0], {}) | {key[1]: value}
    with suppress(ConfigError):
        assert isinstance(build_experiment(table, "x.toml"), Experiment)


@FEW
@given(st.sampled_from(["executor", "env", "slurm", "container", "resources", "max_gpu_hours", "runs"]), OF_TOML)
def test_any_profile_value_loads_or_is_refused(key: str, value: Any) -> None:
    with suppress(ConfigError):
        assert isinstance(build_profile({"executor": "slurm", key: value}, "p.toml"), Profile)


# ---------------------------------------------------------------------------------------------- job files


@FEW
@given(data=st.data())
def test_a_record_with_any_field_value_is_read_or_refused(data: st.DataObject, repository: Path) -> None:
    example = json.loads((repository / "docs" / "schemas" / "record.json").read_text())
    key = data.draw(st.sampled_from(sorted(example)))
    text = json.dumps(example | {key: data.draw(VALUES)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluate" / "base" / "00000000" / "arc_easy.en.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        with suppress(ArtefactError):
            assert read_record(path)["cell"] == "arc_easy.en"
        path.write_bytes(spliced(text, data.draw(SPLICES)))
        with suppress(ArtefactError):
            read_record(path)


@FEW
@given(data=st.data())
def test_a_ledger_with_any_field_value_is_read_or_refused(data: st.DataObject, repository: Path) -> None:
    name = data.draw(st.sampled_from(["jobs.jsonl", "jobs.slurm.jsonl"]))
    lines = [json.loads(line) for line in (repository / "docs" / "schemas" / name).read_text().splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] |= {data.draw(st.sampled_from(sorted(lines[number]))): data.draw(VALUES)}
    with tempfile.TemporaryDirectory() as folder:
        root = RunDir(Path(folder))
        root.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with suppress(ArtefactError):
            Ledger(root).read()


@FEW
@given(data=st.data())
def test_a_stage_with_any_field_value_has_a_status_or_an_error(data: st.DataObject, repository: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = RunDir(Path(folder))
        Ledger(root).graph([{"stage": "train", "run": "r", "depends": []}])
        stage = root.train("r")
        for name, path in (("stage.train", stage.stage_json), ("failed", stage.failed), ("done.train", stage.done)):
            example = json.loads((repository / "docs" / "schemas" / f"{name}.json").read_text())
            key = data.draw(st.sampled_from(sorted(example)))
            records.write_text(path, json.dumps(example | {key: data.draw(VALUES)}))
        (row,) = StatusReader(root).read().rows
        assert row.state in ("done", "failed", "missing")


# ---------------------------------------------------------------------------------------------- user input


@FEW
@given(st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_corpus_line_is_read_or_refused(line: bytes) -> None:
    with suppress(BadText):
        assert parse_text("x.jsonl", Record(1, line), "text").strip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(line)
        with suppress(InputError):
            check_first_record([str(path)], "x.toml: data", "text")


@FEW
@given(name=st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]), data=st.data())
def test_a_model_folder_with_any_file_content_is_checked_or_refused(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder)) / name
        text = path.read_bytes().decode("latin-1")
        path.write_bytes(data.draw(st.one_of(SPLICES.map(lambda splice: spliced(text, splice)), VALUES.map(as_json))))
        with suppress(InputError):
            check_model(Path(folder))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
