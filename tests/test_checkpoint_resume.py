"""Training N steps, and N more after a resumption, is training 2N, to the last bit; and what is said when it cannot be."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from tqdm import tqdm

from sb3_ddpg_scratch import (
    ArgumentError,
    CheckpointError,
    ColoredNoise,
    DivergenceError,
    GaussianNoise,
    OUNoise,
    ResumableCheckpoint,
    ScratchDDPG,
)
from sb3_ddpg_scratch.checkpoint.replay_segments import columns_of
from sb3_ddpg_scratch.checkpoint.storage import checkpoints_in, newest_whole, step_of
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback
from tests.goal_envs import Reach
from tests.own_policies import OwnPolicy, PlainPolicy

SMALL = {"learning_starts": 20, "batch_size": 8, "buffer_size": 100, "seed": 0, "updater": "analytic", "device": "cpu"}
SMALL |= {"policy_kwargs": {"net_arch": [6, 6]}}


class HiddenState(gym.Env):
    """A point whose position is in an object that nobody else understands; with a pair of methods if it shall be captured."""

    class Engine:
        __slots__ = ("position", "steps")

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.engine = self.Engine()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.engine.position, self.engine.steps = self.np_random.uniform(-1, 1), 0
        return np.array([self.engine.position], np.float32), {}

    def step(self, action):
        self.engine.position += 0.1 * float(action[0])
        self.engine.steps += 1
        return np.array([self.engine.position], np.float32), -abs(self.engine.position), False, self.engine.steps >= 30, {}


class OpenState(HiddenState):
    def get_training_state(self):
        return {"position": np.array(self.engine.position), "steps": self.engine.steps}

    def set_training_state(self, state):
        self.engine.position, self.engine.steps = float(state["position"]), state["steps"]


class WholeNumbers(OpenState):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-100, 100, (1,), np.int16)

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return np.round(10 * observation).astype(np.int16), info

    def step(self, action):
        observation, *rest = super().step(action)
        return np.round(10 * observation).astype(np.int16), *rest


gym.register("HiddenState-v0", HiddenState)
gym.register("OpenState-v0", OpenState)


def envs(env_id="Pendulum-v1", n_envs=1, kind=DummyVecEnv, normalize=False, stacked=0, **others):
    made = make_vec_env(env_id, n_envs=n_envs, seed=1, vec_env_cls=kind, **others)
    made = VecFrameStack(made, stacked) if stacked else made
    return VecNormalize(made) if normalize else made


def disturb():
    """Whatever a new process would have drawn in the meantime."""
    random.seed(99)
    np.random.seed(98)
    th.manual_seed(97)


def flat(name, observation):
    """An observation's arrays, one by one."""
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    return {f"{name} {key}": part for key, part in parts}


