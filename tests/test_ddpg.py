"""ScratchDDPG inside SB3's contract: constructor, acting, learning, logging, saving, and exchange with SB3."""

import inspect
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import POLICY_OF, Observing, PointEnv, Written, same, snapshot
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3 import policies as td3_policies

from sb3_ddpg_scratch import ArgumentError, DivergenceError, OUNoise, ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.parity import compare_models

SMALL = {
    "policy_kwargs": {"net_arch": [16]},
    "buffer_size": 1000,
    "learning_starts": 20,
    "batch_size": 16,
    "seed": 0,
    "device": "cpu",
}


def make_model(env="Pendulum-v1", **settings):
    return ScratchDDPG("MlpPolicy", env, **SMALL | settings)


# ------------------------------------------------------------------------------------------------------- the constructor


def test_constructor_is_sb3s_with_ours_behind():
    theirs, ours = inspect.signature(DDPG.__init__).parameters, inspect.signature(ScratchDDPG.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name for name in theirs if theirs[name].default != ours[name].default} == {"action_noise"}
    assert ours["action_noise"].default == "ou"
    assert {name: ours[name].default for name in list(ours)[len(theirs) :]} == {
        "stats_window_size": 100,
        "qf_learning_rate": None,
        "max_grad_norm": None,
        "random_steps": None,
        "policy_delay": 1,
        "target_policy_noise": 0.0,
        "target_noise_clip": 0.5,
        "action_l2": 0.0,
        "updater": "auto",
        "observation_names": None,
        "action_names": None,
        "bc_alpha": None,
        "bc_weight": None,
        "demonstration_share": None,
    }


def test_nothing_of_sb3s_ddpg_is_used():
    """The algorithm is our own: no module of it imports SB3's TD3, DDPG, Polyak update or noise implementations."""
    import ast
    import pathlib

    import sb3_ddpg_scratch

    forbidden = {"polyak_update", "NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise", "TD3", "DDPG"}
    root = pathlib.Path(sb3_ddpg_scratch.__file__).parent
    files = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in ("compare", "bench", "parity.py")]
    assert len(files) > 8
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("stable_baselines3.td3", "stable_baselines3.ddpg")), path
                assert not forbidden & {alias.name for alias in node.names}, path


def test_what_the_algorithm_calls_does_not_import_it():
    """Checkpoints, model files and exports are given a model or its class: `ddpg.py` stands above them."""
    import ast
    import pathlib

    import sb3_ddpg_scratch

    root = pathlib.Path(sb3_ddpg_scratch.__file__).parent
    names = ("export", "learn_setup", "model_setup", "training_log", "validation")
    files = [
        *(root / "checkpoint").glob("*.py"),
        *(root / "model_file").glob("*.py"),
        *(root / "rollout").glob("*.py"),
        *(root / f"{name}.py" for name in names),
    ]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not imported & {"sb3_ddpg_scratch.ddpg", "sb3_ddpg_scratch.ScratchDDPG"}, path


