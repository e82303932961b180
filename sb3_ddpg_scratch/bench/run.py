"""Planning and running a benchmark: every contender in a process of its own, in interleaved rounds."""

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace

from sb3_ddpg_scratch.bench.results import Setting
from sb3_ddpg_scratch.bench.workload import CONTENDERS, Workload, installed, measure
from sb3_ddpg_scratch.machine import processor, versions

SIZES = (((64, 64), 64), ((256, 256), 256), ((400, 300), 256))

Progress = Callable[[str, int, int], None]


def plan(env: str, quick: bool, cores: Iterable[int]) -> list[list[Workload]]:
    """
    :param env: id of the environment
    :param quick: measure for a shorter time
    :param cores: numbers of processors to measure with
    :return: for each setting, what is measured in one round
    """
    seconds = 0.5 if quick else 1.2
    names = [name for name in CONTENDERS if installed(name)]
    settings = []
    for net_arch, batch_size in SIZES:
        common = Workload("", net_arch, batch_size, 1, env=env, seconds=seconds)
        settings.append([replace(common, contender=name, cores=c) for name in [*names, "floor"] for c in cores])
    vectorised = Workload("", (256, 256), 256, 1, n_envs=8, gradient_steps=8, env=env, seconds=seconds)
    settings.append([replace(vectorised, contender=name, cores=c) for name in names for c in cores])
    return settings


def run(
    settings: list[list[Workload]], rounds: int, progress: Progress, keep: Callable[[list[Setting]], None] | None = None
) -> list[Setting]:
    """
    :param settings: see :func:`plan`
    :param rounds: how often to go through all of them
    :param progress: called with what is measured next, how many were and how many will be
    :param keep: called with the results so far after each setting of each round
    :return: the results; of an interruption by Ctrl-C, those until then. What failed is in ``failures``
    """
    results = [Setting(workloads[0].setting) for workloads in settings]
    total = rounds * sum(map(len, settings))
    done = 0
    try:
        for _ in range(rounds):
            for setting, workloads in zip(results, settings, strict=True):
                setting.rounds.append({})
                for workload in workloads:
                    progress(f"{workload.setting} {workload.contender}, {workload.cores} core(s)", done, total)
                    try:
                        setting.rounds[-1][workload.contender, workload.cores] = measure(workload)
                    except RuntimeError as error:
                        setting.failures.append(str(error))
                    done += 1
                if keep is not None:
                    keep(results)
    except KeyboardInterrupt:
        progress("interrupted", done, total)
    return results


def machine() -> dict[str, str]:
    """Processor, number of processors, system and versions."""
    packages = ("torch", "stable-baselines3", "sbx-rl", "jax", "numba", "numpy")
    return {
        "processor": processor(),
        "processors": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
    } | (dict.fromkeys(packages, "not installed") | versions(packages))
