"""The conclusions of a comparison: verdicts with reasons in words, ``summary.json``, and the table on a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import Scores, last_evaluations, scores_of
from sb3_ddpg_scratch.compare.statistics import (
    ALPHA,
    MINIMUM_SEEDS,
    RESAMPLES,
    Difference,
    Strata,
    difference,
    holm,
    improvement,
    improvement_interval,
    iqm,
    iqm_interval,
    pooled_deviation,
    seeds_needed,
    seeds_to_show,
)
from sb3_ddpg_scratch.json_values import plain
from sb3_ddpg_scratch.report.formatting import number, percent
from sb3_ddpg_scratch.terminal import say
from sb3_ddpg_scratch.validation import check_number

Verdict = Literal["equivalent", "better", "worse", "undecided"]
WORST_FIRST: tuple[Verdict, ...] = ("worse", "undecided", "equivalent", "better")
OVERALL = "overall"
"""Stands for all environments together, with scores in units of the baseline's range over random."""
COLORS = {"equivalent": "green", "better": "cyan", "worse": "red", "undecided": "yellow"}


@dataclass(frozen=True)
class Comparison:
    """
    An arm against the baseline: p corrected for ``tests`` comparisons, each side's fewest seeds, and how many would show that
    equal arms are equal, or that a difference as large as this one is one; in shares of the range if ``relative``.
    """

    difference: Difference
    welch_p: float
    margin: float
    seeds: tuple[int, int]
    seeds_needed: int | None
    relative: bool = False
    tests: int = 1
    seeds_to_show: int | None = None

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
    """Why this is the verdict, and for ``undecided`` what is missing."""
    if min(comparison.seeds) < 1:
        return "There is no finished run to compare."
    if min(comparison.seeds) < MINIMUM_SEEDS:
        few = "One seed shows no spread" if min(comparison.seeds) == 1 else "Two seeds can agree by chance"
        return f"{few}: each arm needs at least {MINIMUM_SEEDS}, and preferably ten."
    found, verdict, amount = comparison.difference, decide(comparison), comparison.amount
    direction = "higher" if found.mean > 0 else "lower"
    means = f"the mean score is {amount(abs(found.mean))} {direction}" if found.mean else "the mean scores are the same"
    means += f" (90% interval {amount(found.low, sign=True)} to {amount(found.high, sign=True)})"
    sentence = means[0].upper() + means[1:]
    known = comparison.margin > 0
    margin = f"the margin of ±{amount(comparison.margin)}" + " of the baseline's range" * comparison.relative
    if verdict == "equivalent":
        real = " The difference is significant, but too small to matter." if comparison.welch_p < ALPHA else ""
        return f"Within {margin}: {means}.{real}"
    if verdict == "undecided":
        said = _undecided(comparison, means, margin)
    elif not known:
        said = f"{sentence}."
    else:
        clearly = min(abs(found.low), abs(found.high)) > comparison.margin
        said = f"{sentence}, {'more than' if clearly else 'but not clearly more than'} {margin}."
    return said if known else f"{said} No margin can be set: the baseline's range over a random policy is zero or unknown."


def _undecided(comparison: Comparison, means: str, margin: str) -> str:
    """What the interval leaves open, and how many seeds would settle it."""
    found = comparison.difference
    corrected = f"after correction for {comparison.tests} comparisons " if comparison.tests > 1 else ""
    not_significant = f"{corrected}not significant (p {p_value(comparison.welch_p)})"
    if found.low > 0 or found.high < 0:
        likely = "better" if found.mean > 0 else "worse"
        seeds = _seeds(comparison.seeds_to_show, comparison)
        return f"Probably {likely}: {means}; {not_significant}. Showing it takes {seeds}."
    if not comparison.margin > 0:
        return f"Could be better or worse: {means}; {not_significant}."
    below, above = -found.low >= comparison.margin, found.high >= comparison.margin
    likely, other = ("worse", "better") if below else ("better", "worse")
    could = f"better or worse by more than {margin}"
    if not (below and above):
        could = f"{likely} by more than {margin}, but not {other} by as much"
    seeds = _seeds(comparison.seeds_needed, comparison)
    return f"Could be {could}: {means}. If the arms are equal, showing that takes {seeds}."


def _seeds(needed: int | None, comparison: Comparison) -> str:
    has = min(comparison.seeds)
    return f"about {needed:,} seeds per arm; there are {has}" if needed and needed > has else f"more than {has} seeds per arm"


