"""Makes a report: collects records, analyses them, builds tables, renders and writes files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from hpc_ewc import records
from hpc_ewc.errors import InputError
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis
from hpc_ewc.report.analysis.statistics import RESAMPLES
from hpc_ewc.report.drawing.figures import ENDINGS, draw_figures
from hpc_ewc.report.output import data, latex
from hpc_ewc.report.output.manifest import footnote, manifest
from hpc_ewc.report.output.markdown import render_markdown
from hpc_ewc.report.output.page import render_page
from hpc_ewc.report.output.terminal import print_document
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.choose import MAX_LOSS
from hpc_ewc.report.tables.document import Document, Figure, build_document

FORMATS = ("terminal", "markdown", "csv", "json", "latex", "html", "figures")


@dataclass(frozen=True)
class Options:
    """Formats to make, and settings of the analysis."""

    formats: Sequence[str] = FORMATS
    paired: bool = True
    resamples: int = RESAMPLES
    seed: int = 0
    subsets: Sequence[str] = ()
    """groups, subjects: tables of the parts of a task."""
    max_loss: float = MAX_LOSS
    """Accuracy in the old language that a recommended λ may cost."""
    gain: str = "auto"
    """Measure of the gain in the new language: auto, accuracy or text."""
    paper: bool = False
    """Draw the paper's own curves beside ours."""


def report(paths: Sequence[Path | str], out: Path | None, options: Options, console: Console) -> Path:
    """Print the tables, write them, and return the folder they were written to.

    Raises:
        InputError: a path does not exist, or the paths hold neither records nor cells that are expected.
    """
    collection = collect(paths)
    stages = read_stages(collection)
    study = build_study(collection, stages)
    if not (study.runs or study.missing or study.problems):
        raise InputError(f"{paths[0]}: no record in evaluate/ yet; `hpc-ewc status` says how far it is")
    analysis = analyse(study, paired=options.paired, resamples=options.resamples, seed=options.seed)
    figures: list[Figure] = []
    wants_figures = bool({"figures", "html"} & set(options.formats)) and bool(study.runs)
    if wants_figures and find_spec("matplotlib") is None:
        analysis.left_out.append("figures are left out: matplotlib is not installed")
        wants_figures = False
    document = build_document(analysis, subsets=options.subsets, max_loss=options.max_loss, gain=options.gain)
    facts = manifest(collection, analysis, resamples=options.resamples, seed=options.seed, paired=options.paired)
    document.lists.append(("Made from", footnote(facts)))
    if wants_figures:
        endings = ENDINGS if "figures" in options.formats else ("svg",)
        figures = draw_figures(document, overlay=options.paper, endings=endings)
    files = render(analysis, document, figures, options, facts)
    out = out or report_folder([source.folder.root for source in collection.sources])
    for name, content in files.items():
        records.write_bytes(out / name, content)
    facts["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    records.write_json(out / "manifest.json", facts)
    if "terminal" in options.formats:
        print_document(document, console)
    return out


def report_folder(roots: Sequence[Path]) -> Path:
    """RUNS/NAME/report of one run folder; of several, RUNS/A+B/report beside the first."""
    return roots[0].parent / "+".join(dict.fromkeys(root.name for root in roots)) / "report"


def render(
    analysis: Analysis, document: Document, figures: list[Figure], options: Options, facts: dict[str, Any]
) -> dict[str, bytes]:
    """The files of a report, by name."""
    texts: dict[str, str] = {}
    shown = figures if "figures" in options.formats else []
    if "markdown" in options.formats:
        texts["report.md"] = render_markdown(document, shown)
    long = data.long_rows(analysis) if {"csv", "json"} & set(options.formats) else []
    if "csv" in options.formats:
        texts["results.csv"] = data.render_csv(long)
        texts["table.csv"] = data.render_csv(data.wide_rows(analysis))
    if "json" in options.formats:
        texts["results.json"] = data.render_json(analysis, document, long)
    if "latex" in options.formats:
        texts["tables.tex"] = latex.render_tables(document)
        texts["report.tex"] = latex.render_latex_document(document, shown)
    if "html" in options.formats:
        texts["report.html"] = render_page(document, figures, facts)
    files = {name: text.encode() for name, text in texts.items()}
    for figure in shown:
        files |= {f"figures/{figure.name}.{ending}": content for ending, content in figure.files.items()}
    return files
