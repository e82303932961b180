"""Observations normalized by the policy: the statistics are VecNormalize's, and whatever acts, trains or saves has them."""

import copy
import pickle

import numpy as np
import pytest
import torch as th
from conftest import Observing, PointEnv, snapshot
from gymnasium import spaces
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ddpg_scratch import ArgumentError, DivergenceError, ScratchDDPG
from sb3_ddpg_scratch.observation_statistics import ObservationStatistics
from tests.goal_envs import Reach

SMALL = {"learning_starts": 10, "batch_size": 16, "buffer_size": 500, "seed": 0, "device": "cpu"}
NORMALIZES = {"net_arch": [8], "normalize_observations": True}
PARTS = {"b": spaces.Box(-9, 9, (3,), np.float64), "a": spaces.Box(-1, 1, (2, 2)), "bits": spaces.MultiBinary(2)}


def make_model(env=None, policy="MlpPolicy", updater="autograd", **settings):
    settings = SMALL | {"policy_kwargs": NORMALIZES, "updater": updater} | settings
    return ScratchDDPG(policy, env or PointEnv(length=30), **settings)


def statistics(model):
    """Mean, variance and count, as VecNormalize names them."""
    return model.policy.observation_statistics


def theirs(normalizer):
    """The same of a VecNormalize, in the space's order."""
    found = normalizer.obs_rms
    parts = [found[key] for key in normalizer.observation_space.spaces if key in found] if isinstance(found, dict) else [found]
    mean, var = (np.concatenate([getattr(part, name).ravel() for part in parts]) for name in ("mean", "var"))
    return mean, var, parts[0].count


def assert_same_statistics(model, normalizer, **tolerance):
    ours = statistics(model)
    for found, expected in zip((ours.mean, ours.var, ours.count), theirs(normalizer), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, **{"rtol": 0, "atol": 0} | tolerance)