def left_by(model):
    """Everything that a training leaves, gathered independently of the checkpoints' code."""
    arrays = {f"policy {name}": tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    for network in ("actor", "critic"):
        for index, entry in getattr(model, network).optimizer.state_dict()["state"].items():
            arrays |= {f"{network} {index} {name}": tensor.numpy() for name, tensor in entry.items()}
    arrays |= {f"replay {name}": column for name, column in columns_of(model.replay_buffer).items()}
    arrays |= flat("last_obs", model._last_obs) | {"numpy": np.random.get_state()[1], "torch": th.get_rng_state().numpy()}
    if isinstance(model.action_noise, (ColoredNoise, OUNoise)):
        arrays["noise"] = model.action_noise.state
    if isinstance(model.action_noise, (ColoredNoise, GaussianNoise, OUNoise)):
        arrays["noise's generator"] = np.array(repr(model.action_noise.generator.bit_generator.state))
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        statistics = normalize.obs_rms
        means = {key: one.mean for key, one in statistics.items()} if isinstance(statistics, dict) else statistics.mean
        arrays |= flat("mean", means) | {"var": normalize.ret_rms.var, "returns": normalize.returns}
    counters = (model.num_timesteps, model._n_updates, model._episode_num, model.replay_buffer.pos, model.replay_buffer.full)
    episodes = [(episode["r"], episode["l"]) for episode in model.ep_info_buffer]
    generators = (random.getstate(), model.action_space.np_random.bit_generator.state, counters, episodes)
    arrays["others"] = np.array(repr(generators))
    # The environments' own state, episode and generator: what they do next, through the end of an episode.
    for number in range(40):
        stepped = model.env.step(np.full((model.n_envs, *model.action_space.shape), model.action_space.high * 0.3))
        arrays |= flat(f"step {number}", stepped[0]) | {f"step {number} reward": stepped[1], f"step {number} done": stepped[2]}
    return arrays


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert not different


def check_exact(tmp_path, make, settings, steps=120, every=50):
    """Train through; then resume the first checkpoint in fresh objects, and compare."""
    env = make()
    own = {"policy": settings.pop("policy")} if "policy" in settings else {}
    policy = own.get("policy", "MlpPolicy" if not settings.pop("dict", False) else "MultiInputPolicy")
    model = ScratchDDPG(policy, env, **SMALL | settings)
    model.learn(steps, callback=ResumableCheckpoint(tmp_path, every=every, keep=9))
    expected = left_by(model)
    env.close()
    first = sorted(tmp_path.glob("step_*"))[0]
    disturb()
    env = make()
    resumed = ScratchDDPG.resume(first, env, **own)
    assert 0 < resumed.num_timesteps < steps
    disturb()
    resumed.learn(steps)
    assert_equal(left_by(resumed), expected)
    env.close()
    return resumed


OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1))
CASES = {
    "pendulum": ({}, {}),
    "reference": ({}, {"updater": "autograd"}),
    "optimized": ({"n_envs": 2}, {"optimize_memory_usage": True}),
    "optimized reference": (
        {"n_envs": 2},
        {
            "optimize_memory_usage": True,
            "updater": "autograd",
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        },
    ),
    "n-step": ({"n_envs": 2}, {"n_steps": 3}),
    "n-step reference": ({}, {"n_steps": 3, "updater": "autograd"}),
    "td3": ({}, {"policy_delay": 2, "target_policy_noise": 0.2, "policy_kwargs": {"net_arch": [6], "n_critics": 2}}),
    "batch norm": ({}, {"updater": "autograd", "policy_kwargs": {"net_arch": [6], "norm": "batch"}}),
    "adamw": ({}, {"policy_kwargs": {"net_arch": [6], "optimizer_class": th.optim.AdamW, "activation_fn": th.nn.Tanh}}),
    # Dropout draws from torch, and the plain one is compiled.
    "own policy": ({}, {"policy": OwnPolicy, "updater": "auto"}),
    "own policy of sb3's networks": ({}, {"policy": PlainPolicy, "updater": "auto"}),
    "whole numbers": ({"env_id": WholeNumbers, "n_envs": 2}, {"updater": "auto", "optimize_memory_usage": True}),
    "schedule of sigma": ({}, {"action_noise": {"type": "ou", "sigma": 0.3, "final_sigma": 0.1, "decay_steps": 100}}),
    "pink noise": ({"n_envs": 2}, {"action_noise": {"type": "pink", "length": 35}, "updater": "compiled"}),
    "episodes": ({"env_id": "Point-v0"}, {"train_freq": (1, "episode"), "gradient_steps": -1}),
    "dict": ({"env_id": "PointDict-v0"}, {"dict": True, "updater": "auto", "policy_kwargs": {"net_arch": [4]}}),
    "normalized": ({"n_envs": 3, "normalize": True}, {}),
    "stacked": ({"stacked": 3}, {}),
    "sb3's noise": ({"n_envs": 2}, {"action_noise": OU}),
    "sb3's normal noise": ({}, {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}),
    "normalized by the policy": ({"n_envs": 3}, {"policy_kwargs": {"net_arch": [6], "normalize_observations": True}}),
    "simba": ({"n_envs": 2}, {"policy": "SimbaPolicy", "policy_kwargs": {"net_arch": [6]}, "updater": "auto"}),
    "mountain car": ({"env_id": "MountainCarContinuous-v0"}, {}),
    "own methods": ({"env_id": "OpenState-v0", "n_envs": 2}, {}),
    "statistics": ({"wrapper_class": gym.wrappers.RecordEpisodeStatistics}, {}),
}
GOALS = {"dict": True, "replay_buffer_class": HerReplayBuffer}
CASES |= {
    "hindsight": ({"env_id": Reach, "n_envs": 2}, GOALS),
    "hindsight reference": ({"env_id": Reach, "n_envs": 2}, GOALS | {"updater": "autograd"}),
    "hindsight round the buffer": ({"env_id": Reach}, GOALS | {"buffer_size": 40}),
    "hindsight reference round the buffer": ({"env_id": Reach}, GOALS | {"buffer_size": 40, "updater": "autograd"}),
    "hindsight, simba": ({"env_id": Reach}, GOALS | {"policy": "SimbaPolicy", "policy_kwargs": {"net_arch": [6]}}),
    "hindsight normalized": ({"env_id": Reach, "normalize": True}, GOALS | {"replay_buffer_kwargs": {"n_steps": 2}}),
    "FetchReach": ({"env_id": "FetchReach-v4"}, GOALS | {"learning_starts": 60, "buffer_size": 200}),
}
MUJOCO = ("HalfCheetah", "Hopper", "Reacher", "Ant", "Humanoid", "InvertedPendulum", "Swimmer", "Walker2d", "Pusher")
CASES |= {name: ({"env_id": f"{name}-v5"}, {}) for name in MUJOCO}


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_is_the_uninterrupted_one(case, tmp_path):
    if case in MUJOCO:
        pytest.importorskip("mujoco")
    if case == "FetchReach":
        pytest.importorskip("gymnasium_robotics")
    make, settings = CASES[case]
    with warnings.catch_warnings():
        for words in (".*new episode", ".*same last bit", ".*schedules follow"):
            warnings.filterwarnings("error", words)
        check_exact(tmp_path, lambda: envs(**make), dict(settings))


