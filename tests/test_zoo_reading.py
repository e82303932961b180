"""What the Zoo's scripts read of an agent's folder runs no code."""

import argparse
import os
import pickle

import pytest
import yaml
from conftest import PointEnv
from hostile import Reduces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ModelFileError, ScratchDDPG, UnsafeFileError
from sb3_ddpg_scratch.zoo.reading import safe_reading

pytest.importorskip("rl_zoo3")


def read(path):
    with path.open() as file:
        return yaml.load(file, Loader=yaml.UnsafeLoader)


@pytest.fixture
def scripts(request):
    parsed = [argparse.Namespace(trusted=False)]
    with safe_reading(parsed):
        yield parsed[0]


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"])
def test_yaml_runs_nothing_unless_trusted(tmp_path, scripts, tag):
    path, made = tmp_path / "args.yml", tmp_path / "made"
    path.write_text(f"env_kwargs: !!{tag} ['touch {made}']" if "name" not in tag else f"env_kwargs: !!{tag} ''")
    with pytest.raises(UnsafeFileError, match=r"args\.yml.*--trusted"):
        read(path)
    assert not made.exists()
    scripts.trusted = True
    read(path)
    assert made.exists() == ("apply" in tag or "new" in tag)


def test_yaml_as_the_zoo_writes_it(tmp_path, scripts):
    from collections import OrderedDict

    content = OrderedDict([("a", (1, 2)), ("policy_kwargs", {"net_arch": [3]}), ("n", 1e-3), ("none", None)])
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(content))
    assert read(path) == content


def test_texts_that_the_zoo_would_evaluate(tmp_path, scripts):
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump({"normalize": "dict(norm_obs=True, norm_reward=False)"}))
    assert read(path) == {"normalize": {"norm_obs": True, "norm_reward": False}}
    path.write_text(yaml.dump({"normalize": "__import__('os').system('true')"}))
    with pytest.raises((ArgumentError, UnsafeFileError), match="normalize"):
        read(path)


@pytest.mark.parametrize("value", ["subprocess.Popen", {"os.system": {}}, ["antigravity.webbrowser"]])
def test_wrappers_that_are_none(tmp_path, scripts, value):
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump({"env_wrapper": value}))
    with pytest.raises(UnsafeFileError, match="wrappers"):
        read(path)
    path.write_text(yaml.dump({"env_wrapper": [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 3}}]}))
    assert read(path)["env_wrapper"]


def test_statistics_models_and_buffers(tmp_path, scripts):
    made = tmp_path / "made"
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(pickle.dumps(Reduces(os.system, f"touch {made}")))
    env = VecNormalize(make_vec_env(PointEnv, 1))
    model = ScratchDDPG("MlpPolicy", env, buffer_size=50, policy_kwargs={"net_arch": [4]}, device="cpu")
    for function in (lambda: VecNormalize.load(str(hostile), env.venv), lambda: model.load_replay_buffer(hostile)):
        with pytest.raises(ModelFileError):
            function()
    assert not made.exists()
    env.save(str(tmp_path / "stats.pkl"))
    assert VecNormalize.load(str(tmp_path / "stats.pkl"), env.venv).num_envs == 1
    model.save(tmp_path / "model")
    assert ScratchDDPG.load(tmp_path / "model").n_envs == 1
    scripts.trusted = True
    with pytest.raises(AttributeError):
        VecNormalize.load(str(hostile), env.venv)
    assert made.exists()
