"""The statistics of comparisons against scipy, rliable, Monte Carlo, and numbers worked by hand."""

import itertools
import math
import sys
from collections import Counter

import numpy as np
import pytest
from rliable import library, metrics
from scipy import stats

from sb3_ddpg_scratch import compare
from sb3_ddpg_scratch.compare.conclusions import Comparison, decide, reasons
from sb3_ddpg_scratch.compare.statistics import (
    Difference,
    difference,
    holm,
    improvement,
    improvement_interval,
    iqm,
    iqm_curve,
    iqm_interval,
    performance_profile,
    pooled_deviation,
    seeds_needed,
    seeds_to_show,
)
from sb3_ddpg_scratch.errors import MissingPackageError


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def judged(a, b, margin, welch_p=None):
    found = difference([a], [b], margin)
    deviation = pooled_deviation([a], [b])
    needed, to_show = seeds_needed(deviation, margin), seeds_to_show(deviation, found.mean)
    p, seeds = found.welch_p if welch_p is None else welch_p, (len(a), len(b))
    comparison = Comparison(found, p, margin, seeds, needed, seeds_to_show=to_show)
    return decide(comparison), reasons(comparison)


def test_iqm_by_hand(rng):
    # The middle half of eight numbers is the four in the middle.
    assert iqm([np.array([8.0, 1, 2, 100, 4, 3, -50, 5])]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    strata = [rng.normal(size=6), rng.normal(size=6)]
    assert iqm(strata) == metrics.aggregate_iqm(np.concatenate(strata))


def test_iqm_interval_is_rliables(rng):
    """The same stratified bootstrap, within what resampling leaves to chance."""
    scores = np.column_stack([rng.normal(size=9), rng.normal(5, 3, size=9)])
    np.random.seed(0)
    _, theirs = library.get_interval_estimates({"a": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4000)
    low, high = iqm_interval(list(scores.T))
    np.testing.assert_allclose([low, high], theirs["a"].ravel(), atol=0.06 * (high - low))
    assert iqm_interval(list(scores.T)) == (low, high)


def test_interval_covers_the_truth():
    """The interquartile mean of a symmetric law is its centre. Nominally 95%; ten seeds give a little less."""
    rng = np.random.default_rng(0)
    intervals = [iqm_interval([rng.normal(size=10), rng.normal(size=10)], resamples=400) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.98


def test_improvement_counts_pairs(rng):
    a, b = (
        [rng.integers(0, 5, 7).astype(float), rng.normal(size=4)],
        [rng.integers(0, 5, 6).astype(float), rng.normal(1, size=9)],
    )
    chances = []
    for x, y in zip(a, b, strict=True):
        chances.append(np.mean([(i > j) + 0.5 * (i == j) for i, j in itertools.product(x, y)]))
    assert improvement(a, b) == pytest.approx(np.mean(chances))
    theirs = [metrics.probability_of_improvement(x[:, None], y[:, None]) for x, y in zip(a, b, strict=True)]
    assert improvement(a, b) == pytest.approx(np.mean(theirs))
    assert improvement(b, a) == pytest.approx(1 - np.mean(chances))
    same = np.array([1.0, 2, 3])
    assert improvement([same], [same]) == 0.5
    tied = np.ones(4)
    assert improvement_interval([tied], [tied]) == (0.5, 0.5)


def test_improvement_interval_is_rliables(rng):
    a, b = rng.normal(0.7, size=(8, 2)), rng.normal(size=(11, 2))
    np.random.seed(0)
    statistic = lambda x, y: np.array([metrics.probability_of_improvement(x, y)])  # noqa: E731
    _, theirs = library.get_interval_estimates({"a": [a, b]}, statistic, reps=1000)
    low, high = improvement_interval(list(a.T), list(b.T))
    np.testing.assert_allclose([low, high], theirs["a"].ravel(), atol=0.1 * (high - low))


def test_profile_is_rliables(rng):
    scores, thresholds = rng.normal(size=(10, 2)), np.linspace(-2, 2, 9)
    np.random.seed(0)
    theirs, their_intervals = library.create_performance_profile({"a": scores}, thresholds, reps=1000)
    share, low, high = performance_profile(list(scores.T), thresholds)
    np.testing.assert_allclose(share, theirs["a"])
    np.testing.assert_allclose([low, high], their_intervals["a"], atol=0.051)


def test_curve_resamples_whole_seeds(rng):
    """A point of the curve is the interquartile mean there, with the interval that the point alone would have."""
    values = rng.normal(size=(3, 10))
    middle, low, high = iqm_curve(values, resamples=2000)
    np.testing.assert_allclose(middle, [iqm([row]) for row in values])
    for row, at_low, at_high in zip(values, low, high, strict=True):
        np.testing.assert_allclose([at_low, at_high], iqm_interval([row], resamples=2000))


def test_tests_are_scipys(rng):
    a, b, margin = rng.normal(0.2, 1, 9), rng.normal(0, 3, 14), 1.5
    found = difference([a], [b], margin)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert found.welch_p == pytest.approx(welch.pvalue)
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    assert found.tost_p == pytest.approx(max(above, below))
    np.testing.assert_allclose([found.low, found.high], welch.confidence_interval(0.9))


def test_equivalence_by_hand():
    """Means 3 and 3.5, variances 2.5: standard error 1, 8 degrees of freedom, t = (2 - 0.5) / 1, whose tail is 0.0860."""
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([1.5, 2.5, 3.5, 4.5, 5.5])
    found = difference([a], [b], margin=2)
    assert found.mean == pytest.approx(-0.5)
    assert found.tost_p == pytest.approx(0.0860, abs=5e-5)
    # The 90% interval reaches 1.8595 standard errors to each side, and is within the margin just when p is below 0.05.
    np.testing.assert_allclose([found.low, found.high], [-0.5 - 1.8595, -0.5 + 1.8595], atol=1e-4)
    assert difference([a], [b], margin=2.36).tost_p < 0.05 < difference([a], [b], margin=2.35).tost_p


def test_several_environments_are_not_pooled(rng):
    """An environment in which both arms are a thousand higher is no spread, and the error is that of a mean of differences."""
    a, b = rng.normal(0.2, 1, size=(2, 200)), rng.normal(size=(2, 200))
    lifted = [np.array([[0.0], [1000.0]]) + values for values in (a, b)]
    found = difference(list(lifted[0]), list(lifted[1]), margin=1)
    expected = np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)])
    error = np.sqrt(sum(x.var(ddof=1) / 200 for x in [*a, *b])) / 2
    assert found.mean == pytest.approx(expected)
    assert found.welch_p == pytest.approx(2 * stats.norm.sf(abs(expected) / error), rel=0.1)
    assert pooled_deviation(list(a), list(b)) == pytest.approx(np.sqrt(0.5), rel=0.1)