def test_environments_in_other_processes(tmp_path):
    pytest.importorskip("mujoco")
    make = {"n_envs": 2, "kind": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}, "normalize": True}
    check_exact(tmp_path, lambda: envs("Hopper-v5", **make), {})


def test_compiled_updates(tmp_path):
    check_exact(tmp_path, envs, {"updater": "compiled"})


def test_a_second_learn_is_gone_on_with(tmp_path):
    model = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    model.learn(60)
    model.learn(100, reset_num_timesteps=False, callback=ResumableCheckpoint(tmp_path, every=40, keep=9))
    expected = left_by(model)
    resumed = ScratchDDPG.resume(tmp_path / "step_000000000080", envs())
    # Whatever is said of resetting.
    resumed.learn(100, reset_num_timesteps=True)
    assert (resumed.num_timesteps, resumed._num_timesteps_at_start) == (160, 60)
    assert_equal(left_by(resumed), expected)


def test_resuming_twice_in_the_same_folder_shares_segments(tmp_path):
    whole = ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(300)
    expected = left_by(whole)

    def crash():
        raise RuntimeError("killed")

    model = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    for step in (120, 240):
        with pytest.raises(RuntimeError, match="killed"):
            model.learn(300, callback=[ResumableCheckpoint(tmp_path, every=40, keep=2), AtStep(step + 10, crash)])
        disturb()
        model = ScratchDDPG.resume(tmp_path, envs())
        assert model.num_timesteps == step
    resumed = model.learn(300, callback=ResumableCheckpoint(tmp_path, every=40, keep=2))
    assert_equal(left_by(resumed), expected)
    kept = sorted(path.name for path in tmp_path.glob("step_*"))
    assert kept == ["step_000000000280", "step_000000000300"]
    needed = {segment.name for name in kept for segment in newest_whole(tmp_path / name)[0].segments}
    assert {path.name for path in (tmp_path / "segments").iterdir()} == needed


