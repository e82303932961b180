"""Rollouts of our own against SB3's: the same calls, the same local variables, the same outputs of environments."""

import functools
import re
import signal
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback, LogEveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.errors import DivergenceError
from sb3_ddpg_scratch.known_code import only_known_code
from sb3_ddpg_scratch.rollout import gathered, loop
from sb3_ddpg_scratch.updates import compiled
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater
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


def texts(statistics):
    parts = statistics if isinstance(statistics, dict) else {"": statistics}
    return {key: str(vars(part) if part is not None else None) for key, part in parts.items()}


@pytest.mark.parametrize("settings", [{}, {"norm_reward": False, "clip_obs": 0.7}, {"norm_obs": False}, {"training": False}])
@pytest.mark.parametrize("env", [ShortEnv, lambda: DictEnv()])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_step_is_that_of_vec_normalize(n_envs, env, settings):
    ours, theirs = (VecNormalize(DummyVecEnv([env] * n_envs), **settings) for _ in range(2))
    for one in (ours, theirs):
        one.seed(1)
        one.reset()
    generator = np.random.default_rng(0)
    for _ in range(30):
        actions = generator.uniform(-2, 2, (n_envs, 1)).astype(np.float32)
        found, expected = step(ours, actions), theirs.step(actions)
        # Texts of arrays, whose numbers are short enough to be whole.
        with np.printoptions(precision=17, floatmode="unique"):
            assert str(found) == str(expected)
            for name in ("obs_rms", "ret_rms"):
                assert texts(vars(ours).get(name)) == texts(vars(theirs).get(name))
            for name in ("old_obs", "old_reward", "returns"):
                assert str(getattr(ours, name)) == str(getattr(theirs, name))


def test_a_vec_normalize_that_was_changed_is_asked_itself(monkeypatch):
    class Own(VecNormalize):
        def step_wait(self):
            return ["own"] * 4

    env, patched, own = (kind(DummyVecEnv([ShortEnv])) for kind in (VecNormalize, VecNormalize, Own))
    patched.step_wait = lambda: ["patched"] * 4
    for one in (env, patched, own):
        one.reset()
    action = np.zeros((1, 1), np.float32)
    assert step(own, action)[0] == "own"
    assert step(patched, action)[0] == "patched"
    monkeypatch.setattr(VecNormalize, "step_wait", lambda self: ["class"] * 4)
    assert step(env, action)[0] == "class"
    monkeypatch.undo()
    monkeypatch.setattr(RunningMeanStd, "update", lambda self, batch: setattr(self, "seen", batch.copy()))
    step(env, action)
    assert env.obs_rms.seen.shape == (1, 2)


def test_a_dummy_vec_env_that_was_changed_is_asked_itself(monkeypatch):
    class Own(DummyVecEnv):
        def step_wait(self):
            return ["own"] * 4

    env, patched = DummyVecEnv([ShortEnv]), DummyVecEnv([ShortEnv])
    patched.step_wait = lambda: ["patched"] * 4
    for one in (env, patched):
        one.reset()
    action = np.zeros((1, 1), np.float32)
    assert step(Own([ShortEnv]), action)[0] == "own"
    assert step(patched, action)[0] == "patched"
    monkeypatch.setattr(DummyVecEnv, "step_wait", lambda self: ["class"] * 4)
    assert step(env, action)[0] == "class"


class Foreign(BaseCallback):
    def _on_step(self):
        return True


class OwnLogger(Logger):
    pass


def trusted(callback=None, env="Pendulum-v1", change=lambda model: None, **settings):
    model = ScratchDDPG("MlpPolicy", env, **SMALL | settings)
    change(model)
    _, callback = model._setup_learn(10, callback)
    return only_known_code(model, model.env, callback)


