"""Every format gives the same documents, and every kind of bad input is named with file and line."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ewc.data.files import kind_of, size_of
from hpc_ewc.data.plan import Document, build_plan, documents
from hpc_ewc.data.questions import read_rows
from hpc_ewc.errors import InputError
from tests.unit.data_corpus import make_data, make_texts, write_compressed, write_jsonl, write_parquet

TEXTS = make_texts(40)


def read_all(*files: Path, part_records: int = 7, **changes: object) -> tuple[list[Document], Counter[str]]:
    """Return the documents of a corpus, read part by part."""
    data, names = make_data(**changes), [str(path) for path in files]
    plan = build_plan(names, data, part_records=part_records)
    skipped: Counter[str] = Counter()
    found = [document for part in plan.parts for document in documents(names, part, data, skipped)]
    return found, skipped


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("part_records", [1, 7, 1000])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, part_records: int) -> None:
    """Only the configured text column is read, not the one beside it."""
    if name.endswith(".parquet"):
        path = write_parquet(tmp_path / name, {"text": ["title"] * 40, "body": TEXTS})
    else:
        path = write_jsonl(tmp_path / name, [{"text": "title", "body": text} for text in TEXTS])
    found, skipped = read_all(path, part_records=part_records, text_column="body")
    assert [document.text for document in found] == TEXTS
    assert [document.line for document in found] == list(range(1, 41))
    assert {document.file for document in found} == {str(path)}
    assert not skipped


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_file_is_split_at_blank_lines(tmp_path: Path, name: str, end: str) -> None:
    content = "\ufeff\n\nfirst\nof two\n\n \t\nsecond\u2028still\n\n\n\nthird".replace("\n", end)
    found, _ = read_all(write_compressed(tmp_path / name, content.encode()), part_records=2)
    assert [(document.line, document.text) for document in found] == [
        (3, "first\nof two"),
        (7, "second\u2028still"),
        (11, "third"),
    ]


def test_a_text_file_without_blank_lines_is_one_document(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.txt", b"one\ntwo\nthree\n")
    assert [document.text for document in read_all(path)[0]] == ["one\ntwo\nthree"]


def test_blank_jsonl_lines_are_skipped_but_counted_as_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["", '{"text": "a"}', "  ", "", '{"text": "b"}'])
    assert [(d.line, d.text) for d in read_all(path, part_records=1)[0]] == [(2, "a"), (5, "b")]


def test_files_are_read_in_the_given_order(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "z.jsonl", [{"text": text} for text in TEXTS[:5]])
    second = write_parquet(tmp_path / "a.parquet", {"text": TEXTS[5:]})
    assert [document.text for document in read_all(first, second)[0]] == TEXTS


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1),
    part_records=st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_any_text_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], part_records: int
) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("any") / "a.jsonl", [{"text": text} for text in texts])
    assert [document.text for document in read_all(path, part_records=part_records)[0]] == texts


# ---------------------------------------------------------------------------------------------- bad documents

GOOD = '{"text": "good"}'
BAD_LINES = {
    "broken line": (b'{"text": "cut o', r"a\.jsonl:3: not JSON: .*; repair it, or set data\.on_bad_document"),
    "missing column": (b'{"txt": "x"}', r"a\.jsonl:3: no column 'text'; did you mean 'txt'\?"),
    "not text": (b'{"text": 3}', r"a\.jsonl:3: column 'text' holds int, not text"),
    "empty": (b'{"text": " \\n"}', r"a\.jsonl:3: empty document"),
    "encoding": (b'{"text": "\xe0lytus"}', r"a\.jsonl:3: not UTF-8: byte 0xe0 at 10 of the record"),
}
OTHER_BAD_LINES = {
    "broken line": (b"[1, 2]", r"a\.jsonl:3: not a JSON object: '\[1, 2\]"),
    "encoding": (b'{"text": "\\ud800"}', r"a\.jsonl:3: not text in Unicode: .*surrogates"),
    "not text": (b'{"text": null}', r"a\.jsonl:3: column 'text' holds NoneType"),
}
CASES = [(reason, *case) for table in (BAD_LINES, OTHER_BAD_LINES) for reason, case in table.items()]


@pytest.mark.parametrize(("reason", "line", "message"), CASES)
def test_a_bad_line_is_refused_with_its_location_or_counted(
    tmp_path: Path, reason: str, line: bytes, message: str
) -> None:
    path = write_compressed(tmp_path / "a.jsonl", b"\n".join([GOOD.encode(), GOOD.encode(), line, GOOD.encode()]))
    with pytest.raises(InputError, match=message):
        read_all(path)
    found, skipped = read_all(path, on_bad_document="skip")
    assert len(found) == 3
    assert skipped == {reason: 1}


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None, "", "d"]})
    with pytest.raises(InputError, match=r"a\.parquet: row 2: column 'text' holds NoneType"):
        read_all(path)
    found, skipped = read_all(path, on_bad_document="skip")
    assert [document.text for document in found] == ["a", "d"]
    assert skipped == {"not text": 1, "empty": 1}


def test_a_latin_1_text_file_is_named(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.txt", "fine\n\nšuo".encode("iso-8859-13"))
    with pytest.raises(InputError, match=r"a\.txt:3: not UTF-8: byte 0xf0"):
        read_all(path)


# ---------------------------------------------------------------------------------------------- bad files


def test_a_missing_parquet_column_is_never_skipped(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"content": ["a"], "texts": ["b"]})
    with pytest.raises(
        InputError, match=r"a\.parquet: no column 'text'; did you mean 'texts'\?; set data\.text_column"
    ):
        read_all(path, on_bad_document="skip")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_compressed_file_is_never_skipped(tmp_path: Path, name: str) -> None:
    rows = [{"text": os.urandom(3000).hex()} for _ in range(20)]
    path = write_jsonl(tmp_path / name, rows)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"a\.jsonl.*: the compressed file is damaged or truncated"):
        read_all(path, on_bad_document="skip")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_whose_compression_contradicts_its_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(InputError, match="damaged or truncated"):
        read_all(tmp_path / name)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": TEXTS})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"a\.parquet: not a complete \.parquet file"):
        read_all(path)


def test_other_formats_are_refused() -> None:
    for name in ("a.csv", "a.jsonl.bz2", "a.parquet.gz", "a", "a.gz"):
        with pytest.raises(InputError, match=r"cannot be read; allowed are \.jsonl \.parquet \.txt"):
            kind_of(name)
    assert [kind_of(name) for name in ("a.b.jsonl", "a.txt.gz", "hf://datasets/o/n@main/a.jsonl.zst")] == [
        ".jsonl",
        ".txt",
        ".jsonl",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read: No such file"):
        read_all(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"none\.parquet: cannot be read"):
        list(read_rows(str(tmp_path / "none.parquet")))
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        list(read_rows(str(tmp_path / "none.txt")))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the corpus is empty: no document in"):
        read_all(write_compressed(tmp_path / "a.jsonl", b"\n\n"))
    with pytest.raises(InputError, match="the corpus has no file"):
        read_all()


def test_a_url_is_read_like_a_file(tmp_path: Path) -> None:
    """As in streaming from the hub, fsspec opens the URL, and an offset locates a part in the middle."""
    import fsspec

    names = {}
    memory = fsspec.filesystem("memory")
    writers: dict[str, Callable[[Path], Path]] = {
        "a.jsonl": lambda path: write_jsonl(path, [{"text": text} for text in TEXTS]),
        "a.jsonl.zst": lambda path: write_jsonl(path, [{"text": text} for text in TEXTS]),
        "a.parquet": lambda path: write_parquet(path, {"text": TEXTS}),
    }
    for name, write in writers.items():
        names[name] = f"memory://corpus/{name}"
        memory.pipe(f"/corpus/{name}", write(tmp_path / name).read_bytes())
        assert size_of(names[name]) == (tmp_path / name).stat().st_size
        data = make_data()
        plan = build_plan([names[name]], data, part_records=7)
        found = [d.text for part in plan.parts for d in documents([names[name]], part, data, Counter())]
        assert found == TEXTS
    with pytest.raises(InputError, match="memory://corpus/none.jsonl: cannot be read"):
        build_plan(["memory://corpus/none.jsonl"], make_data())


def test_real_lithuanian_text_is_read_back_unchanged(shared_data: Path) -> None:
    """Statutes and news contain U+2028, soft hyphens and other characters common on the web."""
    files = [shared_data / "lt_text" / name for name in ("ntrex_news_lt.jsonl", "ud_alksnis_lt.jsonl")]
    expected = [json.loads(line)["text"] for path in files for line in path.read_bytes().split(b"\n") if line]
    found, _ = read_all(*files, part_records=10)
    assert [document.text for document in found] == expected