def test_seeds_to_show_have_the_power_of_the_noncentral_t():
    for deviation, shift, tests in ((7.0, 10.0, 1), (7.0, -10.0, 3), (1.0, 0.3, 1), (2.0, 1.5, 9)):
        seeds = seeds_to_show(deviation, shift, tests)
        power = []
        for count in (seeds - 2, seeds + 1):
            freedom, noncentral = 2 * count - 2, abs(shift) / deviation * np.sqrt(count / 2)
            power.append(stats.nct.sf(stats.t.isf(0.025 / tests, freedom), freedom, noncentral))
        assert power[0] < 0.8 < power[1]
    assert seeds_to_show(1.0, 0.0) is None
    assert seeds_to_show(np.nan, 1.0) is None


HIGH, LOW, SAME = "the mean score is {} higher", "the mean score is {} lower", "the mean scores are the same"
PROBABLY = "Probably {}: {} (90% interval {}); not significant (p {}). Showing it takes about 12 seeds per arm; there are 5."
COULD = "Could be {}: {} (90% interval {}). If the arms are equal, showing that takes about 30 seeds per arm; there are 5."
# By mean difference, its 90% interval, p and margin; TOST finds equivalence where the interval is within the margin.
SENTENCES = [
    (0, -5, 5, 1, 10, "equivalent", f"Within the margin of ±10: {SAME} (90% interval −5 to +5)."),
    (-3, -7, 1, 0.2, 10, "equivalent", f"Within the margin of ±10: {LOW.format(3)} (90% interval −7 to +1)."),
    (
        *(3, 1, 5, 0.01, 10, "equivalent"),
        f"Within the margin of ±10: {HIGH.format(3)} (90% interval +1 to +5). The difference is significant, but too small "
        "to matter.",
    ),
    (20, 12, 28, 0.001, 10, "better", "The mean score is 20 higher (90% interval +12 to +28), more than the margin of ±10."),
    (-20, -28, -12, 0.001, 10, "worse", "The mean score is 20 lower (90% interval −28 to −12), more than the margin of ±10."),
    (
        *(12, 2, 22, 0.04, 10, "better"),
        "The mean score is 12 higher (90% interval +2 to +22), but not clearly more than the margin of ±10.",
    ),
    (
        *(-9, -16, -2, 0.03, 10, "worse"),
        "The mean score is 9 lower (90% interval −16 to −2), but not clearly more than the margin of ±10.",
    ),
    (12, 1, 23, 0.07, 10, "undecided", PROBABLY.format("better", HIGH.format(12), "+1 to +23", "0.070")),
    (-30, -48, -12, 0.06, 10, "undecided", PROBABLY.format("worse", LOW.format(30), "−48 to −12", "0.060")),
    (
        2,
        -15,
        19,
        0.8,
        10,
        "undecided",
        COULD.format("better or worse by more than the margin of ±10", HIGH.format(2), "−15 to +19"),
    ),
    (0, -15, 15, 1, 10, "undecided", COULD.format("better or worse by more than the margin of ±10", SAME, "−15 to +15")),
    (
        *(-6, -15, 3, 0.3, 10, "undecided"),
        COULD.format("worse by more than the margin of ±10, but not better by as much", LOW.format(6), "−15 to +3"),
    ),
    (
        *(6, -3, 15, 0.3, 10, "undecided"),
        COULD.format("better by more than the margin of ±10, but not worse by as much", HIGH.format(6), "−3 to +15"),
    ),
    (20, 12, 28, 0.001, np.nan, "better", "The mean score is 20 higher (90% interval +12 to +28)."),
    (12, 1, 23, 0.07, 0, "undecided", PROBABLY.format("better", HIGH.format(12), "+1 to +23", "0.070")),
    (
        *(2, -15, 19, 0.8, np.nan, "undecided"),
        f"Could be better or worse: {HIGH.format(2)} (90% interval −15 to +19); not significant (p 0.80).",
    ),
]


