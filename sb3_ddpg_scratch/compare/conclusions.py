"""What a comparison concludes: ``summary.json``, and the table of verdicts on a terminal."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import Scores, scores_of
from sb3_ddpg_scratch.compare.statistics import (
    RESAMPLES,
    Strata,
    difference,
    holm,
    improvement,
    improvement_interval,
    iqm,
    iqm_interval,
    pooled_deviation,
    seeds_needed,
)
from sb3_ddpg_scratch.compare.verdict import WORST_FIRST, Comparison, decide, reasons
from sb3_ddpg_scratch.json_values import plain
from sb3_ddpg_scratch.report.formatting import number, percent
from sb3_ddpg_scratch.validation import check_number

OVERALL = "overall"
"""In place of an environment's id: all of them together, their scores in units of the baseline's range over random."""
COLORS = {"equivalent": "green", "better": "cyan", "worse": "red", "undecided": "yellow"}


def summarize(results: Results, margin: float, resamples: int = RESAMPLES) -> dict[str, Any]:
    """What ``summary.json`` holds; each comparison is of ``a`` with the baseline ``b``, and its verdict is about ``a``."""
    check_number("margin", margin, 0, low_allowed=False)
    scores = scores_of(results)
    pairs = [(arm, env) for arm in scores.arms if arm != results.baseline for env in _compared_on(scores, arm)]
    found = [_compare(scores, arm, env, margin) for arm, env in pairs]
    corrected = holm([comparison.welch_p for comparison in found])
    found = [replace(comparison, welch_p=p) for comparison, p in zip(found, corrected, strict=True)]
    summary = {
        "arms": {arm: _arm(scores, arm, resamples) for arm in scores.arms},
        "comparisons": [
            _comparison(scores, arm, env, comparison, resamples) for (arm, env), comparison in zip(pairs, found, strict=True)
        ],
        "baseline": results.baseline,
        "environments": scores.envs,
        "margin": margin,
        "score": scores.score,
        "random_scores": scores.random,
        "missing": [{"arm": arm, "env": env, "seed": seed, "why": why} for arm, env, seed, why in results.missing],
        "notes": scores.notes + _left_out(scores),
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
    """The environments in which an arm can be compared with the baseline in units of the baseline's range."""
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


def _strata(scores: Scores, arm: str, env: str) -> tuple[Strata, Strata]:
    """The scores of an arm, and those of the baseline."""
    if env != OVERALL:
        return [scores.of(arm, env)], [scores.of(scores.baseline, env)]
    together = comparable(scores, arm)
    return scores.normalized(arm, together), scores.normalized(scores.baseline, together)


def _compare(scores: Scores, arm: str, env: str, margin: float) -> Comparison:
    a, b = _strata(scores, arm, env)
    size = margin * (1.0 if env == OVERALL else scores.score_range(env))
    found = difference(a, b, size)
    needed = seeds_needed(pooled_deviation(a, b), size)
    return Comparison(found, found.welch_p, size, (min(map(len, a)), min(map(len, b))), needed, env == OVERALL)


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
        "why": reasons(comparison),
    }


def _interval(low: float, high: float) -> list[float] | None:
    return [low, high] if np.isfinite(low) and np.isfinite(high) else None


def worst_verdict(summary: Mapping[str, Any]) -> str:
    """``worse`` or else ``undecided`` if any comparison is, ``better`` only if all are, ``undecided`` if there is none."""
    verdicts = {comparison["verdict"] for comparison in summary["comparisons"]}
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), "undecided")


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print the verdicts and the reasons for them; of one arm alone, its scores."""
    table = _verdict_table(summary) if summary["comparisons"] else _score_table(summary)
    needed = console.measure(table, options=console.options.update(width=10_000)).minimum
    table.width = needed if needed > console.width else None
    console.print(table, crop=False)
    for note in summary["notes"]:
        console.print(note, markup=False, highlight=False)
    if summary["missing"]:
        console.print(f"{len(summary['missing'])} run(s) are missing: this is of those that are finished.")


def _verdict_table(summary: Mapping[str, Any]) -> Table:
    margin = percent(summary["margin"])
    title = f"Against {escape(summary['baseline'])}, margin {margin} of its range over random"
    table = Table(title=title, title_justify="left")
    # Names are never broken across lines: only the reasons wrap.
    for heading in ("environment", "arm", "verdict", "why", "P(better)"):
        table.add_column(heading, no_wrap=heading != "why", min_width=20 if heading == "why" else None)
    for row in summary["comparisons"]:
        verdict = f"[{COLORS[row['verdict']]}]{row['verdict']}[/]"
        table.add_row(escape(row["env"]), escape(row["a"]), verdict, escape(row["why"]), percent(row["p_improvement"]))
    return table


def _score_table(summary: Mapping[str, Any]) -> Table:
    table = Table("environment", "arm", "seeds", "IQM", "95% interval")
    for arm, own in summary["arms"].items():
        for env, values in own["scores"].items():
            interval = own["ci"][env]
            ends = "–" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
            table.add_row(escape(env), escape(arm), str(len(values)), number(own["iqm"][env]), ends)
    return table
