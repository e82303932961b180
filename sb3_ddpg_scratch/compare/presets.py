"""The presets as arms in one environment, each with its own budget: table, summary and learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.experiment import Arm
from sb3_ddpg_scratch.compare.plan import Protocol, arm_settings, check_budget, seeded
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.report.figure import Figure
from sb3_ddpg_scratch.report.picture import write_picture
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.processes import RunProcesses
from sb3_ddpg_scratch.runs.training_run import SCORED_EVALUATIONS, RunSpec, finished_result
from sb3_ddpg_scratch.terminal import say
from sb3_ddpg_scratch.validation import check_device, check_whole_number
from sb3_ddpg_scratch.zoo.registry import check_env
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, preset_file, preset_names, read_settings

# For presets without a budget for the environment: enough to learn Pendulum after 25,000 random steps.
DEFAULT_STEPS = 40_000

Result = Mapping[str, Any]


def plan_runs(
    env_id: str,
    presets: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    evaluations: int = 20,
    eval_episodes: int = 10,
    device: str = "cpu",
) -> list[RunSpec]:
    """The runs of these presets, or of all with settings for the environment; the budget is the preset's, or 40,000."""
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("eval_episodes", eval_episodes)):
        check_whole_number(name, value, 1)
    if steps is not None:
        check_whole_number("steps", steps, evaluations)
    check_device("device", device)
    check_env(env_id)
    contents = {preset: read_settings(preset_file(preset)) for preset in presets or preset_names()}
    specs = []
    for preset, content in contents.items():
        if not presets and env_id not in content and "default" not in content:
            continue
        settings = arm_settings(Arm(preset, ALGO, preset, None, {}), env_id)
        budget = steps or (int(settings["n_timesteps"]) if env_id in content else DEFAULT_STEPS)
        spec = RunSpec(preset, ALGO, env_id, 0, *Protocol(budget, evaluations, eval_episodes), device, settings)
        check_budget(spec, "Give more, or choose other presets by --preset.")
        specs.append(spec)
    return [run for spec in specs for run in seeded([spec], seeds)]


def run_presets(
    specs: Sequence[RunSpec], out: Path, jobs: int, console: Console, command: str, gym_packages: Sequence[str] = ()
) -> list[RunSpec]:
    """Perform unfinished runs; write table, summary and picture, even if interrupted; return the runs that failed."""
    check_whole_number("jobs", jobs, 1)
    with hold_folder(out, "--out"):
        try:
            return perform_runs(specs, out, RunProcesses(out, gym_packages=gym_packages), jobs, console)
        finally:
            results = [result for spec in specs if (result := finished_result(spec, out)) is not None]
            if results:
                table = write_report(results, len(specs), out, command)
                say(console, f"{table}\nWrote table.md, summary.json and learning_curves.png to {out}")


def summarize(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for preset, runs in _by_arm(results).items():
        scores = np.array([run["score"] for run in runs], float)  # JSON has null for NaN
        summary[preset] = {
            "score_mean": float(np.mean(scores)),
            "score_std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "scores": {str(run["spec"]["seed"]): score for run, score in zip(runs, scores.tolist(), strict=True)},
            "steps": runs[0]["spec"]["steps"],
            "updates": float(np.mean([run["updates"] for run in runs])),
            "training_seconds": float(np.mean([run["training_seconds"] for run in runs])),
        }
    return summary


def _by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    arms = dict.fromkeys(result["spec"]["arm"] for result in results)
    return {arm: [result for result in results if result["spec"]["arm"] == arm] for arm in arms}


def markdown_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
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


def write_report(results: Sequence[Result], planned: int, out: Path, command: str) -> str:
    """Write ``summary.json``, ``table.md`` and ``learning_curves.png`` of at least one finished run; returns the table."""
    summary = summarize(results)
    spec = results[0]["spec"]
    scored = min(result["scored_evaluations"] for result in results)
    table = markdown_table(summary)
    text = (
        f"# Presets on {spec['env_id']}\n\nMade by `{command}`.\n\nScore: mean of the last {scored} evaluations, each of "
        f"{spec['eval_episodes']} noise-free episodes on a separate environment. Runs finished: {len(results)} of "
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
    write_json(out / "summary.json", content)
    write_whole(out / "table.md", text)
    title = (
        f"{spec['env_id']}: mean return of {spec['eval_episodes']} noise-free episodes\nthin: one seed, bold: mean of seeds"
    )
    figures = [_learning_curves(arm, runs) for arm, runs in _by_arm(results).items()]
    write_picture(figures, out / "learning_curves.png", title, same_scale=True)
    return table


def _learning_curves(arm: str, runs: Sequence[Result]) -> Figure:
    lines = [{"x": run["timesteps"], "y": run["returns"], "line": {"color": "theme:faint0", "width": 1.2}} for run in runs]
    length = min(len(run["returns"]) for run in runs)
    mean = np.mean([np.array(run["returns"][:length], float) for run in runs], axis=0)
    lines.append({"x": runs[0]["timesteps"][:length], "y": mean, "line": {"color": "theme:run0", "width": 2.5}})
    title = f"{arm} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
    traces = [{"type": "scatter", "mode": "lines", "name": ""} | line for line in lines]
    return Figure(arm, "Learning", title, "", traces, {})
