"""Perplexity and bits per byte: of which text a language's are shown, and the tables of every text."""

from __future__ import annotations

from hpc_ewc.report.study.columns import PERPLEXITIES, SOURCE_LANGUAGE, Column, language_name
from hpc_ewc.report.tables.builder import (
    Builder,
    Cell,
    Head,
    Table,
    difference_cell,
    plain_name,
    settings_notes,
    text_of,
    value_cell,
)
from hpc_ewc.report.tables.formats import bits, number, percent
from hpc_ewc.report.tables.lines import Line

HELDOUT = "ppl_heldout"


def bits_column(build: Builder, language: str) -> Column | None:
    """Where bits per byte of a language are read, and set beside those of the other.

    A text that both languages have, so that the two are about the same kind of text: held-out before TruthfulQA's,
    the one without a name before others, then the one with most documents. Without such a text the first of its own.
    """
    mine = _texts(build, language)
    both = [build.study.target, SOURCE_LANGUAGE]
    shared = set.intersection(*({_text(c) for c in _texts(build, each)} for each in both))

    def order(column: Column) -> tuple[bool, bool, bool, int, str]:
        size = min(
            (_documents(build, c) for each in both for c in _texts(build, each) if _text(c) == _text(column)), default=0
        )
        return (_text(column) not in shared, column.task != HELDOUT, column.variant != "", -size, column.variant)

    return min(mine, key=order, default=None)


def shown_texts(build: Builder) -> list[Column]:
    """The text of each language, and that of the learnt language's own corpus where it is another."""
    found = [column for language in build.languages if (column := bits_column(build, language)) is not None]
    own = [c for c in _texts(build, build.study.target) if c.task == HELDOUT and not c.variant][:1]
    return [*found, *(column for column in own if column not in found)]


def bits_head(column: Column) -> str:
    """bits/byte English; with the name of the text where it has one."""
    return " ".join(part for part in ("bits/byte", language_name(column.language), column.variant) if part)


def _texts(build: Builder, language: str) -> list[Column]:
    return [c for c in build.study.columns if c.language == language and c.kind == "perplexity"]


def _text(column: Column) -> tuple[str, str]:
    """What two languages may share."""
    return column.task, column.variant


def _documents(build: Builder, column: Column) -> int:
    return max((r["n"] for run in build.study.runs if (r := build.study.result(run, column))), default=0)


# ---------------------------------------------------------------------------------------------- the tables


def texts(build: Builder) -> Table | None:
    """Bits per byte against the base, a column a held-out text; where a language has several."""
    columns = [c for c in build.study.columns if c.kind == "perplexity" and c.task == HELDOUT]
    languages = [column.language for column in columns]
    rows = [
        line
        for line in build.lines.lines
        if any(build.lines.other_difference(line, c, "bits_per_byte") for c in columns)
    ]
    if len(set(languages)) == len(languages) or not rows:
        return None
    table = build.table("texts", "Bits per byte against the base, by text")
    table.heads += [Head(bits_head(column).removeprefix("bits/byte ")) for column in columns]
    for line in rows:
        table.rows.append([*build.labelled(line), *(_change(build, line, column) for column in columns)])
    for base in build.lines.bases:
        values = [value_cell(build.lines.value(base, column, "bits_per_byte"), bits) for column in columns]
        table.foot.append(build.foot(build.lines.name(base), values))
    how = "of documents and seeds" if build.lines.repeated else "by paired bootstrap of the documents"
    table.notes.append(
        f"Below 0 is better. ± standard error of the difference {how}; *: p < .05 after Holm's correction over every "
        "run × primary metric. Last row: the base's own bits per byte."
    )
    sizes = [
        f"{h.text}: n={_documents(build, c):,}" for h, c in zip(table.heads[len(build.labels) :], columns, strict=True)
    ]
    table.notes.append(f"{'; '.join(sizes)}. A text without a name is the corpus's own, or stands in its place.")
    return table


def _change(build: Builder, line: Line, column: Column) -> Cell:
    difference = (
        build.lines.difference(line, column)
        if column.metric == "bits_per_byte"
        else build.lines.other_difference(line, column, "bits_per_byte")
    )
    return difference_cell(None if difference is None else difference.bootstrapped, bits)


def fluency(build: Builder, column: Column) -> Table:
    """Perplexities and bits per byte of one text, and what they became."""
    lines, language = build.lines, language_name(column.language)
    title = f"{language}: {plain_name(column)}, perplexity and bits per byte"
    table = build.table(f"fluency.{column.language}.{column.label.replace(' ', '.')}", title)
    unit = "bits/byte" if column.metric == "bits_per_byte" else "ppl"
    table.heads += [Head(part) for part in ("ppl", "mean ppl", "median ppl", "bits/byte", f"Δ {unit}")]
    for line in lines.lines:
        row = build.labelled(line)
        row += [value_cell(lines.value(line, column, metric), number) for metric in PERPLEXITIES[:3]]
        row.append(value_cell(lines.value(line, column, "bits_per_byte"), bits))
        row.append(difference_cell(lines.difference(line, column), text_of(column)))
        table.rows.append(row)
    table.legend.append(
        "Lower is better. ppl: exp(ΣNLL/Σtokens). mean, median: of each document's own perplexity; the mean is the "
        "paper's, and a few documents decide it. bits/byte: ΣNLL/Σbytes/ln 2, free of the tokenizer. "
        "Δ against the base, paired by document; *: p < .05 after Holm's correction."
    )
    table.notes += settings_notes(build, [column])
    return table


def judged(build: Builder, column: Column) -> Table:
    """Answers that another model reads: how likely it finds them, and whether they say anything."""
    lines, language = build.lines, language_name(column.language)
    table = build.table(f"judged.{column.language}", f"{language}: {plain_name(column)} by another model")
    table.heads += [Head(part) for part in ("ppl", "mean ppl", "repeated %", "words", "empty %", "Δ nats/token")]
    for line in lines.lines:
        row = build.labelled(line)
        row += [value_cell(lines.value(line, column, metric), number) for metric in ("perplexity", "perplexity_mean")]
        row.append(value_cell(lines.value(line, column, "repetition"), percent))
        row.append(value_cell(lines.value(line, column, "length"), number))
        row.append(value_cell(lines.value(line, column, "empty"), percent))
        row.append(difference_cell(lines.difference(line, column), number))
        table.rows.append(row)
    table.legend.append(
        "ppl: of all answers under the judging model; mean: of each one's own. A ppl near 1 is repetition: repeated, "
        "the share of 4-grams of words that came before in the answer. Δ: mean over the questions of −log p a token, "
        "against the base, paired by question; below 0 the judge finds the answers likelier, not better."
    )
    table.notes += settings_notes(build, [column])
    return table