def test_known_code_is_that_of_known_packages(tmp_path):
    evaluation = EvalCallback(make_vec_env("Pendulum-v1"), callback_on_new_best=None)
    assert trusted()
    assert trusted([evaluation, CheckpointCallback(10, str(tmp_path))])
    assert trusted([LogEveryNTimesteps(10)])
    assert trusted(env="HalfCheetah-v5")
    pendulum = partial(gym.make, "Pendulum-v1")
    for wrap in (gym.wrappers.FlattenObservation, gym.wrappers.TimeAwareObservation, gym.wrappers.NormalizeObservation):
        assert trusted(env=wrap(pendulum()))
    assert trusted(env=gym.wrappers.RescaleAction(pendulum(), -1.0, 1.0))
    assert trusted(env=gym.wrappers.DtypeObservation(pendulum(), np.float64))
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
        {"change": lambda model: setattr(model.policy, "predict", lambda *args, **named: None)},
        {"change": lambda model: model.set_logger(OwnLogger(None, []))},
    ],
)
def test_code_of_the_users_is_noticed(settings):
    assert not trusted(**settings)


def test_functions_without_a_module_or_with_an_empty_cell():
    """They are nobody's known code, or judged by the rest; looking at them fails in neither case."""

    def made():
        function = lambda reward: later + reward  # noqa: E731
        yield function
        later = 1

    made_later = next(made())
    assert not trusted(env=gym.wrappers.TransformReward(gym.make("Pendulum-v1"), made_later))
    made_later.__module__ = "gymnasium.wrappers"
    assert trusted(env=gym.wrappers.TransformReward(gym.make("Pendulum-v1"), made_later))
    made_later.__module__ = None
    assert not trusted(env=gym.wrappers.TransformReward(gym.make("Pendulum-v1"), made_later))


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


def test_after_learn_every_update_looks_again():
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", updater="compiled", **SMALL).learn(40)
    assert not model._updater.trusted
    weight = model.actor.mu[0].weight.requires_grad_(False)
    before = weight.clone()
    with pytest.warns(UserWarning, match="actor.mu.0.weight is frozen"):
        model.train(3, 4)
    assert (weight == before).all()


# ------------------------------------------------------------------------------------------------------------ Gathered


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    """For updates that are large enough."""
    monkeypatch.setattr(compiled, "thread_limit", lambda: 2)


def learned(monkeypatch, how, n_envs=1, callback=None, env="Pendulum-v1", **settings):
    """A model after two ``learn``, with work gathered (``trusted`` or ``watched``) or ``at once``, and what it returned."""
    gathers, callback = [], callback or (lambda: None)
    holds, perform = gathered.Gathered._still_holds, gathered.Gathered._perform
    with monkeypatch.context() as patch:
        patch.setattr(gathered.Gathered, "_still_holds", lambda work: holds(work) or bool(gathers.append(False)))
        patch.setattr(gathered.Gathered, "_perform", lambda work, **named: gathers.append(True) or perform(work, **named))
        patch.setattr(loop, "only_known_code", lambda *_: how == "trusted")
        if how == "at once":
            patch.setattr(loop, "work_for", lambda model, callback, *rest: gathered.AtOnce(model, *rest))
        normalize, kind = settings.pop("normalize", None), settings.pop("policy", "MlpPolicy")
        vec_env = make_vec_env(env, n_envs, seed=5)
        model = ScratchDDPG(kind, VecNormalize(vec_env, **normalize) if normalize else vec_env, **SMALL | settings)
        # On past the end of an episode, through a full buffer, and to a rollout that would end after the last step.
        model.learn(300 * n_envs, callback=callback()).learn(101, callback=callback(), reset_num_timesteps=False)
    return model, gathers


def tensors_of(model):
    moments = [entry for network in (model.actor, model.critic) for entry in network.optimizer.state.values()]
    return [*model.policy.state_dict().values(), *(value for entry in moments for value in entry.values())]


class DictEnv(gym.ObservationWrapper):
    """Pendulum-v1 with its angle and speed apart."""

    def __init__(self):
        super().__init__(gym.make("Pendulum-v1"))
        low, high = self.env.observation_space.low, self.env.observation_space.high
        parts = {"speed": gym.spaces.Box(low[2:], high[2:]), "angle": gym.spaces.Box(low[:2], high[:2])}
        self.observation_space = gym.spaces.Dict(parts)

    def observation(self, observation):
        return {"angle": observation[:2], "speed": observation[2:]}


class DoubleActions(gym.ActionWrapper):
    """Pendulum-v1 with double-precision actions."""

    def __init__(self):
        super().__init__(gym.make("Pendulum-v1"))
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float64)

    def action(self, action):
        assert action.dtype == np.float64
        return action.astype(np.float32)