def test_a_new_callback_of_the_same_model_goes_on(tmp_path):
    """As when a notebook's cell is run again; the folder then has what one uninterrupted training is."""
    whole = ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(50)
    for steps in (40, 15):
        whole.learn(steps, reset_num_timesteps=False)
    expected = [tensor.clone() for tensor in whole.policy.parameters()]
    model = ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(50, ResumableCheckpoint(tmp_path, 20))
    model.learn(30, ResumableCheckpoint(tmp_path, 20), reset_num_timesteps=False)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [80, 60]
    other = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    with pytest.raises(ArgumentError, match="without another training's checkpoints"):
        other.learn(30, ResumableCheckpoint(tmp_path))
    resumed = ScratchDDPG.resume(tmp_path, envs())
    # Not checkpointed: the folder is continued at another step than it ends with.
    with pytest.warns(UserWarning, match="ends after 40 of them"):
        resumed.learn(40)
    resumed.learn(15, ResumableCheckpoint(tmp_path, 5, keep=3), reset_num_timesteps=False)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [105, 100, 95]
    for found, tensor in zip(ScratchDDPG.resume(tmp_path, envs()).policy.parameters(), expected, strict=True):
        assert th.equal(found, tensor)
    # Counting from 0 again, the same model begins its folder anew.
    resumed.learn(40, ResumableCheckpoint(tmp_path, 20))
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [40, 20]


def test_the_progress_bar_of_a_resumed_training_shows_the_whole(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", lambda **given: bars.append(tqdm(**given)) or bars[-1])
    ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(60, ResumableCheckpoint(tmp_path, 40), progress_bar=True)
    model = ScratchDDPG.resume(tmp_path / "step_000000000040", envs()).learn(60, progress_bar=True)
    model.learn(20, reset_num_timesteps=False, progress_bar=True)
    assert [(bar.n, bar.total) for bar in bars] == [(60, 60), (60, 60), (20, 20)]


def test_only_new_rows_are_written(tmp_path):
    sizes = []

    class Sizes(BaseCallback):
        def _on_step(self):
            files = list((tmp_path / "segments").glob("*")) if tmp_path.exists() else []
            sizes.append({file.name: file.stat().st_size for file in files})
            return True

    settings = SMALL | {"buffer_size": 10_000, "learning_starts": 10_000}
    model = ScratchDDPG("MlpPolicy", envs(), **settings)
    model.learn(3000, callback=[ResumableCheckpoint(tmp_path, every=1000), Sizes()])
    first, second = sizes[1500], sizes[2500]
    row = model.replay_buffer.rows[0].nbytes + 1
    # By hand: 1000 rows; then 1000 more and the one before them, which a new learn() might have changed. Segments of the
    # same size are joined.
    assert list(first.values()) == [1000 * row]
    assert set(second.values()) <= {1000 * row, 1001 * row, 2000 * row}


def test_callbacks_go_on(tmp_path):
    def callbacks(name):
        evaluation = EvalCallback(
            envs(), eval_freq=25, n_eval_episodes=1, log_path=str(tmp_path / name), best_model_save_path=str(tmp_path / name)
        )
        saving = CheckpointCallback(30, str(tmp_path / name / "models"))
        checkpoints = ResumableCheckpoint(tmp_path / "checkpoints", every=40, keep=9)
        diagnostics = DiagnosticsCallback(tmp_path / name / "diagnostics", every=20, eval_env="Pendulum-v1", eval_every=50)
        return CallbackList([saving, CallbackList([evaluation]), diagnostics, *([checkpoints] if name == "whole" else [])])

    model = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    model.learn(120, callback=callbacks("whole"))
    resumed = ScratchDDPG.resume(tmp_path / "checkpoints" / "step_000000000080", envs())
    resumed.learn(120, callback=callbacks("resumed"))
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), resumed.policy.parameters(), strict=True))
    whole, again = (np.load(tmp_path / name / "evaluations.npz") for name in ("whole", "resumed"))
    assert whole["timesteps"].tolist() == again["timesteps"].tolist() == [25, 50, 75, 100]
    np.testing.assert_array_equal(whole["results"], again["results"])
    models = {path.name for path in (tmp_path / "resumed" / "models").iterdir()}
    assert models == {"rl_model_90_steps.zip", "rl_model_120_steps.zip"}


