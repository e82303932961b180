"""What the presets' comparison leaves: a summary, a table and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.zoo.runs import SCORED_EVALUATIONS
from sb3_ddpg_scratch.zoo.scripts import save_figure

Result = Mapping[str, Any]


def summarise(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """
    :param results: results of runs
    :return: for each preset the mean of its scores over seeds and their sample standard deviation (``None`` for a single
        seed), each seed's score, and steps, updates and seconds of a run
    """
    summary: dict[str, dict[str, Any]] = {}
    for preset in dict.fromkeys(result["spec"]["arm"] for result in results):
        runs = [result for result in results if result["spec"]["arm"] == preset]
        scores = [run["score"] for run in runs]
        summary[preset] = {
            "score_mean": float(np.mean(scores)),
            "score_std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "scores": {str(run["spec"]["seed"]): run["score"] for run in runs},
            "steps": runs[0]["spec"]["steps"],
            "updates": float(np.mean([run["updates"] for run in runs])),
            "training_seconds": float(np.mean([run["training_seconds"] for run in runs])),
        }
    return summary


def markdown_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """
    :param summary: from :func:`summarise`
    :return: a Markdown table
    """
    lines = [
        "| preset | score, mean ± std over seeds | each seed | steps | updates | training a run |",
        "|---|---|---|---|---|---|",
    ]
    for preset, row in summary.items():
        spread = "" if row["score_std"] is None else f" ± {row['score_std']:.1f}"
        seeds = ", ".join(f"{score:.1f}" for score in row["scores"].values())
        numbers = f"{row['steps']:,} | {row['updates']:,.0f} | {row['training_seconds']:,.0f} s"
        lines.append(f"| {preset} | {row['score_mean']:.1f}{spread} | {seeds} | {numbers} |")
    return "\n".join(lines)


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """
    Draw the learning curves: one panel for each preset, a line for each seed, and their mean.

    :param results: results of runs
    :param path: file to write
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    presets = list(dict.fromkeys(result["spec"]["arm"] for result in results))
    n_columns = min(len(presets), 3)
    n_rows = -(-len(presets) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 0.7 + 2.6 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for preset, axis in zip(presets, axes.flat, strict=False):
        runs = [result for result in results if result["spec"]["arm"] == preset]
        for run in runs:
            axis.plot(run["timesteps"], run["returns"], color="tab:blue", alpha=0.4, linewidth=1)
        length = min(len(run["returns"]) for run in runs)
        mean = np.mean([run["returns"][:length] for run in runs], axis=0)
        axis.plot(runs[0]["timesteps"][:length], mean, color="tab:blue", linewidth=2)
        axis.set_title(f"{preset} ({len(runs)} seed{'s' if len(runs) > 1 else ''})", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(presets) :]:
        axis.set_visible(False)
    spec = results[0]["spec"]
    figure.supxlabel("environment steps")
    figure.supylabel("return")
    episodes = f"mean return of {spec['eval_episodes']} noise-free episodes"
    figure.suptitle(f"{spec['env_id']}: {episodes}\nthin: one seed, bold: mean of seeds", fontsize=11)
    save_figure(figure, path)


def write_report(results: Sequence[Result], planned: int, out: Path, command: str) -> str:
    """
    Write ``summary.json``, ``table.md`` and ``learning_curves.png``.

    :param results: results of the runs that are finished, at least one
    :param planned: how many runs there are to be
    :param out: folder to write to
    :param command: the command line that made them
    :return: the table
    """
    summary = summarise(results)
    spec = results[0]["spec"]
    scored = min(result["scored_evaluations"] for result in results)
    table = markdown_table(summary)
    text = (
        f"# Presets on {spec['env_id']}\n\nMade by `{command}`.\n\nScore: mean of the last {scored} evaluations, each of "
        f"{spec['eval_episodes']} noise-free episodes on an environment of its own. Runs finished: {len(results)} of "
        f"{planned}. Seconds are those of the training alone, without evaluations, on one thread.\n\n{table}\n"
    )
    content = {
        "command": command,
        "env_id": spec["env_id"],
        "scored_evaluations": f"the last {SCORED_EVALUATIONS}, or all where there are fewer",
        "runs_planned": planned,
        "runs_finished": len(results),
        "presets": summary,
        "runs": list(results),
    }
    write_whole(out / "summary.json", json.dumps(content, indent=2) + "\n")
    write_whole(out / "table.md", text)
    draw_curves(results, out / "learning_curves.png")
    return table
