"""The process that times one workload: ``python -m sb3_ddpg_scratch.bench.worker WORKLOAD START CORES``."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sb3_ddpg_scratch.bench import uses
from sb3_ddpg_scratch.bench.workload import DICT, SB3_NOISE, Workload
from sb3_ddpg_scratch.gym_packages import import_modules

# Environment steps per timed call of ``learn``; divisible by eight, for eight environments.
STEPS_AT_ONCE = 200


def rate(action: Callable[[], object], seconds: float, warm_up: int = 3) -> float:
    """Repetitions per second, after ``warm_up`` untimed ones."""
    for _ in range(warm_up):
        action()
    count = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        action()
        count += 1
    return count / elapsed


def make_model(workload: Workload) -> Any:
    """The workload's model, SB3's or ours, on the CPU, with Gaussian noise of 0.1."""
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    import_modules(workload.gym_packages)
    used = workload.uses
    env = make_vec_env(workload.env, workload.n_envs, seed=0) if used is None else uses.make_env(workload.env, used)
    zeros = np.zeros(env.action_space.shape or ())
    settings: dict[str, Any] = {
        "batch_size": workload.batch_size,
        "buffer_size": workload.buffer_size,
        "learning_starts": workload.filled,
        "gradient_steps": workload.gradient_steps,
        "action_noise": NormalActionNoise(zeros, zeros + 0.1),
        "policy_kwargs": {"net_arch": list(workload.net_arch)},
        "seed": 0,
    }
    policy = "MultiInputPolicy" if DICT in (used or ()) else "MlpPolicy"
    if workload.hindsight:
        from stable_baselines3 import HerReplayBuffer

        policy, settings["replay_buffer_class"] = "MultiInputPolicy", HerReplayBuffer
    if workload.contender == "sbx":
        import sbx

        if workload.layer_norm:
            settings["policy_kwargs"]["layer_norm"] = True
        return sbx.DDPG(policy, env, **settings)
    if workload.contender == "sb3":
        from stable_baselines3 import DDPG

        return DDPG(policy, env, device="cpu", **settings)
    from sb3_ddpg_scratch import ScratchDDPG

    if SB3_NOISE not in (used or ()):
        settings["action_noise"] = {"type": "gaussian", "sigma": 0.1}
    if workload.layer_norm:
        settings["policy_kwargs"]["norm"] = "layer"
    if workload.td3:
        settings |= {"policy_delay": 2, "target_policy_noise": 0.2}
        settings["policy_kwargs"]["n_critics"] = 2
    return ScratchDDPG(policy, env, device="cpu", updater=workload.contender, **settings)


def time_model(workload: Workload, start: float) -> dict[str, float | str]:
    """See :func:`~sb3_ddpg_scratch.bench.workload.measure`; ``start`` is the process's start time, in epoch seconds."""
    model, callback = make_model(workload), uses.make_callback(workload.uses or ())

    def learn(steps: int) -> None:
        model.learn(steps, callback=callback, log_interval=None, reset_num_timesteps=False)

    learn(1)
    set_up = time.time() - start
    learn(workload.filled + 100 * workload.n_envs)
    steps_per_s = rate(lambda: learn(STEPS_AT_ONCE), workload.seconds, warm_up=0) * STEPS_AT_ONCE
    if workload.uses is not None:
        return {**uses.measured(model, workload), "steps_per_s": steps_per_s}
    updates = rate(lambda: model.train(workload.gradient_steps, workload.batch_size), workload.seconds)
    return {
        "updates_per_s": updates * workload.gradient_steps,
        "steps_per_s": steps_per_s,
        "setup_s": set_up,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "updater": model.updater_in_use if workload.contender == "auto" else workload.contender,
    }


def time_rltools(workload: Workload, start: float) -> dict[str, float | str]:
    """Environment steps per second of RLtools' TD3, each with an update, in Gymnasium's Python environment; see there."""
    import gymnasium as gym
    import numpy as np
    from rltools import TD3

    import_modules(workload.gym_packages)
    (units,) = set(workload.net_arch)
    module = TD3(
        lambda: gym.wrappers.RescaleAction(gym.make(workload.env), np.float32(-1), np.float32(1)),
        enable_evaluation=False,
        interface_name=f"bench_{units}_{workload.batch_size}",
        ACTOR_BATCH_SIZE=workload.batch_size,
        CRITIC_BATCH_SIZE=workload.batch_size,
        ACTOR_HIDDEN_DIM=units,
        CRITIC_HIDDEN_DIM=units,
        N_WARMUP_STEPS=workload.filled,
        REPLAY_BUFFER_CAP=100_000,
        STEP_LIMIT=100_000_000,
    )
    state = module.State(0)
    first = time.time()
    steps = rate(state.step, workload.seconds, warm_up=workload.filled + 100)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"steps_per_s": steps, "setup_s": first - start, "peak_mb": peak, "updater": workload.contender}


def time_floor(workload: Workload) -> dict[str, float | str]:
    """Updates per second if only the ten products of two hidden layers took time, with the fastest of three libraries."""
    import numpy as np
    import torch as th

    first, second = workload.net_arch
    batch = workload.batch_size
    hidden, grad, weight = th.randn(batch, first), th.randn(batch, second), th.randn(second, first)
    products = [(5, hidden, weight.t()), (3, grad, weight), (2, grad.t(), hidden)]
    total = 0.0
    for count, left, right in products:
        out = th.empty(left.shape[0], right.shape[1])
        rates = []
        # MKL, then oneDNN, which torch uses for fp32 products that may be rounded to bf16.
        for precision in ("highest", "medium"):
            th.set_float32_matmul_precision(precision)
            rates.append(rate(partial(th.mm, left, right, out=out), workload.seconds / 9, warm_up=20))
        by_numpy = partial(np.dot, left.numpy(), right.numpy(), out.numpy())
        rates.append(rate(by_numpy, workload.seconds / 9, warm_up=20))
        total += count / max(rates)
    return {"updates_per_s": 1 / total}


def main() -> None:
    """Time the workload given on the command line, and print the result as one line of JSON."""
    fields, start, cores = json.loads(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    if cores:
        os.sched_setaffinity(0, cores)
    workload = Workload(**fields | {"net_arch": tuple(fields["net_arch"])})
    if workload.contender == "rltools":
        print(json.dumps(time_rltools(workload, start)))
        return
    if workload.contender != "sbx":
        import torch as th

        th.set_num_threads(workload.cores)
    print(json.dumps(time_floor(workload) if workload.contender == "floor" else time_model(workload, start)))


if __name__ == "__main__":
    main()