def test_an_environment_without_a_state_begins_a_new_episode(tmp_path):
    model = ScratchDDPG("MlpPolicy", envs("HiddenState-v0"), **SMALL | {"buffer_size": 1000})
    with pytest.warns(UserWarning, match=r"HiddenState\.engine.*new episode") as said:
        model.learn(120, callback=ResumableCheckpoint(tmp_path, every=25))
    assert sum("new episode" in str(warning.message) for warning in said) == 1
    with pytest.warns(UserWarning, match="every environment begins a new episode"):
        resumed = ScratchDDPG.resume(tmp_path, envs("HiddenState-v0"))
    with pytest.warns(UserWarning, match="schedules follow"):
        resumed.learn(160)
    assert resumed.num_timesteps == 160
    # Everything else has been restored.
    np.testing.assert_array_equal(resumed.replay_buffer.rows[:120], model.replay_buffer.rows[:120])
    assert resumed._n_updates == 140


def test_where_a_new_episode_began_is_known_after_a_second_resumption(tmp_path):
    """The newest transition in a segment changes when the next learn begins: no return may go on from it."""
    settings = SMALL | {"buffer_size": 1000, "learning_starts": 1000, "n_steps": 3}
    with pytest.warns(UserWarning, match="new episode"):
        ScratchDDPG("MlpPolicy", envs("HiddenState-v0"), **settings).learn(
            110, callback=ResumableCheckpoint(tmp_path, every=500)
        )
    # Fewer steps than before, so that the earlier segment is kept as it is.
    for steps in (140, 155):
        with pytest.warns(UserWarning, match="begins a new episode"):
            model = ScratchDDPG.resume(tmp_path, envs("HiddenState-v0"))
        with pytest.warns(UserWarning, match="schedules follow"):
            model.learn(steps, callback=ResumableCheckpoint(tmp_path, every=500))
    with pytest.warns(UserWarning, match="begins a new episode"):
        again = ScratchDDPG.resume(tmp_path, envs("HiddenState-v0")).replay_buffer
    assert_equal(columns_of(again), columns_of(model.replay_buffer))
    # By hand: episodes have 30 steps, and the resumptions cut one after steps 110 and 140.
    cut = {30, 60, 90, 110, 140}
    first = again._samples(np.arange(150), None)
    for step in range(150):
        last = min([end - 1 for end in cut if end > step] + [step + 2])
        np.testing.assert_array_equal(first.next_observations[step], again.next_observations[last, 0])


def test_box2d_begins_a_new_episode(tmp_path):
    pytest.importorskip("Box2D")
    model = ScratchDDPG("MlpPolicy", envs("LunarLanderContinuous-v3"), **SMALL)
    with pytest.warns(UserWarning, match="LunarLander"):
        model.learn(60, callback=ResumableCheckpoint(tmp_path, every=50))
    with pytest.warns(UserWarning, match="new episode"):
        resumed = ScratchDDPG.resume(tmp_path / "step_000000000050", envs("LunarLanderContinuous-v3"))
    resumed.learn(60)
    assert resumed.num_timesteps == 60


# ------------------------------------------------------------------------------------------------------------- Endings


class AtStep(BaseCallback):
    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def _on_step(self):
        if self.num_timesteps == self.step:
            self.action()
        return True


def test_sigterm_makes_a_checkpoint_and_ends_learn(tmp_path):
    expected = left_by(ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(120))
    before = signal.getsignal(signal.SIGTERM)
    checkpoints = ResumableCheckpoint(tmp_path, every=1000)
    model = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    model.learn(120, callback=[AtStep(70, lambda: os.kill(os.getpid(), signal.SIGTERM)), checkpoints])
    assert checkpoints.terminated
    assert checkpoints.last == tmp_path / "step_000000000070"
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = ScratchDDPG.resume(tmp_path, envs()).learn(120)
    assert_equal(left_by(resumed), expected)


