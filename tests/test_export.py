"""Exported policies against ``predict``: onnxruntime's numbers, and a torch program's, for every kind of observation."""

import json
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from conftest import POLICY_OF, Observing, PointEnv
from gymnasium import spaces
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, MlpPolicy, ScratchDDPG, __version__
from sb3_ddpg_scratch.cli.export import export
from sb3_ddpg_scratch.errors import ExportError, ModelFileError
from sb3_ddpg_scratch.model_file import load_vec_normalize
from tests.goal_envs import Reach
from tests.own_policies import OwnPolicy, TimidPolicy, UnsquashedPolicy

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"buffer_size": 200, "learning_starts": 10, "batch_size": 8, "seed": 0, "device": "cpu", "updater": "autograd"}


def trained(env, observation="vector", **policy_kwargs):
    settings = SMALL | {"policy_kwargs": {"net_arch": [16]} | policy_kwargs}
    return ScratchDDPG(POLICY_OF[observation], env, **settings).learn(25)


def normalized(env):
    return VecNormalize(make_vec_env(lambda: env, 1, seed=0), clip_obs=1.5)


def hindsight():
    env = normalized(Reach())
    settings = SMALL | {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 15, "replay_buffer_class": HerReplayBuffer}
    return ScratchDDPG("MultiInputPolicy", env, **settings).learn(25)


CASES = {
    "layer norm": lambda: trained(PointEnv(), norm="layer", activation_fn="elu"),
    "image": lambda: trained(PointEnv("image"), "image"),
    "dict": lambda: trained(PointEnv("dict"), "dict"),
    "codes": lambda: trained(
        Observing(spaces.Dict(one=spaces.Discrete(5), many=spaces.MultiDiscrete([2, 3]), bits=spaces.MultiBinary(4))),
        "dict",
    ),
    "float64 matrix": lambda: trained(Observing(spaces.Box(-1, 1, (2, 3), np.float64))),
    "hindsight": hindsight,
    "normalized by the policy": lambda: trained(PointEnv(), normalize_observations=True, clip_observations=1.5),
    "simba": lambda: ScratchDDPG("SimbaPolicy", PointEnv(), **SMALL).learn(25),
    "simba, dict": lambda: ScratchDDPG(
        "SimbaPolicy",
        Observing(spaces.Dict(b=spaces.Box(-9, 9, (3,), np.float64), bits=spaces.MultiBinary(2), a=spaces.Box(-1, 1, (2, 2)))),
        **SMALL,
    ).learn(25),
    "own networks": lambda: ScratchDDPG(OwnPolicy, PointEnv(), **SMALL).learn(25),
    "own prediction": lambda: ScratchDDPG(TimidPolicy, PointEnv(), **SMALL).learn(25),
    "own prediction, not squashed": lambda: ScratchDDPG(UnsquashedPolicy, PointEnv(), **SMALL).learn(25),
    "vec normalize": lambda: trained(normalized(PointEnv())),
    "vec normalize, dict": lambda: trained(
        normalized(Observing(spaces.Dict(b=spaces.Box(-9, 9, (3,)), a=spaces.Box(-1, 1, (2,))))), "dict"
    ),
}


def raw_observations(model, number):
    """Observations as the environment itself returns them."""
    env = model.get_env().unwrapped.envs[0]
    seen = [env.reset(seed=index)[0] for index in range(number)]
    # Far beyond what was seen in training, where normalization clips.
    if isinstance(seen[0], dict):
        return {key: np.stack([one[key] for one in seen]) for key in seen[0]}
    return np.stack(seen)


def expected_actions(model, raw):
    normalization = model.get_vec_normalize_env()
    actions, _ = model.predict(raw if normalization is None else normalization.normalize_obs(raw), deterministic=True)
    return actions


def onnx_actions(path, raw):
    session = ort.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["action"]
    inputs = {one.name for one in session.get_inputs()}
    feeds = raw if isinstance(raw, dict) else {"observation": raw}
    assert inputs == set(feeds)
    return session.run(None, feeds)[0]


def torch_actions(path, model, raw):
    program = th.export.load(path).module()
    keys = model.observation_space.spaces if isinstance(raw, dict) else ["observation"]
    feeds = raw if isinstance(raw, dict) else {"observation": raw}
    return program(*(th.as_tensor(feeds[key]) for key in keys)).detach().numpy()