def p_value(p: float | None) -> str:
    if p is None or not isfinite(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def summarize(results: Results, margin: float, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Contents of ``summary.json``; each comparison is of ``a`` with the baseline ``b``, and its verdict is about ``a``."""
    check_number("margin", margin, 0, low_allowed=False)
    scores = scores_of(results)
    pairs = [(arm, env) for arm in scores.arms if arm != results.baseline for env in _compared_on(scores, arm)]
    found = [_compare(scores, arm, env, margin, len(pairs)) for arm, env in pairs]
    corrected = holm([comparison.welch_p for comparison in found])
    found = [replace(comparison, welch_p=p) for comparison, p in zip(found, corrected, strict=True)]
    failed = failure_rates(results)
    summary = {
        "arms": {arm: _arm(scores, arm, resamples) | {"failed": failed.get(arm, {})} for arm in scores.arms},
        "comparisons": [
            _comparison(scores, arm, env, comparison, resamples) for (arm, env), comparison in zip(pairs, found, strict=True)
        ],
        "baseline": results.baseline,
        "environments": scores.envs,
        "margin": margin,
        "score": scores.score,
        "random_scores": scores.random,
        "missing": [{"arm": arm, "env": env, "seed": seed, "why": why} for arm, env, seed, why in results.missing],
        "notes": scores.notes + _left_out(scores) + _what_failed(results, failed),
        "command": results.command,
    }
    content: dict[str, Any] = plain(summary, words=False)
    return content


def _arm(scores: Scores, arm: str, resamples: int) -> dict[str, Any]:
    strata: dict[str, Strata] = {env: [values] for env, values in scores.counted[arm].items()}
    together = comparable(scores, arm)
    if len(scores.envs) > 1 and together:
        strata[OVERALL] = scores.normalized(arm, together)
    return {
        "scores": scores.measured[arm],
        "seeds": scores.seeds[arm],
        "iqm": {env: iqm(values) for env, values in strata.items()},
        "ci": {env: _interval(*iqm_interval(values, resamples)) for env, values in strata.items()},
    }


def comparable(scores: Scores, arm: str) -> list[str]:
    """The environments where an arm's scores can be expressed in units of the baseline's range."""
    return [env for env in scores.envs if len(scores.of(arm, env)) >= 2 and scores.stands_out(env)]


def _compared_on(scores: Scores, arm: str) -> list[str]:
    return scores.envs + ([OVERALL] if len(scores.envs) > 1 and comparable(scores, arm) else [])


def _left_out(scores: Scores) -> list[str]:
    notes = []
    for arm in scores.arms if len(scores.envs) > 1 else []:
        absent = [env for env in scores.envs if env not in comparable(scores, arm)]
        if absent and arm != scores.baseline:
            notes.append(
                f"{arm} overall is without {', '.join(absent)}: both arms need two finished runs there, and the baseline a "
                "mean score that differs from a random policy's."
            )
    return notes


def failure_rates(results: Results) -> dict[str, dict[str, float]]:
    """For each arm, the share of the scored evaluations' episodes that failed, in environments where any did."""
    last = last_evaluations(results.evaluations)
    rates = last.assign(rate=last["failure_rate"].astype(float)).groupby(["env", "arm"])["rate"].mean().dropna()
    found: dict[str, dict[str, float]] = {}
    for (env, arm), rate in rates.items():
        if rates[env].any():
            found.setdefault(arm, {})[env] = rate
    return found


def _what_failed(results: Results, failed: Mapping[str, Mapping[str, float]]) -> list[str]:
    keys = {run.env: run.hyperparameters.get("failure_key") for run in results.runs}
    envs = dict.fromkeys(env for own in failed.values() for env in own)
    named = (("terminated" if keys.get(env) is None else f"had {keys[env]}") + f" on {env}" for env in envs)
    return [f"Failed episodes are those of the scored evaluations that {', '.join(named)}."] if envs else []


def failed_share(summary: Mapping[str, Any], arm: str, env: str, baseline: str = "") -> str:
    """What a table shows of an arm, against the baseline."""
    rates = [summary["arms"][name]["failed"].get(env) for name in (arm, baseline) if name]
    shares = ["–" if rate is None else f"{number(100 * rate)}%" for rate in rates]
    return " against ".join(shares) if set(shares) != {"–"} else "–"


def _strata(scores: Scores, arm: str, env: str) -> tuple[Strata, Strata]:
    """The scores of the arm and of the baseline."""
    if env != OVERALL:
        return [scores.of(arm, env)], [scores.of(scores.baseline, env)]
    together = comparable(scores, arm)
    return scores.normalized(arm, together), scores.normalized(scores.baseline, together)


def _compare(scores: Scores, arm: str, env: str, margin: float, tests: int) -> Comparison:
    a, b = _strata(scores, arm, env)
    size = margin * (1.0 if env == OVERALL else scores.score_range(env))
    found = difference(a, b, size)
    deviation, seeds = pooled_deviation(a, b), (min(map(len, a)), min(map(len, b)))
    needed, to_show = seeds_needed(deviation, size), seeds_to_show(deviation, found.mean, tests)
    return Comparison(found, found.welch_p, size, seeds, needed, env == OVERALL, tests, to_show)


def _comparison(scores: Scores, arm: str, env: str, comparison: Comparison, resamples: int) -> dict[str, Any]:
    a, b = _strata(scores, arm, env)
    some = min(comparison.seeds) > 0
    found = comparison.difference
    return {
        "env": env,
        "a": arm,
        "b": scores.baseline,
        "p_improvement": improvement(a, b) if some else None,
        "p_improvement_ci": _interval(*improvement_interval(a, b, resamples)) if some else None,
        "welch_p": found.welch_p,
        "welch_p_corrected": comparison.welch_p,
        "tost_p": found.tost_p,
        "margin": comparison.margin,
        "difference": found.mean,
        "difference_ci90": _interval(found.low, found.high),
        "seeds": {"a": comparison.seeds[0], "b": comparison.seeds[1]},
        "verdict": decide(comparison),
        "seeds_needed": comparison.seeds_needed,
        "seeds_to_show": comparison.seeds_to_show,
        "why": reasons(comparison),
    }


def _interval(low: float, high: float) -> list[float] | None:
    return [low, high] if np.isfinite(low) and np.isfinite(high) else None


def worst_verdict(summary: Mapping[str, Any]) -> str:
    """``worse``, else ``undecided``, if any comparison is; ``better`` only if all are; ``undecided`` if there are none."""
    verdicts = {comparison["verdict"] for comparison in summary["comparisons"]}
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), "undecided")


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print the verdicts and their reasons; for a single arm, its scores."""
    table = _verdict_table(summary) if summary["comparisons"] else _score_table(summary)
    needed = console.measure(table, options=console.options.update(width=10_000)).minimum
    table.width = needed if needed > console.width else None
    console.print(table, crop=False)
    for note in summary["notes"]:
        say(console, note)
    if summary["missing"]:
        say(console, f"{len(summary['missing'])} run(s) are missing: this is of those that are finished.")


def _verdict_table(summary: Mapping[str, Any]) -> Table:
    margin = percent(summary["margin"])
    title = f"Against {escape(summary['baseline'])}, margin {margin} of its range over random"
    table = Table(title=title, title_justify="left")
    failed = any(own["failed"] for own in summary["arms"].values())
    # Names are never broken across lines: only the reasons wrap.
    for heading in ("environment", "arm", "verdict", "why", "P(better)", *(["failed"] if failed else [])):
        table.add_column(heading, no_wrap=heading != "why", min_width=20 if heading == "why" else None)
    for row in summary["comparisons"]:
        verdict = f"[{COLORS[row['verdict']]}]{row['verdict']}[/]"
        cells = [escape(row["env"]), escape(row["a"]), verdict, escape(row["why"]), percent(row["p_improvement"])]
        table.add_row(*cells, *([failed_share(summary, row["a"], row["env"], row["b"])] if failed else []))
    return table


def _score_table(summary: Mapping[str, Any]) -> Table:
    failed = any(own["failed"] for own in summary["arms"].values())
    table = Table("environment", "arm", "seeds", "IQM", "95% interval", *(["failed"] if failed else []))
    for arm, own in summary["arms"].items():
        for env, values in own["scores"].items():
            interval = own["ci"][env]
            ends = "–" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
            cells = [escape(env), escape(arm), str(len(values)), number(own["iqm"][env]), ends]
            table.add_row(*cells, *([failed_share(summary, arm, env)] if failed else []))
    return table