@pytest.mark.parametrize(
    "method", ["load", "resume", "set_parameters", "save", "load_replay_buffer", "export_onnx", "export_torch"]
)
def test_methods_that_pass_their_arguments_on_are_documented(method):
    method = getattr(ScratchDDPG, method)
    for name in inspect.signature(method).parameters:
        assert name in ("self", "model") or f":param {name}:" in inspect.getdoc(method), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": -0.1}, ["tau must be", "got -0.1", "[0, 1]"]),
        ({"tau": 1.5}, ["tau must be", "got 1.5", "[0, 1]"]),
        ({"gamma": -0.1}, ["gamma must be", "got -0.1", "[0, 1]"]),
        ({"gamma": 1.01}, ["gamma must be", "got 1.01", "[0, 1]"]),
        ({"gamma": np.nan}, ["gamma must be", "got nan"]),
        ({"learning_rate": -1e-3}, ["learning_rate must be", "got -0.001"]),
        ({"learning_rate": "lin_1e-3"}, ["learning_rate must be", "got 'lin_1e-3'", "YAML"]),
        ({"qf_learning_rate": -1.0}, ["qf_learning_rate must be", "got -1.0"]),
        ({"buffer_size": 0}, ["buffer_size must be", "got 0", "at least 1"]),
        ({"buffer_size": 1e5}, ["buffer_size must be", "got 100000.0", "whole number"]),
        ({"batch_size": -4}, ["batch_size must be", "got -4"]),
        ({"learning_starts": -1}, ["learning_starts must be", "got -1"]),
        ({"gradient_steps": -2}, ["gradient_steps must be", "got -2"]),
        ({"n_steps": 0}, ["n_steps must be", "got 0"]),
        ({"train_freq": 0}, ["train_freq must be", "got 0"]),
        ({"train_freq": (1, "week")}, ["week", "'episode'"]),
        ({"train_freq": (1.5, "step")}, ["1.5"]),
        ({"policy_delay": 0}, ["policy_delay must be", "got 0"]),
        ({"target_policy_noise": -0.1}, ["target_policy_noise must be", "got -0.1"]),
        ({"target_noise_clip": -0.1}, ["target_noise_clip must be", "got -0.1"]),
        ({"action_l2": -0.1}, ["action_l2 must be", "got -0.1"]),
        ({"max_grad_norm": 0}, ["max_grad_norm must be", "got 0"]),
        ({"random_steps": -1}, ["random_steps must be", "got -1"]),
        ({"updater": "magic"}, ["updater must be", "got 'magic'", "'autograd'"]),
        ({"stats_window_size": 0}, ["stats_window_size must be", "got 0"]),
        ({"batch_size": 1, "policy_kwargs": {"norm": "batch"}}, ["batch_size must be", "got 1", "batch"]),
    ],
)
def test_bad_arguments_are_refused_at_construction(settings, words):
    with pytest.raises(ArgumentError) as error:
        make_model(**settings)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(2), ["action_space must be", "got Discrete(2)", "Box"]),
        (spaces.MultiBinary(2), ["action_space", "Box"]),
        (
            spaces.Box(-np.inf, np.inf, (2,), np.float32),
            ["action_space", "is unbounded", "real bounds", "remove", "ClipAction"],
        ),
        (spaces.Box(np.array([-1, -np.inf], np.float32), np.ones(2, np.float32)), ["action_space", "is unbounded"]),
        (spaces.Box(np.array([0, 1], np.float32), np.ones(2, np.float32)), ["action_space", "dimensions without any choice"]),
        (spaces.Box(-3, 3, (2,), np.int32), ["action_space must be of floating-point numbers", "int32", "round"]),
        (spaces.Box(0, 255, (2,), np.uint8), ["action_space must be of floating-point numbers", "float32"]),
    ],
)
def test_bad_action_spaces_are_refused_at_construction(space, words):
    env = PointEnv()
    env.action_space = space
    with pytest.raises(ValueError, match="action_space") as error:
        make_model(env)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert isinstance(error.value, AssertionError), "SB3's own algorithms raise AssertionError here"


@pytest.mark.parametrize("is_dict", [False, True])
def test_observations_without_an_axis_are_refused_with_a_cure_that_works(is_dict):
    number = spaces.Box(-9, 9, (), np.float32)
    space = spaces.Dict(a=number, b=spaces.Box(-1, 1, (2,))) if is_dict else number
    settings = {"device": "cpu", "buffer_size": 100, "learning_starts": 8, "batch_size": 4, "policy_kwargs": {"net_arch": [8]}}
    policy = "MultiInputPolicy" if is_dict else "MlpPolicy"
    with pytest.raises(IndexError):
        DDPG(policy, Observing(space), **settings).learn(20)
    name = r"observation_space\['a'\]" if is_dict else "observation_space"
    with pytest.raises(ArgumentError, match=rf"^{name} must be of at least one axis.*\(1,\).*FlattenObservation") as error:
        ScratchDDPG(policy, Observing(space), **settings)
    assert error.value.value == number
    env = gym.wrappers.FlattenObservation(Observing(space))
    model = ScratchDDPG("MlpPolicy", env, **settings).learn(20)
    assert model.predict(env.reset()[0])[0].shape == (2,)


