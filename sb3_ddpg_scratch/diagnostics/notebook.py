"""Recordings for a notebook: Plotly figures and pandas tables."""

from typing import Any

from sb3_ddpg_scratch.diagnostics.probe_heatmaps import probe_heatmaps
from sb3_ddpg_scratch.diagnostics.recording_reader import COLUMNS, Recording
from sb3_ddpg_scratch.diagnostics.training_curves import Run, training_curves
from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.report.figure import plotly_figures
from sb3_ddpg_scratch.validation import check_choice


def figures(*recordings: Recording) -> dict[str, Any]:
    """
    The report's figures of one recording, or of several side by side, which Jupyter shows by themselves.

    :param recordings: what :func:`read_recording` returns
    :return: Plotly figures by title, as in "Episode return"
    """
    runs = [Run(str(recording.path.parent), recording, number) for number, recording in enumerate(recordings)]
    return plotly_figures(training_curves(runs) + probe_heatmaps(runs))


def table(recording: Recording, kind: str) -> Any:
    """
    What was recorded, as a pandas ``DataFrame``.

    :param recording: what :func:`read_recording` returns
    :param kind: "episode", "update" or "evaluation"
    :return: a row for each record
    """
    check_choice("kind", kind, tuple(COLUMNS))
    require("A table", "plots", "pandas")
    import pandas as pd

    return pd.DataFrame(recording.tables[kind])
