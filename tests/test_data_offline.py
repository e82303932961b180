"""Learning from logged transitions alone, and beside one's own: cloning, mixed batches, callbacks, checkpoints."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import PointEnv, Written, same, snapshot
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from test_autograd import BATCH, linear_policy
from test_data_adding import a_log
from test_handwritten import make_policy

from sb3_ddpg_scratch import ArgumentError, ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.data import SpacesOnly
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback, read_recording
from sb3_ddpg_scratch.mixed_replay import MixedReplay
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater, actor_loss
from sb3_ddpg_scratch.updates.interface import UpdateSettings

SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 300, "batch_size": 8, "device": "cpu", "seed": 0, "bc_alpha": 2.5}


def new_model(env=None, updater="analytic", **settings):
    return ScratchDDPG("MlpPolicy", env or PointEnv(), **SMALL | {"updater": updater} | settings)


class AsDict(gym.ObservationWrapper):
    """The observation as the only entry of a Dict."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Dict(all=env.observation_space)

    def observation(self, observation):
        return {"all": observation}


# ------------------------------------------------------------------------------------------------------------ Cloning


def test_cloning_by_hand():
    """With Q = s + 2 tanh(s) and alpha 3: -3 mean(Q) / mean|Q| + w mean((tanh(s) - a)^2), and both Q are positive."""
    policy = linear_policy()
    away = np.mean((np.tanh([1.0, 2.0]) - [0.5, -0.5]) ** 2)
    loss = actor_loss(BATCH, policy.actor, policy.critic, bc_alpha=3.0, bc_weight=0.7).item()
    assert loss == pytest.approx(-3.0 + 0.7 * away)
    assert actor_loss(BATCH, policy.actor, policy.critic, bc_alpha=0.0).item() == pytest.approx(away)


@pytest.mark.parametrize("kind", [{}, {"action_layer": 1, "n_critics": 2}, {"scale_factor": 2, "net_arch": [8, 8]}])
@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_gradient_of_cloning_is_the_derivative(kind, alpha):
    """Of the formula of TD3+BC itself, whose lambda is a constant."""
    policy = make_policy(**kind)
    s, a = th.randn(6, 3), th.rand(6, 2) * 2 - 1
    batch = ReplayBufferSamples(s, a, s, th.zeros(6, 1), th.zeros(6, 1), None)
    chosen = policy.actor(s)
    q_values = policy.critic.q1_forward(s, chosen)
    scale = alpha / q_values.abs().mean().item()
    loss = -scale * q_values.mean() + 0.6 * ((chosen - a) ** 2).mean() + 0.1 * (chosen**2).mean()
    wanted = th.autograd.grad(loss, list(policy.actor.parameters()))
    settings = UpdateSettings(0.9, 0.1, action_l2=0.1, bc_alpha=alpha, bc_weight=0.6)
    for updater in (AnalyticUpdater(), AutogradUpdater()):
        found = updater.actor_gradient(policy.actor, policy.critic, batch, settings)
        th.testing.assert_close(found, loss.detach())
        for parameter, gradient in zip(policy.actor.parameters(), wanted, strict=True):
            th.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_cloning_alone_finds_the_loggers_actions():
    """Actions that are a linear function of the observations, and no reward at all."""
    rng = np.random.default_rng(0)
    log = a_log(200)
    log["actions"] = np.array([-0.5, 1.75]) + np.clip(log["observations"][:, :2] * [0.2, -0.2], -1.2, 1.2)
    model = new_model(bc_alpha=0.0, policy_kwargs={"net_arch": [32]}, learning_rate=3e-3, batch_size=64)
    model.add_transitions(log)
    model.learn_offline(1500)
    seen = rng.uniform(-5, 5, (100, 3)).astype(np.float32)
    wanted = np.array([-0.5, 1.75]) + np.clip(seen[:, :2] * [0.2, -0.2], -1.2, 1.2)
    assert np.abs(model.predict(seen)[0] - wanted).mean() < 0.1


def test_weight_fades_out_during_learn_and_is_full_offline():
    model = new_model(learning_starts=0)
    model.add_transitions(a_log())
    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append(self.model._update_settings().bc_weight)
            return True

    model.learn_offline(5, callback=Look())
    assert seen == [1.0] * 5
    seen.clear()
    model.learn(10, callback=Look())
    assert seen == pytest.approx([1 - step / 10 for step in range(10)])
    for given, wanted in ((0.3, 0.3), (lambda progress: progress / 2, 0.5)):
        model = new_model(bc_weight=given)
        assert model._update_settings().bc_weight == wanted


def test_compiled_updater_gives_its_reason_and_fast_ones_fall_back(capsys):
    model = new_model(updater="compiled", verbose=1)
    model.add_transitions(a_log())
    with pytest.warns(UserWarning, match="'analytic' updater while bc_alpha adds behavior cloning"):
        model.learn_offline(3)
    assert "Training with the 'analytic' updater" in capsys.readouterr().out
    assert model.updater_in_use == "analytic"
    model.bc_alpha = None
    assert model.updater_in_use == "compiled"