def test_sigterm_to_all_processes(tmp_path):
    """As schedulers send it: the environments' processes get it too, and have to live until their state was captured."""

    def make():
        return envs(n_envs=2, kind=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})

    env = make()
    expected = left_by(ScratchDDPG("MlpPolicy", env, **SMALL).learn(120))
    env.close()

    def terminate():
        for process in env.processes:
            process.terminate()
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    env = make()
    checkpoints = ResumableCheckpoint(tmp_path, every=1000)
    ScratchDDPG("MlpPolicy", env, **SMALL).learn(120, callback=[AtStep(70, terminate), checkpoints])
    # Afterwards they end when they are told to.
    for process in env.processes:
        process.terminate()
        process.join(10)
        assert not process.is_alive()
    env = make()
    assert_equal(left_by(ScratchDDPG.resume(tmp_path, env).learn(120)), expected)
    env.close()


def test_sigterm_before_the_first_step(tmp_path):
    class Early(BaseCallback):
        def _on_training_start(self):
            os.kill(os.getpid(), signal.SIGTERM)

        def _on_step(self):
            return True

    expected = left_by(ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(60))
    ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(60, callback=[ResumableCheckpoint(tmp_path), Early()])
    resumed = ScratchDDPG.resume(tmp_path, envs())
    assert resumed.num_timesteps == 0
    assert_equal(left_by(resumed.learn(60)), expected)


def test_the_handler_is_gone_after_an_error(tmp_path):
    def fail():
        raise RuntimeError("mine")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="mine"):
        ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(60, callback=[ResumableCheckpoint(tmp_path), AtStep(30, fail)])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("size", [0, 300, 5000])