@pytest.mark.parametrize("name", list(CASES))
def test_exports_act_as_predict_does(tmp_path, name):
    model = CASES[name]()
    model.export_onnx(tmp_path / "policy.onnx")
    model.export_torch(tmp_path / "policy.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.onnx", "policy.pt2"]
    for number in (1, 7):
        raw = raw_observations(model, number)
        expected = expected_actions(model, raw)
        for actions in (onnx_actions(tmp_path / "policy.onnx", raw), torch_actions(tmp_path / "policy.pt2", model, raw)):
            assert actions.shape == expected.shape
            assert actions.dtype == model.action_space.dtype
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    spread = np.ptp(expected_actions(model, raw_observations(model, 7)), axis=0)
    assert (spread > 0).any(), "every observation has the same action, which would prove nothing"


class Inexact(PointEnv):
    """Bounds at which rounding matters: in float32, low + (high - low) exceeds high."""

    def __init__(self):
        super().__init__()
        low, high = np.array([-3.3, -1.1], np.float32), np.array([1.1, 0.3], np.float32)
        assert (low + (high - low) > high).all()
        self.action_space = spaces.Box(low, high)

    def step(self, action):
        return super().step(np.clip(action, self.action_space.low, self.action_space.high))


@pytest.mark.parametrize("env", [PointEnv, Inexact])
def test_actions_stay_within_their_bounds(tmp_path, env):
    model = trained(env())
    with th.no_grad():
        model.actor.mu[-2].weight.mul_(1e6)
    model.export_onnx(tmp_path / "policy.onnx")
    model.export_torch(tmp_path / "policy.pt2")
    low, high, raw = model.action_space.low, model.action_space.high, raw_observations(model, 50)
    for actions in (onnx_actions(tmp_path / "policy.onnx", raw), torch_actions(tmp_path / "policy.pt2", model, raw)):
        assert ((actions >= low) & (actions <= high)).all()
        assert set(np.unique(actions)) <= {*low, *high}
    with th.no_grad():
        model.actor.mu[-2].bias.fill_(1e9)
    model.export_onnx(tmp_path / "policy.onnx")
    np.testing.assert_array_equal(onnx_actions(tmp_path / "policy.onnx", raw), np.tile(high, (50, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [PointEnv, lambda: normalized(PointEnv())])
def test_an_observation_that_is_not_finite_gets_no_action_that_looks_valid(tmp_path, make, bad):
    model = trained(make())
    model.export_onnx(tmp_path / "policy.onnx")
    model.export_torch(tmp_path / "policy.pt2")
    raw = raw_observations(model, 3)
    expected = expected_actions(model, raw)
    raw[1, 2] = bad
    for actions in (onnx_actions(tmp_path / "policy.onnx", raw), torch_actions(tmp_path / "policy.pt2", model, raw)):
        assert np.isnan(actions[1]).all()
        np.testing.assert_allclose(actions[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-5)


def test_a_file_says_what_goes_in_and_out(tmp_path):
    names = {"vector": ["x [m]", "y [m]", "time [s]"]}
    model = ScratchDDPG(
        "MultiInputPolicy", PointEnv("dict"), **SMALL, observation_names=names, action_names=["u [N]", "v [N]"]
    )
    model.export_onnx(tmp_path / "policy.onnx")
    session = ort.InferenceSession(str(tmp_path / "policy.onnx"))
    assert {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())} == {
        "image": ["batch", 36, 36, 1],
        "vector": ["batch", 3],
        "action": ["batch", 2],
    }
    described = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    vector = {"shape": ["batch", 3], "dtype": "float32", "low": -10.0, "high": 10.0, "names": names["vector"]}
    assert described["inputs"]["vector"] == vector
    assert described["inputs"]["image"] == {"shape": ["batch", 36, 36, 1], "dtype": "uint8", "low": 0, "high": 255}
    action = {"shape": ["batch", 2], "dtype": "float32", "low": [-2.0, 0.5], "high": [1.0, 3.0], "names": ["u [N]", "v [N]"]}
    assert described["outputs"] == {"action": action}
    assert described["sb3_ddpg_scratch_version"] == __version__
    model.export_torch(tmp_path / "policy.pt2")
    files = {"metadata.json": ""}
    th.export.load(tmp_path / "policy.pt2", extra_files=files)
    assert json.loads(files["metadata.json"]) == described


def test_unbounded_and_normalized_observations_are_said(tmp_path):
    env = normalized(Observing(spaces.Box(-np.inf, np.inf, (2,), np.float64)))
    trained(env).export_onnx(tmp_path / "policy.onnx")
    metadata = ort.InferenceSession(str(tmp_path / "policy.onnx")).get_modelmeta().custom_metadata_map
    described = json.loads(metadata["inputs"])["observation"]
    assert (described["low"], described["high"]) == ("-Infinity", "Infinity")
    assert described["normalized_inside_to"] == 1.5


def test_a_loaded_model_takes_statistics_from_a_file(tmp_path):
    model = trained(normalized(PointEnv()))
    model.save(tmp_path / "model")
    raw = raw_observations(model, 5)
    loaded = ScratchDDPG.load(tmp_path / "model")
    model.get_vec_normalize_env().save(tmp_path / "normalize.pkl")
    for statistics in (model.get_vec_normalize_env(), tmp_path / "normalize.pkl", str(tmp_path / "normalize.pkl")):
        loaded.export_onnx(tmp_path / "policy.onnx", vec_normalize=statistics)
        np.testing.assert_allclose(onnx_actions(tmp_path / "policy.onnx", raw), expected_actions(model, raw), 1e-5, 1e-5)
    with pytest.raises(ArgumentError, match="a file that VecNormalize"):
        loaded.export_onnx(tmp_path / "policy.onnx", tmp_path / "nowhere.pkl")
    other = normalized(gym.make("Pendulum-v1"))
    other.observation_space = spaces.Box(-1, 1, (4,))
    other.obs_rms.mean = np.zeros(4)
    with pytest.raises(ExportError, match=r"\(4,\).*\(3,\)"):
        loaded.export_onnx(tmp_path / "policy.onnx", vec_normalize=other)


def test_exporting_changes_nothing(tmp_path):
    model = trained(PointEnv(), norm="batch")
    model.policy.set_training_mode(True)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    state = th.random.get_rng_state()
    model.export_torch(tmp_path / "policy.pt2")
    assert model.actor.training
    assert all(th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())
    assert th.equal(state, th.random.get_rng_state())
    assert model.actor.optimizer is not None


class Branching(FlattenExtractor):
    """Decides by the values that it sees."""

    def forward(self, observations):
        return super().forward(observations) if observations.sum() > 0 else super().forward(-observations)


def test_a_policy_with_its_own_predict_is_not_exported(tmp_path):
    class Own(MlpPolicy):
        def unscale_action(self, scaled_action):
            return super().unscale_action(0.5 * scaled_action)

    model = ScratchDDPG(Own, PointEnv(), **SMALL)
    with pytest.raises(ExportError, match="Own overrides unscale_action"):
        model.export_torch(tmp_path / "policy.pt2")


def test_what_cannot_be_exported_says_so_and_leaves_the_file(tmp_path):
    model = trained(PointEnv(), features_extractor_class=Branching)
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"the last one")
    for write in (model.export_onnx, model.export_torch):
        with pytest.raises(ExportError, match="Branching"):
            write(path)
    assert path.read_bytes() == b"the last one"


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from sb3_ddpg_scratch.cli import app

    model = trained(normalized(PointEnv()))
    model.save(tmp_path / "model")
    model.get_vec_normalize_env().save(str(tmp_path / "stats.pkl"))
    arguments = ["export", str(tmp_path / "model.zip"), "--vecnormalize", str(tmp_path / "stats.pkl")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "policy.onnx")])
    assert result.exit_code == 0, result.output
    raw = raw_observations(model, 3)
    np.testing.assert_allclose(onnx_actions(tmp_path / "policy.onnx", raw), expected_actions(model, raw), rtol=1e-5, atol=1e-5)
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "policy.txt")]).exit_code != 0


