"""The report's statistics agree with independent implementations and, in simulation, with their nominal levels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hpc_ewc.report.analysis import statistics
from hpc_ewc.report.analysis.columns import tied_with_best
from hpc_ewc.report.analysis.estimates import Estimate
from hpc_ewc.report.analysis.pairs import unpaired_difference
from hpc_ewc.report.analysis.statistics import Moments


def clustered(rng: np.random.Generator, groups: int, size: int, share: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Return values with noise shared within clusters, and the clusters' codes."""
    codes = np.repeat(np.arange(groups), size)
    noise = math.sqrt(share) * rng.normal(size=groups)[codes] + math.sqrt(1 - share) * rng.normal(size=groups * size)
    return noise, codes


# ---------------------------------------------------------------------------------------------- against others


def test_a_mean_and_its_error_equal_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 41)
    moments = statistics.ratio(values)
    assert moments.value == pytest.approx(values.mean())
    assert moments.stderr == pytest.approx(stats.sem(values))
    assert statistics.student(moments) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_a_paired_difference_equals_scipys_paired_t() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(30), rng.random(30)
    assert statistics.student(statistics.ratio(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_a_clustered_error_equals_the_sandwich_estimator_for_a_constant() -> None:
    values, codes = clustered(np.random.default_rng(2), 12, 4)
    keep = np.random.default_rng(3).random(len(values)) < 0.7  # clusters of unequal size
    values, codes = values[keep], np.unique(codes[keep], return_inverse=True)[1]
    moments = statistics.ratio(values, None, codes)
    # OLS of y on 1: bread (X'X)⁻¹ = 1/n, meat Σ_g (Σ_i x_i e_i)², correction G/(G−1)
    design = np.ones((len(values), 1))
    beta, *_ = np.linalg.lstsq(design, values, rcond=None)
    errors = values - design @ beta
    scores = np.array([design[codes == g].T @ errors[codes == g] for g in np.unique(codes)])
    groups = len(scores)
    bread = np.linalg.inv(design.T @ design)
    sandwich = bread @ (groups / (groups - 1) * scores.T @ scores) @ bread
    assert moments.value == pytest.approx(beta[0])
    assert moments.stderr == pytest.approx(math.sqrt(sandwich[0, 0]))
    assert moments.df == groups - 1


def test_a_ratios_error_equals_the_jackknife_for_many_documents() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(20, 200, 3000).astype(float)
    nats = sizes * rng.gamma(4, 0.2, 3000)
    moments = statistics.ratio(nats, sizes)
    left_out = (nats.sum() - nats) / (sizes.sum() - sizes)
    n = len(nats)
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert moments.value == pytest.approx(nats.sum() / sizes.sum())
    assert moments.stderr == pytest.approx(jackknife, rel=2e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (0, 6), (14, 10), (3, 3), (200, 260)])
def test_mcnemar_equals_scipys_exact_binomial_test(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert statistics.mcnemar(lost, gained) == pytest.approx(expected)
    assert statistics.mcnemar(gained, lost) == pytest.approx(expected)


def test_the_mean_of_two_tasks_has_welchs_degrees_of_freedom() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(1, 1, 12), rng.normal(0, 3, 30)
    mean = statistics.mean_of([statistics.ratio(a), statistics.ratio(-b)])
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert mean.df == pytest.approx(welch.df)
    assert statistics.student(mean) == pytest.approx(welch.pvalue)


def test_holm_equals_closed_testing_with_bonferroni() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        p = rng.random(5) ** 2
        expected = []
        for place in range(5):
            others = [q for q in range(5) if q != place]
            subsets = itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(5))
            # H_i is rejected if every intersection containing it is rejected by Bonferroni
            expected.append(max(min(1.0, (len(s) + 1) * min(p[[place, *s]])) for s in subsets))
        assert statistics.holm(list(p)) == pytest.approx(expected)
    with_nothing = statistics.holm([0.01, math.nan, 0.04])
    assert with_nothing[:1] + with_nothing[2:] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_nothing[1])


def test_resampling_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(7).gamma(2, 1, (80, 2))
    drawn = statistics.resampled(values, (0, 1), resamples=4000)
    for column in (0, 1):
        other = stats.bootstrap((values[:, column],), np.mean, n_resamples=4000, method="percentile", rng=1)
        low, high = statistics.interval(drawn[:, [column]])
        assert drawn[:, column].std(ddof=1) == pytest.approx(other.standard_error, rel=0.05)
        assert [low[0], high[0]] == pytest.approx(list(other.confidence_interval), abs=0.25 * other.standard_error)


