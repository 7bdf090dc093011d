"""Perplexity and bits per byte: which text represents a language, and the tables of every text."""

from __future__ import annotations

from functools import partial

from hpc_ewc.report.study.columns import PERPLEXITIES, SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables.accuracy import settings_notes
from hpc_ewc.report.tables.builder import Builder, plain_name
from hpc_ewc.report.tables.formats import bits
from hpc_ewc.report.tables.lines import Line
from hpc_ewc.report.tables.table import Cell, Table, difference_cell

HELDOUT = "ppl_heldout"
BITS = "bits_per_byte"


def bits_column(build: Builder, language: str) -> Column | None:
    """The text by whose bits per byte a language is compared with the other one.

    It is a text that both languages have, so that both are about the same kind of text: held-out text before
    TruthfulQA's, the text without a name before others, then the one with most documents. If they share none, it is
    the first of the language's own by the same order.
    """
    both = [build.study.target, SOURCE_LANGUAGE]
    shared = set.intersection(*({_text(c) for c in _texts(build, each)} for each in both))

    def order(column: Column) -> tuple[bool, bool, bool, int, str]:
        size = min(
            (_documents(build, c) for each in both for c in _texts(build, each) if _text(c) == _text(column)), default=0
        )
        return (_text(column) not in shared, column.task != HELDOUT, column.variant != "", -size, column.variant)

    return min(_texts(build, language), key=order, default=None)


def shown_texts(build: Builder) -> list[Column]:
    """The text of each language, and that of the new language's own corpus if it is another one."""
    found = [column for language in build.languages if (column := bits_column(build, language)) is not None]
    own = [c for c in _texts(build, build.study.target) if c.task == HELDOUT and not c.variant][:1]
    return [*found, *(column for column in own if column not in found)]


def bits_head(column: Column) -> str:
    """bits/byte English; with the name of the text if it has one."""
    return " ".join(part for part in ("bits/byte", language_name(column.language), column.variant) if part)


def _texts(build: Builder, language: str) -> list[Column]:
    return [c for c in build.study.columns if c.language == language and c.kind == "perplexity"]


def _text(column: Column) -> tuple[str, str]:
    """Task and variant, which two languages may share."""
    return column.task, column.variant


def _documents(build: Builder, column: Column) -> int:
    return max((r["n"] for run in build.study.runs if (r := build.study.result(run, column))), default=0)


# ---------------------------------------------------------------------------------------------- the tables


def texts(build: Builder) -> Table | None:
    """Bits per byte against the base, one column per held-out text; None unless a language has several."""
    columns = [c for c in build.study.columns if c.kind == "perplexity" and c.task == HELDOUT]
    languages = [column.language for column in columns]
    rows = [line for line in build.lines.lines if any(build.lines.difference(line, c, BITS) for c in columns)]
    if len(set(languages)) == len(languages) or not rows:
        return None
    heads = {column: bits_head(column).removeprefix("bits/byte ") for column in columns}
    table = build.table(
        "texts",
        "Bits per byte against the base, by text",
        [(heads[column], partial(_change, build, column)) for column in columns],
        rows,
    )
    for base in build.lines.bases:
        table.foot.append(build.foot(build.lines.name(base), [build.values(column, BITS)(base) for column in columns]))
    how = "of documents and seeds" if build.lines.repeated else "by paired bootstrap of the documents"
    table.notes.append(
        f"Below 0 is better. ± standard error of the difference {how}; *: p < .05 after Holm's correction over every "
        "run × primary metric. Last row: the base's own bits per byte."
    )
    sizes = [f"{heads[column]}: n={_documents(build, column):,}" for column in columns]
    table.notes.append(f"{'; '.join(sizes)}. A text without a name is the corpus's own or its substitute.")
    return table


def _change(build: Builder, column: Column, line: Line) -> Cell:
    difference = build.lines.difference(line, column, BITS)
    return difference_cell(None if difference is None else difference.bootstrapped, bits)


def fluency(build: Builder, column: Column) -> Table:
    """Perplexities and bits per byte of one text, and their change."""
    table = build.table(
        f"fluency.{column.language}.{column.label.replace(' ', '.')}",
        f"{language_name(column.language)}: {plain_name(column)}, perplexity and bits per byte",
        [
            *zip(("ppl", "mean ppl", "median ppl"), (build.values(column, m) for m in PERPLEXITIES), strict=False),
            ("bits/byte", build.values(column, BITS)),
            (f"Δ {'bits/byte' if column.metric == BITS else 'ppl'}", build.changes(column)),
        ],
    )
    table.legend.append(
        "Lower is better. ppl: exp(ΣNLL/Σtokens). mean, median: over the documents' own perplexities; the mean is the "
        "paper's, and a few documents dominate it. bits/byte: ΣNLL/Σbytes/ln 2, independent of the tokenizer. "
        "Δ against the base, paired by document; *: p < .05 after Holm's correction."
    )
    table.notes += settings_notes(build, [column])
    return table


def judged(build: Builder, column: Column) -> Table:
    """Perplexity of each run's answers under another model, with signs that they are empty or repeat themselves."""
    metrics = {
        "ppl": "perplexity",
        "mean ppl": "perplexity_mean",
        "repeated %": "repetition",
        "words": "length",
        "empty %": "empty",
    }
    table = build.table(
        f"judged.{column.language}",
        f"{language_name(column.language)}: {plain_name(column)} by another model",
        [
            *((name, build.values(column, metric)) for name, metric in metrics.items()),
            ("Δ nats/token", build.changes(column)),
        ],
    )
    table.legend.append(
        "ppl: of all answers under the judging model; mean: over the answers' own. A ppl near 1 is repetition: "
        "repeated is the share of 4-grams of words that appeared earlier in the answer. Δ: mean over the questions of "
        "−log p per token, against the base, paired by question; below 0 the judge finds the answers likelier, not "
        "better."
    )
    table.notes += settings_notes(build, [column])
    return table
