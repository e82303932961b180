"""
A training that is killed again and again, by SIGKILL, at random moments and in the middle of saving, and resumed each time::

    python tests/killed_training.py --kills 50 --seed 0
    python tests/killed_training.py --kills 20 --env FetchReach-v4

The environment "goals" is that of the tests; with it and with FetchReach-v4, replay is by hindsight.
It prints as JSON how often it was killed where, and whether the end is the uninterrupted training's to the last bit.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch as th
from goal_envs import Reach
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch import ResumableCheckpoint, ScratchDDPG

STEPS, EVERY = 450, 15


SETTINGS = {"learning_starts": 30, "batch_size": 8, "buffer_size": 400, "policy_kwargs": {"net_arch": [4]}}
# Long enough for the first episode of any environment to end.
GOALS = SETTINGS | {
    "learning_starts": 60,
    "replay_buffer_class": HerReplayBuffer,
    "replay_buffer_kwargs": {"n_sampled_goal": 4},
}


def build_env(name: str) -> VecNormalize:
    made_of = {"goals": Reach, "FetchReach-v4": "gymnasium_robotics:FetchReach-v4"}
    return VecNormalize(make_vec_env(made_of.get(name, name), n_envs=1, seed=3))


def train(env: str, folder: Path) -> ScratchDDPG:
    """Train to the end, from the newest checkpoint if there is one."""
    if any(folder.glob("step_*")):
        model = ScratchDDPG.resume(folder, build_env(env))
    elif env == "Pendulum-v1":
        model = ScratchDDPG("MlpPolicy", build_env(env), seed=0, updater="analytic", **SETTINGS)
    else:
        model = ScratchDDPG("MultiInputPolicy", build_env(env), seed=0, updater="compiled", **GOALS)
    return model.learn(STEPS, callback=ResumableCheckpoint(folder, every=EVERY, keep=2))


def digest(model: ScratchDDPG) -> str:
    """Everything that a training leaves, as one number."""
    everything = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        everything.update(tensor.numpy().tobytes())
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        for entry in optimizer.state_dict()["state"].values():
            everything.update(b"".join(entry[name].numpy().tobytes() for name in sorted(entry)))
    noise = model.action_noise
    normalize = model.get_vec_normalize_env()
    texts = (model.num_timesteps, model._n_updates, model._episode_num, noise.generator.bit_generator.state, random.getstate())
    everything.update(repr(texts).encode())
    by_key = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
    means = [by_key[key].mean for key in sorted(by_key)]
    arrays = (model.replay_buffer.rows, noise.state, *means, normalize.ret_rms.var, np.random.get_state()[1])
    everything.update(b"".join(np.ascontiguousarray(array).tobytes() for array in (*arrays, th.get_rng_state().numpy())))
    return everything.hexdigest()


def in_a_process(action) -> int:
    """Do something in a copy of this process, which has imported everything already."""
    child = os.fork()
    if child == 0:
        warnings.simplefilter("ignore")
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_in_the_midst_of_saving(call: int) -> None:
    """End this process by SIGKILL at one of the calls by which files get onto the disk and get their names."""
    left = call

    def counted(original, made):
        def call_or_die(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0 and made:
                original(*arguments, **keywords)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return call_or_die

    for holder, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink")):
        # A file that has just got its name is not yet what its folder's manifest needs.
        setattr(holder, name, counted(getattr(holder, name), made=name == "replace"))


def finish(env: str, folder: Path) -> None:
    """Train to the end and leave the digest."""
    text = digest(train(env, folder))
    (folder.parent / f"{folder.name}.txt").write_text(text)


def run(kills: int, seed: int, env: str, root: Path) -> dict:
    th.set_num_threads(1)
    chance = random.Random(seed)
    begun = time.perf_counter()
    # In this process, so that its copies need not import and prepare everything again.
    finish(env, root / "whole")
    killed = {"at a random moment": 0, "in the middle of saving": 0}
    left_unfinished, steps = 0, []
    folders = [root / "killed-0"]
    while (number := sum(killed.values())) < kills:
        folder, saving = folders[-1], number % 2 == 1
        if saving:
            call = chance.randrange(1, 40)
            child = in_a_process(lambda call=call, folder=folder: (kill_in_the_midst_of_saving(call), finish(env, folder)))
        else:
            child = in_a_process(lambda folder=folder: finish(env, folder))
            time.sleep(chance.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, "a resumed training has failed"
        if status == 0:
            # It was done before the kill came: the next one starts fresh.
            folders.append(root / f"killed-{len(folders)}")
            continue
        killed["in the middle of saving" if saving else "at a random moment"] += 1
        left_unfinished += any(folder.glob(".step_*")) or any(folder.glob("*/.*"))
        steps.append(max((int(path.name[5:]) for path in folder.glob("step_*")), default=0))
    _, status = os.waitpid(in_a_process(lambda: finish(env, folders[-1])), 0)
    assert status == 0
    whole = (root / "whole.txt").read_text()
    equal = all((root / f"{folder.name}.txt").read_text() == whole for folder in folders)
    names = {"killed": killed, "left_unfinished": left_unfinished, "resumed_from": steps, "equal": equal}
    return names | {"seconds": round(time.perf_counter() - begun, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env", choices=["Pendulum-v1", "goals", "FetchReach-v4"], default="Pendulum-v1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(run(options.kills, options.seed, options.env, Path(name))))
