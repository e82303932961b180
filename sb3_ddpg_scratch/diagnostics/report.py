"""The report: recordings of one or several runs as one HTML page that needs nothing else."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import isnan
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.diagnostics.figures import RUN_COLORS, Figure, Run, time_figures
from sb3_ddpg_scratch.diagnostics.probe_figures import probe_figures
from sb3_ddpg_scratch.diagnostics.reading import UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.recording import plain
from sb3_ddpg_scratch.diagnostics.summary import LATEST, WINDOW, Summary, in_words, number, percent, summarize
from sb3_ddpg_scratch.errors import ArgumentError

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
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ArgumentError(
            "report", "plotly", "installed", "The report needs Plotly: pip install 'sb3-ddpg-scratch[report]'."
        ) from error
    figures = time_figures(runs) + probe_figures(runs)
    environments = sorted({_environment(run) for run in runs})
    algorithms = list(dict.fromkeys(run.recording.header.get("algorithm", "?") for run in runs))
    heading = f"{' and '.join(map(str, algorithms))} on {', '.join(environments)}"
    parts = {
        "title": html.escape(f"{heading} · diagnostics"),
        "heading": html.escape(heading),
        "subheading": html.escape(_subheading(runs)),
        "style": _asset("page.css"),
        "overview": _overview(runs, problems, clips),
        "sections": _sections(runs, figures),
        "settings": _settings(runs),
        "footer": "Made by sb3-ddpg-scratch. The axes over environment steps are linked: zoom one and all follow; "
        "double-click to return.",
        "plotly": get_plotlyjs(),
        "figures": _as_script_data([_figure_data(figure, _last_step(runs)) for figure in figures]),
        "script": _asset("page.js"),
    }
    # Split once at the markers, so that nothing inside a part can be taken for one.
    pieces = _asset("page.html").split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _asset(name: str) -> str:
    return files("sb3_ddpg_scratch.diagnostics").joinpath(name).read_text(encoding="utf-8")


def _as_script_data(value: Any) -> str:
    # "<" is all that could end a script element.
    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")


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


def _color(run: Run) -> str:
    return f"--color: var(--run{run.number % RUN_COLORS})"


def _overview(runs: Sequence[Run], problems: Sequence[str], clips: dict[int, Path]) -> str:
    parts = []
    if problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
        parts.append(f'<div class="alarm" role="note"><strong>Not everything could be shown</strong><ul>{items}</ul></div>')
    for run in runs:
        summary = summarize(run.recording)
        parts.append(
            f'<article class="run" style="{_color(run)}"><div><h3>{html.escape(run.label)}</h3>'
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
    if not run.recording.warnings:
        return ""
    items = "".join(f"<li>Step {warning['step']:,}: {html.escape(warning['text'])}</li>" for warning in run.recording.warnings)
    return f'<div class="alarm" role="note"><strong>Signs of divergence</strong><ul>{items}</ul></div>'


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
        shown = "\n".join(_figure(figure) for figure in own)
        parts.append(f'<section><h2>{section}</h2>{above}<div class="figures">{shown}</div></section>')
    return "\n".join(parts)


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    items = "".join(f'<li style="{_color(run)}">{html.escape(run.label)}</li>' for run in runs)
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


def _figure(figure: Figure) -> str:
    wide = ' class="wide"' if figure.wide else ""
    plot = f'<div class="plot" id="plot-{figure.name}"></div>' if figure.traces else '<p class="empty">Nothing recorded.</p>'
    return (
        f'<figure{wide} aria-labelledby="title-{figure.name}"><h3 id="title-{figure.name}">{html.escape(figure.title)}</h3>'
        f'<p class="note">{html.escape(figure.note)}</p>{plot}</figure>'
    )


def _figure_data(figure: Figure, last_step: int) -> dict[str, Any]:
    return {
        "name": figure.name,
        # Plotly reads a few HTML tags in its texts: a run's name must not be one.
        "traces": [trace | {"name": html.escape(str(trace.get("name", "")))} for trace in figure.traces],
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
