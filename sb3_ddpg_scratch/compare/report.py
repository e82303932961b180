"""The report of a comparison: one self-contained HTML page, and its main figure as a picture."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.conclusions import OVERALL, comparable
from sb3_ddpg_scratch.compare.curves import Curve, curves_of
from sb3_ddpg_scratch.compare.picture import draw_comparison
from sb3_ddpg_scratch.compare.plots import differences, learning_curves, profiles, score_distribution
from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import Scores, scores_of
from sb3_ddpg_scratch.compare.settings_table import settings_section
from sb3_ddpg_scratch.compare.verdict import p_value
from sb3_ddpg_scratch.report.figure import Figure, color_style
from sb3_ddpg_scratch.report.formatting import number, percent
from sb3_ddpg_scratch.report.page import macro, render

HEADLINES = {
    "equivalent": "{} is equivalent to {}",
    "better": "{} is better than {}",
    "worse": "{} is worse than {}",
    "undecided": "Whether {} is as good as {} is undecided",
}
LINES_SHOWN = 12
"""Missing runs that are listed; the rest is counted."""


def write_report(results: Results, summary: Mapping[str, Any], out: Path) -> Path:
    """Write ``report.html``, and ``learning_curves.png`` for papers; returns the page's path."""
    scores = scores_of(results)
    curves = curves_of(results, scores)
    path = out / "report.html"
    write_whole(path, page(results, scores, curves, summary).encode())
    draw_comparison(curves, summary, out / "learning_curves.png")
    return path


