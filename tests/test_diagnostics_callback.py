"""DiagnosticsCallback: the numbers it records, and that nothing of the training changes because of it."""

import csv
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, same, snapshot
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback, read_recording
from sb3_ddpg_scratch.diagnostics.probes import ProbeStates
from tests.own_policies import OwnPolicy

FINE = {"every": 7, "probe_states": 4, "snapshot_every": 20, "eval_every": 30}


class WholeBuffer(ReplayBuffer):
    """A replay buffer that always gives all that it holds, so that a batch is known."""

    def sample(self, batch_size, env=None):
        return self._get_samples(np.arange(self.size()), env)


class LoggedEnv(PointEnv):
    """An environment that remembers the rewards of each episode."""

    def reset(self, **kwargs):
        self.log = [*getattr(self, "log", []), []]
        return super().reset(**kwargs)

    def step(self, action):
        result = super().step(action)
        self.log[-1].append(result[1])
        return result


def build(model_class=ScratchDDPG, env=PointEnv, policy="MlpPolicy", vec_normalize=False, n_envs=1, **extra):
    env = make_vec_env(env, n_envs=n_envs, seed=3)
    env = VecNormalize(env) if vec_normalize else env
    policy_kwargs = {"net_arch": [16, 12]} | extra.pop("policy_kwargs", {})
    settings = {"seed": 5, "device": "cpu", "buffer_size": 400, "batch_size": 16, "learning_starts": 20, "gamma": 0.9}
    return model_class(policy, env, policy_kwargs=policy_kwargs, **(settings | extra))


def gaussian():
    return NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))


small_images = {"features_extractor_kwargs": {"features_dim": 16}}
small_dicts = {"features_extractor_kwargs": {"cnn_output_dim": 16}}

CASES = {
    "ours": {},
    "ours, batch normalization": {"policy_kwargs": {"norm": "batch"}},
    "ours, two environments, VecNormalize": {"n_envs": 2, "vec_normalize": True},
    "ours, own policy": {"policy": OwnPolicy},
    "ours, Dict observations": {
        "policy": "MultiInputPolicy",
        "env": lambda: PointEnv("dict"),
        "policy_kwargs": small_dicts,
        "train_freq": 5,
    },
    "SB3's DDPG, images": {
        "model_class": DDPG,
        "policy": "CnnPolicy",
        "env": lambda: PointEnv("image"),
        "policy_kwargs": small_images,
        "train_freq": 5,
    },
    "SB3's TD3": {"model_class": TD3, "action_noise": gaussian()},
    "SB3's SAC": {"model_class": SAC},
}


@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same_bit_for_bit(tmp_path, name):
    """Parameters, optimizers, gradients, modes and all random generators, with a callback that looks at everything."""
    results = []
    case = CASES[name]
    for evaluated in (None, False, True):
        model = build(**case)
        if evaluated is None:
            model.learn(130)
        else:
            eval_env = case.get("env", PointEnv)() if evaluated else None
            callback = DiagnosticsCallback(tmp_path / str(evaluated), eval_env=eval_env, **FINE)
            model.learn(130, callback=callback)
        gradients = {key: parameter.grad for key, parameter in model.policy.named_parameters() if parameter.grad is not None}
        moments = model.critic.optimizer.state_dict()["state"][0]["exp_avg_sq"]
        modes = [module.training for module in model.policy.modules()]
        generators = (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist())
        results.append((snapshot(model), gradients, moments, modes, generators))
    for other in results[1:]:
        assert same(results[0][0], other[0])
        assert same(results[0][1], other[1])
        assert th.equal(results[0][2], other[2])
        assert results[0][3:] == other[3:]
    for evaluated in (False, True):
        recording = read_recording(tmp_path / str(evaluated))
        assert recording.ended
        assert recording.problems == []
        rows = {kind: len(table["step"]) for kind, table in recording.tables.items()}
        assert rows["episode"] == 6
        assert rows["update"] >= 4
        assert len(recording.snapshots) >= 3
        compared = np.isfinite(recording.tables["evaluation"]["q"]).sum()
        assert compared == 0 if "SAC" in name else compared >= 1


