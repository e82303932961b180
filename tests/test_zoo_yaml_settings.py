"""The YAML files that ship: what RL Zoo's own say, no value that is code, and errors that name what is wrong."""

import re
from pathlib import Path

import pytest
import rl_zoo3
import yaml

from sb3_ddpg_scratch import ArgumentError
from sb3_ddpg_scratch.errors import near
from sb3_ddpg_scratch.zoo import ALGO, hyperparams_folder, preset_file, preset_names
from sb3_ddpg_scratch.zoo.registry import check_env
from sb3_ddpg_scratch.zoo.yaml_settings import (
    check_settings,
    default_file,
    mapping_from_text,
    plain_numbers,
    read_settings,
    section_for,
)

FILES = sorted(hyperparams_folder().glob("*.yml"))
OURS = read_settings(default_file())
RL_ZOO = read_settings(preset_file("rl_zoo"))
THEIRS = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ddpg.yml").read_text())
# Every text that a file may hold: names, which are looked up, and linear schedules, which are parsed.
NAMES = {
    "MlpPolicy",
    "MultiInputPolicy",
    "SimbaPolicy",
    "HerReplayBuffer",
    "future",
    "gaussian",
    "ou",
    "normal",
    "ornstein-uhlenbeck",
    "relu",
    "batch",
    "episode",
    "lin_7e-4",
}


def texts(value):
    if isinstance(value, dict):
        return [text for entry in value.values() for text in texts(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in texts(entry)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_is_valid_and_holds_no_code(path):
    content = read_settings(path)
    assert content
    for section, settings in content.items():
        check_settings(settings, section)
        assert {text for text in texts(settings) if not re.fullmatch(r"lin_[\d.e-]+", text)} <= NAMES
        assert isinstance(settings["n_timesteps"], int)


@pytest.mark.parametrize("env_id", THEIRS)
def test_preset_rl_zoo_is_the_zoos_file(env_id):
    theirs = dict(THEIRS[env_id])
    if "policy_kwargs" in theirs:
        theirs["policy_kwargs"] = mapping_from_text("policy_kwargs", theirs["policy_kwargs"])
    assert RL_ZOO[env_id] == theirs


def test_mujoco_is_there_in_both_versions():
    for name in ("HalfCheetah", "Ant", "Hopper", "Walker2d", "Humanoid", "Swimmer"):
        assert f"{name}-v5" in OURS
        assert RL_ZOO[f"{name}-v5"] == THEIRS[f"{name}-v4"] | {"policy_kwargs": {"net_arch": [400, 300]}}
    assert {"InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5"} < set(OURS)


@pytest.mark.parametrize("env_id", sorted(OURS.keys() - {"default"}))
def test_shipped_settings_are_for_environments_that_are_here(env_id):
    if env_id.startswith(("Fetch", "PointMaze")):
        pytest.importorskip("gymnasium_robotics")
    check_env(env_id)


def test_preset_names():
    expected = "blog_post cleanrl lillicrap2015 our_ddpg plotly_notebook rl_zoo simba simple_rl spinning_up tch_rs tianshou"
    assert preset_names() == expected.split()
    assert preset_file("tch_rs").name == "tch_rs.yml"


@pytest.mark.parametrize(("name", "meant"), [("tchrs", "tch_rs"), ("CleanRL", "cleanrl"), ("lillicrap", "lillicrap2015")])
def test_unknown_preset_lists_near_matches(name, meant):
    with pytest.raises(ArgumentError, match=f"Did you mean .*'{meant}'") as caught:
        preset_file(name)
    assert "spinning_up" in str(caught.value)


def test_our_own_file_is_no_preset():
    with pytest.raises(ArgumentError, match="--preset"):
        preset_file(ALGO)


def test_near():
    assert near("pendulum-V1", ["Pendulum-v1", "Ant-v5"]) == "Did you mean 'Pendulum-v1'?"
    assert near("zzz", ["Pendulum-v1"]) == ""


def test_section():
    content = {"default": {}, "Ant-v5": {}}
    assert section_for(content, "Ant-v5", "f.yml") == "Ant-v5"
    assert section_for(content, "Hopper-v5", "f.yml") == "default"
    with pytest.raises(ArgumentError, match=r"--env must be .* f.yml .*: Ant-v5, got 'Ant-v4'\. Did you mean 'Ant-v5'"):
        section_for({"Ant-v5": {}}, "Ant-v4", "f.yml")


VALID = {"policy": "MlpPolicy", "n_timesteps": 100}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rte": 1}, r"f.yml: Ant-v5: key must be .*, got 'learning_rte'. Did you mean 'learning_rate'"),
        ({"policy_kwargs": {"netarch": [8]}}, r"f.yml: Ant-v5: policy_kwargs: key must be .*, got 'netarch'.*'net_arch'"),
        ({"seed": 3}, r"f.yml: Ant-v5: seed is not a setting: give the option --seed"),
        ({"noise_type": "normal", "noise_std": 0.1, "action_noise": "ou"}, "noise_type cannot be combined with action_noise"),
    ],
)
def test_unknown_setting_is_named(settings, message):
    check_settings(VALID, "f.yml: Ant-v5")
    with pytest.raises(ArgumentError, match=message):
        check_settings(VALID | settings, "f.yml: Ant-v5")


@pytest.mark.parametrize("key", ["policy", "n_timesteps"])
def test_missing_setting_is_named(key):
    with pytest.raises(ArgumentError, match=f"f.yml: {key} is required"):
        check_settings({name: value for name, value in VALID.items() if name != key}, "f.yml")


def test_settings_of_the_zoo_and_of_a_policy_of_the_users_own_stay_valid():
    zoo = "n_envs normalize frame_stack env_wrapper vec_env_wrapper callback monitor_kwargs env_kwargs noise_type noise_std"
    check_settings(VALID | dict.fromkeys(zoo.split()), "f.yml")
    check_settings(VALID | {"policy": "mine.Policy", "policy_kwargs": {"depth": 3}}, "f.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2", "mapping from environments"),
        ("Ant-v5: 3", "mapping from environments"),
        ("Ant-v5: {", "YAML without code"),
        ("Ant-v5: !!python/object/apply:os.system ['touch ran']", "YAML without code"),
    ],
)
def test_file_that_is_no_settings(tmp_path, text, message):
    path = tmp_path / "f.yml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        read_settings(path)


def test_missing_file(tmp_path):
    with pytest.raises(ArgumentError, match="No such file"):
        read_settings(tmp_path / "f.yml")


def test_plain_numbers():
    assert yaml.safe_load("1e-3") == "1e-3"
    assert plain_numbers({"a": "1e-3", "b": ["5E2", "lin_1e-3", "MlpPolicy", True, None]}) == {
        "a": 0.001,
        "b": [500.0, "lin_1e-3", "MlpPolicy", True, None],
    }