@pytest.mark.parametrize("place", ["vecnormalize.pkl", "model/vecnormalize.pkl", "Env-v0/vecnormalize.pkl"])
def test_statistics_beside_the_model_are_the_default(tmp_path, capsys, place):
    model = trained(normalized(PointEnv()))
    model.save(tmp_path / "model")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    model.get_vec_normalize_env().save(str(tmp_path / place))
    export(tmp_path / "model.zip", tmp_path / "policy.onnx")
    assert f"With the statistics of VecNormalize in {tmp_path / place}" in capsys.readouterr().out
    raw = raw_observations(model, 5)
    np.testing.assert_allclose(onnx_actions(tmp_path / "policy.onnx", raw), expected_actions(model, raw), rtol=1e-5, atol=1e-5)


def test_a_checkpoints_own_statistics_come_first(tmp_path):
    model = trained(normalized(PointEnv()))
    callback = CheckpointCallback(30, str(tmp_path), save_vecnormalize=True, verbose=0)
    model.learn(30, callback, reset_num_timesteps=False)
    (checkpoint,) = tmp_path.glob("rl_model_*_steps.zip")
    raw = raw_observations(model, 5)
    expected = expected_actions(ScratchDDPG.load(checkpoint, env=model.get_env()), raw)
    model.get_vec_normalize_env().obs_rms.mean += 100.0
    model.get_vec_normalize_env().save(str(tmp_path / "vecnormalize.pkl"))
    export(checkpoint, tmp_path / "policy.onnx")
    np.testing.assert_allclose(onnx_actions(tmp_path / "policy.onnx", raw), expected, rtol=1e-5, atol=1e-5)