@pytest.mark.parametrize(("mean", "low", "high", "p", "margin", "verdict", "sentence"), SENTENCES)
def test_verdicts_in_words_agree_with_their_numbers(mean, low, high, p, margin, verdict, sentence):
    tost_p = 0.01 if -margin < low and high < margin else np.nan if np.isnan(margin) else 0.2
    found = Difference(mean, low, high, p, tost_p)
    comparison = Comparison(found, p, margin, (5, 7), 30, seeds_to_show=12)
    no_margin = " No margin can be set: the baseline's range over a random policy is zero or unknown."
    assert (decide(comparison), reasons(comparison)) == (verdict, sentence + ("" if margin > 0 else no_margin))


def test_correction_that_takes_significance_away_is_named():
    found = Difference(-35.6, -56.0, -15.2, 0.037, 0.99)
    assert reasons(Comparison(found, 0.11, 6.39, (5, 5), 17, tests=3, seeds_to_show=9)) == (
        "Probably worse: the mean score is 35.6 lower (90% interval −56 to −15.2); after correction for 3 comparisons not "
        "significant (p 0.11). Showing it takes about 9 seeds per arm; there are 5."
    )
    seeds = (40, 40)
    more = reasons(Comparison(Difference(2.0, -3.0, 15.0, 0.5, 0.2), 0.5, 10.0, seeds, 17))
    assert more.endswith("If the arms are equal, showing that takes more than 40 seeds per arm.")


def test_seeds_needed_against_the_formula_and_monte_carlo():
    rng = np.random.default_rng(0)
    # 17.1 (deviation / margin)^2 where many are needed.
    for ratio in (3, 10):
        assert seeds_needed(ratio * 7.0, 7.0) == pytest.approx(17.13 * ratio**2, abs=2)
    # Where few are: with so many equal arms are called equivalent four times in five, with two fewer less often.
    needed = seeds_needed(1.0, 1.3)
    assert needed is not None

    def power(seeds):
        x, y = rng.normal(size=(2, 20_000, seeds))
        error = np.sqrt((x.var(axis=1, ddof=1) + y.var(axis=1, ddof=1)) / seeds)
        return np.mean(np.abs(x.mean(axis=1) - y.mean(axis=1)) + stats.t.isf(0.05, 2 * seeds - 2) * error < 1.3)

    assert power(needed) > 0.79
    assert power(needed - 2) < 0.8
    assert seeds_needed(0.0, 1.0) == 3
    assert seeds_needed(1.0, 0.0) is None
    assert seeds_needed(math.nan, 1.0) is None


