"""The rows of the report's tables of settings, versions and machines: a cell for each arm, and what differs first."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_ddpg_scratch.compare.results_file import Run
from sb3_ddpg_scratch.report.formatting import duration, number


class Row(NamedTuple):
    name: str
    cells: list[str]
    differs: bool = False


def settings_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    return _rows(runs, arms, lambda run: run.hyperparameters)


def surroundings_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    return _rows(runs, arms, lambda run: run.versions | {"machine": _machine(run.machine)})


def time_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    seconds = [float(np.mean([run.training_seconds for run in runs if run.arm == arm])) for arm in arms]
    updates = [float(np.mean([run.updates for run in runs if run.arm == arm])) for arm in arms]
    rates = [number(made / taken) if taken > 0 else "–" for made, taken in zip(updates, seconds, strict=True)]
    return [Row("training of a run, mean", list(map(duration, seconds))), Row("updates a second", rates)]


def _machine(machine: dict[str, Any]) -> str:
    units = {"cores": "{} cores", "memory_gib": "{} GiB", "threads": "{} thread(s) a run"}
    return ", ".join(units.get(name, "{}").format(value) for name, value in machine.items() if value not in (None, ""))


def _rows(runs: Sequence[Run], arms: Sequence[str], values: Callable[[Run], dict[str, Any]]) -> list[Row]:
    found: dict[str, dict[str, dict[str, dict[str, None]]]] = {}  # by name, arm, value and environment
    for run in runs:
        for name, value in values(run).items():
            text = "–" if value is None else str(value)
            found.setdefault(name, {}).setdefault(run.arm, {}).setdefault(text, {})[run.env] = None
    table = {name: [_cell(own.get(arm, {})) for arm in arms] for name, own in found.items()}
    rows = [Row(name, cells, len(set(cells)) > 1) for name, cells in table.items()]
    return sorted(rows, key=lambda row: not row.differs)


def _cell(found: dict[str, dict[str, None]]) -> str:
    """The value, or each value with the environments that it holds in."""
    if len(found) <= 1:
        return next(iter(found), "–")
    return "; ".join(f"{value} ({', '.join(envs)})" for value, envs in found.items())
