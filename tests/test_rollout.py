"""Rollouts of our own against SB3's: the same calls, the same local variables, the same outputs of environments."""

import signal
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ddpg_scratch import ScratchDDPG, known_code, rollout
from sb3_ddpg_scratch.errors import DivergenceError
from sb3_ddpg_scratch.known_code import only_known_code
from sb3_ddpg_scratch.vec_env_step import step

SMALL = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 10, "batch_size": 4, "seed": 3, "device": "cpu"}


class ShortEnv(gym.Env):
    """Episodes of 7 steps, every other one terminated, the rest truncated; infos with what a deep copy matters for."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.trace = 0, []
        self.episode += 1
        return np.zeros(2, np.float32), {"episode number": self.episode}

    def step(self, action):
        self.time += 1
        self.trace.append(float(action[0]))
        observation = np.array([self.time, action[0]], np.float32)
        over, terminates = self.time == 7, self.episode % 2 == 0
        return (
            observation,
            float(action[0]),
            over and terminates,
            over and not terminates,
            {"trace": self.trace, "n": self.time},
        )


class Diary(BaseCallback):
    """Every call, with what SB3 lets a callback see."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def note(self, what):
        model = self.model
        seen = {
            name: value if isinstance(value, (int, bool, type(None))) else type(value).__name__
            for name, value in self.locals.items()
        }
        state = (self.num_timesteps, model.replay_buffer.pos, model._n_updates, model._episode_num, len(model.ep_info_buffer))
        self.entries.append((what, state, model.policy.training, seen))

    def _on_rollout_start(self):
        self.note("rollout start")

    def _on_step(self):
        self.note("step")
        infos = self.locals["infos"]
        self.entries.append([sorted(info) for info in infos])
        return self.n_calls < 60

    def _on_rollout_end(self):
        self.note("rollout end")


@pytest.mark.parametrize(("n_envs", "train_freq"), [(1, 1), (1, 3), (1, (2, "episode")), (2, 1), (3, 2)])
@pytest.mark.parametrize("updater", ["autograd", "compiled"])
def test_callbacks_see_what_they_see_in_sb3(n_envs, train_freq, updater):
    def diary_of(algorithm, **settings):
        noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
        diary, env = Diary(), make_vec_env(ShortEnv, n_envs)
        algorithm("MlpPolicy", env, train_freq=train_freq, action_noise=noise, **SMALL, **settings).learn(200, callback=diary)
        return diary.entries

    ours, theirs = diary_of(ScratchDDPG, updater=updater), diary_of(DDPG)
    classes = {"ScratchDDPG": "DDPG", "PackedReplayBuffer": "ReplayBuffer"}
    for entry in ours:
        if isinstance(entry, tuple):
            entry[3].update({name: classes.get(value, value) for name, value in entry[3].items()})
    assert ours == theirs