def test_gathered_work_notices_cloning_that_a_callback_begins():
    class Clone(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 30:
                self.model.bc_alpha = 2.5
            return True

    results = {}
    for updater in ("compiled", "analytic"):
        model = new_model(updater=updater, bc_alpha=None, learning_starts=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[updater] = snapshot(model.learn(80, callback=Clone()))
    for name, tensor in results["compiled"].items():
        th.testing.assert_close(tensor, results["analytic"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_both_updaters_learn_the_same(n_envs):
    """In the same packed rows: gradients by hand and by autograd differ by rounding alone."""
    results = []
    for by_hand in (True, False):
        model = new_model(make_vec_env(PointEnv, n_envs=n_envs))
        model.add_transitions(a_log())
        if not by_hand:
            model._updater._updaters = [AutogradUpdater()]
        results.append(snapshot(model.learn_offline(50)))
    for name, tensor in results[0].items():
        th.testing.assert_close(tensor, results[1][name], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- Share


def test_batches_have_the_share():
    """Logged rewards are positive and others negative."""
    model = new_model(demonstration_share=0.25, learning_starts=0, batch_size=16)
    model.add_transitions(a_log() | {"rewards": np.ones(20)})
    mixed = lambda: MixedReplay(model.demonstrations, model.replay_buffer, 0.25)  # noqa: E731
    assert (mixed().sample(16).rewards > 0).all()
    model.learn(50)
    assert model.replay_buffer.size() == 50
    for _ in range(5):
        batch = mixed().sample(16)
        assert (batch.rewards > 0).ravel().tolist() == [True] * 4 + [False] * 12
        assert all(len(part) == 16 for part in batch if part is not None)


@pytest.mark.parametrize("settings", [{}, {"updater": "autograd"}, {"n_steps": 3}, {"optimize_memory_usage": True}])
def test_demonstrations_are_kept(settings):
    """However many transitions follow; a second call adds to the first."""
    model = new_model(demonstration_share=0.5, buffer_size=30, learning_starts=0, **settings)
    log = a_log(terminated=[9])
    model.add_transitions(log)
    assert model.replay_buffer.size() == 0
    model.learn(60)
    model.add_transitions(a_log(seed=1))
    held = model.demonstrations
    assert held.size() == 40
    whole = np.concatenate([log["observations"], a_log(seed=1)["observations"]])
    np.testing.assert_array_equal(np.array(held.observations)[:40, 0], whole)
    alive = np.flatnonzero(np.concatenate([~log["terminations"], np.ones(20, bool)]))
    following = np.concatenate([log["next_observations"], a_log(seed=1)["next_observations"]])
    np.testing.assert_array_equal(np.array(held.next_observations)[alive, 0], following[alive])
    assert np.flatnonzero(np.array(held.dones)[:40, 0]).tolist() == [9, 19, 29, 39]
    # Each of them can be drawn.
    batch = held.sample(2000)
    assert len(np.unique(batch.observations, axis=0)) == 40


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("kind", [{}, {"normalize_observations": True}, {"scale_factor": 2, "normalize_observations": True}])
def test_compiled_updates_draw_mixed_batches(kind, is_dict):
    """The same batches as the reference's: parameters agree after many updates."""
    results, log = {}, a_log()
    if is_dict:
        log |= {name: {"all": log[name]} for name in ("observations", "next_observations")}
    for updater in ("compiled", "analytic"):
        settings = {"updater": updater, "bc_alpha": None, "demonstration_share": 0.5, "learning_starts": 10}
        settings["policy_kwargs"] = {"net_arch": [8]} | kind
        env = AsDict(PointEnv()) if is_dict else PointEnv()
        model = ScratchDDPG("MultiInputPolicy" if is_dict else "MlpPolicy", env, **SMALL | settings)
        model.add_transitions(log)
        model.learn(60)
        assert model.updater_in_use == updater
        results[updater] = snapshot(model)
    for name, tensor in results["compiled"].items():
        th.testing.assert_close(tensor, results["analytic"][name], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ Learning alone


def test_without_an_environment():
    env = SpacesOnly(PointEnv().observation_space, PointEnv().action_space)
    model = new_model(env, policy_kwargs={"net_arch": [8], "normalize_observations": True})
    with pytest.raises(ArgumentError, match=r"learn_offline has nothing to learn from.*add_transitions"):
        model.learn_offline(10)
    model.add_transitions(a_log())
    before = snapshot(model)
    assert model.learn_offline(10) is model
    assert model._n_updates == model.num_timesteps == 10
    assert not same(before, snapshot(model))
    assert model.predict(np.zeros(3, np.float32))[0].shape == (2,)
    with pytest.raises(ArgumentError, match=r"has spaces only. learn_offline\(\) takes no steps"):
        model.learn(10)
    model.set_env(PointEnv())
    model.learn(150)
    assert model.num_timesteps == 150


def test_a_learn_that_follows_acts_by_the_policy():
    """No random warm-up: without noise, every action is the policy's."""
    acted = []

    class Recorded(PointEnv):
        def step(self, action):
            acted.append((self._observe(), action))
            return super().step(action)

    model = new_model(Recorded(), action_noise=None, learning_starts=1000)
    model.add_transitions(a_log())
    model.learn_offline(5)
    model.learn(20)
    for observation, action in acted:
        np.testing.assert_allclose(action, model.predict(observation)[0], atol=1e-6)


def test_warns_without_cloning():
    model = new_model(bc_alpha=None)
    model.add_transitions(a_log())
    with pytest.warns(UserWarning, match=r"learn_offline\(\) without bc_alpha"):
        model.learn_offline(1)


def test_callbacks_the_log_and_diagnostics(tmp_path, capfd):
    model = new_model()
    written = Written()
    model.set_logger(Logger(None, [written]))
    model.add_transitions(a_log(200))
    evaluate = EvalCallback(make_vec_env(PointEnv), eval_freq=25, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    look = DiagnosticsCallback(tmp_path, every=10, snapshot_every=25)
    model.learn_offline(60, callback=[evaluate, look], log_interval=20, progress_bar=True)
    assert evaluate.evaluations_timesteps == [25, 50]
    logged = [row for row in written.rows if "time/total_updates" in row]
    assert [row["time/total_updates"] for row in logged] == [20, 40, 60]
    assert all(np.isfinite(row["train/actor_loss"]) for row in logged)
    assert read_recording(tmp_path).tables["update"]["n_updates"].tolist() == [1, 11, 21, 31, 41, 51]
    assert "60/60" in "".join(capfd.readouterr())


def test_a_callback_ends_it():
    model = new_model()
    model.add_transitions(a_log())

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 7

    model.learn_offline(50, callback=Stop())
    assert model.num_timesteps == 7


def test_normalized_by_vec_normalize():
    """Batches are normalized by what add_transitions counted."""
    env = VecNormalize(make_vec_env(PointEnv))
    model = new_model(env)
    log = a_log(200)
    model.add_transitions(log)
    batch = model.replay_buffer.sample(500, env)
    assert np.abs(batch.observations.mean(axis=0)).max() < 0.3
    assert np.abs(batch.observations.std(axis=0) - 1).max() < 0.2
    model.learn_offline(10)
    assert model.observations_normalized


# ----------------------------------------------------------------------------------------------------------- Checkpoints


class Interrupt(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 45:
            raise KeyboardInterrupt
        return True


CASES = {
    "in the buffer": {},
    "beside it": {"demonstration_share": 0.5},
    "reference": {"demonstration_share": 0.5, "updater": "autograd"},
    "memory-saving": {"demonstration_share": 0.5, "optimize_memory_usage": True},
    "cloning alone": {"bc_alpha": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_learning_ends_with_the_same_bits(case, tmp_path):
    """Offline, and online after it, with demonstrations that only the checkpoint holds."""

    def begun():
        model = new_model(**CASES[case], learning_starts=10)
        model.add_transitions(a_log(60))
        return model

    for name in ("learn_offline", "learn"):
        whole, path = getattr(begun(), name)(60), tmp_path / name
        killed = begun()
        with pytest.raises(KeyboardInterrupt):
            getattr(killed, name)(60, callback=[ResumableCheckpoint(path, every=20), Interrupt()])
        resumed = ScratchDDPG.resume(path, PointEnv())
        getattr(resumed, name)(60, callback=ResumableCheckpoint(path, every=20))
        assert same(snapshot(whole), snapshot(resumed))
        assert resumed.num_timesteps == 60
        again = ScratchDDPG.resume(path, PointEnv())
        held = again.replay_buffer if again.demonstrations is None else again.demonstrations
        np.testing.assert_array_equal(np.array(held.observations)[:60, 0], a_log(60)["observations"])
        if name == "learn_offline":
            assert len(list((path / "segments").iterdir())) == 1
            with pytest.raises(ArgumentError, match=r"resume must be followed by learn_offline\(\), which was interrupted"):
                again.learn(60)


def test_arguments_are_checked():
    for name, value in (("bc_alpha", -1), ("bc_weight", "lin"), ("demonstration_share", 0), ("demonstration_share", 1.5)):
        with pytest.raises(ArgumentError, match=f"{name} must be"):
            new_model(**{name: value})
    model = new_model()
    model.add_transitions(a_log())
    with pytest.raises(ArgumentError, match="updates must be a whole number"):
        model.learn_offline(0)


def test_settings_and_weights_survive_a_file(tmp_path):
    model = new_model(demonstration_share=0.5)
    model.add_transitions(a_log())
    model.learn_offline(5)
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", PointEnv())
    assert (loaded.bc_alpha, loaded.demonstration_share, loaded.demonstrations) == (2.5, 0.5, None)
    assert same(snapshot(model), snapshot(loaded))