class OwnNoise(ActionNoise):
    """A user's noise, from the generator that batches are drawn from."""

    def __call__(self):
        return np.random.uniform(-0.2, 0.2, 1)


COMMON = {
    "one environment": (1, {}),
    "TD3": (1, {"policy_delay": 2, "target_policy_noise": 0.2, "policy_kwargs": {"net_arch": [8], "n_critics": 2}}),
    "schedules": (1, {"learning_rate": LinearSchedule(1e-2, 1e-4, 1.0), "qf_learning_rate": 3e-3, "action_noise": None}),
    "a schedule of one's own": (1, {"learning_rate": lambda remaining: 1e-3 * remaining}),
    "several updates": (1, {"train_freq": 4, "gradient_steps": 3, "max_grad_norm": 0.1, "action_noise": "pink"}),
    "several environments": (3, {"train_freq": 2, "gradient_steps": -1, "buffer_size": 300}),
    "n steps": (1, {"n_steps": 3, "buffer_size": 250}),
    "n steps, several environments": (3, {"n_steps": 5, "buffer_size": 300, "gamma": 0.9}),
    "layer norm": (1, {"env": "Hopper-v5", "buffer_size": 100, "policy_kwargs": {"net_arch": [8], "norm": "layer"}}),
    "VecNormalize": (2, {"normalize": {"clip_obs": 1.5, "clip_reward": 0.7}, "buffer_size": 300}),
    "VecNormalize of rewards, n steps": (1, {"normalize": {"norm_obs": False}, "n_steps": 3}),
    "VecNormalize, episodes that end": (1, {"normalize": {}, "env": ShortEnv, "n_steps": 2, "buffer_size": 90}),
    "Dict": (2, {"env": DictEnv, "policy": "MultiInputPolicy", "buffer_size": 250}),
    "Dict, VecNormalize": (1, {"env": DictEnv, "policy": "MultiInputPolicy", "normalize": {"norm_obs_keys": ["speed"]}}),
    "memory saving": (1, {"optimize_memory_usage": True, "buffer_size": 150, "env": ShortEnv}),
    "memory saving, n steps": (2, {"optimize_memory_usage": True, "n_steps": 3, "buffer_size": 150, "env": ShortEnv}),
    "memory saving, VecNormalize": (1, {"optimize_memory_usage": True, "normalize": {}, "env": ShortEnv}),
    "SB3's noise": (1, {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.3))}),
    "SB3's noise, several environments": (2, {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.3))}),
    "a noise of one's own": (1, {"action_noise": OwnNoise()}),
    "double-precision actions": (1, {"env": DoubleActions}),
    "normalized by the policy": (2, {"policy_kwargs": {"net_arch": [8], "normalize_observations": True}}),
    "residual": (1, {"policy": "SimbaPolicy", "env": ShortEnv, "n_steps": 2, "buffer_size": 90}),
    "residual, Dict, rewards": (
        1,
        {
            "env": DictEnv,
            "policy": "SimbaPolicy",
            "normalize": {"norm_obs": False},
            "optimize_memory_usage": True,
            "learning_rate": 1e-4,
        },
    ),
    "several threads": (1, {"policy_kwargs": {"net_arch": [128, 128]}, "batch_size": 256, "learning_rate": 1e-4}),
    "episodes": (1, {"train_freq": (2, "episode"), "gradient_steps": -1, "env": ShortEnv}),
}