def test_the_advice_for_unbounded_actions_works():
    """RescaleAction cannot scale an unbounded space, and ClipAction makes one: neither may be recommended."""
    clipped = gym.wrappers.ClipAction(PointEnv())
    with pytest.raises(ArgumentError) as error:
        make_model(clipped)
    assert "RescaleAction" not in str(error.value)
    assert "must be" not in str(error.value)
    with pytest.raises(ValueError, match="unbounded"):
        gym.wrappers.RescaleAction(clipped, -1.0, 1.0)
    make_model(clipped.env)  # ClipAction is removed


def test_bad_policies_are_refused():
    with pytest.raises(ArgumentError, match="'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy'"):
        ScratchDDPG("MLPPolicy", "Pendulum-v1")
    with pytest.raises(ArgumentError, match="derived from ScratchDDPGPolicy"):
        ScratchDDPG(th.nn.Linear, "Pendulum-v1")
    with pytest.raises(ArgumentError, match="derived from ScratchDDPGPolicy or SB3's TD3Policy, got 3"):
        ScratchDDPG(3, "Pendulum-v1")
    for other, missing in ((SACPolicy, "It has no actor_target."), (ActorCriticPolicy, "It has no actor, critic,")):
        with pytest.raises(ArgumentError, match=missing):
            ScratchDDPG(other, "Pendulum-v1")
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        ScratchDDPG("MlpPolicy", PointEnv("dict"))


def test_bad_arguments_are_refused_when_loading(tmp_path):
    make_model().save(tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"tau must be .*, got 7"):
        ScratchDDPG.load(tmp_path / "model", tau=7)


# ----------------------------------------------------------------------------------------------------------------- acting


def test_random_steps_and_learning_starts_are_apart(monkeypatch):
    """Random actions for 30 steps, the first update after 60; and the other way round."""

    for random_steps, learning_starts in ((30, 60), (60, 30), (None, 40), (0, 10)):
        model = make_model(random_steps=random_steps, learning_starts=learning_starts, action_noise=None)
        drawn, updates = [], []
        sample, train = model.action_space.sample, model.train
        monkeypatch.setattr(model.action_space, "sample", lambda: drawn.append(1) or sample())  # noqa: B023
        monkeypatch.setattr(model, "train", lambda **kwargs: updates.append(model.num_timesteps) or train(**kwargs))  # noqa: B023
        model.learn(80)
        assert len(drawn) == (learning_starts if random_steps is None else random_steps)
        assert updates[0] == learning_starts + 1


def test_actions_are_stored_normalized_and_sent_in_env_units():
    env = make_vec_env(PointEnv)
    model = make_model(env, random_steps=0, action_noise=OUNoise(np.zeros(2), 2.0, seed=0))
    sent = []
    step = env.step
    env.step = lambda actions: sent.append(actions.copy()) or step(actions)
    model.learn(50)
    stored = model.replay_buffer.actions[:50, 0]
    assert np.abs(stored).max() == 1.0
    low, high = env.action_space.low, env.action_space.high
    np.testing.assert_allclose(np.concatenate(sent), low + (stored + 1) / 2 * (high - low), rtol=1e-6, atol=1e-6)


def test_exploration_is_the_policy_plus_the_noise():
    model = make_model(random_steps=0, learning_starts=1000, action_noise=OUNoise(np.zeros(1), 0.01, seed=0)).learn(20)
    observations = model.replay_buffer.observations[:20, 0]
    expected = model.policy.scale_action(model.predict(observations)[0])
    noise = OUNoise(np.zeros(1), 0.01, seed=0)
    np.testing.assert_allclose(model.replay_buffer.actions[:20, 0], expected + [noise() for _ in range(20)], atol=1e-6)


def test_asymmetric_bounds_are_learnt_within():
    model = make_model(PointEnv(), random_steps=0).learn(200)
    actions = np.array([model.predict(PointEnv().reset(seed=i)[0])[0] for i in range(20)])
    assert np.all(actions >= [-2.0, 0.5])
    assert np.all(actions <= [1.0, 3.0])


