"""What the numbers of a comparison mean: a verdict, and its reasons in sentences."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from sb3_ddpg_scratch.compare.statistics import ALPHA, MINIMUM_SEEDS, Difference
from sb3_ddpg_scratch.report.formatting import number

Verdict = Literal["equivalent", "better", "worse", "undecided"]
WORST_FIRST: tuple[Verdict, ...] = ("worse", "undecided", "equivalent", "better")


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline: Holm-corrected p, each side's fewest seeds; ``relative`` means shares of the range."""

    difference: Difference
    welch_p: float
    margin: float
    seeds: tuple[int, int]
    seeds_needed: int | None
    relative: bool = False

    def amount(self, value: float, sign: bool = False) -> str:
        return number(100 * value, sign) + "%" if self.relative else number(value, sign)


def decide(comparison: Comparison) -> Verdict:
    """Equivalence comes first: a difference shown to be smaller than the margin does not matter, even if it is real."""
    if min(comparison.seeds) < MINIMUM_SEEDS:
        return "undecided"
    if comparison.difference.tost_p < ALPHA:
        return "equivalent"
    if comparison.welch_p < ALPHA:
        return "better" if comparison.difference.mean > 0 else "worse"
    return "undecided"


def reasons(comparison: Comparison) -> str:
    """Why the verdict is what it is, and for ``undecided`` what is missing."""
    if min(comparison.seeds) < 1:
        return "There is no finished run to compare."
    if min(comparison.seeds) < MINIMUM_SEEDS:
        few = "One seed shows no spread" if min(comparison.seeds) == 1 else "Two seeds can agree by chance"
        return f"{few}: each arm needs {MINIMUM_SEEDS} at the least, and ten to be worth much."
    found, verdict, amount = comparison.difference, decide(comparison), comparison.amount
    direction = "higher" if found.mean > 0 else "lower"
    means = f"the mean score is {amount(abs(found.mean))} {direction}" if found.mean else "the mean scores are the same"
    means += f" (90% interval {amount(found.low, sign=True)} to {amount(found.high, sign=True)})"
    sentence = means[0].upper() + means[1:]
    if not comparison.margin > 0:
        return f"{sentence}. No margin can be set: the baseline's range over a random policy is zero or unknown."
    unit = " of the baseline's range" if comparison.relative else ""
    margin = f"the margin of ±{amount(comparison.margin)}{unit}"
    if verdict == "equivalent":
        real = " The difference is significant, but too small to matter." if comparison.welch_p < ALPHA else ""
        return f"Within {margin}: {means}.{real}"
    if verdict == "undecided":
        return f"The difference may be nothing, or more than {margin}: {means}. {_missing(comparison)}"
    beyond = "more than" if min(abs(found.low), abs(found.high)) > comparison.margin else "though not surely more than"
    return f"{sentence}, {beyond} {margin}."


def _missing(comparison: Comparison) -> str:
    needed, has = comparison.seeds_needed, min(comparison.seeds)
    if needed is not None and needed > has:
        return f"With this spread it takes about {needed:,} seeds an arm to show that equal arms are equal; there are {has}."
    return f"The difference is near the margin: it takes more seeds than the {has} per arm that there are."


def p_value(p: float | None) -> str:
    if p is None or not isfinite(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