def test_an_interval_equals_numpys_quantiles_and_does_not_change_its_input() -> None:
    for runs in (1, 5):
        drawn = np.random.default_rng(runs).normal(size=(501, runs))
        kept = drawn.copy()
        low, high = statistics.interval(drawn)
        assert np.array_equal(drawn, kept)
        expected = np.quantile(kept, [0.025, 0.975], axis=0)
        np.testing.assert_allclose(np.stack([low, high]), expected, rtol=1e-12)


def test_resampled_runs_share_their_documents() -> None:
    values = np.random.default_rng(8).random((50, 1))
    drawn = statistics.resampled(np.hstack([values, values + 0.25]), (3,), resamples=200)
    assert drawn[:, 1] - drawn[:, 0] == pytest.approx(np.full(200, 0.25))
    assert (drawn == statistics.resampled(np.hstack([values, values + 0.25]), (3,), resamples=200)).all()


def test_resampling_draws_whole_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(6.0)[:, None]
    codes = np.array([0, 0, 0, 1, 1, 2])
    drawn = statistics.resampled(values, (0,), clusters=codes, resamples=500)[:, 0]
    sums, sizes = np.bincount(codes, weights=values[:, 0]), np.bincount(codes)
    possible = {sums[list(c)].sum() / sizes[list(c)].sum() for c in itertools.product(range(3), repeat=3)}
    assert {round(value, 9) for value in drawn} <= {round(value, 9) for value in possible}
    monkeypatch.setattr(statistics, "CHUNK", 7)  # a few resamples at a time
    few = statistics.resampled(values, (0,), clusters=codes, resamples=500)[:, 0]
    assert few.mean() == pytest.approx(drawn.mean(), abs=0.2)


# ---------------------------------------------------------------------------------------------- by simulation