def test_a_full_disk_ends_with_an_error_and_leaves_the_last_checkpoint(tmp_path, size):
    """The operating system itself refuses to write more than ``size`` bytes to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = AtStep(70, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1])))
    model = ScratchDDPG("MlpPolicy", envs(), **SMALL)
    try:
        with pytest.raises(CheckpointError, match=r"could not be written to \(File too large\).*step_000000000050"):
            model.learn(120, callback=[full, ResumableCheckpoint(tmp_path, every=50)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resumed = ScratchDDPG.resume(tmp_path, envs())
    assert resumed.num_timesteps == 50


@pytest.mark.parametrize(("env", "kills"), [("Pendulum-v1", 50), ("goals", 16)])
def test_the_whole_thing_dies_again_and_again(env, kills):
    script = Path(__file__).with_name("killed_training.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--env", env, "--kills", str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result["killed"].values()) == [kills // 2, kills // 2]
    assert result["left_unfinished"] > kills // 10
    assert len(set(result["resumed_from"])) > kills // 10
    assert result["equal"]


# ------------------------------------------------------------------------------------------------------------- Refusals


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(60, callback=ResumableCheckpoint(folder, every=30))
    return folder


def test_what_does_not_fit_is_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"actor\.mu\.0\.weight"):
        ScratchDDPG.resume(trained, envs(), policy_kwargs={"net_arch": [5]})
    with pytest.raises(CheckpointError, match="another replay buffer"):
        ScratchDDPG.resume(trained, envs(), buffer_size=50)
    with pytest.raises(CheckpointError, match="has 1 environments, and here are 2"):
        ScratchDDPG.resume(trained, envs(n_envs=2))
    with pytest.raises(CheckpointError, match="VecNormalize"):
        ScratchDDPG.resume(trained, envs(normalize=True))
    with pytest.raises(CheckpointError, match="another than the checkpoint"):
        ScratchDDPG.resume(trained, envs(wrapper_class=gym.wrappers.RecordEpisodeStatistics))
    with pytest.raises(CheckpointError):
        ScratchDDPG.resume(trained, envs("MountainCarContinuous-v0"))
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        ScratchDDPG.resume(tmp_path, envs())
    with pytest.raises(ArgumentError, match=r"resume\("):
        ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(10, callback=ResumableCheckpoint(trained))
    for wrong in ({"every": 0}, {"keep": 0}, {"every": 1.5}):
        with pytest.raises(ArgumentError):
            ResumableCheckpoint(tmp_path, **wrong)


def test_a_function_has_to_be_given_again(tmp_path):
    def schedule(progress):
        return 1e-3 * progress

    model = ScratchDDPG("MlpPolicy", envs(), **SMALL | {"learning_rate": schedule})
    model.learn(80, callback=ResumableCheckpoint(tmp_path, every=40))
    with pytest.raises(ArgumentError, match="learning_rate"):
        ScratchDDPG.resume(tmp_path, envs())
    resumed = ScratchDDPG.resume(tmp_path / "step_000000000040", envs(), learning_rate=schedule).learn(80)
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), resumed.policy.parameters(), strict=True))


def test_a_buffer_with_infos_is_refused_at_once(tmp_path):
    settings = SMALL | {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
    model = ScratchDDPG("MultiInputPolicy", envs(Reach), **settings)
    with pytest.raises(ArgumentError, match="copy_info_dict=True"):
        model.learn(10, callback=ResumableCheckpoint(tmp_path))


def test_a_buffer_that_cannot_be_saved_is_refused_at_once(tmp_path):
    class Mine(HerReplayBuffer.__mro__[2]):  # SB3's ReplayBuffer, as a class of the user's own
        pass

    model = ScratchDDPG("MlpPolicy", envs(), **SMALL | {"replay_buffer_class": Mine})
    with pytest.raises(ArgumentError, match="Mine"):
        model.learn(10, callback=ResumableCheckpoint(tmp_path))


# --------------------------------------------------------------------------------------------------------------- Models


def test_a_model_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    model = ScratchDDPG("MlpPolicy", envs(), **SMALL).learn(30)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model.learn(30)
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path / "model.zip")
    monkeypatch.undo()
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    loaded = ScratchDDPG.load(tmp_path / "model")
    assert loaded.num_timesteps == 30


def test_error_of_a_diverged_training_names_the_last_good_checkpoint(tmp_path):
    class Breaks(gym.Wrapper):
        steps = 0

        def step(self, action):
            self.steps += 1
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, np.nan if self.steps == 47 else reward, terminated, truncated, info

    model = ScratchDDPG("MlpPolicy", Breaks(gym.make("Pendulum-v1")), policy_kwargs={"net_arch": [4]}, buffer_size=100)
    with pytest.raises(DivergenceError, match=r"step 47.*last good checkpoint is .*step_0*40\b"):
        model.learn(100, callback=ResumableCheckpoint(tmp_path, every=20))
    assert ScratchDDPG.resume(tmp_path, Breaks(gym.make("Pendulum-v1"))).num_timesteps == 40


class WithFolder(gym.Wrapper):
    def __init__(self, env, folder):
        super().__init__(env)
        self.folder, self.count = folder, 0

    def step(self, action):
        self.count += 1
        return super().step(action)


def test_no_path_of_a_checkpoint_is_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {"learning_starts": 10, "buffer_size": 50, "policy_kwargs": {"net_arch": [2]}, "device": "cpu"}
    env = WithFolder(gym.make("Pendulum-v1"), "one/folder")
    model = ScratchDDPG("MlpPolicy", env, tensorboard_log=str(tmp_path / "logs"), **made)
    model.learn(20, callback=ResumableCheckpoint("checkpoints"))
    assert ScratchDDPG.resume("checkpoints", env).tensorboard_log == str(tmp_path / "logs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    env = WithFolder(gym.make("Pendulum-v1"), "another/folder")
    kept = r"WithFolder.folder was 'one/folder', which may be a path: it stays 'another/folder'"
    with pytest.warns(UserWarning, match=r"give tensorboard_log='.*logs'"), pytest.warns(UserWarning, match=kept):
        resumed = ScratchDDPG.resume(tmp_path / "checkpoints", env)
    assert resumed.tensorboard_log is None
    assert (env.folder, env.count) == ("another/folder", 20)
