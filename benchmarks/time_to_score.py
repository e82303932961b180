"""
Minutes of training until a mean return, ours against SB3's DDPG and SBX's with the same settings and one core each::

    python benchmarks/time_to_score.py --out build/time_to_score

Evaluations, ten noise-free episodes each, are not counted. Interrupted, the same command repeats no finished run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.bench.workload import installed
from sb3_ddpg_scratch.compare.plan import seeded
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.processes import RunProcesses
from sb3_ddpg_scratch.runs.training_run import CHECKPOINT_EVERY, RunSpec, finished_result

CONTENDERS = {"ScratchDDPG": "scratch_ddpg", "SBX's DDPG": "sbx_ddpg", "SB3's DDPG": "ddpg"}
COLORS = {"ScratchDDPG": "#0b61a4", "SBX's DDPG": "#b8460e", "SB3's DDPG": "#3f4a56"}
EVALUATIONS, EPISODES = 50, 10


class Task(NamedTuple):
    """A mean return to reach, with the settings and the most steps for it."""

    score: float
    steps: int
    settings: dict[str, Any]


_COMMON = {"policy": "MlpPolicy", "noise_type": "normal", "noise_std": 0.1, "batch_size": 64}
_SETTINGS = _COMMON | {"policy_kwargs": {"net_arch": [64, 64]}, "learning_starts": 10_000}
TASKS = {
    "Pendulum-v1": Task(-200, 20_000, _SETTINGS | {"learning_starts": 1000}),
    "LunarLanderContinuous-v3": Task(200, 400_000, _SETTINGS | {"gamma": 0.98, "learning_rate": "lin_1e-3"}),
    "HalfCheetah-v5": Task(4500, 200_000, _SETTINGS),
}


def plan(tasks: Mapping[str, Task], seeds: int) -> list[RunSpec]:
    names = [name for name, algo in CONTENDERS.items() if algo != "sbx_ddpg" or installed("sbx")]
    specs = []
    for env_id, task in tasks.items():
        for name in names:
            settings = task.settings | {"n_timesteps": task.steps}
            arm = CONTENDERS[name]
            specs.append(RunSpec(arm, arm, env_id, 0, task.steps, EVALUATIONS, EPISODES, "cpu", settings))
    return seeded(specs, seeds)


def minutes_until(result: Mapping[str, Any], score: float) -> float | None:
    """Minutes of training until the first evaluation with that mean return; ``None`` if there is none."""
    found = zip(result["seconds"], result["returns"], strict=True)
    return next((seconds / 60 for seconds, mean_return in found if mean_return >= score), None)


def summarize(results: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """For each environment and contender the minutes of each seed, and what it all ran on."""
    minutes: dict[str, dict[str, list[float | None]]] = {}
    for result in results:
        spec = result["spec"]
        name = next(name for name, algo in CONTENDERS.items() if algo == spec["algo"])
        own = minutes.setdefault(spec["env_id"], {}).setdefault(name, [])
        own.append(minutes_until(result, tasks[spec["env_id"]].score))
    used = {env_id: task._asdict() for env_id, task in tasks.items() if env_id in minutes}
    return {"tasks": used, "minutes": minutes, "machine": results[0]["machine"], "versions": results[0]["versions"]}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """A panel for each environment, a bar for each contender's mean in seconds, a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(summary["minutes"]), squeeze=False)[0]
    for axes, (env_id, by_name) in zip(panels, summary["minutes"].items(), strict=True):
        for row, (name, minutes) in enumerate(by_name.items()):
            reached = [60 * value for value in minutes if value is not None]
            if len(reached) == len(minutes):
                mean = float(np.mean(reached))
                axes.barh(row, mean, color=COLORS[name], alpha=0.75, height=0.62)
                text = f"{mean:.1f}" if mean < 10 else f"{mean:,.0f}"
            else:
                text = f"{len(reached)} of {len(minutes)} seeds get there"
            axes.annotate(f"  {text}", (max(reached, default=0), row), va="center", fontsize=8)
            axes.plot(reached, [row] * len(reached), "o", color=COLORS[name], markersize=4)
        axes.set_title(f"{env_id}: {summary['tasks'][env_id]['score']:,g}", fontsize=9)
        axes.set_yticks(range(len(by_name)), list(by_name), fontsize=8)
        axes.set_ylim(len(by_name) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.margins(x=0.18)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("seconds of training", fontsize=9)
    with whole_file(path) as file:
        figure.savefig(file, dpi=150, format="png")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs, kept between interruptions.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each contender.")] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one core each.")] = 1,
    results: Annotated[Path, typer.Option(help="Where time_to_score.json goes.")] = Path(__file__).parent / "results",
    picture: Annotated[Path, typer.Option(help="The PNG file.")] = Path(__file__).parents[1] / "docs/images/time_to_score.png",
) -> None:
    """Train the contenders until their budgets are spent, and draw how long each took to reach the score."""
    specs = plan(TASKS, seeds)
    with hold_folder(out, "--out"):
        failed = perform_runs(specs, out, RunProcesses(out, 1, CHECKPOINT_EVERY), jobs, Console())
    finished = [result for spec in specs if (result := finished_result(spec, out)) is not None]
    if finished:
        summary = summarize(finished, TASKS)
        write_json(results / "time_to_score.json", summary)
        draw(summary, picture)
        typer.echo(f"Wrote {results / 'time_to_score.json'} and {picture}")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