class Both(ShortEnv):
    """Episodes end by a termination just when the time limit is reached."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, terminated or truncated, info


@pytest.mark.parametrize("env", [ShortEnv, Both])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_step_is_that_of_the_dummy_vec_env(n_envs, env):
    ours, theirs = (DummyVecEnv([env] * n_envs) for _ in range(2))
    for env in (ours, theirs):
        env.reset()
    generator = np.random.default_rng(0)
    for _ in range(30):
        actions = generator.uniform(-2, 2, (n_envs, 1)).astype(np.float32)
        found, expected = step(ours, actions), theirs.step(actions)
        for mine, right in zip(found[:3], expected[:3], strict=True):
            assert mine.dtype == right.dtype
            np.testing.assert_array_equal(mine, right)
        assert str(found[3]) == str(expected[3])
        assert ours.reset_infos == theirs.reset_infos
        for name in ("buf_rews", "buf_dones", "actions"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        # What is returned is the caller's own.
        found[0][:] = found[1][:] = 77
        for info, kept in zip(found[3], ours.buf_infos, strict=True):
            info["trace"].append("mine")
            info["n"] = "mine"
            assert "mine" not in kept["trace"]
            assert kept["n"] != "mine"
        assert 77 not in ours.buf_obs[None]
        assert 77 not in ours.buf_rews


def test_a_dummy_vec_env_that_was_changed_is_asked_itself(monkeypatch):
    class Own(DummyVecEnv):
        def step_wait(self):
            return "own"

    env, patched = DummyVecEnv([ShortEnv]), DummyVecEnv([ShortEnv])
    patched.step_wait = lambda: "patched"
    for one in (env, patched):
        one.reset()
    action = np.zeros((1, 1), np.float32)
    assert step(Own([ShortEnv]), action) == "own"
    assert step(patched, action) == "patched"
    monkeypatch.setattr(DummyVecEnv, "step_wait", lambda self: "class")
    assert step(env, action) == "class"


class Foreign(BaseCallback):
    def _on_step(self):
        return True


def trusted(callback=None, env="Pendulum-v1", change=lambda model: None, **settings):
    model = ScratchDDPG("MlpPolicy", env, **SMALL | settings)
    change(model)
    _, callback = model._setup_learn(10, callback)
    return only_known_code(model, model.env, callback)


def test_known_code_is_that_of_known_packages(tmp_path):
    evaluation = EvalCallback(make_vec_env("Pendulum-v1"), callback_on_new_best=None)
    assert trusted()
    assert trusted([evaluation, CheckpointCallback(10, str(tmp_path))])
    assert trusted(env="HalfCheetah-v5")
    assert trusted(env="LunarLanderContinuous-v3")
    assert trusted(env=VecNormalize(make_vec_env("Pendulum-v1", 2)))
    assert trusted(action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))


@pytest.mark.parametrize(
    "settings",
    [
        {"callback": Foreign()},
        {"callback": lambda local, other: True},
        {"callback": CallbackList([EvalCallback(make_vec_env("Pendulum-v1"), callback_after_eval=Foreign())])},
        {"callback": EvalCallback(make_vec_env(ShortEnv))},
        {"env": ShortEnv()},
        {"env": gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: reward)},
        {"env": gym.wrappers.TransformReward(gym.make("Pendulum-v1"), partial(round, ndigits=2))},
        {"learning_rate": lambda progress: 1e-3},
        {"qf_learning_rate": lambda progress: 1e-3},
        {"change": lambda model: setattr(model, "_on_step", lambda: None)},
        {"change": lambda model: setattr(model.policy, "predict", model.policy.predict)},
    ],
)
def test_code_of_the_users_is_noticed(settings):
    assert not trusted(**settings)


class Freezing(gym.Wrapper):
    """An environment that freezes a layer while the model learns."""

    model = None

    def step(self, action):
        if self.model.num_timesteps == 30:
            self.model.actor.mu[0].weight.requires_grad_(False)
            self.before = self.model.actor.mu[0].weight.clone()
        return self.env.step(action)


def test_an_environment_of_ones_own_may_change_the_networks():
    env = Freezing(gym.make("Pendulum-v1"))
    env.model = ScratchDDPG("MlpPolicy", env, updater="compiled", **SMALL)
    with pytest.warns(UserWarning, match="actor.mu.0.weight is frozen"):
        env.model.learn(60)
    assert (env.model.actor.mu[0].weight == env.before).all()


def test_after_learn_every_update_inspects_again():
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", updater="compiled", **SMALL).learn(40)
    assert not model._updater.trusted
    weight = model.actor.mu[0].weight.requires_grad_(False)
    before = weight.clone()
    with pytest.warns(UserWarning, match="actor.mu.0.weight is frozen"):
        model.train(3, 4)
    assert (weight == before).all()


# ------------------------------------------------------------------------------------------------------------ Steadily


def learned(monkeypatch, steadily, n_envs=1, callback=None, env="Pendulum-v1", **settings):
    """A model after two ``learn``, and how many rollouts went on to the end."""
    calls = []
    collect = rollout.collect_steadily
    with monkeypatch.context() as patch:
        patch.setattr(rollout, "collect_steadily", lambda *args: calls.append(1) or collect(*args))
        if not steadily:
            patch.setattr(rollout, "only_known_code", lambda *_: False)
        model = ScratchDDPG("MlpPolicy", make_vec_env(env, n_envs, seed=5), **SMALL | settings)
        # On past the end of an episode, through a full buffer, and to a rollout that would end after the last step.
        model.learn(300 * n_envs, callback=callback).learn(101, callback=callback, reset_num_timesteps=False)
    return model, len(calls)


def tensors_of(model):
    moments = [entry for network in (model.actor, model.critic) for entry in network.optimizer.state.values()]
    return [*model.policy.state_dict().values(), *(value for entry in moments for value in entry.values())]


@pytest.mark.parametrize(
    ("n_envs", "settings"),
    [
        (1, {}),
        (1, {"policy_delay": 2, "target_policy_noise": 0.2, "policy_kwargs": {"net_arch": [8], "n_critics": 2}}),
        (1, {"learning_rate": LinearSchedule(1e-2, 1e-4, 1.0), "qf_learning_rate": 3e-3, "action_noise": None}),
        (1, {"train_freq": 4, "gradient_steps": 3, "max_grad_norm": 0.1, "action_noise": "gaussian"}),
        (3, {"train_freq": 2, "gradient_steps": -1, "buffer_size": 300}),
        (1, {"n_steps": 3, "buffer_size": 250}),
        (3, {"n_steps": 5, "buffer_size": 300, "gamma": 0.9}),
        (1, {"env": "Hopper-v5", "buffer_size": 100, "policy_kwargs": {"net_arch": [8], "norm": "layer"}}),
    ],
)
def test_steady_rollouts_leave_what_single_ones_leave(monkeypatch, n_envs, settings):
    """To the last bit: networks, moments, replay buffer, generators, episodes, counters, what is logged."""
    (model, steady), (expected, single) = (learned(monkeypatch, steadily, n_envs, **settings) for steadily in (True, False))
    assert (steady, single) == (2, 0)
    assert model._updater.read_statistics() == expected._updater.read_statistics()
    for name in ("_n_updates", "num_timesteps", "_episode_num", "_current_progress_remaining"):
        assert getattr(model, name) == getattr(expected, name)
    strip = lambda infos: [{key: info[key] for key in "rl"} for info in infos]  # noqa: E731
    assert strip(model.ep_info_buffer) == strip(expected.ep_info_buffer)
    np.testing.assert_array_equal(model._last_obs, expected._last_obs)
    for name in ("rows", "_ends", "pos", "full"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(expected.replay_buffer, name))
    assert all(map(th.equal, tensors_of(model), tensors_of(expected)))
    assert model.actor.optimizer.param_groups[0]["lr"] == expected.actor.optimizer.param_groups[0]["lr"]


def test_evaluations_leave_rollouts_steady(monkeypatch):
    evaluation = EvalCallback(make_vec_env("Pendulum-v1"), eval_freq=150, n_eval_episodes=1, verbose=0)
    model, steady = learned(monkeypatch, True, callback=evaluation)
    expected, _ = learned(monkeypatch, False)
    assert steady == 2
    assert evaluation.best_mean_reward > -np.inf
    assert all(map(th.equal, tensors_of(model), tensors_of(expected)))


def test_generators_stand_where_single_rollouts_leave_them(monkeypatch):
    states = []
    for steadily in (True, False):
        model, _ = learned(monkeypatch, steadily, target_policy_noise=0.1)
        states.append((np.random.random_sample(), th.rand(1).item(), model.action_noise()[0]))
    assert states[0] == states[1]


@pytest.mark.parametrize(("n_envs", "train_freq"), [(1, 1), (1, 3), (3, 2)])
def test_callbacks_see_the_same_in_steady_rollouts(monkeypatch, n_envs, train_freq):
    monkeypatch.setattr(known_code, "_PACKAGES", known_code._PACKAGES | {Diary.__module__})
    diaries = []
    for steadily in (True, False):
        diary = Diary()
        _, steady = learned(monkeypatch, steadily, n_envs, callback=diary, env=ShortEnv, train_freq=train_freq)
        assert steady == steadily
        diaries.append(diary.entries)
    for found, expected in zip(*diaries, strict=True):
        if not isinstance(expected, tuple):
            assert found == expected
            continue
        assert found[:3] == expected[:3]
        # These are of SB3's loop over ended episodes, and an argument that no longer matters.
        left_out = {"idx", "done", "kwargs", "learning_starts"}
        assert found[3].items() >= {name: value for name, value in expected[3].items() if name not in left_out}.items()


class BadEnv(ShortEnv):
    """Returns NaN once the agent has been learning for a while."""

    total = 0

    def step(self, action):
        observation, *rest = super().step(action)
        self.total += 1
        return np.full_like(observation, np.nan) if self.total == 40 else observation, *rest


def test_what_is_not_finite_stops_a_steady_rollout(monkeypatch):
    monkeypatch.setattr(known_code, "_PACKAGES", known_code._PACKAGES | {BadEnv.__module__})
    model = ScratchDDPG("MlpPolicy", DummyVecEnv([BadEnv]), **SMALL)
    with pytest.raises(DivergenceError, match=r"observation\[0\] = nan at environment step 40. It was not stored"):
        model.learn(100)
    assert model.replay_buffer.pos == 39
    assert model._n_updates == 29
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


class InterruptedEnv(ShortEnv):
    """Somebody presses Ctrl-C in the middle of its 40th step."""

    total = 0

    def step(self, action):
        self.total += 1
        if self.total == 40:
            signal.raise_signal(signal.SIGINT)
        return super().step(action)


def test_a_steady_rollout_can_be_interrupted_and_continued(monkeypatch, tmp_path):
    monkeypatch.setattr(known_code, "_PACKAGES", known_code._PACKAGES | {InterruptedEnv.__module__})
    model = ScratchDDPG("MlpPolicy", DummyVecEnv([InterruptedEnv]), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    assert (model.num_timesteps, model.replay_buffer.pos, model._n_updates) == (39, 39, 29)
    model.save(tmp_path / "model.zip")
    saved = ScratchDDPG.load(tmp_path / "model.zip")
    assert all(map(th.equal, tensors_of(saved), tensors_of(model)))
    model.learn(61, reset_num_timesteps=False)
    assert (model.num_timesteps, model.replay_buffer.pos, model._n_updates) == (100, 100, 90)


def test_losses_that_are_not_finite_stop_a_steady_rollout(monkeypatch):
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(50)
    steady = rollout.collect_steadily

    def spoiled(self, *args):
        with th.no_grad():
            self.critic.qf0[0].weight[:] = np.nan
        return steady(self, *args)

    monkeypatch.setattr(rollout, "collect_steadily", spoiled)
    with pytest.raises(DivergenceError, match="critic_loss=nan in update"):
        model.learn(50, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "change",
    [
        {"callback": Foreign},
        {"normalize": True},
        {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
        {"train_freq": (1, "episode")},
        {"updater": "analytic"},
        {"optimize_memory_usage": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_where_a_rollout_goes_by_single_steps(monkeypatch, change):
    settings = dict(change)
    callback, normalize = settings.pop("callback", lambda: None)(), settings.pop("normalize", False)
    env = make_vec_env("Pendulum-v1")
    monkeypatch.setattr(rollout, "collect_steadily", lambda *_: pytest.fail("went on steadily"))
    ScratchDDPG("MlpPolicy", VecNormalize(env) if normalize else env, **SMALL | settings).learn(40, callback=callback)


def test_a_class_with_a_train_of_its_own_is_asked(monkeypatch):
    calls = []
    train = ScratchDDPG.train
    monkeypatch.setattr(ScratchDDPG, "train", lambda self, *args, **kwargs: calls.append(1) or train(self, *args, **kwargs))
    ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(40)
    assert len(calls) == 30
