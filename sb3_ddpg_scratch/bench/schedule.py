"""Planning and running a benchmark: every contender in its own process, in interleaved rounds."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from rich.progress import Progress

from sb3_ddpg_scratch.bench.rounds import Setting
from sb3_ddpg_scratch.bench.workload import (
    CONTENDERS,
    GOAL_ENV,
    GOALS,
    MUJOCO,
    MUJOCO_ENV,
    RLTOOLS,
    USES,
    Workload,
    installed,
    measure,
)
from sb3_ddpg_scratch.gym_packages import RegisteredEnv

SIZES = (((64, 64), 64), ((256, 256), 256), ((400, 300), 256))


def plan(env: RegisteredEnv, quick: bool, cores: Iterable[int]) -> list[list[Workload]]:
    """The workloads of one round, by setting. A quick benchmark uses one core and leaves out what takes long."""
    seconds = 0.5 if quick else 1.2
    common = Workload("", (), 256, 1, env=env.env_id, gym_packages=env.packages, seconds=seconds)
    sizes = [replace(common, net_arch=net_arch, batch_size=batch_size) for net_arch, batch_size in SIZES]
    small, middle, _ = sizes
    names = ("sb3", "sbx", "compiled") if quick else CONTENDERS
    plans = [(size, (*names, "floor")) for size in sizes]
    plans.append((replace(small, td3=True), (RLTOOLS, "compiled")))
    if not quick:
        plans += [
            (replace(middle, td3=True), (RLTOOLS, "compiled")),
            (replace(middle, layer_norm=True), ("sbx", "autograd", "compiled")),
            (replace(middle, n_envs=8, gradient_steps=8), names),
        ]
    if not quick and installed(MUJOCO) and env.env_id != MUJOCO_ENV:
        plans += [(replace(size, env=MUJOCO_ENV, gym_packages=()), ("sb3", "sbx", "compiled")) for size in (small, middle)]
    if not quick and installed(GOALS):
        goals = replace(small, env=GOAL_ENV, gym_packages=("gymnasium_robotics",), batch_size=256, hindsight=True)
        contenders = ("sb3", "autograd", "compiled")
        plans += [(replace(goals, net_arch=net_arch), contenders) for net_arch in ((64, 64), (256, 256, 256))]
    counts = [1] if quick else cores
    return [
        [replace(workload, contender=name, cores=c) for name in filter(installed, contenders) for c in counts]
        for workload, contenders in plans
    ]


def plan_uses(env: RegisteredEnv, quick: bool) -> list[list[Workload]]:
    """What users add to the fastest case, each alone and all at once, on one core; and the same with SB3's DDPG."""
    common = Workload("", (64, 64), 64, 1, env=env.env_id, gym_packages=env.packages, seconds=0.5 if quick else 2.0)
    return [[replace(common, contender=name, uses=uses) for name in ("sb3", "compiled")] for uses in USES]


def run(
    settings: list[list[Workload]], rounds: int, display: Progress, keep: Callable[[list[Setting]], None]
) -> list[Setting]:
    """Measure every workload once per round. ``keep`` gets the results so far, which are also returned after Ctrl-C."""
    results = [Setting(workloads[0].setting, workloads[0].env) for workloads in settings]
    task = display.add_task("starting", total=rounds * sum(map(len, settings)))
    try:
        for _ in range(rounds):
            for setting, workloads in zip(results, settings, strict=True):
                setting.rounds.append({})
                for workload in workloads:
                    display.update(task, description=f"{workload.setting} {workload.contender}, {workload.cores} core(s)")
                    try:
                        setting.rounds[-1][workload.contender, workload.cores] = measure(workload)
                    except RuntimeError as error:
                        setting.failures.append(str(error))
                    display.advance(task)
                keep(results)
    except KeyboardInterrupt:
        keep(results)
    return results
