"""The first table: what was kept, what was learnt, at which λ."""

from __future__ import annotations

from hpc_ewc.report.analysis.means import Mean
from hpc_ewc.report.study.columns import language_name
from hpc_ewc.report.tables.builder import Builder, Head, Table, difference_cell, plain_name, value_cell
from hpc_ewc.report.tables.formats import bits, percent
from hpc_ewc.report.tables.texts import bits_head, shown_texts


def summary(build: Builder) -> Table:
    """Means over tasks, what they became, and bits per byte, of each language."""
    lines, table = build.lines, build.table("summary", "Kept and learnt")
    shown = [mean for language in build.languages if (mean := build.analysis.mean(language))]
    fluency = shown_texts(build)
    table.heads += [Head(_mean_head(mean)) for mean in shown]
    table.heads += [Head(f"Δ {language_name(mean.language)}") for mean in shown]
    table.heads += [Head(bits_head(column)) for column in fluency]
    for line in lines.lines:
        row = build.labelled(line)
        row += [value_cell(lines.mean_value(line, mean), percent) for mean in shown]
        row += [difference_cell(lines.mean_difference(line, mean), percent) for mean in shown]
        row += [value_cell(lines.value(line, column, "bits_per_byte"), bits) for column in fluency]
        table.rows.append(row)
    if shown:
        over = "; ".join(f"{language_name(m.language)}: {_over(m)}" for m in shown)
        table.notes.append(
            f"Accuracy in per cent ± standard error, mean over tasks ({over}). Δ: points against the base."
        )
    if fluency:
        texts = ", ".join(f"{language_name(c.language)}: {plain_name(c)}" for c in fluency)
        table.notes.append(f"Bits per byte, lower is better ({texts}).")
    return table


def _mean_head(mean: Mean) -> str:
    """A mean over one task is called by the task."""
    if mean.single is None:
        return mean.label
    return f"{plain_name(mean.single)} {language_name(mean.language)}"


def _over(mean: Mean) -> str:
    return f"{len(mean.columns)} tasks" if mean.single is None else f"{plain_name(mean.single)} alone"
