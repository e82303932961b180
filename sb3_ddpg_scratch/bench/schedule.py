"""Planning and running a benchmark: every contender in its own process, in interleaved rounds."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from sb3_ddpg_scratch.bench.rounds import Setting
from sb3_ddpg_scratch.bench.workload import CONTENDERS, Workload, installed, measure
from sb3_ddpg_scratch.gym_packages import RegisteredEnv

SIZES = (((64, 64), 64), ((256, 256), 256), ((400, 300), 256))

# Called with what is measured next, how many measurements are done, and how many there will be.
Progress = Callable[[str, int, int], None]


def plan(env: RegisteredEnv, quick: bool, cores: Iterable[int]) -> list[list[Workload]]:
    """For each setting, the workloads of one round."""
    seconds = 0.5 if quick else 1.2
    names = [name for name in CONTENDERS if installed(name)]
    settings = []
    common = Workload("", (), 256, 1, env=env.env_id, gym_packages=env.packages, seconds=seconds)
    for net_arch, batch_size in SIZES:
        sized = replace(common, net_arch=net_arch, batch_size=batch_size)
        settings.append([replace(sized, contender=name, cores=c) for name in [*names, "floor"] for c in cores])
    vectorized = replace(common, net_arch=(256, 256), n_envs=8, gradient_steps=8)
    settings.append([replace(vectorized, contender=name, cores=c) for name in names for c in cores])
    return settings


def run(
    settings: list[list[Workload]], rounds: int, progress: Progress, keep: Callable[[list[Setting]], None] | None = None
) -> list[Setting]:
    """Measure every workload once in each round; ``keep`` is given what there is so far. Ctrl-C returns the results so far."""
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