def test_all_four_verdicts(rng):
    a = rng.normal(size=10)
    a = (a - a.mean()) / a.std(ddof=1)
    assert judged(a, a, 2.0)[0] == "equivalent"
    assert judged(a, a[::-1] + 0.1, 2.0)[0] == "equivalent"
    assert judged(a + 3, a, 2.0)[0] == "better"
    assert judged(a - 3, a, 2.0)[0] == "worse"
    verdict, why = judged(a, a, 0.3)
    assert verdict == "undecided"
    assert "about 191 seeds per arm" in why
    assert "there are 10" in why
    # Many seeds show a difference that is too small to matter.
    verdict, why = judged(np.tile(a, 20) + 0.5, np.tile(a, 20), 2.0)
    assert verdict == "equivalent"
    assert "significant, but too small to matter" in why
    # Enough seeds for equal arms, but these lie at the margin's edge.
    wide = np.linspace(-1, 1, 40)
    verdict, why = judged(wide + 0.5, wide, 0.51, welch_p=0.06)
    assert verdict == "undecided"
    assert "takes more than 40 seeds per arm" in why
    # Significant, and not surely beyond the margin.
    verdict, why = judged(a + 1.5, a, 1.4)
    assert verdict == "better"
    assert "but not clearly more than the margin" in why


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("environments", [1, 3])
def test_copies_of_an_arm_are_hardly_ever_called_better_or_worse(seeds, environments):
    """Nominal: 5% of experiments, however many environments an experiment has. Twice as wide a margin hides nothing."""
    rng = np.random.default_rng(1)
    counts = Counter()
    for _ in range(1000):
        arms = rng.normal(-150, 60, size=(2, environments, seeds))
        found = [difference([a], [b], 60.0) for a, b in arms.transpose(1, 0, 2)]
        corrected = holm([one.welch_p for one in found])
        verdicts = {decide(Comparison(one, p, 60.0, (seeds, seeds), None)) for one, p in zip(found, corrected, strict=True)}
        counts[bool(verdicts & {"better", "worse"})] += 1
    assert 0 < counts[True] <= 50


def test_copies_of_a_failing_arm_are_hardly_ever_called_better_or_worse():
    """As in MountainCarContinuous: a run succeeds or it does not, and no law could be less normal."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(1000):
        a, b = np.where(rng.random((2, 5)) < 0.4, 0.0, 93 + rng.normal(size=(2, 5)))
        wrong += judged(a, b, 12.0)[0] in ("better", "worse")
    assert wrong <= 50


def test_degenerate_scores():
    constant, other = np.full(5, 7.0), np.full(5, 9.0)
    assert judged(constant, constant, 1.0)[0] == "equivalent"
    assert judged(other, constant, 1.0)[0] == "better"
    assert judged(constant, other, 1.0)[0] == "worse"
    assert judged(constant, other, 3.0)[0] == "equivalent"
    # 0.1 + 0.2 is not 0.3: rounding is no spread.
    assert judged(np.full(5, 0.1 + 0.2), np.full(5, 0.3), 0.1)[0] == "equivalent"
    # Without a margin nothing is equivalent, but a difference is still one.
    for margin in (0.0, math.nan):
        verdict, why = judged(constant, constant, margin)
        assert verdict == "undecided"
        assert "No margin can be set" in why
        assert judged(constant, other, margin)[0] == "worse"
    spread = np.linspace(0, 1, 10)
    for few, words in ((np.empty(0), "no finished run"), (spread[:1], "One seed shows no spread"), (spread[:2], "by chance")):
        verdict, why = judged(few, spread, 0.5)
        assert verdict == "undecided"
        assert words in why
    assert all(map(math.isnan, iqm_interval([spread[:1]])))
    assert all(map(math.isnan, improvement_interval([spread[:1]], [spread])))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.02)


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingPackageError, match=r"compare\.verdict_table needs plotly.*sb3-ddpg-scratch\[compare\]"):
        _ = compare.verdict_table
