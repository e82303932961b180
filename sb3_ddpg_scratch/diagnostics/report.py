"""The report: recordings of one or several runs as one HTML page that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.diagnostics.figures import Figure, Run, time_figures
from sb3_ddpg_scratch.diagnostics.probe_figures import probe_figures
from sb3_ddpg_scratch.diagnostics.reading import UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.recording import plain
from sb3_ddpg_scratch.diagnostics.summary import LATEST, WINDOW, Summary, in_words, summarize
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.page.figure import color_style, framed, named
from sb3_ddpg_scratch.page.shell import alarm, assemble
from sb3_ddpg_scratch.page.words import number, percent

LARGEST_INLINE_GIF = 4_000_000


@dataclass
class Report:
    """
    What :func:`write_report` made.

    :param path: the page
    :param runs: labels of the runs drawn
    :param videos: animated GIFs beside it
    :param problems: what could not be read or made, in sentences
    """

    path: Path
    runs: list[str] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def write_report(
    dirs: Sequence[Path | str], html_path: Path | str, video: bool = False, model: Path | str | None = None
) -> Report:
    """
    Draw the recordings of runs, side by side if there are several. What cannot be read is named and the rest drawn.

    :param dirs: folders with a recording (or recordings themselves)
    :param html_path: the page to write
    :param video: whether to play a noise-free episode of each run's policy, as an animated GIF beside the page
    :param model: for ``video``, a model that SB3 or ScratchDDPG saved, in place of the actor's weights in the run's folder
        (one run only)
    :return: what was made
    :raises ArgumentError: if there is nothing that can be drawn
    """
    folders, html_path = [Path(folder) for folder in dirs], Path(html_path)
    if model is not None and (not video or len(folders) != 1):
        raise ArgumentError("model", str(model), "given with video and one run", "Name one run's folder and add --video.")
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
    runs = [Run(label_of(name, recording.header), recording, i) for i, (name, (_, recording)) in enumerate(zip(names, found))]  # noqa: B905
    report.runs = [run.label for run in runs]
    for run in runs:
        report.problems += run.recording.problems
    clips = _videos(report, runs, None if model is None else Path(model)) if video else {}
    write_whole(html_path, page(runs, report.problems, clips).encode())
    return report


def default_path(dirs: Sequence[Path]) -> Path:
    """
    :param dirs: folders with a recording
    :return: where the report goes if nobody says: into the folder, or for several into the present one
    """
    folder = dirs[0] if len(dirs) == 1 else Path()
    return (folder.parent if folder.is_file() else folder) / "report.html"


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """
    :param folders: different folders
    :return: for each as much of the end of its path as tells it from the others
    """
    resolved = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-length:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def label_of(name: str, header: dict[str, Any]) -> str:
    """
    :param name: the run's name
    :param header: its recording's header
    :return: the label of the run in the report
    """
    return f"{header.get('algorithm', 'unknown algorithm')}, {name}"


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


# ------------------------------------------------------------------------------------------------------------- The page


def page(runs: Sequence[Run], problems: Sequence[str], clips: dict[int, Path]) -> str:
    """
    :param runs: the runs, at least one
    :param problems: what could not be read, in sentences
    :param clips: for runs' numbers animated GIFs
    :return: the page
    """
    figures = time_figures(runs) + probe_figures(runs)
    environments = sorted({_environment(run) for run in runs})
    algorithms = list(dict.fromkeys(run.recording.header.get("algorithm", "?") for run in runs))
    heading = f"{' and '.join(map(str, algorithms))} on {', '.join(environments)}"
    settings = f"<details><summary>Settings</summary>{_settings(runs)}</details>"
    return assemble(
        room="sb3_ddpg_scratch.diagnostics",
        title=f"{heading} · diagnostics",
        heading=heading,
        subheading=_subheading(runs),
        overview=_overview(runs, problems, clips),
        sections=_sections(runs, figures) + settings,
        footer="Made by sb3-ddpg-scratch. The axes over environment steps are linked: zoom one and all follow; "
        "double-click to return.",
        figures=plain([_figure_data(figure, _last_step(runs)) for figure in figures]),
    )


def _last_step(runs: Sequence[Run]) -> int:
    return max(max(run.recording.last_step for run in runs), 1)


def _environment(run: Run) -> str:
    environment = run.recording.header.get("environment")
    return str(environment["id"]) if isinstance(environment, dict) and "id" in environment else "an unnamed environment"


def _subheading(runs: Sequence[Run]) -> str:
    normalized = [run.label for run in runs if (run.recording.header.get("normalized") or {}).get("rewards")]
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs, each in its colour"
    units = f" Q, targets and losses of {', '.join(normalized)} are in units of normalised rewards." if normalized else ""
    return f"{count}; diagnostics recorded during training.{units}"


def _overview(runs: Sequence[Run], problems: Sequence[str], clips: dict[int, Path]) -> str:
    parts = [alarm("Not everything could be shown", problems)]
    for run in runs:
        summary = summarize(run.recording)
        parts.append(
            f'<article class="run" style="{color_style(run.number)}"><div><h3>{html.escape(run.label)}</h3>'
            f'<p class="words">{html.escape(in_words(run.recording, summary))}</p>{_numbers(summary)}'
            f"{_warnings(run)}</div>{_clip(run, clips)}</article>"
        )
    return "\n".join(parts)


def _numbers(summary: Summary) -> str:
    noise = "without noise" if summary.noise_free else "in training"
    tiles = [
        (f"Return, last {WINDOW} episodes", number(summary.last_return), f"first {WINDOW}: {number(summary.first_return)}"),
        (
            "Over-estimation of Q",
            number(summary.overestimation, sign=True),
            f"promised {number(summary.q)}, obtained {number(summary.obtained)} {noise}",
        ),
        ("Saturated actions", percent(summary.saturated), f"last {LATEST} measurements"),
    ]
    if isnan(summary.overestimation):
        tiles[1] = ("Over-estimation of Q", "–", "not compared")
    cells = [
        f'<div><dt>{title}</dt><dd class="value">{value}</dd><dd class="aside">{html.escape(aside)}</dd></div>'
        for title, value, aside in tiles
    ]
    return f'<dl class="numbers">{"".join(cells)}</dl>'


def _warnings(run: Run) -> str:
    texts = [f"Step {warning['step']:,}: {warning['text']}" for warning in run.recording.warnings]
    return alarm("Signs of divergence", texts)


def _clip(run: Run, clips: dict[int, Path]) -> str:
    path = clips.get(run.number)
    if path is None:
        return ""
    content = path.read_bytes()
    source = html.escape(path.name)
    if len(content) <= LARGEST_INLINE_GIF:
        source = f"data:image/gif;base64,{base64.b64encode(content).decode()}"
    alt = html.escape(f"One noise-free episode of {run.label}")
    return f'<p class="episode"><img src="{source}" alt="{alt}"></p>'


def _sections(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    parts = []
    for section in dict.fromkeys(figure.section for figure in figures):
        own = [figure for figure in figures if figure.section == section]
        above = _legend(runs) + _slider(own)
        shown = "\n".join(map(framed, own))
        parts.append(f'<section><h2>{section}</h2>{above}<div class="figures">{shown}</div></section>')
    return "\n".join(parts)


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    items = "".join(f'<li style="{color_style(run.number)}">{html.escape(run.label)}</li>' for run in runs)
    return f'<ul class="legend">{items}</ul>'


def _slider(figures: Sequence[Figure]) -> str:
    steps = sorted({step for figure in figures for step in figure.steps})
    if not steps:
        return ""
    last = len(steps) - 1
    return (
        f'<div class="slider"><button id="play" type="button">Play</button>'
        f'<input id="snapshot" type="range" min="0" max="{last}" value="{last}" step="1" aria-labelledby="snapshot-label">'
        f'<label id="snapshot-label" for="snapshot">Snapshot at step {steps[-1]:,}</label></div>'
    )


def _figure_data(figure: Figure, last_step: int) -> dict[str, Any]:
    return {
        "name": figure.name,
        "traces": named(figure.traces),
        "layout": figure.layout,
        "frames": figure.frames,
        "steps": figure.steps,
        "cursor": figure.cursor,
        "heat": bool(figure.steps),
        "linked": figure.cursor or not figure.steps,
        "range": [-0.01 * last_step, 1.015 * last_step],
    }


def _settings(runs: Sequence[Run]) -> str:
    columns = []
    for run in runs:
        header = run.recording.header
        settings = header.get("settings")
        columns.append(
            {"algorithm": header.get("algorithm"), "environment": _environment(run), "environments": header.get("n_envs")}
            | (settings if isinstance(settings, dict) else {})
            | {"action noise": header.get("noise"), "versions": header.get("versions"), "recording": str(run.recording.path)}
        )
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = "".join(f"<th>{html.escape(run.label)}</th>" for run in runs)
    rows = [
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(_setting(column.get(name)))}</td>" for column in columns)
        + "</tr>"
        for name in names
        if any(column.get(name) is not None for column in columns)
    ]
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "–" if value is None else str(value)