@pytest.mark.parametrize("space", [spaces.Box(-9, 9, (3,)), spaces.Box(-9, 9, (2, 3), np.float64), spaces.Dict(PARTS)])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_statistics_and_numbers_are_those_of_vec_normalize(space, n_envs):
    """Step by step and to the last bit, beside a VecNormalize around the same environments; clipped alike."""
    boxes = [key for key in space.spaces if key != "bits"] if isinstance(space, spaces.Dict) else None
    normalizer = VecNormalize(
        DummyVecEnv([lambda: Observing(space)] * n_envs), norm_reward=False, clip_obs=1.3, norm_obs_keys=boxes
    )
    normalizer.seed(3)
    ours = ObservationStatistics(space, clip=1.3)
    normalizer.reset()
    for _ in range(40):
        raw = normalizer.get_original_obs()
        ours.update(raw)
        for found, expected in zip((ours.mean, ours.var, ours.count), theirs(normalizer), strict=True):
            np.testing.assert_array_equal(found.numpy(), expected)
        expected = normalizer.normalize_obs(raw)
        found = ours({key: th.as_tensor(part) for key, part in raw.items()} if boxes else th.as_tensor(raw))
        for key in raw if boxes else [()]:
            np.testing.assert_array_equal(found[key].numpy(), expected[key])
            assert found[key].dtype == (th.int8 if key == "bits" else th.float32)
        normalizer.step(np.tile([0.0, 1.0], (n_envs, 1)))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_training_equals_sb3s_with_vec_normalize(n_envs):
    """To the last bit until an episode ends, whose last observation SB3 stores rounded and clipped; then within rounding."""
    for steps, exact in ((60, True), (150, False)):
        envs = [make_vec_env(lambda: PointEnv(length=70 // n_envs), n_envs, seed=1) for _ in range(2)]
        normalizer = VecNormalize(envs[0], norm_reward=False)
        settings = SMALL | {"action_noise": None, "batch_size": 8}
        reference = DDPG("MlpPolicy", normalizer, policy_kwargs={"net_arch": [8]}, **settings).learn(steps)
        model = make_model(envs[1], **settings).learn(steps)
        tolerance = {} if exact else {"rtol": 1e-5, "atol": 1e-7}
        assert_same_statistics(model, normalizer, **tolerance)
        found, expected = snapshot(model), snapshot(reference)
        assert found.keys() - expected.keys() == {f"observation_statistics.{name}" for name in ("mean", "var", "count")}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=0 if exact else 1e-4, err_msg=name)
        raw = np.array([[0.5, -3.0, 0.2]], np.float32)
        np.testing.assert_allclose(
            model.predict(raw)[0], reference.predict(normalizer.normalize_obs(raw))[0], rtol=0, atol=0 if exact else 1e-4
        )


class Watcher(BaseCallback):
    """Evaluates and predicts within the training, and keeps all observations that the training returned."""

    def __init__(self, env):
        super().__init__()
        self.env, self.seen = env, []

    def _on_training_start(self):
        self.seen.append(self.model._last_obs)

    def _on_step(self):
        before = snapshot(self.model)
        evaluate_policy(self.model, self.env, 1, warn=False)
        after = snapshot(self.model)
        assert all(th.equal(after[name], before[name]) for name in after if "statistics" in name)
        self.seen.append(self.locals["new_obs"])
        return True


CASES = {
    "vector": (lambda: PointEnv(length=7), {}),
    "n-step, memory-saving": (lambda: PointEnv(length=7), {"n_steps": 3, "optimize_memory_usage": True}),
    "simba": (lambda: PointEnv(length=7), {"policy": "SimbaPolicy", "policy_kwargs": {"net_arch": [8]}}),
    "dict": (lambda: Observing(spaces.Dict(PARTS)), {"policy": "MultiInputPolicy"}),
    "hindsight": (
        Reach,
        {"policy": "SimbaPolicy", "policy_kwargs": {"net_arch": [8]}, "replay_buffer_class": HerReplayBuffer, "n_envs": 1},
    ),
}


@pytest.mark.parametrize("updater", ["autograd", "analytic", "compiled"])
@pytest.mark.parametrize("case", CASES)
def test_only_what_rollouts_return_is_counted(case, updater):
    """Every observation of every environment, once; the buffer holds it as it is."""
    make, settings = CASES[case]
    settings = {"n_envs": 2, "learning_starts": 24} | settings
    n_envs = settings.pop("n_envs")
    if case == "n-step, memory-saving" and updater == "autograd":
        settings["optimize_memory_usage"] = False  # which SB3's buffer of n-step returns lacks
    model = make_model(make_vec_env(make, n_envs, seed=2), updater=updater, **settings)
    watcher = Watcher(make_vec_env(make, 1, seed=3))
    model.learn(40, callback=watcher)
    ours, seen = statistics(model), watcher.seen
    assert len(seen) == 40 // n_envs + 1
    assert ours.count == pytest.approx(len(seen) * n_envs + 1e-4)
    keys = [key for key in seen[0] if key != "bits"] if isinstance(seen[0], dict) else [()]
    columns = np.concatenate([np.concatenate([one[key].reshape(n_envs, -1) for one in seen]) for key in keys], axis=1)
    np.testing.assert_allclose(ours.mean, columns.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.var, columns.var(axis=0), rtol=1e-3, atol=1e-3)
    first = model.replay_buffer.observations
    for key in keys:
        np.testing.assert_allclose(first[key][0], seen[0][key], rtol=1e-6)


def test_fast_updaters_train_as_the_reference_does():
    """Batches from packed rows, of several environments, normalized by the present statistics."""
    models = []
    for updater in ("autograd", "analytic", "compiled"):
        env = make_vec_env(lambda: PointEnv(length=30), 2, seed=1)
        models.append(make_model(env, "SimbaPolicy", updater, policy_kwargs={"net_arch": [8]}, action_noise=None).learn(100))
    expected = snapshot(models[0])
    for model in models[1:]:
        for name, value in snapshot(model).items():
            th.testing.assert_close(value, expected[name], rtol=0, atol=2e-4, msg=name)


def test_a_second_learn_counts_a_reset_or_goes_on():
    model = make_model().learn(20)
    assert statistics(model).count == pytest.approx(21.0001)
    assert statistics(model.learn(20, reset_num_timesteps=False)).count == pytest.approx(41.0001)
    assert statistics(model.learn(20)).count == pytest.approx(62.0001)


def test_copies_files_and_parameters_have_the_statistics(tmp_path):
    model = make_model(policy="SimbaPolicy", policy_kwargs={"net_arch": [8]}).learn(30)
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32) * 3
    expected = model.predict(observations)[0]
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.actor.save(tmp_path / "actor")
    set_up = make_model(policy="SimbaPolicy", policy_kwargs={"net_arch": [8]}, seed=5)
    set_up.set_parameters(model.get_parameters())
    pickled = pickle.loads(pickle.dumps(model.policy))
    kinds = type(model.policy), type(model.actor)
    loaded = [kind.load(tmp_path / name) for kind, name in zip(kinds, ("policy", "actor"), strict=True)]
    for other in (ScratchDDPG.load(tmp_path / "model"), set_up, pickled, copy.deepcopy(model.policy), *loaded):
        np.testing.assert_array_equal(other.predict(observations)[0], expected)
    # One set of statistics for all networks, in copies too.
    for policy in (model.policy, pickled, copy.deepcopy(model.policy), loaded[0]):
        policy.observation_statistics.mean.fill_(100.0)
        for network in (policy.actor, policy.actor_target, policy.critic, policy.critic_target):
            assert network.observation_statistics is policy.observation_statistics
        assert not np.array_equal(policy.predict(observations)[0], expected)
    assert sum("statistics" in name for name in model.policy.state_dict()) == 3


def test_observations_that_are_not_finite_are_not_counted():
    class Breaks(PointEnv):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation * (np.nan if self.clock == 15 else 1), *rest

    model = make_model(Breaks())
    with pytest.raises(DivergenceError):
        model.learn(30)
    assert statistics(model).count == pytest.approx(15.0001)
    assert np.isfinite(statistics(model).var).all()


def test_what_cannot_be_normalized_is_rejected():
    with pytest.raises(ArgumentError, match="nothing to normalize"):
        make_model(PointEnv("image"), "CnnPolicy")
    with pytest.raises(ArgumentError, match="clip_observations must be"):
        make_model(policy_kwargs=NORMALIZES | {"clip_observations": 0})
    with pytest.raises(ArgumentError, match="normalize_observations must be True or False, got 'yes'"):
        make_model(policy_kwargs=NORMALIZES | {"normalize_observations": "yes"})
    twice = make_model(VecNormalize(make_vec_env(PointEnv)))
    with pytest.raises(ArgumentError, match=r"by itself.*norm_obs=False"):
        twice.learn(10)
    rewards = VecNormalize(make_vec_env(PointEnv), norm_obs=False)
    model = make_model(rewards, learning_starts=4).learn(20)
    assert statistics(model).count == pytest.approx(21.0001)
