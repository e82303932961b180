"""The report: recordings as one HTML page, or as figures and tables for a notebook."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.diagnostics.probe_heatmaps import probe_heatmaps
from sb3_ddpg_scratch.diagnostics.recording_reader import COLUMNS, Recording, UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.run_summary import LATEST, WINDOW, in_words, summarize
from sb3_ddpg_scratch.diagnostics.training_curves import Run, training_curves
from sb3_ddpg_scratch.errors import ArgumentError, require
from sb3_ddpg_scratch.report.figure import Figure
from sb3_ddpg_scratch.report.notebook import plotly_figures
from sb3_ddpg_scratch.report.page import write_page
from sb3_ddpg_scratch.validation import check_choice

LARGEST_INLINE_GIF = 4_000_000


@dataclass
class Report:
    """The page, the labels of the drawn runs, the GIFs beside it, and problems, in sentences."""

    path: Path
    runs: list[str] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def write_report(
    dirs: Sequence[Path | str],
    html_path: Path | str,
    video: bool = False,
    model: Path | str | None = None,
    one_file: bool = False,
) -> Report:
    """
    Draw recorded runs, side by side if there are several. Unreadable parts are listed and the rest is drawn.

    :param dirs: folders with a recording (or recordings themselves)
    :param html_path: the page to write
    :param video: whether to play a noise-free episode of each run's policy, as an animated GIF beside the page
    :param model: for ``video``, a model that SB3 or ScratchDDPG saved, in place of the actor's weights in the run's folder
        (one run only)
    :param one_file: whether to put Plotly's 5 MB into the page; otherwise it is in a file beside it that all pages of the
        folder share
    :return: what was made
    :raises ArgumentError: if nothing can be drawn
    """
    folders, html_path = [Path(folder) for folder in dirs], Path(html_path)
    if model is not None and (not video or len(folders) != 1):
        raise ArgumentError("model", str(model), problem="needs --video and a single run's folder")
    if model is not None and not Path(model).is_file():
        raise ArgumentError("model", str(model), "a saved model")
    report = Report(html_path)
    found = []
    for folder in dict.fromkeys(folders):
        try:
            found.append((folder, read_recording(folder)))
        except UnreadableRecordingError as error:
            report.problems.append(str(error))
    if not found:
        reasons = " ".join(report.problems)
        raise ArgumentError("DIR", [str(folder) for folder in folders], "a folder with a recording", reasons)
    names = distinct_names([folder for folder, _ in found])
    runs: list[Run] = []
    for name, (_, recording) in zip(names, found, strict=True):
        label = f"{recording.header.get('algorithm', 'unknown algorithm')}, {name}"
        runs.append(Run(label, recording, len(runs)))
    report.runs = [run.label for run in runs]
    for run in runs:
        report.problems += run.recording.problems
    clips = _videos(report, runs, None if model is None else Path(model)) if video else {}
    _write_page(report, runs, clips, one_file)
    return report


def default_path(dirs: Sequence[Path]) -> Path:
    """The report's default path: in the run's folder, or in the current one for several runs."""
    folder = dirs[0] if len(dirs) == 1 else Path()
    return (folder.parent if folder.is_file() else folder) / "report.html"


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """For each folder, as many of its last path components as distinguish it from the others."""
    resolved = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-length:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def _videos(report: Report, runs: Sequence[Run], model: Path | None) -> dict[int, Path]:
    from sb3_ddpg_scratch.diagnostics.video import VideoError, record_video

    clips = {}
    for run in runs:
        suffix = f"-{run.number + 1}" if len(runs) > 1 else ""
        path = report.path.with_name(f"{report.path.stem}{suffix}.gif")
        try:
            record_video(run.recording, path, model)
        except VideoError as error:
            report.problems.append(f"{run.label}: no video. {error}")
        else:
            clips[run.number] = path
            report.videos.append(path)
    return clips


def _write_page(report: Report, runs: Sequence[Run], clips: dict[int, Path], one_file: bool) -> None:
    last_step = max(1, *(run.recording.last_step for run in runs))
    figures = [_over_steps(figure, last_step) for figure in training_curves(runs) + probe_heatmaps(runs)]
    environments = sorted({_environment(run) for run in runs})
    algorithms = list(dict.fromkeys(run.recording.header.get("algorithm", "?") for run in runs))
    heading = f"{' and '.join(map(str, algorithms))} on {', '.join(environments)}"
    write_page(
        report.path,
        "diagnostics",
        figures,
        one_file,
        title=f"{heading} · diagnostics",
        heading=heading,
        subheading=_subheading(runs),
        problems=report.problems,
        runs=[_shown(run, clips.get(run.number)) for run in runs],
        window=WINDOW,
        latest=LATEST,
        snapshot_steps=sorted({step for figure in figures for step in figure.steps}),
        settings=_settings(runs),
        footer="Made by sb3-ddpg-scratch. The axes over environment steps are linked: zoom one and all follow; "
        "double-click to return.",
    )


def _over_steps(figure: Figure, last_step: int) -> Figure:
    """The figure with the x-axis that all figures over environment steps share."""
    if figure.steps and not figure.cursor:
        return figure
    own = {} if figure.cursor else {"range": [-0.01 * last_step, 1.015 * last_step]}
    axis = own | figure.layout.get("xaxis", {})
    return replace(figure, layout=figure.layout | {"xaxis": axis})


def _environment(run: Run) -> str:
    environment = run.recording.header.get("environment")
    return str(environment["id"]) if isinstance(environment, dict) and "id" in environment else "an unnamed environment"


def _subheading(runs: Sequence[Run]) -> str:
    normalized = [run.label for run in runs if (run.recording.header.get("normalized") or {}).get("rewards")]
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs, each in its own color"
    units = f" Q, targets and losses of {', '.join(normalized)} are in units of normalized rewards." if normalized else ""
    return f"{count}; diagnostics recorded during training.{units}"


def _shown(run: Run, clip: Path | None) -> dict[str, Any]:
    warnings = [f"Step {warning['step']:,}: {warning['text']}" for warning in run.recording.warnings]
    summary = summarize(run.recording)
    texts = {"words": in_words(run.recording, summary), "warnings": warnings, "clip": clip and _image_source(clip)}
    return run._asdict() | texts | {"summary": summary}


def _image_source(path: Path) -> str:
    content = path.read_bytes()
    if len(content) > LARGEST_INLINE_GIF:
        return path.name
    return f"data:image/gif;base64,{base64.b64encode(content).decode()}"


def _settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    columns = []
    for run in runs:
        header = run.recording.header
        settings = header.get("settings")
        columns.append(
            {"algorithm": header.get("algorithm"), "environment": _environment(run), "environments": header.get("n_envs")}
            | (settings if isinstance(settings, dict) else {})
            | {"action noise": header.get("noise"), "versions": header.get("versions"), "recording": str(run.recording.path)}
        )
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    return [(name, list(map(_setting, values))) for name, values in rows if any(value is not None for value in values)]


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "–" if value is None else str(value)


def figures(*recordings: Recording) -> dict[str, Any]:
    """
    The report's figures of one recording, or of several side by side, which Jupyter displays directly.

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
    :return: one row per record
    """
    check_choice("kind", kind, tuple(COLUMNS))
    require("A table", "plots", "pandas")
    import pandas as pd

    return pd.DataFrame(recording.tables[kind])