def test_numbers_equal_those_computed_by_hand(tmp_path):
    """The last record is of the final networks on a known batch: recompute it in float64 from their weights."""
    env = LoggedEnv()
    noise = NormalActionNoise(np.zeros(2), np.array([0.1, 0.3]))
    model = build(env=lambda: env, replay_buffer_class=WholeBuffer, action_noise=noise, learning_rate=1e-2)
    model.learn(90, callback=DiagnosticsCallback(tmp_path, every=1))
    update = {name: column[-1] for name, column in read_recording(tmp_path).tables["update"].items()}
    episodes = read_recording(tmp_path).tables["episode"]

    returns = [sum(rewards) for rewards in env.log if len(rewards) == 20]
    np.testing.assert_allclose(episodes["return"], returns, rtol=1e-6)
    assert episodes["length"].tolist() == [20] * 4
    assert episodes["step"].tolist() == [20, 40, 60, 80]

    weights = {name: tensor.double().numpy() for name, tensor in model.policy.state_dict().items()}

    def layers(inputs, name):
        for index in (0, 2):
            inputs = np.maximum(inputs @ weights[f"{name}.{index}.weight"].T + weights[f"{name}.{index}.bias"], 0)
        return inputs @ weights[f"{name}.4.weight"].T + weights[f"{name}.4.bias"]

    def q(name, states, actions):
        return layers(np.concatenate([states, actions], axis=1), f"{name}.qf0")[:, 0]

    buffer = model.replay_buffer
    states, actions, following = (
        array[:90, 0].astype(float) for array in (buffer.observations, buffer.actions, buffer.next_observations)
    )
    rewards = buffer.rewards[:90, 0].astype(float)
    targets = rewards + 0.9 * q("critic_target", following, np.tanh(layers(following, "actor_target.mu")))
    q_values = q("critic", states, actions)
    chosen = np.tanh(layers(states, "actor.mu"))
    expected = {
        "step": 90,
        "n_updates": 70,
        "q_mean": q_values.mean(),
        "q_abs_mean": np.abs(q_values).mean(),
        "target_mean": targets.mean(),
        "td_error": np.abs(q_values - targets).mean(),
        "critic_loss": np.square(q_values - targets).mean(),
        "actor_loss": -q("critic", states, chosen).mean(),
        "saturated": (np.abs(chosen) > 0.99).mean(),
        "sigma": 0.2,
        "largest_return": np.abs(rewards).max() / (1 - 0.9),
    }
    assert 0 < expected["saturated"] < 1
    for name, value in expected.items():
        assert update[name] == pytest.approx(value, rel=1e-4), name

    loss = th.nn.functional.mse_loss(
        model.critic(*map(th.as_tensor, (states.astype("f"), actions.astype("f"))))[0][:, 0], th.tensor(targets).float()
    )
    model.critic.optimizer.zero_grad()
    loss.backward()
    norm = np.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in model.critic.parameters()))
    assert update["critic_grad_norm"] == pytest.approx(norm, rel=1e-4)

    model.actor.optimizer.zero_grad()
    observations = th.as_tensor(states.astype("f"))
    (-model.critic.q1_forward(observations, model.actor(observations)).mean()).backward()
    gradient = {name: parameter.grad.double().numpy() for name, parameter in model.actor.named_parameters()}
    assert update["actor_grad_norm"] == pytest.approx(
        np.sqrt(sum(np.square(part).sum() for part in gradient.values())), rel=1e-4
    )


