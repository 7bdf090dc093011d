"""Files are written completely or not at all; damaged files are named and never used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_ewc import records
from hpc_ewc.errors import ArtefactError


def test_a_json_file_is_read_back(tmp_path: Path) -> None:
    records.write_json(tmp_path / "new" / "x.json", {"name": "Šiauliai\u2028", "n": 1})
    assert records.read_json(tmp_path / "new" / "x.json") == {"name": "Šiauliai\u2028", "n": 1}


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    records.write_json(path, {"n": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, {"n": float("nan")})
    program = (
        "import resource, sys, signal; from pathlib import Path; from hpc_ewc import records\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "records.write_bytes(Path(sys.argv[1]), b'x' * 1000)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "File too large" in run.stderr
    assert records.read_json(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_private_file_has_private_permissions(tmp_path: Path) -> None:
    records.write_text(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@given(st.binary(max_size=60))
def test_invalid_bytes_are_an_artefact_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("x") / "done.json"
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="done.json"):
        records.read_checked(path, "done")


def test_every_truncation_of_a_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    records.write_json(path, {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {}, "summary": {"a": "b"}})
    whole = path.read_bytes()
    assert records.read_checked(path, "done")["key"] == "k"
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match="done.json"):
            records.read_checked(path, "done")


def test_another_schema_and_a_missing_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "failed.json"
    records.write_json(path, {"schema": 99, "error": "", "traceback": ""})
    with pytest.raises(ArtefactError, match="schema 99, this version reads 1"):
        records.read_checked(path, "failed")
    records.write_json(path, {"schema": 1, "error": ""})
    with pytest.raises(ArtefactError, match="'traceback' is missing"):
        records.read_checked(path, "failed")


def test_done_json_is_valid_only_with_its_key_and_complete_outputs(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    assert records.read_done(path, "k") is None
    (tmp_path / "out.bin").write_bytes(b"1234")
    done = {"schema": 1, "key": "k", "finished_at": 1.0, "outputs": {"out.bin": [4, "sha"]}, "summary": {}}
    records.write_json(path, done)
    assert records.read_done(path, "k") == done
    with pytest.raises(ArtefactError, match="has key k, not other"):
        records.read_done(path, "other")
    (tmp_path / "out.bin").write_bytes(b"12")
    with pytest.raises(ArtefactError, match="2 bytes, but done.json says 4"):
        records.read_done(path, "k")
    (tmp_path / "out.bin").unlink()
    with pytest.raises(ArtefactError, match="out.bin: listed in .* but missing"):
        records.read_done(path, "k")


def test_lines_survive_a_writer_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert list(records.read_lines(path)) == []
    records.append_line(path, {"step": 1, "text": "a\u2028b"})
    with path.open("a") as file:
        file.write('{"step": 2, "te')
    assert [line["step"] for line in records.read_lines(path)] == [1]
    records.append_line(path, {"step": 3})
    assert [line["step"] for line in records.read_lines(path)] == [1, 3]
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ArtefactError, match="x.jsonl:2: not a JSON line"):
        list(records.read_lines(path))


def test_samples_are_read_back_and_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl.zst"
    rows = [{"doc_id": i, "text": "ąčę\u2028"} for i in range(1000)]
    records.write_samples(path, rows)
    assert list(records.read_samples(path)) == rows
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match="samples cannot be read"):
        list(records.read_samples(path))
    path.write_bytes(b"not zstd")
    with pytest.raises(ArtefactError, match="samples cannot be read"):
        list(records.read_samples(path))


def test_canonical_json_ignores_order_and_keeps_numbers() -> None:
    assert records.canonical_json({"b": 1e6, "a": [1, "č"]}) == '{"a":[1,"č"],"b":1000000.0}'
    assert records.key_of({"a": 1, "b": 2}) == records.key_of({"b": 2, "a": 1})
    assert json.loads(records.canonical_json({"x": 0.1}))["x"] == 0.1
