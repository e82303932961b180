"""What is replaced in RL Zoo while our commands run: why it still is, and that what its scripts read runs no code."""

import argparse
import importlib
import inspect
import os
import pickle
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import pytest
import rl_zoo3
import torch as th
import yaml
from conftest import PointEnv
from hostile import Reduces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import StoreDict
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ModelFileError, ScratchDDPG, UnsafeFileError
from sb3_ddpg_scratch.zoo import ALGO, patches
from sb3_ddpg_scratch.zoo.scripts import SCRIPTS, run_script
from sb3_ddpg_scratch.zoo.train import _yes_or_no, train_parser


class Done(Exception):  # noqa: N818
    """What was to be done inside a script is done."""


def read(path):
    with path.open() as file:
        return yaml.load(file, Loader=yaml.UnsafeLoader)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls a function inside the Zoo's script ``enjoy``, as soon as it has parsed its arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs" / ALGO).mkdir(parents=True)
    (tmp_path / "logs" / ALGO / "Pendulum-v1.zip").touch()

    def call_inside(function, *options):
        returned = []

        def get_model_path(*_):
            returned.append(function())
            raise Done

        monkeypatch.setattr("rl_zoo3.enjoy.get_model_path", get_model_path)
        with pytest.raises(Done):
            run_script("enjoy", ["--no-render", *options])
        return returned[0]

    return call_inside


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"])
def test_yaml_runs_nothing_unless_trusted(tmp_path, command, tag):
    path, made = tmp_path / "args.yml", tmp_path / "made"
    path.write_text(f"env_kwargs: !!{tag} ['touch {made}']" if "name" not in tag else f"env_kwargs: !!{tag} ''")
    with pytest.raises(UnsafeFileError, match=r"args\.yml.*--trusted"):
        command(lambda: read(path))
    assert not made.exists()
    command(lambda: read(path), "--trusted")
    assert made.exists() == ("apply" in tag or "new" in tag)


def test_yaml_as_the_zoo_writes_it(tmp_path, command):
    policy_kwargs = {"net_arch": [3], "activation_fn": th.nn.ReLU, "optimizer_class": th.optim.AdamW}
    content = OrderedDict([("a", (1, 2)), ("policy_kwargs", policy_kwargs), ("n", 1e-3), ("none", None)])
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(content))
    assert command(lambda: read(path)) == content


def test_texts_that_the_zoo_would_evaluate(tmp_path, command):
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump({"normalize": "dict(norm_obs=True, norm_reward=False)"}))
    assert command(lambda: read(path)) == {"normalize": {"norm_obs": True, "norm_reward": False}}
    path.write_text(yaml.dump({"normalize": "__import__('os').system('true')"}))
    with pytest.raises((ArgumentError, UnsafeFileError), match="normalize"):
        command(lambda: read(path))


@pytest.mark.parametrize("value", ["subprocess.Popen", {"os.system": {}}, ["antigravity.webbrowser"]])
def test_wrappers_that_are_none(tmp_path, command, value):
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump({"env_wrapper": value}))
    with pytest.raises(UnsafeFileError, match="wrapper"):
        command(lambda: read(path))
    path.write_text(yaml.dump({"env_wrapper": [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 3}}]}))
    assert command(lambda: read(path))["env_wrapper"]


def test_statistics_models_and_buffers(tmp_path, command):
    made = tmp_path / "made"
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(pickle.dumps(Reduces(os.system, f"touch {made}")))
    env = VecNormalize(make_vec_env(PointEnv, 1))
    model = ScratchDDPG("MlpPolicy", env, buffer_size=50, policy_kwargs={"net_arch": [4]}, device="cpu")
    model.save(tmp_path / "model")

    def loaded():
        return rl_zoo3.ALGOS[ALGO].load(tmp_path / "model", env=env)

    for function in (lambda: VecNormalize.load(str(hostile), env.venv), lambda: loaded().load_replay_buffer(hostile)):
        with pytest.raises(ModelFileError):
            command(function)
    assert not made.exists()
    env.save(str(tmp_path / "stats.pkl"))
    assert command(lambda: VecNormalize.load(str(tmp_path / "stats.pkl"), env.venv).num_envs) == 1
    assert command(lambda: loaded().n_envs) == 1
    with pytest.raises(AttributeError):
        command(lambda: VecNormalize.load(str(hostile), env.venv), "--trusted")
    assert made.exists()
    made.unlink()
    with pytest.raises(AttributeError):
        command(lambda: loaded().load_replay_buffer(hostile), "--trusted")
    assert made.exists()


