"""Written and printed output: golden files, determinism, hostile text, and formats skipped without a package.

`HPC_EWC_GOLDEN=write pytest tests/unit/test_report_outputs.py` rewrites the golden files; review the diff.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis
from hpc_ewc.report.build import FORMATS, Options, report, report_folder
from hpc_ewc.report.output.data import LONG, long_rows, render_csv, wide_rows
from hpc_ewc.report.output.latex import render_latex_document, render_tables
from hpc_ewc.report.output.markdown import render_markdown
from hpc_ewc.report.output.page import render_page
from hpc_ewc.report.output.terminal import print_document
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.document import Document, build_document
from tests.unit.report_fixture import RunBuilder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
HOSTILE = 'x</td><script>alert("1")</script>|*_`$&%#{}\\~^\x1b[2Jλ中\u202e'


def analysis_of(root: Path) -> Analysis:
    collection = collect([root])
    return analyse(build_study(collection, read_stages(collection)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small experiment with one failed and one missing cell."""
    tasks = ("arc_easy", "belebele", "mmlu", "truthfulqa_mc2")
    run = RunBuilder(
        tmp_path_factory.mktemp("golden") / "runs" / "golden",
        model="miniature",
        strengths=(0.0, 1e4, 1e12),
        tasks=tasks,
        n=24,
    )
    run.build()
    name = run.run_name(1e4, 0)
    run.dir.evaluate(name).cell(40, "truthfulqa_mc2.en").unlink()
    cell = next(cell for cell in run.cells() if cell.name == "mmlu.lt")
    failed = {"status": "failed", "error": "NonFinite: acc not finite; the model has diverged", "results": []}
    zero = run.run_name(0.0, 0)
    run.write(run.dir.evaluate(zero), zero, 40, 1.0, run.coordinates(0.0, 0), cell, run.rows(cell, 0.0, 0), **failed)
    return run.dir.root


@pytest.fixture(scope="module")
def analysis(root: Path) -> Analysis:
    return analysis_of(root)


@pytest.fixture(scope="module")
def document(analysis: Analysis) -> Document:
    return build_document(analysis, subsets=["subjects"])


def printed(document: Document, width: int, *, terminal: bool = False) -> str:
    out = io.StringIO()
    colour = {"force_terminal": True, "color_system": "standard"} if terminal else {}
    print_document(document, Console(file=out, width=width, **colour))  # type: ignore[arg-type]
    return out.getvalue()