@pytest.mark.parametrize("how", ["trusted", "watched"])
@pytest.mark.parametrize("case", COMMON)
def test_gathered_work_leaves_what_work_at_once_leaves(monkeypatch, case, how):
    """To the last bit: networks, moments, replay buffer, generators, episodes, counters, what is logged."""
    n_envs, settings = COMMON[case]
    np.random.seed(0)
    model, gathers = learned(monkeypatch, how, n_envs, **settings)
    drawn = np.random.random_sample(), th.rand(1).item(), model.action_space.sample()
    np.random.seed(0)
    expected, single = learned(monkeypatch, "at once", n_envs, **settings)
    assert (np.random.random_sample(), th.rand(1).item(), model.action_space.sample()[:0].size) == (*drawn[:2], 0)
    assert len(gathers) > 100
    assert all(gathers)
    assert single == []
    assert len(model._updater.pick(model._networks())._team) == (2 if case == "several threads" else 1)
    assert model._updater.read_statistics() == expected._updater.read_statistics()
    for name in ("_n_updates", "num_timesteps", "_episode_num", "_current_progress_remaining"):
        assert getattr(model, name) == getattr(expected, name)
    strip = lambda infos: [{key: info[key] for key in "rl"} for info in infos]  # noqa: E731
    assert strip(model.ep_info_buffer) == strip(expected.ep_info_buffer)
    for name in ("_last_obs", "_last_original_obs"):
        np.testing.assert_equal(getattr(model, name), getattr(expected, name))
    for name in ("rows", "_ends", "_aside", "_last_observations", "pos", "full"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(expected.replay_buffer, name))
    assert all(map(th.equal, tensors_of(model), tensors_of(expected)))
    assert model._updater.pick(model._networks()).name == "compiled"
    assert model.actor.optimizer.param_groups[0]["lr"] == expected.actor.optimizer.param_groups[0]["lr"]
    assert (model.policy.training, model.actor.mu.training) == (expected.policy.training, expected.actor.mu.training)


@pytest.mark.parametrize("case", [case for case in COMMON if case not in ("double-precision actions", "a noise of one's own")])
def test_what_is_common_is_close_to_the_reference(monkeypatch, case):
    """Half of what was learned by the reference, from the same draws: same buffers, and the same networks up to rounding."""
    n_envs, settings = COMMON[case]
    if n_envs > 1 and "n_steps" in settings and settings.get("optimize_memory_usage"):
        pytest.skip("SB3's n-step buffer saves no memory")
    np.random.seed(0)
    model, _ = learned(monkeypatch, "watched", n_envs, **settings)
    np.random.seed(0)
    expected, _ = learned(monkeypatch, "watched", n_envs, **settings, updater="analytic", replay_buffer_class=None)
    np.testing.assert_allclose(model.replay_buffer.rows, expected.replay_buffer.rows, atol=2e-2, rtol=2e-2)
    for ours, theirs in zip(model.policy.parameters(), expected.policy.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=5e-3, rtol=5e-2)


def test_evaluations_leave_work_gathered(monkeypatch):
    evaluation = EvalCallback(make_vec_env("Pendulum-v1"), eval_freq=150, n_eval_episodes=1, verbose=0)
    model, gathers = learned(monkeypatch, "watched", callback=lambda: evaluation)
    expected, _ = learned(monkeypatch, "at once")
    assert len(gathers) > 380
    assert all(gathers)
    assert evaluation.best_mean_reward > -np.inf
    assert all(map(th.equal, tensors_of(model), tensors_of(expected)))


@pytest.mark.parametrize(("n_envs", "train_freq"), [(1, 1), (1, 3), (3, 2), (1, (2, "episode"))])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a list"])
def test_callbacks_see_the_same_of_gathered_work(monkeypatch, n_envs, train_freq, inside):
    entries = []
    for how in ("trusted", "watched", "at once"):
        diaries = []

        def diary(diaries=diaries):
            diaries.append(Diary())
            return CallbackList([Foreign(), diaries[-1]]) if inside else diaries[-1]

        _, gathers = learned(monkeypatch, how, n_envs, callback=diary, env=ShortEnv, train_freq=train_freq)
        assert (len(gathers) > 0) == (how != "at once")
        entries.append([entry for one in diaries for entry in one.entries])
    assert entries[0] == entries[2]
    assert entries[1] == entries[2]


class BadEnv(ShortEnv):
    """Returns a bad observation or reward once the agent has been learning for a while."""

    total, observed, rewarded = 0, np.nan, 1.0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.total += 1
        if self.total != 40:
            return observation, reward, *rest
        return np.full_like(observation, self.observed), reward * 0 + self.rewarded, *rest