# --------------------------------------------------------- Each fails when RL Zoo no longer needs what we replace for it


def source(module):
    return (Path(rl_zoo3.__file__).parent / f"{module}.py").read_text()


def test_train_has_the_options_of_the_zoos(monkeypatch):
    seen = []

    def parse_args(self, args=None, namespace=None):
        seen.append(self)
        raise Done

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Done):
        importlib.import_module("rl_zoo3.train").train()
    options = [
        {
            action.dest: (
                action.option_strings,
                action.default,
                action.nargs,
                action.choices,
                {_yes_or_no: bool}.get(action.type, action.type or str),
                StoreDict if isinstance(action, StoreDict) else type(action),
            )
            for action in parser._actions
        }
        for parser in (train_parser(), seen[0])
    ]
    assert options[0] == options[1]
    accepted = inspect.signature(ExperimentManager.__init__).parameters
    renamed = {"args", "env_id", "n_eval_episodes", "uuid_str", "vec_env_type", "config", "show_progress"}
    assert set(accepted) - {"self"} - renamed <= set(options[0])


def test_scripts_still_make_their_parsers_where_nobody_reaches_them():
    for module, function in SCRIPTS.values():
        text = source(module.removeprefix("rl_zoo3.").replace(".", "/"))
        assert "args = parser.parse_args()" in text
        if function is not None:
            assert not inspect.signature(getattr(importlib.import_module(module), function)).parameters


def test_scripts_still_name_the_manager_instead_of_looking_it_up():
    assert "exp_manager = ExperimentManager(" in source("train")


def test_scripts_still_start_each_other_as_new_processes():
    assert 'subprocess.call(["python", "enjoy.py", *arguments])' in source("benchmark")
    assert 'subprocess.call(["python", "-m", "rl_zoo3.record_video", ' in source("record_training")


def test_upload_still_imports_a_name_that_the_hub_package_has_not():
    assert "import _evaluate_agent, _generate_replay, generate_metadata" in source("push_to_hub")
    if version("rl_zoo3") == "2.9.0":
        pytest.skip("RL Zoo 2.9.0 comes with an older hub package, which has it")
    assert not hasattr(importlib.import_module("huggingface_sb3.push_to_hub"), "generate_metadata")
    with patches.hub_metadata():
        importlib.import_module("rl_zoo3.push_to_hub")


def test_scripts_still_know_by_name_which_algorithms_have_a_buffer():
    for module in ("enjoy", "record_video", "push_to_hub"):
        assert 'off_policy_algos = ["qrdqn", "dqn", "ddpg", "sac", "her", "td3", "tqc"]' in source(module)
    assert "ALGOS[self.algo].load(" in source("exp_manager")


def test_scripts_still_read_files_in_ways_that_run_code():
    for module in ("enjoy", "utils", "record_video", "push_to_hub"):
        assert "yaml.load(f, Loader=yaml.UnsafeLoader)" in source(module)
    assert "VecNormalize.load(" in source("utils")
    assert "pickle.load(file_handler)" in source("plots/plot_from_file")


def test_gathered_scores_of_single_runs_are_still_numbers():
    assert "last_evals = np.array(last_eval).squeeze().mean(axis=-1)" in source("plots/all_plots")


def test_plots_are_still_shown_by_pyplot():
    for module in ("plot_train", "plot_from_file", "all_plots"):
        assert "plt.show()" in source(f"plots/{module}")


def test_nothing_stays_replaced(command):
    before = (yaml.load, VecNormalize.load, pickle.load, ScratchDDPG.load.__func__)
    assert command(lambda: yaml.load) is not before[0]
    assert (yaml.load, VecNormalize.load, pickle.load, ScratchDDPG.load.__func__) == before