def test_over_estimation_in_training_by_hand(tmp_path):
    """Episodes that terminate need no critic's word: the return obtained is the discounted sum of the logged rewards."""
    env = LoggedEnv(end="terminated")
    model = build(env=lambda: env)
    model.learn(100, callback=DiagnosticsCallback(tmp_path, eval_every=1))
    table = read_recording(tmp_path).tables["evaluation"]
    assert table["step"].tolist() == [60, 80, 100]
    assert table["noise_free"].tolist() == [0, 0, 0]
    assert table["tail_weight"].tolist() == [0, 0, 0]
    for step, obtained in zip(table["step"], table["discounted_return"], strict=True):
        rewards = env.log[int(step) // 20 - 1]
        assert obtained == pytest.approx(np.dot(rewards, 0.9 ** np.arange(20)), rel=1e-5)


def test_snapshots_are_the_policy_and_q_on_the_probe_states(tmp_path):
    model = build().learn(150, callback=DiagnosticsCallback(tmp_path, probe_states=6, snapshot_every=(2, "episode")))
    recording = read_recording(tmp_path)
    probes = ProbeStates.load(tmp_path)
    np.testing.assert_allclose(recording.probes["states"], probes.observations, rtol=1e-6)
    assert len(np.unique(probes.observations, axis=0)) == 6
    held = model.replay_buffer.observations[:150, 0]
    assert all((held == state).all(axis=1).any() for state in probes.observations)
    assert len(recording.snapshots) >= 3
    last = recording.snapshots[-1]
    assert last.step == 150
    actions = model.policy.scale_action(model.predict(probes.observations, deterministic=True)[0])
    np.testing.assert_allclose(last.actions, actions, atol=1e-4)
    with th.no_grad():
        q_values = model.critic(th.as_tensor(probes.observations), th.as_tensor(actions))[0][:, 0]
    np.testing.assert_allclose(last.q_values, q_values, rtol=1e-4)
    assert np.abs(recording.snapshots[0].actions - last.actions).max() > 0.01
    # A point of the plane is the policy there.
    plane = recording.probes["plane"]
    first, second = plane["dimensions"]
    state = np.array(plane["others"], np.float32)
    state[first], state[second] = plane["x"][3], plane["y"][7]
    expected = model.policy.scale_action(model.predict(state, deterministic=True)[0])
    np.testing.assert_allclose(last.plane[:, 7, 3], expected, atol=2e-4)


def test_vec_normalize_keeps_probe_states_in_the_units_of_the_environment(tmp_path):
    model = build(vec_normalize=True).learn(120, callback=DiagnosticsCallback(tmp_path, probe_states=4, snapshot_every=50))
    recording = read_recording(tmp_path)
    normalized = model.get_vec_normalize_env().normalize_obs(np.array(recording.probes["states"]))
    actions = model.policy.scale_action(model.predict(normalized, deterministic=True)[0])
    np.testing.assert_allclose(recording.snapshots[-1].actions, actions, atol=1e-3)
    # Returns are the environment's: normalized rewards of about -1 would sum to some -20.
    monitored = [info["r"] for info in model.ep_info_buffer]
    np.testing.assert_allclose(recording.tables["episode"]["return"], monitored, rtol=1e-5)


def test_a_diverging_run_says_so_once_and_is_logged(tmp_path, capfd):
    model = build(learning_rate=1.0, max_grad_norm=None)
    model.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    model.learn(400, callback=DiagnosticsCallback(tmp_path, every=10), log_interval=1)
    recording = read_recording(tmp_path)
    names = [warning["name"] for warning in recording.warnings]
    assert "saturated" in names
    assert len(set(names)) == len(names)
    said = capfd.readouterr().err
    assert said.count("Diverging, at environment step") == len(names)
    assert "Try a smaller learning rate" in said
    with open(tmp_path / "log" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["diagnostics/diverging"]) >= 1
    assert float(rows[-1]["diagnostics/saturated"]) == 1
    assert "diagnostics/q_mean" in rows[-1]


def test_a_run_that_goes_on_keeps_its_recording_and_its_probe_states(tmp_path):
    settings = {"probe_states": 4, "snapshot_every": 40, "every": 20}
    model = build().learn(100, callback=DiagnosticsCallback(tmp_path, **settings))
    before = read_recording(tmp_path)
    model.learn(100, callback=DiagnosticsCallback(tmp_path, **settings), reset_num_timesteps=False)
    after = read_recording(tmp_path)
    assert after.last_step == 200
    assert after.tables["episode"]["step"].tolist() == [20.0 * episode for episode in range(1, 11)]
    np.testing.assert_array_equal(after.probes["states"], before.probes["states"])
    assert len(after.snapshots) > len(before.snapshots)
    # A run from step 0 is another run: the earlier recording is kept under a name of its own.
    build().learn(40, callback=DiagnosticsCallback(tmp_path, **settings))
    assert read_recording(tmp_path).last_step == 40
    assert read_recording(tmp_path / "diagnostics.1.jsonl").last_step == 200


KILLED = """
import sys
from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback
model = ScratchDDPG("MlpPolicy", "Pendulum-v1", device="cpu", policy_kwargs={"net_arch": [8]}, batch_size=8)
model.learn(10**7, callback=DiagnosticsCallback(sys.argv[1], every=5))
"""


def test_a_killed_run_leaves_all_it_recorded(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        limit = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > 40):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        seen = path.read_bytes().count(b"\n")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    recording = read_recording(tmp_path)
    assert not recording.ended
    assert len(recording.problems) <= 1
    records = sum(len(table["step"]) for table in recording.tables.values()) + len(recording.snapshots)
    planes = path.read_bytes().count(b'"kind":"plane"')
    assert records >= seen - 2 - planes  # The header, the probe states and the planes are no rows.
    assert np.isfinite(recording.tables["update"]["q_mean"]).all()


def test_a_disk_that_cannot_be_written_to_does_not_end_the_training(tmp_path, capfd, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    callback = DiagnosticsCallback(tmp_path, **FINE)
    monkeypatch.setattr("sb3_ddpg_scratch.diagnostics.recording_writer.RecordingWriter.write", full)
    monkeypatch.setattr("sb3_ddpg_scratch.diagnostics.probes.write_whole", full)
    assert build().learn(100, callback=callback).num_timesteps == 100
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_what_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"actor-critic.*DQN"):
        DQN("MlpPolicy", "CartPole-v1").learn(10, callback=DiagnosticsCallback(tmp_path))
    with pytest.raises(ArgumentError, match=r"every must be .*, got 0"):
        DiagnosticsCallback(tmp_path, every=0)
    with pytest.raises(ArgumentError, match=r"snapshot_every must be .*, got 'hour'"):
        DiagnosticsCallback(tmp_path, snapshot_every=(1, "hour"))
    with pytest.raises(ArgumentError, match="observation_space"):
        build().learn(10, callback=DiagnosticsCallback(tmp_path, eval_env="Pendulum-v1"))
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="a file of that name"):
        DiagnosticsCallback(tmp_path / "file")


def test_sigma_of_any_noise():
    from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

    from sb3_ddpg_scratch.noise import GaussianNoise, sigma_of

    assert sigma_of(None) == 0
    np.testing.assert_allclose(sigma_of(OrnsteinUhlenbeckActionNoise(np.zeros(2), np.array([0.2, 0.4]))), [0.2, 0.4])
    assert sigma_of(VectorizedActionNoise(gaussian(), 3)) == pytest.approx(0.1)
    fading = GaussianNoise(np.zeros(1), 0.5, final_sigma=0.1, decay_steps=4)
    fading()
    assert sigma_of(fading) == pytest.approx(0.4)
    assert sigma_of(type("Own", (NormalActionNoise,), {"__init__": lambda self: None})()) is None
