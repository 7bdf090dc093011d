"""Each number in the tables equals one computed independently from the samples."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hpc_ewc import records
from hpc_ewc.report.analysis.differences import analyse
from hpc_ewc.report.analysis.estimates import Analysis, Difference
from hpc_ewc.report.study.collect import collect
from hpc_ewc.report.study.columns import Column
from hpc_ewc.report.study.runs import Run
from hpc_ewc.report.study.stages import read_stages
from hpc_ewc.report.study.study import build_study
from hpc_ewc.report.tables.lines import Lines
from tests.unit.report_fixture import RunBuilder


def analysis_of(root: Path, **options: int | bool) -> Analysis:
    collection = collect([root])
    return analyse(build_study(collection, read_stages(collection)), **options)  # type: ignore[arg-type]


def build(folder: Path, **options: object) -> RunBuilder:
    builder = RunBuilder(folder / "runs" / "paper", **({"strengths": (0.0, 1e6), "n": 40} | options))  # type: ignore[arg-type]
    builder.build()
    return builder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunBuilder:
    return build(tmp_path_factory.mktemp("differences"))


@pytest.fixture(scope="module")
def analysis(run: RunBuilder) -> Analysis:
    return analysis_of(run.dir.root)


def at(analysis: Analysis, strength: float | None, cell: str) -> tuple[Run, Column]:
    run = next(run for run in analysis.study.runs if run.strength == strength)
    return run, next(column for column in analysis.study.columns if column.cell == cell)


def scores(analysis: Analysis, run: Run, column: Column) -> list[dict[str, object]]:
    return list(records.read_samples(Path(analysis.study.records[run, column]["samples_path"])))


def pair(analysis: Analysis, strength: float, cell: str) -> tuple[Difference, np.ndarray, np.ndarray]:
    run, column = at(analysis, strength, cell)
    mine, theirs = (
        np.array([row["metrics"][column.metric] for row in scores(analysis, r, column)])  # type: ignore[index, call-overload]
        for r in (run, analysis.study.bases[run])
    )
    return analysis.differences[run, column, column.metric], mine, theirs


@pytest.mark.parametrize("cell", ["arc_easy.en", "mmlu.lt", "gsm8k.en"])
def test_binary_scores_use_mcnemar(analysis: Analysis, cell: str) -> None:
    difference, mine, theirs = pair(analysis, 0.0, cell)
    lost, gained = int(((mine == 0) & (theirs == 1)).sum()), int(((mine == 1) & (theirs == 0)).sum())
    assert (difference.lost, difference.gained, difference.method) == (lost, gained, "McNemar")
    assert difference.value == pytest.approx((gained - lost) / len(mine))
    assert difference.p == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)
    assert difference.stderr == pytest.approx(stats.sem(mine - theirs))


def test_continuous_scores_use_a_paired_t_test(analysis: Analysis) -> None:
    difference, mine, theirs = pair(analysis, 0.0, "truthfulqa_mc2.en")
    assert difference.method == "paired t"
    assert difference.p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)


def test_belebele_is_clustered_by_passage(analysis: Analysis) -> None:
    run, column = at(analysis, 0.0, "belebele.lt")
    difference, mine, theirs = pair(analysis, 0.0, "belebele.lt")
    passages = [row["cluster"] for row in scores(analysis, run, column)]
    change = mine - theirs
    by_passage = [sum(change[i] - change.mean() for i in range(len(change)) if passages[i] == p) for p in set(passages)]
    groups = len(by_passage)
    stderr = math.sqrt(groups / (groups - 1) * sum(x**2 for x in by_passage)) / len(change)
    assert difference.method == "clustered t"
    assert difference.stderr == pytest.approx(stderr)
    assert difference.p == pytest.approx(2 * stats.t.sf(abs(change.mean() / stderr), groups - 1))
    assert analysis.clustered[column] == groups


def test_perplexities_are_compared_on_the_same_texts(analysis: Analysis) -> None:
    run, column = at(analysis, 0.0, "ppl_heldout.lt")
    rows = [scores(analysis, r, column) for r in (run, analysis.study.bases[run])]
    nats = [np.array([-row["loglikelihoods"][0] for row in each]) for each in rows]  # type: ignore[index]
    size, tokens = (np.array([row[unit] for row in rows[0]], dtype=float) for unit in ("bytes", "tokens"))
    bits = analysis.differences[run, column, "bits_per_byte"]
    assert bits.value == pytest.approx((nats[0] - nats[1]).sum() / size.sum() / math.log(2))
    perplexity = analysis.differences[run, column, "perplexity"]
    mine, theirs = (math.exp(each.sum() / tokens.sum()) for each in nats)
    assert perplexity.value == pytest.approx(mine - theirs)
    # an independent bootstrap of documents, with its own loop
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        chosen = rng.integers(0, len(size), len(size))
        up, down = (math.exp(each[chosen].sum() / tokens[chosen].sum()) for each in nats)
        drawn.append([(nats[0] - nats[1])[chosen].sum() / size[chosen].sum() / math.log(2), up - down])
    for difference, column_of in ((bits, 0), (perplexity, 1)):
        each = np.array(drawn)[:, column_of]
        low, high = np.quantile(each, [0.025, 0.975])
        assert difference.stderr == pytest.approx(each.std(), rel=0.08)
        assert [difference.low, difference.high] == pytest.approx([low, high], abs=0.25 * each.std())


def test_means_are_over_fixed_tasks(analysis: Analysis) -> None:
    run, _ = at(analysis, 1e6, "arc_easy.en")
    mean = next(mean for mean in analysis.means if mean.language == "en")
    each = [analysis.differences[run, column, column.metric] for column in mean.columns]
    difference = analysis.mean_differences[run, mean]
    assert len(each) == 7
    assert difference.value == pytest.approx(np.mean([d.value for d in each]))
    assert difference.stderr == pytest.approx(math.sqrt(sum(d.stderr**2 for d in each)) / 7)
    assert difference.low is not None
    assert difference.low < difference.value < (difference.high or 0)
    assert (difference.high or 0) - difference.low == pytest.approx(3.92 * difference.stderr, rel=0.1)
    value = analysis.mean_values[run, mean]
    parts = [analysis.values[run, column, column.metric] for column in mean.columns]
    assert value.stderr == pytest.approx(math.sqrt(sum((p.stderr or 0) ** 2 for p in parts)) / 7)


def test_mean_intervals_bootstrap_within_tasks_by_whole_passage(analysis: Analysis) -> None:
    """Compare with an independent bootstrap: a loop over resamples, tasks and, for Belebele, passages."""
    run, _ = at(analysis, 1e6, "arc_easy.en")
    mean = next(mean for mean in analysis.means if mean.language == "en")
    tasks = []
    for column in mean.columns:
        _, mine, theirs = pair(analysis, 1e6, column.cell)
        names = [row.get("cluster", i) for i, row in enumerate(scores(analysis, run, column))]
        passages = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        tasks.append((mine, mine - theirs, list(passages.values())))
    assert [len(passages) for _, _, passages in tasks].count(14) == 1, "Belebele's 40 questions are on 14 passages"
    rng, drawn = np.random.default_rng(5), []
    for _ in range(1500):
        sums = np.zeros(2)
        for mine, change, passages in tasks:
            chosen = np.concatenate([passages[i] for i in rng.integers(0, len(passages), len(passages))])
            sums += (mine[chosen].mean(), change[chosen].mean())
        drawn.append(sums / len(tasks))
    values, changes = np.array(drawn).T
    for found, each in ((analysis.mean_values[run, mean], values), (analysis.mean_differences[run, mean], changes)):
        assert [found.low, found.high] == pytest.approx(list(np.quantile(each, [0.025, 0.975])), abs=0.2 * each.std())
        assert found.stderr == pytest.approx(each.std(), rel=0.08)


def test_holm_corrects_primary_metrics_and_means_separately(analysis: Analysis) -> None:
    first = [d for (_, column, metric), d in analysis.differences.items() if metric == column.metric]
    assert len(first) == 2 * len(analysis.study.columns)
    smallest = min(first, key=lambda d: d.p or 1)
    assert smallest.p_holm == pytest.approx(min(1, len(first) * (smallest.p or 1)))
    means = list(analysis.mean_differences.values())
    assert len(means) == 4
    smallest = min(means, key=lambda d: d.p or 1)
    assert smallest.p_holm == pytest.approx(min(1, 4 * (smallest.p or 1)))
    others = [d for (_, column, metric), d in analysis.differences.items() if metric != column.metric]
    assert others
    assert all(d.p_holm is None for d in others), "a secondary metric is not corrected"


def test_without_samples_differences_are_marked_as_unpaired(run: RunBuilder, analysis: Analysis) -> None:
    loose = analysis_of(run.dir.root, paired=False)
    at_loose = at(loose, 0.0, "arc_easy.en")
    difference = loose.differences[*at_loose, "acc"]
    values = [loose.values[r, at_loose[1], "acc"] for r in (at_loose[0], loose.study.bases[at_loose[0]])]
    assert difference.method == "unpaired"
    assert difference.stderr == pytest.approx(math.hypot(*(v.stderr or 0 for v in values)))
    assert difference.low is None
    assert difference.value == pytest.approx(analysis.differences[*at(analysis, 0.0, "arc_easy.en"), "acc"].value)


def test_the_same_records_give_the_same_numbers(run: RunBuilder, analysis: Analysis) -> None:
    again = analysis_of(run.dir.root)
    assert list(again.differences.values()) == list(analysis.differences.values())
    assert list(again.mean_differences.values()) == list(analysis.mean_differences.values())
    other = analysis_of(run.dir.root, seed=1)
    assert [d.low for d in other.mean_differences.values()] != [d.low for d in analysis.mean_differences.values()]
    assert [d.p for d in other.mean_differences.values()] == [d.p for d in analysis.mean_differences.values()]


# ---------------------------------------------------------------------------------------------- invalid samples


def damaged(folder: Path, damage: str) -> Analysis:
    run = build(folder, tasks=("arc_easy",))
    name = run.run_name(0.0, 0)
    path = run.dir.evaluate(name).samples(40, "arc_easy.en")
    rows = list(records.read_samples(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "gone":
        path.unlink()
    elif damage == "foreign":
        records.write_samples(path, [{"text": "not ours"}])
    elif damage == "flipped":
        rows[0]["metrics"]["acc"] = 1 - rows[0]["metrics"]["acc"]
        records.write_samples(path, rows)
    elif damage == "nan":
        path.write_bytes(path.read_bytes())
        import zstandard

        text = "".join(json.dumps(row | {"metrics": {"acc": math.nan}}) + "\n" for row in rows)
        path.write_bytes(zstandard.compress(text.encode()))
    return analysis_of(run.dir.root)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "samples cannot be read"),
        ("foreign", "lacks what samples must have"),
        ("flipped", "its record says"),
        ("nan", "not a finite number"),
        ("gone", None),
    ],
)
def test_cells_with_invalid_samples_are_listed_and_unpaired(tmp_path: Path, damage: str, said: str | None) -> None:
    analysis = damaged(tmp_path, damage)
    assert analysis.differences[*at(analysis, 0.0, "arc_easy.en"), "acc"].method == "unpaired"
    assert analysis.differences[*at(analysis, 1e6, "arc_easy.en"), "acc"].method == "McNemar"
    problems = [problem.what for problem in analysis.study.problems]
    assert (not problems) if said is None else (len(problems) == 1 and said in problems[0])
    mean = analysis.means[0]
    run = at(analysis, 0.0, "arc_easy.en")[0]
    assert analysis.mean_differences[run, mean].method == "unpaired"
    assert analysis.mean_differences[run, mean].low is None


def test_only_shared_documents_are_paired(tmp_path: Path) -> None:
    run = build(tmp_path, tasks=("arc_easy",))
    folder = run.dir.evaluate(run.run_name(0.0, 0))
    cell = next(cell for cell in run.cells() if cell.name == "arc_easy.en")
    rows = run.rows(cell, 0.0, 0)
    for row in rows[:10]:
        row["doc_hash"] = "another"
    run.write(folder, run.run_name(0.0, 0), 40, 1.0, run.coordinates(0.0, 0), cell, rows)
    analysis = analysis_of(run.dir.root)
    difference = analysis.differences[*at(analysis, 0.0, "arc_easy.en"), "acc"]
    assert difference.n == 30
    base = run.rows(cell, None, 0)
    expected = np.mean([a["metrics"]["acc"] - b["metrics"]["acc"] for a, b in zip(rows[10:], base[10:], strict=True)])
    assert difference.value == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- seeds


def test_seeds_are_averaged_and_their_variance_enters_the_error(tmp_path: Path) -> None:
    run = build(tmp_path, seeds=(0, 1, 2), tasks=("arc_easy", "belebele"))
    analysis = analysis_of(run.dir.root)
    lines = Lines(analysis)
    assert lines.repeated
    assert [len(line.runs) for line in lines.lines] == [1, 3, 3]
    line = lines.lines[1]
    column = next(column for column in analysis.study.columns if column.cell == "arc_easy.en")
    each = [analysis.values[r, column, "acc"] for r in line.runs]
    value, spread = lines.value(line, column)
    assert value is not None
    assert spread is not None
    assert value.value == pytest.approx(np.mean([e.value for e in each]))
    assert spread.deviation == pytest.approx(np.std([e.value for e in each], ddof=1))
    documents = np.mean([e.stderr for e in each])
    assert value.stderr == pytest.approx(math.sqrt(documents**2 + spread.deviation**2 / 3))
    difference = lines.difference(line, column)
    assert difference is not None
    assert "3 seeds" in difference.method
    assert difference.p_holm is not None
    assert difference.p_holm >= (difference.p or 0)


def test_a_setting_with_a_missing_seed_has_no_value(tmp_path: Path) -> None:
    run = build(tmp_path, seeds=(0, 1), tasks=("arc_easy",))
    run.dir.evaluate(run.run_name(0.0, 1)).cell(40, "arc_easy.en").unlink()
    lines = Lines(analysis_of(run.dir.root))
    column = next(column for column in lines.study.columns if column.cell == "arc_easy.en")
    assert lines.value(lines.lines[1], column) == (None, None), "a mean over one of two seeds is not comparable"
    assert lines.value(lines.lines[2], column)[0] is not None


def test_copies_of_a_run_folder_change_nothing(tmp_path: Path) -> None:
    run = build(tmp_path, tasks=("arc_easy",))
    once = analysis_of(run.dir.root)
    shutil.copytree(run.dir.root, tmp_path / "copy" / "paper")
    collection = collect([run.dir.root, tmp_path / "copy" / "paper"])
    twice = analyse(build_study(collection, read_stages(collection)))
    assert [d.p for d in twice.differences.values()] == [d.p for d in once.differences.values()]


def test_texts_with_other_tokenizers_have_no_per_token_difference(tmp_path: Path) -> None:
    """The two models have different tokenizers: the same bytes, a third more tokens."""
    run = build(tmp_path, tasks=("arc_easy",))
    name, cells = run.run_name(0.0, 0), {cell.name: cell for cell in run.cells()}
    for cell in (cells["ppl_truthfulqa.en"], cells["ppl_heldout.en"]):
        rows = run.rows(cell, 0.0, 0)
        for row in rows:
            row["tokens"] += 5
        run.write(run.dir.evaluate(name), name, 40, 1.0, run.coordinates(0.0, 0), cell, rows)
    analysis = analysis_of(run.dir.root)
    for cell in ("ppl_truthfulqa.en", "ppl_heldout.en"):
        place = at(analysis, 0.0, cell)
        assert (*place, "perplexity") not in analysis.differences
        assert analysis.differences[*place, "bits_per_byte"].low is not None, "the bytes are the same"
        rows = scores(analysis, *place)
        nats = sum(-row["loglikelihoods"][0] for row in rows)  # type: ignore[index]
        own = math.exp(nats / sum(row["tokens"] for row in rows))  # type: ignore[misc]
        value = analysis.values[*place, "perplexity"]
        assert value.value == pytest.approx(own)
        assert (value.low or 0) < own < (value.high or 0), "its interval is in its own tokens"
    assert sum("different tokens, compare bits per byte" in part for part in analysis.left_out) == 2


def test_texts_without_tokens_cause_no_division_by_zero(tmp_path: Path) -> None:
    run = build(tmp_path, tasks=("arc_easy",))
    path = run.dir.evaluate(run.run_name(0.0, 0)).samples(40, "ppl_heldout.lt")
    records.write_samples(path, [row | {"tokens": 0} for row in records.read_samples(path)])
    analysis = analysis_of(run.dir.root)
    assert [problem.what for problem in analysis.study.problems] == [
        "a row lacks what samples must have (ValueError: a text of no tokens or bytes); remove it and its record"
    ]
    assert analysis.differences[*at(analysis, 0.0, "ppl_heldout.lt"), "bits_per_byte"].method == "unpaired"