def page(results: Results, scores: Scores, curves: Mapping[str, Sequence[Curve]], summary: Mapping[str, Any]) -> str:
    figures = all_figures(scores, curves, summary)
    others = [arm for arm in scores.arms if arm != scores.baseline]
    heading = f"{', '.join(others) or 'no other arm'} against {scores.baseline}"
    seeds = sorted({len(values) for arm in scores.seeds.values() for values in arm.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "no"
    return render(
        "compare",
        "report/base.html",
        figures,
        title=f"{heading} · comparison",
        heading=heading,
        subheading=f"{', '.join(scores.envs)}. {count} seeds an arm; a score is the {summary['score']}.",
        overview=Markup(_overview(scores, summary)),
        sections=Markup(_sections(scores, figures, summary) + settings_section(results.runs, scores) + _command(results)),
        footer="Made by sb3-ddpg-scratch. Drag over a figure to zoom; double-click to return.",
    )


def all_figures(scores: Scores, curves: Mapping[str, Sequence[Curve]], summary: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for place, env in enumerate(scores.envs):
        figures.append(learning_curves(curves[env], env, place, scores.random[env], "steps"))
        figures.append(learning_curves(curves[env], env, place, scores.random[env], "seconds"))
    figures += [score_distribution(scores, summary, env, place) for place, env in enumerate(scores.envs)]
    several = len(scores.envs) > 1
    if several:
        strata = {arm: scores.normalized(arm, envs) for arm in scores.arms if (envs := comparable(scores, arm))}
    else:
        strata = {arm: list(own.values()) for arm, own in scores.counted.items() if own}
    return [*figures, profiles(strata, scores.arms, several), differences(summary, scores)]


# ----------------------------------------------------------------------------------------------------- The first screen


def _overview(scores: Scores, summary: Mapping[str, Any]) -> str:
    cards = [_card(scores, summary, arm) for arm in scores.arms if arm != scores.baseline]
    missing = [f"{run['arm']} on {run['env']}, seed {run['seed']}: {run['why']}" for run in summary["missing"]]
    title = (
        f"{len(missing)} run{'s are' if len(missing) > 1 else ' is'} missing. All that follows is of those that are finished."
    )
    notes = f'<div class="notes">{macro("bullets", summary["notes"])}</div>' if summary["notes"] else ""
    return "".join(cards) + macro("alarm", title, _shortened(missing)) + notes


def _shortened(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - LINES_SHOWN
    return [*lines[:LINES_SHOWN], *([f"and {rest} more."] if rest > 0 else [])]


def _card(scores: Scores, summary: Mapping[str, Any], arm: str) -> str:
    own = [row for row in summary["comparisons"] if row["a"] == arm]
    main = next((row for row in own if row["env"] == OVERALL), own[0])
    where = " overall" if main["env"] == OVERALL else ""
    headline = HEADLINES[main["verdict"]].format(arm, scores.baseline) + where
    rest = [row for row in own if row is not main]
    items = "".join(f"<li>{_tag(row['verdict'])} on {html.escape(row['env'])}</li>" for row in rest)
    title = f"<h2>{html.escape(headline)} {_tag(main['verdict'])}</h2>"
    listing = f"<ul>{items}</ul>" if items else ""
    return (
        f'<article class="card" style="{color_style(scores.arms.index(arm))}">{title}'
        f'<p class="words">{html.escape(main["why"])}</p>{listing}</article>'
    )


def _tag(verdict: str) -> str:
    return f'<span class="tag {verdict}">{verdict}</span>'


# ----------------------------------------------------------------------------------------------------------- The figures


def _sections(scores: Scores, figures: Sequence[Figure], summary: Mapping[str, Any]) -> str:
    parts = [_controls(scores)]
    for section in dict.fromkeys(figure.section for figure in figures):
        own = "".join(macro("frame", figure) for figure in figures if figure.section == section)
        after = _verdicts(summary) if section == "Verdicts" else ""
        parts.append(f'<section><h2>{section}</h2><div class="figures">{own}</div>{after}</section>')
    return "".join(parts)


def _controls(scores: Scores) -> str:
    """The environments to choose from, if there are several, and the arms to show."""
    tabs = ""
    if len(scores.envs) > 1:
        items = "".join(
            f'<label><input type="radio" name="env" value="{html.escape(env)}"{" checked" if place == 0 else ""}>'
            f"<span>{html.escape(env)}</span></label>"
            for place, env in enumerate(scores.envs)
        )
        tabs = f'<fieldset class="tabs"><legend>Environment</legend>{items}</fieldset>'
    arms = "".join(
        f'<button type="button" aria-pressed="true" data-arm="{place}" style="{color_style(place)}">'
        f"{html.escape(arm)}</button>"
        for place, arm in enumerate(scores.arms)
    )
    return f'<div class="controls">{tabs}<div class="arms" role="group" aria-label="Arms shown">{arms}</div></div>'


def _verdicts(summary: Mapping[str, Any]) -> str:
    head = ("environment", "arm", "verdict", "why", "P(better)", "Welch p", "TOST p", "seeds needed")
    rows = []
    for row in summary["comparisons"]:
        chance = "–" if row["p_improvement"] is None else percent(row["p_improvement"])
        if row["p_improvement_ci"]:
            chance += " ({} to {})".format(*map(percent, row["p_improvement_ci"]))
        needed = "–" if row["seeds_needed"] is None else number(row["seeds_needed"])
        p_values = (p_value(row["welch_p_corrected"]), p_value(row["tost_p"]))
        texts = [row["env"], row["a"], "", row["why"], chance, *p_values, needed]
        cells = [html.escape(text) for text in texts]
        cells[2] = _tag(row["verdict"])
        rows.append("".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(head, cells, strict=True)))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    titles = "".join(f"<th>{name}</th>" for name in head)
    several = len(summary["comparisons"]) > 1
    return (
        f'<div class="scroll"><table class="verdicts"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{html.escape(_explanation(summary, several))}</p>'
    )


def _explanation(summary: Mapping[str, Any], several: bool) -> str:
    corrected = f", corrected by Holm for {len(summary['comparisons'])} comparisons" if several else ""
    return (
        f"All against {summary['baseline']}. Equivalent: two one-sided t tests (TOST) show a difference smaller than "
        f"{summary['margin']:.0%} of the baseline's range over a random policy, p below 0.05. Otherwise better or worse: "
        f"Welch's t shows a difference, p below 0.05{corrected}. Neither: undecided. P(better) is the chance that a run of "
        "the arm scores above one of the baseline, with its 95% interval. Seeds needed: per arm, for two equal arms to be "
        "called equivalent four times in five."
    )


def _command(results: Results) -> str:
    return f"<section><h2>The command</h2><pre>{html.escape(results.command)}</pre></section>"
