"""
The statistics of a comparison: arrays in, numbers out. Scores come as strata, an array per environment. The estimates are
rliable's, by scipy: rliable 1.2 always draws from NumPy's global generator, and takes a hundred times as long.
"""

from collections.abc import Sequence
from math import ceil, floor, inf, nan
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 50_000
MINIMUM_SEEDS = 3
"""Per arm: two runs that both fail, or both succeed, agree by chance too often to conclude anything."""
_BATCH = 1000
_SEED = 0

Strata = Sequence[np.ndarray]
Interval = tuple[float, float]


def iqm(scores: Strata) -> float:
    """Interquartile mean of all scores together: the mean of the middle half."""
    return float(_iqm_along(*scores))


def iqm_interval(scores: Strata, resamples: int = RESAMPLES) -> Interval:
    """95% interval of :func:`iqm`; NaN if an environment has fewer than two seeds."""
    return _interval(scores, _iqm_along, resamples)


def iqm_curve(values: np.ndarray, resamples: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM over seeds of values of shape ``(points, seeds)``, and its 95% interval, which has zero width for one seed."""
    middle = stats.trim_mean(values, 0.25, axis=-1)
    if values.shape[-1] < 2:
        return middle, middle, middle
    low, high = _bootstrap([values], _iqm_along, resamples)
    return middle, low, high


def performance_profile(
    scores: Strata, thresholds: np.ndarray, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs above each threshold, with equal weights for environments, and its 95% interval."""
    above = [np.asarray(values)[None, :] > thresholds[:, None] for values in scores]
    share = _mean_of_means(*above)
    if min(map(len, scores)) < 2:
        return share, share, share
    low, high = _bootstrap(above, _mean_of_means, resamples)
    return share, low, high


def improvement(a: Strata, b: Strata) -> float:
    """Probability that a run of ``a`` scores above one of ``b`` (a tie counts half), averaged over environments."""
    return float(_improvement_along(*a, *b))


def improvement_interval(a: Strata, b: Strata, resamples: int = RESAMPLES) -> Interval:
    """95% interval of :func:`improvement`; NaN if either arm has fewer than two seeds."""
    return _interval([*a, *b], _improvement_along, resamples)


def _iqm_along(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    return stats.trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


def _mean_of_means(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([values.mean(axis=axis) for values in scores], axis=0)


def _improvement_along(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    half = len(scores) // 2
    chances = []
    for x, y in zip(scores[:half], scores[half:], strict=True):
        difference = x[..., :, None] - y[..., None, :]
        chances.append(0.5 + 0.5 * np.sign(difference).mean(axis=(-2, -1)))
    return np.mean(chances, axis=0)


def _interval(samples: Strata, statistic: Any, resamples: int) -> Interval:
    if min(map(len, samples)) < 2:
        return nan, nan
    low, high = _bootstrap(samples, statistic, resamples)
    return float(low), float(high)


def _bootstrap(samples: Sequence[np.ndarray], statistic: Any, resamples: int) -> Any:
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        batch=_BATCH,
        vectorized=True,
        axis=-1,
        confidence_level=1 - ALPHA,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    )
    return found.confidence_interval


class Difference(NamedTuple):
    """Mean difference over environments, its 90% interval, and p of Welch's test and TOST; NaN with too few seeds."""

    mean: float
    low: float
    high: float
    welch_p: float
    tost_p: float


def difference(a: Strata, b: Strata, margin: float) -> Difference:
    """Welch's t and two one-sided tests; over several environments, of the mean difference (Satterthwaite)."""
    samples = [*a, *b]
    if min(map(len, samples)) < 1:
        return Difference(nan, nan, nan, nan, nan)
    mean = float(np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)]))
    if min(map(len, samples)) < 2:
        return Difference(mean, nan, nan, nan, nan)
    # Each sample's contribution to the variance of the mean difference.
    variances = np.array([np.var(x, ddof=1) / len(x) for x in samples]) / len(a) ** 2
    scale = max(float(np.abs(x).max()) for x in samples)
    error = float(np.sqrt(variances.sum()))
    if error <= 1e-12 * scale:
        # No spread at all: the difference is exact.
        return Difference(mean, mean, mean, float(abs(mean) <= 1e-12 * scale), float(not abs(mean) < margin))
    freedom = variances.sum() ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, samples, strict=True))
    t = stats.t(freedom)
    reach = t.isf(ALPHA) * error
    welch_p = 2 * t.sf(abs(mean) / error)
    tost_p = t.sf((margin - abs(mean)) / error)
    return Difference(mean, mean - reach, mean + reach, float(welch_p), float(tost_p))


def pooled_deviation(a: Strata, b: Strata) -> float:
    """Standard deviation over seeds of a run's score, or of the mean over environments; NaN with fewer than two seeds."""
    samples = [*a, *b]
    if min(map(len, samples)) < 2:
        return nan
    return float(np.sqrt(sum(np.var(x, ddof=1) for x in samples) / 2) / len(a))


def seeds_needed(deviation: float, margin: float) -> int | None:
    """Seeds per arm to find equal arms equivalent four times in five, about ``17.1 (deviation / margin)^2``."""
    if not (np.isfinite(deviation) and margin > 0):
        return None
    ratio = float(stats.norm.isf(ALPHA) + stats.norm.isf((1 - POWER) / 2)) * deviation / margin
    seeds = max(MINIMUM_SEEDS, floor(2 * ratio**2))
    while _equivalence_power(seeds, deviation, margin) < POWER:
        seeds += 1
    return seeds


def seeds_to_show(deviation: float, shift: float, tests: int = 1) -> int | None:
    """Seeds per arm to find a true difference of ``shift`` significant four times in five, corrected for all tests."""
    if not (np.isfinite(deviation) and np.isfinite(shift) and shift != 0):
        return None
    quantile = float(stats.norm.isf(ALPHA / 2 / tests))
    # The second term is for t instead of normal quantiles (Guenther 1981).
    seeds = 2 * ((quantile + float(stats.norm.isf(1 - POWER))) * deviation / shift) ** 2 + quantile**2 / 4
    return max(MINIMUM_SEEDS, ceil(seeds))


def _equivalence_power(seeds: int, deviation: float, margin: float) -> float:
    """Power for equal arms, by the noncentral t distribution."""
    freedom = 2 * (seeds - 1)
    shift = margin / (deviation * np.sqrt(2 / seeds)) if deviation > 0 else inf
    # Beyond this, the power is 1 to all digits and the distribution is slow to evaluate.
    return 1.0 if shift > 100 else float(2 * stats.nct.sf(stats.t.isf(ALPHA, freedom), freedom, shift) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for multiple tests, skipping those that could not be made (NaN)."""
    order = sorted((p, index) for index, p in enumerate(p_values) if np.isfinite(p))
    corrected, largest = [nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[index] = largest
    return corrected
