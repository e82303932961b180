"""The report's tables of settings, versions and machines: a column for each arm, and what differs first."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sb3_ddpg_scratch.compare.results_file import Run
from sb3_ddpg_scratch.compare.scores import Scores
from sb3_ddpg_scratch.report.formatting import duration, number

Rows = dict[str, dict[str, str]]


def settings_section(runs: Sequence[Run], scores: Scores) -> str:
    """Settings of each arm, and what it ran on, as HTML."""
    arms = [arm for arm in scores.arms if scores.seeds[arm]]
    settings = _rows(runs, arms, lambda run: run.hyperparameters)
    surroundings = _rows(runs, arms, lambda run: run.versions | {"machine": _machine(run.machine)})
    time = _table(arms, _time(runs, arms), mark=False)
    return (
        f"<section><h2>Settings</h2>{_sentence(settings)}{_table(arms, settings)}</section>"
        f"<section><h2>Time, versions and machine</h2>{time}{_table(arms, surroundings)}</section>"
    )


def _machine(machine: dict[str, Any]) -> str:
    units = {"cores": "{} cores", "memory_gib": "{} GiB", "threads": "{} thread(s) a run"}
    return ", ".join(units.get(name, "{}").format(value) for name, value in machine.items() if value not in (None, ""))


def _rows(runs: Sequence[Run], arms: Sequence[str], values: Callable[[Run], dict[str, Any]]) -> Rows:
    rows: dict[str, dict[str, dict[str, list[str]]]] = {}
    for run in runs:
        for name, value in values(run).items():
            found = rows.setdefault(name, {}).setdefault(run.arm, {}).setdefault(_text(value), [])
            if run.env not in found:
                found.append(run.env)
    return {name: {arm: _cell(own.get(arm, {})) for arm in arms} for name, own in rows.items()}


def _cell(found: dict[str, list[str]]) -> str:
    """The value, or each value with the environments that it holds in."""
    if len(found) <= 1:
        return next(iter(found), "–")
    return "; ".join(f"{value} ({', '.join(envs)})" for value, envs in found.items())


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _time(runs: Sequence[Run], arms: Sequence[str]) -> Rows:
    seconds = {arm: np.mean([run.training_seconds for run in runs if run.arm == arm]) for arm in arms}
    updates = {arm: np.mean([run.updates for run in runs if run.arm == arm]) for arm in arms}
    return {
        "training of a run, mean": {arm: duration(float(seconds[arm])) for arm in arms},
        "updates a second": {arm: number(float(updates[arm] / seconds[arm])) if seconds[arm] > 0 else "–" for arm in arms},
    }


def _differs(row: dict[str, str]) -> bool:
    return len(set(row.values())) > 1


def _sentence(rows: Rows) -> str:
    names = [name for name, row in rows.items() if _differs(row)]
    if not names:
        return "<p>All arms have the same settings.</p>" if any(len(row) > 1 for row in rows.values()) else ""
    return f"<p>The arms differ in {html.escape(', '.join(names))}; all else is the same.</p>"


def _table(arms: Sequence[str], rows: Rows, mark: bool = True) -> str:
    head = "".join(f"<th>{html.escape(arm)}</th>" for arm in arms)
    body = []
    for name, row in sorted(rows.items(), key=lambda item: mark and not _differs(item[1])):
        style = ' class="differs"' if mark and _differs(row) else ""
        cells = "".join(f"<td>{html.escape(row[arm])}</td>" for arm in arms)
        body.append(f"<tr{style}><th>{html.escape(name)}</th>{cells}</tr>")
    return f'<div class="scroll"><table class="settings"><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