class HugeReward(BadEnv):
    observed, rewarded = 1.0, 1e39


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("how", ["trusted", "watched", "at once"])
@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize(("env", "value"), [(BadEnv, "observation[0] = nan"), (HugeReward, "reward = ")])
def test_what_is_not_finite_is_not_stored(monkeypatch, how, vec_env, env, value):
    monkeypatch.setattr(loop, "only_known_code", lambda *_: how == "trusted")
    if how == "at once":
        monkeypatch.setattr(loop, "work_for", lambda model, callback, *rest: gathered.AtOnce(model, *rest))
    environments = vec_env([env])
    model = ScratchDDPG("MlpPolicy", environments, **SMALL)
    with pytest.raises(DivergenceError, match=rf"{re.escape(value)}.* at environment step 40. It was not stored"):
        model.learn(100)
    environments.close()
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


@pytest.mark.parametrize("trusts", [True, False])
def test_an_interrupted_step_can_be_continued(monkeypatch, tmp_path, trusts):
    monkeypatch.setattr(loop, "only_known_code", lambda *_: trusts)
    model = ScratchDDPG("MlpPolicy", DummyVecEnv([InterruptedEnv]), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    assert (model.num_timesteps, model.replay_buffer.pos, model._n_updates) == (39, 39, 29)
    model.save(tmp_path / "model.zip")
    saved = ScratchDDPG.load(tmp_path / "model.zip")
    assert all(map(th.equal, tensors_of(saved), tensors_of(model)))
    model.learn(61, reset_num_timesteps=False)
    assert (model.num_timesteps, model.replay_buffer.pos, model._n_updates) == (100, 100, 90)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_ctrl_c_around_the_compiled_call_loses_nothing(monkeypatch, after):
    """Python raises it when the compiled call returns, at the latest when the next begins."""
    model = ScratchDDPG("MlpPolicy", DummyVecEnv([ShortEnv]), **SMALL).learn(20)
    calls, advance = [], CompiledUpdater.advance

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) != 15:
            return advance(self, *args)
        if after:
            advance(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(CompiledUpdater, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, reset_num_timesteps=False)
    monkeypatch.undo()
    buffer = model.replay_buffer
    steps = [entry["step"].item() for entry in model.critic.optimizer.state.values()]
    assert set(steps) == {model._n_updates}
    assert buffer.pos - (10 + model._n_updates) in ((0, 1) if after else (-1, 0, 1))
    model.learn(20, reset_num_timesteps=False)


def test_losses_that_are_not_finite_stop_gathered_work(monkeypatch):
    class Spoiling(BaseCallback):
        def _on_step(self):
            if self.n_calls == 20:
                with th.no_grad():
                    self.model.critic.qf0[0].weight[:] = np.nan
            return True

    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(50)
    with pytest.raises(DivergenceError, match="critic_loss=nan in update 60, at environment step 70"):
        model.learn(50, callback=Spoiling(), reset_num_timesteps=False)


class Changing(BaseCallback):
    """Changes a model at one step, and makes it plain again at another."""

    def __init__(self, change, undo):
        super().__init__()
        self.change, self.undo = change, undo

    def _on_step(self):
        if self.n_calls == 40:
            self.change(self.model)
        if self.n_calls == 60:
            self.undo(self.model)
        return True


def freeze(model, trained=False):
    model.actor.mu[0].weight.requires_grad_(trained)


def hook(model):
    model.hook = model.critic.qf0.register_forward_hook(lambda *_: None)


MOVES = {
    "frozen": (freeze, lambda model: freeze(model, True)),
    "hooked": (hook, lambda model: model.hook.remove()),
    "a method of its own": (
        lambda model: setattr(model, "train", functools.partial(ScratchDDPG.train, model)),
        lambda model: delattr(model, "train"),
    ),
}


class Watching(Changing):
    def _on_rollout_end(self):
        self.ends = getattr(self, "ends", 0) + 1


@pytest.mark.filterwarnings("ignore:Using the")
@pytest.mark.parametrize("kind", [Changing, Watching])
@pytest.mark.parametrize("move", MOVES)
def test_a_model_that_is_plain_again_gathers_again(monkeypatch, move, kind):
    """And in between nothing is done twice: updates, draws of noise, rollouts that callbacks see."""
    steps = []
    perform = gathered.Gathered._perform

    def noted(work, **named):
        steps.append(work.model.num_timesteps)
        perform(work, **named)

    monkeypatch.setattr(gathered.Gathered, "_perform", noted)
    callback = kind(*MOVES[move])
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(100, callback=callback)
    assert {39, 70, 99} <= set(steps)
    assert not {45, 50, 59} & set(steps)
    assert (model._n_updates, model.replay_buffer.pos, getattr(callback, "ends", 100)) == (90, 100, 100)
    assert model.policy.training
    expected = ScratchDDPG("MlpPolicy", "Pendulum-v1", updater="analytic", **SMALL).learn(100)
    assert model.action_noise() == expected.action_noise()


SETTINGS = {
    "gamma": 0.5,
    "tau": 0.5,
    "batch_size": 9,
    "policy_delay": 3,
    "max_grad_norm": 1e-3,
    "action_l2": 1.0,
    "gradient_steps": 2,
}
SETTINGS |= {
    "target_policy_noise": 0.3,
    "learning_rate": None,
    "betas": None,
    "moments": None,
    "parameter": None,
    "noise": None,
}


def change_setting(model, name):
    if name == "learning_rate":
        # SB3 sets it again before the next update.
        model.critic.optimizer.param_groups[0]["lr"] = 77.0
    elif name == "betas":
        model.critic.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    elif name == "moments":
        entry = next(iter(model.critic.optimizer.state.values()))
        entry["exp_avg"] = th.ones_like(entry["exp_avg"])
    elif name == "parameter":
        # The optimizer goes on with the old one, which no longer has gradients.
        model.actor.mu[2].bias = th.nn.Parameter(model.actor.mu[2].bias.data)
    elif name == "noise":
        model.action_noise = NormalActionNoise(np.ones(1), np.zeros(1))
    else:
        setattr(model, name, SETTINGS[name])


@pytest.mark.filterwarnings("ignore:Using the")
@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_callback_changes_has_its_effect(name):
    """In gathered work as in the reference, at the same step."""

    def changed(updater, change):
        callback = Changing(change, lambda model: None)
        return ScratchDDPG("MlpPolicy", "Pendulum-v1", updater=updater, **SMALL).learn(46, callback=callback)

    fast, right = (changed(updater, lambda model: change_setting(model, name)) for updater in ("compiled", "analytic"))
    assert fast._n_updates == right._n_updates
    for ours, theirs in zip(fast.policy.parameters(), right.policy.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=1e-4, rtol=1e-3)
    if name != "learning_rate":
        plain = changed("compiled", lambda model: None)
        assert not all(map(th.equal, fast.policy.parameters(), plain.policy.parameters()))


@pytest.mark.parametrize(
    "settings", [{"updater": "analytic"}, {"replay_buffer_class": ReplayBuffer}, {"gradient_steps": 100}], ids=str
)
def test_where_work_is_done_at_once(monkeypatch, settings):
    monkeypatch.setattr(gathered.Gathered, "_perform", lambda *_, **__: pytest.fail("gathered"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = settings | ({"train_freq": 100} if "gradient_steps" in settings else {})
        ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL | settings).learn(40)


def test_a_class_with_a_train_of_its_own_is_asked(monkeypatch):
    calls = []
    train = ScratchDDPG.train
    monkeypatch.setattr(ScratchDDPG, "train", lambda self, *args, **kwargs: calls.append(1) or train(self, *args, **kwargs))
    ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(40)
    assert len(calls) == 30


class Listed(VecEnvWrapper):
    """Returns rewards and dones as lists."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards.tolist(), dones.tolist(), infos


@pytest.mark.parametrize("updater", ["autograd", "compiled"])
def test_a_vectorized_environment_may_return_lists(updater):
    def trained(algorithm, wrap, **settings):
        env, noise = wrap(make_vec_env(ShortEnv, 2, seed=1)), NormalActionNoise(np.zeros(1), np.full(1, 0.1))
        model = algorithm("MlpPolicy", env, action_noise=noise, **SMALL, **settings).learn(80)
        return [parameter.detach().numpy() for parameter in model.policy.parameters()]

    ours, theirs = trained(ScratchDDPG, Listed, updater=updater), trained(DDPG, lambda env: env)
    for mine, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, right, atol=0 if updater == "autograd" else 1e-5)