# --------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("end", "masked"), [("truncated", 0.0), ("terminated", 1.0)])
def test_time_limits_bootstrap_and_terminations_do_not(end, masked):
    model = make_model(PointEnv(end=end, length=10), learning_starts=1000).learn(40)
    buffer = model.replay_buffer
    last = np.arange(9, 40, 10)
    assert np.all(buffer.dones[last] == 1)
    batch = buffer._get_samples(np.arange(40))
    assert np.all(batch.dones.numpy()[last] == masked)
    assert batch.dones.sum() == 4 * masked


def test_learns_a_simple_task():
    """One step, reward -(a - 0.5)^2 in env units: the best action is 0.5, and the critic knows its value, 0."""

    class Bandit(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Box(-2, 2, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), -float((action[0] - 0.5) ** 2), True, False, {}

    model = make_model(Bandit(), learning_rate=5e-3, learning_starts=200, batch_size=64).learn(1500)
    action, _ = model.predict(np.zeros(1, np.float32))
    assert action[0] == pytest.approx(0.5, abs=0.15)
    q = model.critic(th.zeros(1, 1), th.tensor([[0.25]]))[0].item()
    assert q == pytest.approx(0.0, abs=0.1)


def test_separate_learning_rates_and_schedules():
    model = make_model(learning_rate=1e-3, qf_learning_rate=lambda left: 1e-2 * left)
    assert model.critic.optimizer.param_groups[0]["lr"] == 1e-2
    model.learn(100)
    # The last update comes when 1 - 100/100 of the training is left.
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-3
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    model = make_model(learning_rate=lambda left: 4e-3 * left).learn(50)
    model._current_progress_remaining = 0.5
    model.train(1, 8)
    assert {o.param_groups[0]["lr"] for o in (model.actor.optimizer, model.critic.optimizer)} == {2e-3}


def test_policy_delay_counts_updates():
    model = make_model(policy_delay=3, learning_starts=5, train_freq=10).learn(10)
    model._n_updates = 0
    for updates_before in range(6):
        actor = [p.clone() for p in model.actor.parameters()]
        target = [p.clone() for p in model.critic_target.parameters()]
        model.train(1, 8)
        moved = (updates_before + 1) % 3 == 0
        assert moved != all(th.equal(a, b) for a, b in zip(actor, model.actor.parameters(), strict=True))
        assert moved != all(th.equal(a, b) for a, b in zip(target, model.critic_target.parameters(), strict=True))


@pytest.mark.parametrize("updater", ["autograd", "analytic", "compiled"])
def test_tau_of_zero_leaves_the_targets(updater):
    settings = SMALL | {"tau": 0, "action_noise": None}
    theirs = DDPG("MlpPolicy", "Pendulum-v1", **settings).learn(60)
    ours = ScratchDDPG("MlpPolicy", "Pendulum-v1", updater=updater, **settings)
    before = snapshot(ours)
    ours.learn(60)
    for name, tensor in snapshot(ours).items():
        assert th.equal(tensor, before[name]) == ("target" in name), name
    differences = compare_models(theirs, ours)
    assert max(differences.values()) <= (0 if updater == "autograd" else 1e-4)


def test_gradient_steps_minus_one_makes_as_many_updates_as_transitions():
    model = make_model(make_vec_env("Pendulum-v1", n_envs=3), train_freq=5, gradient_steps=-1, learning_starts=0).learn(45)
    assert model._n_updates == 45


@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_episode_wise_training(end):
    model = make_model(PointEnv(end=end), train_freq=(2, "episode"), gradient_steps=7, learning_starts=0).learn(120)
    assert model._n_updates == 3 * 7


def warnings_of_a_second_learn(model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.learn(30)
        assert not said
        model.learn(10, reset_num_timesteps=False)
        assert not said
        model.learn(25)
    return [(warning.category, str(warning.message)) for warning in said]


def test_sb3s_warning_of_a_lost_trajectory_comes_where_one_is_lost():
    no_time_limits = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    sb3_class = no_time_limits | {"replay_buffer_class": ReplayBuffer}
    expected = warnings_of_a_second_learn(DDPG("MlpPolicy", PointEnv(), **SMALL, **no_time_limits))
    assert "last trajectory" in expected[0][1]
    for settings in (no_time_limits, sb3_class, no_time_limits | {"updater": "autograd"}):
        assert warnings_of_a_second_learn(make_model(PointEnv(), **settings)) == expected
    for settings in ({"optimize_memory_usage": True}, {"optimize_memory_usage": True, "n_steps": 3}, {}):
        assert warnings_of_a_second_learn(make_model(PointEnv(), **settings)) == []


def test_other_warnings_of_a_second_learn_are_shown():
    class Warns(PointEnv):
        def reset(self, **kwargs):
            warnings.warn("of the environment's own", stacklevel=1)
            return super().reset(**kwargs)

    model = make_model(Warns(length=100), optimize_memory_usage=True)
    for _ in range(2):
        with pytest.warns(UserWarning, match="of the environment's own"):
            model.learn(30)


def test_a_resumed_training_goes_on_with_its_trajectory(tmp_path):
    model = make_model(PointEnv(length=1000), n_steps=3, optimize_memory_usage=True)
    model.learn(60, callback=ResumableCheckpoint(tmp_path, every=40, keep=9))
    assert model.replay_buffer.dones.sum() == 0
    for env, cut_off in ((None, []), (PointEnv(length=1000), [39])):
        resumed = ScratchDDPG.resume(tmp_path / "step_000000000040", PointEnv(length=1000))
        if env is not None:
            resumed.set_env(env)
        resumed.learn(60)
        assert np.flatnonzero(resumed.replay_buffer.timeouts).tolist() == cut_off


def test_n_steps_and_custom_buffers():
    assert isinstance(make_model(n_steps=3).learn(40).replay_buffer, NStepReplayBuffer)

    class Mine(ReplayBuffer):
        samples = 0

        def sample(self, *args, **kwargs):
            self.samples += 1
            return super().sample(*args, **kwargs)

    model = make_model(replay_buffer_class=Mine).learn(40)
    assert model.replay_buffer.samples == model._n_updates == 20


def test_her():
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True), n_envs=2)
    settings = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    model = ScratchDDPG("MultiInputPolicy", env, **SMALL | settings).learn(100)
    assert model._n_updates > 30


