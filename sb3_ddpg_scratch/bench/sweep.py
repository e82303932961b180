"""How the cost of a step grows with width, batch, environments and buffer, as a picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.bench.workload import Workload, measure

AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "width": ("units of both hidden layers", (32, 64, 128, 256, 512)),
    "batch_size": ("transitions in a batch", (32, 64, 128, 256, 512)),
    "n_envs": ("environments, one update for each", (1, 2, 4, 8, 16)),
    "filled": ("transitions in the replay buffer", (1_000, 10_000, 100_000)),
}
CONTENDERS = ("sb3", "auto")

Points = dict[str, dict[str, list[dict[str, float | str]]]]


def points_of(axis: str, env: str, seconds: float) -> list[Workload]:
    """
    :param axis: one of :data:`AXES`
    :param env: id of the environment
    :param seconds: how long to measure
    :return: the workloads along it, on one core
    """
    base = Workload("", (64, 64), 64, 1, env=env, seconds=seconds)
    workloads = []
    for value in AXES[axis][1]:
        if axis == "width":
            workloads.append(replace(base, net_arch=(value, value)))
        elif axis == "n_envs":
            workloads.append(replace(base, n_envs=value, gradient_steps=value))
        elif axis == "batch_size":
            workloads.append(replace(base, batch_size=value))
        else:
            workloads.append(replace(base, filled=value))
    return workloads


def run_sweep(env: str, quick: bool, progress: Callable[[str, int, int], None]) -> Points:
    """
    :param env: id of the environment
    :param quick: measure for a shorter time
    :param progress: called with what is measured next, how many were and how many will be
    :return: for each axis and contender the results along it
    """
    results: Points = {axis: {name: [] for name in CONTENDERS} for axis in AXES}
    total = sum(len(values) for _, values in AXES.values()) * len(CONTENDERS)
    done = 0
    for axis in AXES:
        for workload in points_of(axis, env, 0.5 if quick else 1.5):
            for name in CONTENDERS:
                progress(f"{axis}: {workload.setting} {name}", done, total)
                results[axis][name].append(measure(replace(workload, contender=name)))
                done += 1
    return results


def draw(results: Points, path: Path) -> None:
    """
    :param results: see :func:`run_sweep`
    :param path: PNG file to write; its folder is made
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    labels = {"sb3": "SB3 DDPG", "auto": "ScratchDDPG"}
    for axes, (axis, (label, values)) in zip(figure.subplots(2, 2).flat, AXES.items(), strict=True):
        for name, points in results[axis].items():
            colour = {"sb3": "tab:orange", "auto": "tab:blue"}[name]
            update = [1e6 / float(point["updates_per_s"]) for point in points]
            step = [1e6 / float(point["steps_per_s"]) for point in points]
            axes.plot(values, update, "o-", color=colour, label=f"{labels[name]}: one update")
            axes.plot(values, step, "s:", color=colour, label=f"{labels[name]}: one environment step, updates included")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="microseconds", xticks=values)
        axes.set_xticklabels([f"{value:,}" for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png")