def test_a_policy_without_its_statistics_is_not_exported(tmp_path):
    model = trained(normalized(PointEnv()))
    model.save(tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"--vecnormalize is required. The model was trained with VecNormalize"):
        export(tmp_path / "model.zip", tmp_path / "policy.pt2")
    loaded = ScratchDDPG.load(tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"vec_normalize is required. The model was trained with VecNormalize"):
        loaded.export_torch(tmp_path / "policy.pt2")
    assert not (tmp_path / "policy.pt2").exists()
    export(tmp_path / "model.zip", tmp_path / "policy.pt2", "none")
    policy = th.export.load(tmp_path / "policy.pt2").module()
    raw = raw_observations(model, 5)
    normalized_already = model.get_vec_normalize_env().normalize_obs(raw)
    actions = policy(th.as_tensor(normalized_already, dtype=th.float32)).detach().numpy()
    np.testing.assert_allclose(actions, expected_actions(model, raw), rtol=1e-5, atol=1e-5)
    for wrong, allowed in (("none", "a file that VecNormalize.save wrote"), (True, "None or False")):
        with pytest.raises(ArgumentError, match=allowed):
            loaded.export_torch(tmp_path / "policy.pt2", wrong)


def test_the_zoos_settings_say_normalize(tmp_path, capsys):
    """An agent of SB3's DDPG says nothing about VecNormalize, but RL Zoo's settings beside it do."""
    DDPG("MlpPolicy", "Pendulum-v1").save(tmp_path / "Pendulum-v1")
    (tmp_path / "Pendulum-v1").mkdir()
    settings = OrderedDict([("n_timesteps", 10), ("normalize", True)])
    (tmp_path / "Pendulum-v1" / "config.yml").write_text(yaml.dump(settings))
    with pytest.raises(ArgumentError, match="--vecnormalize is required"):
        export(tmp_path / "Pendulum-v1.zip", tmp_path / "policy.pt2")
    for harmless in (False, {"norm_obs": False}):
        (tmp_path / "Pendulum-v1" / "config.yml").write_text(yaml.dump(settings | {"normalize": harmless}))
        export(tmp_path / "Pendulum-v1.zip", tmp_path / "policy.pt2")
    # What scales rewards alone is not in the file.
    VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=False).save(str(tmp_path / "vecnormalize.pkl"))
    export(tmp_path / "Pendulum-v1.zip", tmp_path / "policy.pt2")
    assert "With the statistics" not in capsys.readouterr().out


def test_statistics_of_another_moment_are_refused(tmp_path):
    env = normalized(PointEnv())
    model = trained(env)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = ScratchDDPG.load(tmp_path / "model")
    loaded.export_torch(tmp_path / "policy.pt2", load_vec_normalize(tmp_path / "vecnormalize.pkl", None))
    model.learn(20, reset_num_timesteps=False)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    with pytest.raises(ExportError, match="saved with other statistics"):
        loaded.export_torch(tmp_path / "late.pt2", env)
    with pytest.raises(ModelFileError, match=r"model.zip: it was saved with other statistics .* in .*vecnormalize.pkl"):
        export(tmp_path / "model.zip", tmp_path / "late.pt2")
    assert not (tmp_path / "late.pt2").exists()
    # Saved again without training, the model still belongs to the same ones.
    ScratchDDPG.load(tmp_path / "model", env=env).save(tmp_path / "again")
    with pytest.raises(ModelFileError, match="other statistics"):
        export(tmp_path / "again.zip", tmp_path / "late.pt2")
    # Trained further, it belongs to those of its environment.
    continued = ScratchDDPG.load(tmp_path / "model", env=env).learn(20)
    continued.export_torch(tmp_path / "late.pt2")