def test_several_processes_and_vec_normalize():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv))
    model = make_model(env, gradient_steps=-1).learn(100)
    assert model.get_vec_normalize_env() is env
    stored = model.replay_buffer.observations[:50]
    np.testing.assert_allclose(np.square(stored[..., :2]).sum(-1), 1, rtol=1e-5, err_msg="(cos, sin) is stored as it came")
    np.random.seed(0)
    batch = model.replay_buffer.sample(8, env=env).observations
    np.random.seed(0)
    np.testing.assert_allclose(batch, env.normalize_obs(model.replay_buffer.sample(8).observations.numpy()), rtol=1e-6)
    env.close()


def test_callbacks_see_sb3s_locals_in_sb3s_order():
    class Watch(BaseCallback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def _on_training_start(self):
            self.seen.append(("start", frozenset(self.locals)))

        def _on_rollout_start(self):
            self.seen.append("rollout start")

        def _on_step(self):
            self.seen.append(("step", self.num_timesteps, frozenset(self.locals)))
            return self.num_timesteps < 50

        def _on_rollout_end(self):
            self.seen.append("rollout end")

        def _on_training_end(self):
            self.seen.append("end")

    theirs, ours = Watch(), Watch()
    settings = SMALL | {"train_freq": 4, "action_noise": None}
    DDPG("MlpPolicy", "Pendulum-v1", **settings).learn(100, callback=theirs)
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", **settings).learn(100, callback=ours)
    assert ours.seen == theirs.seen
    assert model.num_timesteps == 50


def test_eval_callback_and_progress_bar(tmp_path):
    watch = EvalCallback(
        Monitor(PointEnv()), eval_freq=30, n_eval_episodes=2, log_path=tmp_path, best_model_save_path=tmp_path, verbose=0
    )
    make_model(PointEnv()).learn(70, callback=watch, progress_bar=True)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert list(evaluations["timesteps"]) == [30, 60]
    best = ScratchDDPG.load(tmp_path / "best_model", env=PointEnv())
    assert best.num_timesteps == (30, 60)[int(np.argmax(evaluations["results"].mean(1)))]


def test_learn_again_counts_on():
    model = make_model().learn(50).learn(30, reset_num_timesteps=False)
    assert model.num_timesteps == 80
    assert model.learn(20).num_timesteps == 20


# ---------------------------------------------------------------------------------------------------------------- logging


def test_logs_the_keys_that_sb3s_users_know_and_ours():
    written = Written()
    model = make_model(PointEnv(), qf_learning_rate=2e-3)
    model.set_logger(Logger(folder=None, output_formats=[written]))
    model.learn(100, log_interval=1)
    sb3 = {
        "train/actor_loss",
        "train/critic_loss",
        "train/n_updates",
        "train/learning_rate",
        "time/fps",
        "rollout/ep_rew_mean",
    }
    ours = {
        "train/q_mean",
        "train/target_q_mean",
        "train/actor_grad_norm",
        "train/critic_grad_norm",
        "train/qf_learning_rate",
    }
    assert sb3 | ours <= set(written.rows[-1])
    assert all(np.isfinite(written.rows[-1][key]) for key in sb3 | ours)
    assert all(type(written.rows[-1][key]) in (int, float) for key in ours)
    assert written.rows[-1]["train/qf_learning_rate"] == 2e-3


def test_logged_losses_are_sb3s():
    rows = []
    for model_class, extra in ((DDPG, {}), (ScratchDDPG, {"updater": "autograd"})):
        written = Written()
        model = model_class("MlpPolicy", PointEnv(), gradient_steps=3, action_noise=None, **SMALL, **extra)
        model.set_logger(Logger(folder=None, output_formats=[written]))
        model.learn(100, log_interval=1)
        rows.append([{key: row.get(key) for key in row if key.startswith(("train/", "rollout/"))} for row in written.rows])
    for theirs, ours in zip(*rows, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-12), key
    assert "train/critic_loss" in rows[0][-1]


def test_numbers_are_read_once_per_log_and_not_per_update(monkeypatch):
    model = make_model(PointEnv(length=50))
    reads = []
    read = model._updater.read_statistics
    monkeypatch.setattr(model._updater, "read_statistics", lambda: reads.append(model._n_updates) or read())
    model.learn(210, log_interval=2)
    assert len(reads) == 2


def test_tensorboard_gets_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_model(PointEnv(), tensorboard_log=str(tmp_path)).learn(100, log_interval=1)
    events = EventAccumulator(str(tmp_path / "ScratchDDPG_1")).Reload()
    assert {"train/actor_loss", "train/critic_loss", "train/q_mean", "train/target_q_mean"} <= set(events.Tags()["scalars"])


# -------------------------------------------------------------------------------------------------------------- divergence


class Exploding(PointEnv):
    """Returns rewards whose squares float32 cannot hold, from its fiftieth step."""

    steps = 0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.steps += 1
        return observation, (reward if self.steps < 50 else 1e30), *rest


def test_a_loss_that_is_not_finite_stops_training():
    model = make_model(Exploding())
    model.last_checkpoint = "runs/checkpoint-40"
    with pytest.raises(DivergenceError) as error:
        model.learn(1000)
    message = str(error.value)
    words = (
        "critic_loss=",
        "update",
        "step",
        "learning_rate",
        "max_grad_norm",
        "VecNormalize",
        "checkpoint is runs/checkpoint-40",
    )
    assert all(word in message for word in words)
    assert 50 <= model.num_timesteps < 120


# --------------------------------------------------------------------------------------------------- saving, exchange with SB3


def test_set_env_get_and_set_parameters(tmp_path):
    model = make_model().learn(60)
    other = make_model(seed=9)
    other.set_parameters(model.get_parameters())
    assert max(compare_models(model, other).values()) == 0
    other.set_env(make_vec_env("Pendulum-v1"))
    other.learn(30)
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model"))
    assert max(compare_models(model, other).values()) == 0


def test_saves_and_loads_the_replay_buffer(tmp_path):
    model = make_model().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"))
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(loaded.replay_buffer.observations[:60], model.replay_buffer.observations[:60])
    loaded.learn(30, reset_num_timesteps=False)


@pytest.mark.parametrize("updater", ["auto", "autograd"])
def test_a_replay_buffer_of_other_environments_can_be_read_but_not_added_to(tmp_path, updater):
    make_model(make_vec_env("Pendulum-v1", n_envs=2), updater=updater).learn(60).save_replay_buffer(tmp_path / "buffer")
    model = make_model(updater=updater)
    model.load_replay_buffer(tmp_path / "buffer")
    model.set_logger(Logger(None, []))
    model.train(3, 16)
    assert model._n_updates == 3
    with pytest.raises(ArgumentError, match=r"replay_buffer.n_envs must be 1, the number of env.*, got 2"):
        model.learn(30)


def sb3_noise():
    return NormalActionNoise(np.zeros(1), np.full(1, 0.1))


@pytest.mark.parametrize("via_file", [False, True])
@pytest.mark.parametrize("algorithm", [DDPG, TD3])
def test_parameters_pass_both_ways(tmp_path, via_file, algorithm):
    theirs = algorithm("MlpPolicy", "Pendulum-v1", **SMALL | {"policy_kwargs": {"net_arch": [16]}}).learn(60)
    n_critics = 1 if algorithm is DDPG else 2
    ours = make_model(policy_kwargs={"net_arch": [16], "n_critics": n_critics}, seed=4).learn(60)
    theirs.save(tmp_path / "theirs")
    original = ours.get_parameters()["policy"]["actor.mu.0.weight"].clone()
    ours.save(tmp_path / "ours")

    ours.set_parameters(str(tmp_path / "theirs") if via_file else theirs.get_parameters())
    assert max(compare_models(theirs, ours).values()) == 0
    ours.learn(30)

    theirs.set_parameters(str(tmp_path / "ours"))
    assert th.equal(theirs.actor.mu[0].weight, original)
    theirs.learn(30)


@pytest.mark.parametrize(("algorithm", "n_envs"), [(DDPG, 1), (DDPG, 3), (TD3, 1)])
def test_loads_what_sb3_saved_and_goes_on_as_sb3_would(tmp_path, algorithm, n_envs):
    """After loading, both sides train on from the same seed: equal to the last bit again, optimizer states included."""
    settings = SMALL | {"policy_kwargs": {"net_arch": [16]}, "action_noise": sb3_noise(), "gradient_steps": -1}
    algorithm("MlpPolicy", make_vec_env("Pendulum-v1", n_envs, seed=0), **settings).learn(90).save(tmp_path / "theirs")
    models = []
    for model_class, extra in ((algorithm, {}), (ScratchDDPG, {"updater": "autograd"})):
        env = make_vec_env("Pendulum-v1", n_envs, seed=1)
        model = model_class.load(tmp_path / "theirs", env=env, device="cpu", **extra)
        assert model.num_timesteps == 90
        models.append(model.learn(150, reset_num_timesteps=False))
    assert models[1]._n_updates == models[0]._n_updates > 90
    assert max(compare_models(*models).values()) == 0
    models[1].save(tmp_path / "ours")
    again = ScratchDDPG.load(tmp_path / "ours")
    assert type(again.policy).__module__ == "sb3_ddpg_scratch.policies"
    assert not any("batch_norm_stats" in name for name in vars(again))


@pytest.mark.parametrize(("policy", "observation"), [("CnnPolicy", "image"), ("MultiInputPolicy", "dict")])
def test_loads_sb3s_other_policies(tmp_path, policy, observation):
    DDPG(policy, PointEnv(observation), **SMALL).learn(30).save(tmp_path / "theirs")
    loaded = ScratchDDPG.load(tmp_path / "theirs", env=PointEnv(observation))
    theirs = DDPG.load(tmp_path / "theirs")
    seen, _ = PointEnv(observation).reset(seed=0)
    np.testing.assert_array_equal(loaded.predict(seen)[0], theirs.predict(seen)[0])
    loaded.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize("observation", ["vector", "image", "dict"])
@pytest.mark.parametrize("policy_kwargs", [{}, {"n_critics": 1}, {"share_features_extractor": True}])
def test_loads_td3s_policies_and_goes_on_as_td3_would(tmp_path, observation, policy_kwargs):
    settings = SMALL | {"buffer_size": 200, "policy_kwargs": {"net_arch": [16]} | policy_kwargs}
    TD3(POLICY_OF[observation], PointEnv(observation), **settings).learn(30).save(tmp_path / "theirs")
    models = []
    for model_class, extra in ((TD3, {}), (ScratchDDPG, {"updater": "autograd"})):
        model = model_class.load(tmp_path / "theirs", env=PointEnv(observation), device="cpu", **extra)
        seen, _ = PointEnv(observation).reset(seed=0)
        actions = [model.predict(seen)[0]]
        model.set_random_seed(7)
        model.learn(40, reset_num_timesteps=False)
        models.append((model, [*actions, model.predict(seen)[0]]))
    np.testing.assert_array_equal(models[1][1], models[0][1])
    assert models[1][0]._n_updates == models[0][0]._n_updates > 40
    assert max(compare_models(models[0][0], models[1][0]).values()) == 0


@pytest.mark.parametrize("policy", [td3_policies.MlpPolicy, td3_policies.CnnPolicy, td3_policies.MultiInputPolicy])
def test_sb3s_policy_classes_have_ddpgs_one_critic(policy):
    env = PointEnv({"TD3Policy": "vector", "CnnPolicy": "image", "MultiInputPolicy": "dict"}[policy.__name__])
    for policy_kwargs in (None, {"n_critics": 2}):
        models = [
            algorithm(policy, env, buffer_size=10, policy_kwargs=policy_kwargs and dict(policy_kwargs), seed=0, device="cpu")
            for algorithm in (DDPG, ScratchDDPG)
        ]
        assert max(compare_models(*models).values()) == 0


def test_the_same_seed_gives_the_same_training():
    runs = [snapshot(make_model(seed=seed).learn(100)) for seed in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("critic_lr", "Did you mean 'qf_learning_rate'"),
        ("lr", "Did you mean 'learning_rate'"),
        ("replay_size", "Did you mean 'buffer_size'"),
        ("net_arch", "Arguments of the policy go into policy_kwargs"),
    ],
)
def test_an_unknown_argument_is_named_with_the_one_that_was_meant(given, advice):
    with pytest.raises(TypeError, match=f"ScratchDDPG has no argument '{given}'. {advice}") as caught:
        ScratchDDPG("MlpPolicy", "Pendulum-v1", **{given: 1})
    assert isinstance(caught.value, ArgumentError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(TypeError, match=r"policy_kwargs has no argument 'net_archs'. Did you mean 'net_arch'"):
        ScratchDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_archs": [8]})


def test_a_subclass_may_have_arguments_of_its_own():
    class Own(ScratchDDPG):
        def __init__(self, policy, env, extra=0, **others):
            super().__init__(policy, env, **others)
            self.extra = extra

    assert Own("MlpPolicy", "Pendulum-v1", extra=3, buffer_size=100).extra == 3
    with pytest.raises(TypeError, match=r"Own has no argument 'bufer_size'. Did you mean 'buffer_size'"):
        Own("MlpPolicy", "Pendulum-v1", bufer_size=100)
    assert list(inspect.signature(Own).parameters) == ["policy", "env", "extra", "others"]
    assert list(inspect.signature(ScratchDDPG).parameters)[:3] == ["policy", "env", "learning_rate"]


def test_learn_needs_an_environment(tmp_path):
    ScratchDDPG("MlpPolicy", "Pendulum-v1", buffer_size=100).save(tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"env is required. Call set_env\(env\) before learn"):
        ScratchDDPG.load(tmp_path / "model").learn(10)


def test_warnings_of_a_training_that_would_come_to_nothing(recwarn):
    settings = {"policy_kwargs": {"net_arch": [4]}, "batch_size": 8, "device": "cpu"}
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", buffer_size=7, learning_starts=30, **settings)
    with pytest.warns(UserWarning, match="ends at step 30, and updates begin after learning_starts=30"):
        model.learn(30)
    assert model._n_updates == 0
    recwarn.clear()
    model.learn(31)
    assert model._n_updates == 1
    assert ["buffer_size=7 is below batch_size=8" in str(warning.message) for warning in recwarn] == [True]