def compare_with_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("HPC_EWC_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} is out of date; HPC_EWC_GOLDEN=write writes it anew"


# ---------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_output_equals_the_golden_file(document: Document, width: int) -> None:
    text = printed(document, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text, "piped output is plain"
    compare_with_golden(f"terminal_{width}.txt", text)


def test_terminal_output_is_coloured(document: Document) -> None:
    assert "\x1b[1m" in printed(document, 100, terminal=True)


def test_markdown_equals_the_golden_file(document: Document) -> None:
    compare_with_golden("report.md", render_markdown(document))


def test_latex_equals_the_golden_file(document: Document) -> None:
    compare_with_golden("tables.tex", render_tables(document))


def test_wide_csv_equals_the_golden_file(analysis: Analysis) -> None:
    compare_with_golden("table.csv", render_csv(wide_rows(analysis)))


def test_long_csv_equals_the_golden_file(analysis: Analysis) -> None:
    text = render_csv(long_rows(analysis))
    compare_with_golden("results.csv", text)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == LONG


def test_page_equals_the_golden_file(document: Document) -> None:
    compare_with_golden("report.html", render_page(document, [], {"schema": 1}))


# ---------------------------------------------------------------------------------------------- complete reports


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([root], tmp_path_factory.mktemp("out"), Options(), Console(quiet=True))


def test_the_same_records_give_the_same_bytes(root: Path, written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "golden"
    shutil.copytree(root, copy)
    again = report([copy], tmp_path / "again", Options(), Console(quiet=True))
    names = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    differing = [name for name in names if (written / name).read_bytes() != (again / name).read_bytes()]
    assert not differing


def test_the_manifest_has_the_hash_of_every_file(written: Path) -> None:
    from hpc_ewc.records import sha256_file

    manifest = json.loads((written / "manifest.json").read_text())
    found = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == found
    assert all(sha256_file(written / name) == sha for name, sha in manifest["files"].items())
    assert manifest["evaluated_with"] == [{"hpc_ewc": "0.1.0", "lm_eval": "0.4.13", "torch": "2.13.0"}]
    assert manifest["trained_with"][0]["device"] == "NVIDIA H200"
    said = (written / "report.md").read_text()
    assert "records of golden (sha256 " + manifest["records_sha256"][:12] in said
    assert "Trained on commit abc, device NVIDIA H200, gpus 8" in said
    assert {"tradeoff.svg", "tradeoff.pdf", "tradeoff.png"} <= {path.name for path in (written / "figures").iterdir()}


def test_json_equals_csv_without_nan(written: Path, analysis: Analysis) -> None:
    value = json.loads((written / "results.json").read_text(), parse_constant=pytest.fail)
    assert len(value["long"]) == len(long_rows(analysis))
    assert [row["strength"] for row in value["wide"]] == [None, 0.0, 1e4, 1e12]
    assert {cell["cell"] for cell in value["missing"]} == {"truthfulqa_mc2.en", "mmlu.lt"}
    assert value["illustration"] is True
    assert value["recommended"] is None or "sentence" in value["recommended"]


def test_the_page_is_one_file_that_loads_nothing(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "default-src 'none'" in page
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", page)
    links = re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?([^"'\s>)]+)""", without_policy)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert "http://" not in without_policy
    assert "https://" not in without_policy


# ---------------------------------------------------------------------------------------------- hostile text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a report whose run, coordinate, error and subset contain markup and control characters."""
    run = RunBuilder(tmp_path_factory.mktemp("hostile") / "runs" / "x", strengths=(0.0,), tasks=("mmlu",), n=9)
    run.build()
    name = "=cmd()-0123456789ab"
    folder = run.dir.evaluate(name)
    for cell in run.cells():
        rows = run.rows(cell, 1e6, 0)
        for row in rows:
            row["subset"] = HOSTILE if row["subset"] else ""
        changes = {"model_hash": "h", "base_hash": "h"}
        run.write(folder, HOSTILE, 0, 0.0, {"train.note": HOSTILE}, cell, rows, **changes)
    path = folder.cell(0, "mmlu.en")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "failed", "error": HOSTILE, "results": []}))
    return run.dir.root


@pytest.fixture(scope="module")
def hostile_document(hostile: Path) -> Document:
    return build_document(analysis_of(hostile), subsets=["subjects"])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_hostile_text_stays_text_on_the_page(hostile_document: Document) -> None:
    page = render_page(hostile_document, [], {"note": HOSTILE})
    tags = Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 1, "only ours"
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_hostile_text_does_not_control_a_terminal(hostile_document: Document) -> None:
    text = printed(hostile_document, 100)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert(" in text


def test_hostile_text_is_not_a_formula(hostile: Path) -> None:
    text = render_csv(long_rows(analysis_of(hostile)))
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    texts = [cell for cell in cells if cell and not re.fullmatch(r"[-+]?[0-9.e+-]+", cell)]
    assert not [cell for cell in texts if cell[0] in "=+-@\t\r"]
    assert render_csv([{"a": "=1+1", "b": "-x", "c": -1.5, "d": "@y"}]) == "a,b,c,d\n'=1+1,'-x,-1.5,'@y\n"


def test_hostile_text_is_escaped_in_markdown(hostile_document: Document) -> None:
    text = render_markdown(hostile_document)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "\\|\\*\\_\\`" in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_latex_compiles(written: Path, hostile_document: Document, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on PATH (Debian: texlive-latex-recommended lmodern)")
    folder = tmp_path / "tex"
    shutil.copytree(written, folder)
    (folder / "hostile").mkdir()
    (folder / "hostile" / "tables.tex").write_text(render_tables(hostile_document))
    (folder / "hostile" / "report.tex").write_text(render_latex_document(hostile_document, []))
    for place in (folder, folder / "hostile"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (place / "report.pdf").stat().st_size > 10_000


# ---------------------------------------------------------------------------------------------- command line


def command(*arguments: str, cwd: Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, in which the packages `without` cannot be imported."""
    program = (
        "import sys\n"
        f"for name in {without!r}: sys.modules[name] = None\n"
        "from hpc_ewc.report.__main__ import main\n"
        f"sys.exit(main({list(arguments)!r}))\n"
    )
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, env=environment)


def test_the_login_node_prints_tables_with_only_numpy_and_rich(root: Path, tmp_path: Path) -> None:
    absent = ("scipy", "matplotlib", "zstandard", "pandas")
    done = command(str(root), "--format", "terminal", "markdown", "csv", cwd=tmp_path, without=absent)
    assert done.returncode == 0, done.stderr
    assert "English: accuracy in per cent" in done.stdout
    assert "samples cannot be read without zstandard" in done.stdout.replace("\n", " ").replace("  ", " ")
    assert (root / "report" / "report.md").is_file(), "beside the records, unless --out says otherwise"


def test_outputs_skipped_for_a_missing_package_are_named(root: Path, tmp_path: Path) -> None:
    done = command(str(root), "--out", "out", cwd=tmp_path, without=("scipy", "matplotlib"))
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("\n", " ")
    assert "p-values are left out: scipy is not installed" in said
    assert "figures are left out: matplotlib is not installed" in said
    assert not (tmp_path / "out" / "figures").exists()
    assert "<figure" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a run folder"),
        (["nowhere"], "nowhere: no such folder or file"),
        (["{root}", "--format", "markdwon"], "--format markdwon: allowed are .*did you mean 'markdown'"),
        (["{root}", "--subsets", "all"], "--subsets all: allowed are groups, subjects"),
        (["{root}", "--max-loss", "-1"], "--max-loss -1: allowed is 0 to 100"),
        (["{root}", "--resamples", "10"], "--resamples 10: at least 100"),
        (["{root}", "--seed", "-3"], "--seed -3: allowed is 0 or more"),
        (["compare", "base", "strength=1", "{root}"], "no single run 'strength=1'; 2 runs begin with it"),
        (["compare", "base", "other", "{root}"], "no single run 'other'; runs: base, strength=0-"),
        (["compare", "base", "other"], "compare: base: no such folder"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    root: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hpc_ewc.report.__main__ import main

    monkeypatch.chdir(tmp_path)
    assert main([argument.format(root=root) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir()), "nothing was written"


def test_a_report_on_several_run_folders_is_written_beside_them() -> None:
    assert report_folder([Path("runs/a")]) == Path("runs/a/report")
    assert report_folder([Path("runs/a"), Path("runs/b"), Path("other/a")]) == Path("runs/a+b/report")


def test_all_formats_are_written_by_default() -> None:
    assert Options().formats == FORMATS