def test_p_of_a_paired_t_is_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(9)
    p = [statistics.student(statistics.ratio(rng.normal(size=25))) for _ in range(2000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_by_cluster_is_uniform_if_p_by_document_is_not() -> None:
    rng = np.random.default_rng(10)
    by_cluster, by_document = [], []
    for _ in range(1500):
        values, codes = clustered(rng, 40, 3)
        by_cluster.append(statistics.student(statistics.ratio(values, None, codes)))
        by_document.append(statistics.student(statistics.ratio(values)))
    assert stats.kstest(by_cluster, "uniform").pvalue > 0.01
    assert stats.kstest(by_document, "uniform").pvalue < 1e-6


def test_p_of_a_mean_over_tasks_and_of_a_ratio_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(15)
    means, ratios = [], []
    for _ in range(1500):
        tasks = [statistics.ratio(rng.normal(0, spread, n)) for n, spread in ((12, 1.0), (40, 3.0), (25, 0.5))]
        means.append(statistics.student(statistics.mean_of(tasks)))
        sizes = rng.integers(50, 150, 60).astype(float)
        ratios.append(statistics.student(statistics.ratio(sizes * rng.normal(0, 0.1, 60), sizes)))
    assert stats.kstest(means, "uniform").pvalue > 0.01
    assert stats.kstest(ratios, "uniform").pvalue > 0.01


def test_paired_perplexity_intervals_have_nominal_coverage() -> None:
    rng = np.random.default_rng(16)
    rounds, hits, change = 400, 0, 0.05
    for number in range(rounds):
        tokens = rng.integers(20, 80, 60).astype(float)
        base = tokens * rng.normal(3.0, 0.4, 60)
        mine = base + tokens * rng.normal(change, 0.1, 60)
        drawn = statistics.resampled(np.stack([mine, base], axis=1), (number,), denominator=tokens, resamples=400)
        low, high = statistics.interval((drawn[:, 0] - drawn[:, 1])[:, None])
        hits += bool(low[0] <= change <= high[0])
    assert 0.90 <= hits / rounds <= 0.985


def test_mcnemar_rejects_at_most_at_its_level() -> None:
    rng = np.random.default_rng(11)
    discordant = rng.binomial(150, 0.2, 4000)
    p = np.array([_null(rng, int(count)) for count in discordant])
    for alpha in (0.01, 0.05, 0.2):
        assert (p <= alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(p))


def _null(rng: np.random.Generator, discordant: int) -> float:
    lost = int(rng.binomial(discordant, 0.5))
    return statistics.mcnemar(lost, discordant - lost)


def test_mean_over_tasks_intervals_have_nominal_coverage() -> None:
    """Three fixed tasks, one with passages: documents are resampled, tasks are not."""
    rng = np.random.default_rng(12)
    rounds, hits = 400, 0
    truth = (0.2 + 0.0 + 0.5) / 3
    for number in range(rounds):
        passages, codes = clustered(rng, 30, 3)
        drawn = [
            statistics.resampled(0.2 + rng.normal(size=(60, 1)), (number, 0), resamples=400),
            statistics.resampled(passages[:, None], (number, 1), clusters=codes, resamples=400),
            statistics.resampled((rng.random((80, 1)) < 0.5).astype(float), (number, 2), resamples=400),
        ]
        low, high = statistics.interval(sum(drawn) / 3)
        hits += bool(low[0] <= truth <= high[0])
    # 400 rounds: 0.95 ± 0.033 at three standard errors; percentile intervals of so few documents run a little short
    assert 0.90 <= hits / rounds <= 0.985


def test_the_minimum_detectable_effect_has_80_per_cent_power() -> None:
    rng = np.random.default_rng(13)
    n, spread = 200, 0.5
    size = statistics.minimum_detectable(spread / math.sqrt(n), n, binary=False)
    found = [statistics.student(statistics.ratio(rng.normal(size, spread, n))) < 0.05 for _ in range(1500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.035)


def test_mcnemar_needs_six_documents_for_significance() -> None:
    assert statistics.mcnemar(0, 5) > 0.05 >= statistics.mcnemar(0, 6)
    assert statistics.minimum_detectable(0.0, 100, binary=True) == pytest.approx(0.06)


def test_the_best_and_those_not_significantly_different_are_found() -> None:
    rng = np.random.default_rng(14)
    hard = rng.random(400)
    values = np.stack([(hard < p).astype(float) for p in (0.5, 0.51, 0.7)], axis=1)
    drawn = statistics.resampled(values, (0,))
    runs = ["low", "nearly", "high"]
    assert tied_with_best(runs, list(values.mean(axis=0)), drawn) == {"high"}  # type: ignore[arg-type, comparison-overlap]
    close = values.copy()
    close[:6, 2] = 0.0
    both = statistics.resampled(close[:, [2, 2]] + np.array([0.0, 1e-9]) * rng.normal(size=(400, 2)), (0,))
    assert len(tied_with_best(["a", "b"], list(both.mean(axis=0)), both)) == 2  # type: ignore[arg-type]


def test_there_is_no_p_without_an_error() -> None:
    assert math.isnan(statistics.student(Moments(0.1, math.nan, 0)))
    assert statistics.student(Moments(0.0, 0.0, 5)) == 1.0
    same = statistics.ratio(np.full(6, 1 / 3), None, np.arange(6))
    assert statistics.student(same) == pytest.approx(stats.binomtest(6, 6).pvalue)
    assert math.isinf(statistics.satterthwaite([0.0, 0.0], [3, 4]))
    assert math.isnan(statistics.ratio(np.array([1.0])).stderr)


def test_there_is_no_detectable_effect_without_an_error() -> None:
    assert statistics.minimum_detectable(math.nan, 1, binary=True) is None
    assert statistics.minimum_detectable(math.nan, 1, binary=False) is None
    assert statistics.minimum_detectable(0.0, 20, binary=False) is None, "all scores the same: nothing was measured"


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (5, 0.0625), (8, 0.0078125)])
def test_unpaired_all_against_none_is_no_stronger_than_its_draws(n: int, p: float) -> None:
    difference = unpaired_difference(Estimate(1.0, 0.0, n), Estimate(0.0, 0.0, n), is_bits=False)
    assert difference.p == pytest.approx(p)


def test_unpaired_values_use_welchs_test() -> None:
    rng = np.random.default_rng(15)
    one, other = rng.normal(0.4, 1.0, 12), rng.normal(0.0, 2.0, 30)
    values = [Estimate(float(x.mean()), float(stats.sem(x)), len(x)) for x in (one, other)]
    difference = unpaired_difference(*values, is_bits=False)
    assert difference.p == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    assert unpaired_difference(Estimate(1.0, None, 1), values[1], is_bits=False).p is None


def test_a_mean_without_error_is_no_stronger_than_its_smallest_task() -> None:
    """All 3 and all 5 documents changed equally: there is no t statistic, and p is not 0 either."""
    mean = statistics.mean_of([Moments(1.0, 0.0, 2), Moments(1.0, 0.0, 4)])
    assert statistics.student(mean) == pytest.approx(2 * 0.5**3)
    assert statistics.mean_over_seeds([1.0, 1.0], [0.0, 0.0]).df == 1
