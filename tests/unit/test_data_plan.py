"""The plan selects records, splits them into parts and holds out documents."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc.data import plan as plan_module
from hpc_ewc.data.plan import Plan, build_plan, documents, load_plan, save_plan, text_hash
from hpc_ewc.data.processes import Stopped
from hpc_ewc.errors import ArtefactError, InputError
from tests.unit.data_corpus import make_data, make_texts, write_jsonl, write_parquet

TEXTS = make_texts(97)


def write_corpus(folder: Path) -> list[str]:
    """Write three files of 30, 30 and 37 documents."""
    files = [
        write_jsonl(folder / "a.jsonl.gz", [{"text": text} for text in TEXTS[:30]]),
        write_parquet(folder / "b.parquet", {"text": TEXTS[30:60]}),
        write_jsonl(folder / "c.jsonl", [{"text": text} for text in TEXTS[60:]]),
    ]
    return [str(path) for path in files]


def texts_of(plan: Plan) -> list[str]:
    data = make_data()
    return [d.text for part in plan.parts for d in documents(plan.files, part, data, Counter())]


@given(
    fraction=st.decimals("0.001", "1", places=3, allow_nan=False).map(float),
    part_records=st.integers(1, 100),
    part_bytes=st.integers(1, 20_000),
)
@settings(max_examples=25, deadline=None)
def test_the_first_fraction_is_used_however_files_are_split(
    tmp_path_factory: pytest.TempPathFactory, fraction: float, part_records: int, part_bytes: int
) -> None:
    files = write_corpus(tmp_path_factory.mktemp("plan"))
    plan = build_plan(files, make_data(fraction=fraction), part_records=part_records, part_bytes=part_bytes)
    wanted = ceil(Fraction(str(fraction)) * len(TEXTS))
    assert texts_of(plan) == TEXTS[:wanted]
    assert (plan.records, plan.used_records) == (len(TEXTS), wanted)
    assert all(sum(span.count for span in part) <= part_records for part in plan.parts)


def test_a_fraction_is_read_as_a_decimal_number(tmp_path: Path) -> None:
    """0.1 · 30 is 3 records; in binary it is a little more, and rounding up would take a fourth."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:30]])
    assert build_plan([str(path)], make_data(fraction=0.1)).used_records == 3
    assert build_plan([str(path)], make_data(fraction=0.7)).used_records == 21
    assert build_plan([str(path)], make_data(fraction=1e-9)).used_records == 1


def test_a_part_ends_with_the_record_that_fills_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * size} for size in (10, 500, 10, 10, 900)])
    plan = build_plan([str(path)], make_data(), part_bytes=400)
    assert [[span.count for span in part] for part in plan.parts] == [[2], [3]]


def test_small_files_share_a_part(tmp_path: Path) -> None:
    files = [str(write_jsonl(tmp_path / f"{i}.jsonl", [{"text": TEXTS[i]}])) for i in range(20)]
    plan = build_plan(files, make_data(), part_records=8)
    assert [len(part) for part in plan.parts] == [8, 8, 4]
    assert texts_of(plan) == TEXTS[:20]


# ---------------------------------------------------------------------------------------------- hold out


def test_the_smallest_hashes_are_held_out(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    plan = build_plan(files, make_data(heldout_documents=10), part_records=9)
    hashes = sorted(hashlib.sha256(text.encode()).hexdigest()[:32] for text in TEXTS)
    assert plan.heldout == set(hashes[:10])


def test_held_out_documents_do_not_depend_on_order_copies_or_parts(tmp_path: Path) -> None:
    data = make_data(heldout_documents=7)
    draws = set()
    for name, texts in {"a": TEXTS, "b": TEXTS[::-1], "c": TEXTS * 3}.items():
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        draws |= {build_plan([str(path)], data, part_records=part_records).heldout for part_records in (1, 10, 500)}
    assert len(draws) == 1


def test_held_out_documents_come_from_the_used_fraction(tmp_path: Path) -> None:
    plan = build_plan(write_corpus(tmp_path), make_data(heldout_documents=5, fraction=0.2))
    assert plan.heldout < {text_hash(text) for text in TEXTS[:20]}


@pytest.mark.parametrize("count", [97, 500])
def test_holding_out_all_documents_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(
        InputError, match=rf"data\.heldout_documents = {count}, but .* has 97 different documents \(0 rec"
    ):
        build_plan(write_corpus(tmp_path), make_data(heldout_documents=count))


def test_a_corpus_of_bad_documents_reports_skipped_counts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"txt": "a"}, {"text": ""}, {"txt": "c"}])
    data = make_data(heldout_documents=1, on_bad_document="skip")
    with pytest.raises(InputError, match=r"\(3 records skipped: \{'missing column': 2, 'empty': 1\}\)"):
        build_plan([str(path)], data)


def test_any_number_of_processes_gives_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, data = write_corpus(tmp_path), make_data(heldout_documents=10)
    alone = build_plan(files, data, part_records=30)
    monkeypatch.setattr(plan_module, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(plan_module, "available_cores", lambda: 2)
    assert build_plan(files, data, part_records=30) == alone


def test_counting_and_hashing_stop_on_request(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    with pytest.raises(Stopped):
        build_plan(files, make_data(), part_records=5, stop=lambda: True)
    asked = iter([*[False] * 3, True])  # 30 + 37 records of JSON lines are three parts of 30 and a rest
    with pytest.raises(Stopped):
        build_plan(files, make_data(heldout_documents=3), part_records=30, stop=lambda: next(asked))


# ---------------------------------------------------------------------------------------------- plan.json


def test_a_plan_is_read_back_unchanged(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    plan = build_plan(files, make_data(heldout_documents=4), part_records=9)
    save_plan(tmp_path / "plan.json", plan)
    first = (tmp_path / "plan.json").read_bytes()
    assert load_plan(tmp_path / "plan.json", files) == plan
    save_plan(tmp_path / "plan.json", build_plan(files, make_data(heldout_documents=4), part_records=9))
    assert (tmp_path / "plan.json").read_bytes() == first


def test_a_corpus_edited_after_planning_is_detected(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    save_plan(tmp_path / "plan.json", build_plan(files, make_data()))
    with Path(files[2]).open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match=r"c\.jsonl: \d+ bytes, \d+ when the plan was made; the corpus changed"):
        load_plan(tmp_path / "plan.json", files)


def test_a_corpus_truncated_while_it_is_read_is_detected(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    plan = build_plan([str(path)], make_data(), part_records=20)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"a\.jsonl"):
        texts_of(plan)
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:50]) + b"\n")
    with pytest.raises(InputError, match=r"a\.jsonl: ends after 10 of 20 records; it changed while it was read"):
        texts_of(plan)


def test_a_plan_of_other_files_or_a_corrupt_one_is_refused(tmp_path: Path) -> None:
    files, path = write_corpus(tmp_path), tmp_path / "plan.json"
    save_plan(path, build_plan(files, make_data()))
    with pytest.raises(ArtefactError, match="was made for other files"):
        load_plan(path, files[:1])
    facts = json.loads(path.read_text())
    for broken in ({}, facts | {"schema": 99}, facts | {"parts": [[[1]]]}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ArtefactError, match=r"plan\.json: corrupt or not written by hpc-ewc"):
            load_plan(path, files)
