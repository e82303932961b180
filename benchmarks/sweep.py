"""How the cost of a step grows with width, batch, environments and buffer, as a picture: ``python benchmarks/sweep.py``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure as MatplotlibFigure
from rich.progress import track

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.bench.workload import Workload, measure

AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "width": ("units of both hidden layers", (32, 64, 128, 256, 512)),
    "batch_size": ("transitions in a batch", (32, 64, 128, 256, 512)),
    "n_envs": ("environments, one update for each", (1, 2, 4, 8, 16)),
    "filled": ("transitions in the replay buffer", (1_000, 10_000, 100_000)),
}
CONTENDERS = {"sb3": ("SB3 DDPG", "tab:orange"), "auto": ("ScratchDDPG", "tab:blue")}

Points = dict[str, dict[str, list[dict[str, float | str]]]]


def workload_at(axis: str, value: int, base: Workload) -> Workload:
    """The base workload, moved along one of :data:`AXES`."""
    if axis == "width":
        return replace(base, net_arch=(value, value))
    if axis == "n_envs":
        return replace(base, n_envs=value, gradient_steps=value)
    return replace(base, **{axis: value})  # type: ignore[arg-type]


def run_sweep(env: str, quick: bool) -> Points:
    """The measurements along each axis, by axis and contender, on one core."""
    base = Workload("", (64, 64), 64, 1, env=env, seconds=0.5 if quick else 1.5)
    results: Points = {axis: {name: [] for name in CONTENDERS} for axis in AXES}
    points = [(axis, value, name) for axis, (_, values) in AXES.items() for value in values for name in CONTENDERS]
    for axis, value, name in track(points, "measuring", transient=True):
        results[axis][name].append(measure(replace(workload_at(axis, value, base), contender=name)))
    return results


def draw(results: Points, path: Path) -> None:
    """Write the picture as a PNG file."""
    figure = MatplotlibFigure(figsize=(10, 7), layout="constrained")
    for axes, (axis, (label, values)) in zip(figure.subplots(2, 2).flat, AXES.items(), strict=True):
        for name, points in results[axis].items():
            contender, color = CONTENDERS[name]
            update = [1e6 / float(point["updates_per_s"]) for point in points]
            step = [1e6 / float(point["steps_per_s"]) for point in points]
            axes.plot(values, update, "o-", color=color, label=f"{contender}: one update")
            axes.plot(values, step, "s:", color=color, label=f"{contender}: one environment step, updates included")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="microseconds", xticks=values)
        axes.set_xticklabels([f"{value:,}" for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png")


def main(
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path(__file__).parent / "results" / "sweep.png",
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions.")] = "Pendulum-v1",
    quick: Annotated[bool, typer.Option("--quick", help="Measure each point for a shorter time.")] = False,
) -> None:
    """Measure SB3's DDPG and ours at growing sizes, and draw the time of an update and of an environment step."""
    draw(run_sweep(env, quick), out)
    typer.echo(f"Wrote {out}")


if __name__ == "__main__":
    typer.run(main)
