"""What the YAML of a trained agent may ask for: nothing that writes a file, calls a class of the program's, or never ends."""

import importlib
import inspect
import random
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import hostile
import pytest
import yaml

from sb3_ddpg_scratch import ArgumentError, ModelFileError, ScratchDDPG, UnsafeFileError
from sb3_ddpg_scratch.zoo import ALGO, saved_settings
from sb3_ddpg_scratch.zoo.saved_settings import check_run, check_run_arguments, check_saved
from sb3_ddpg_scratch.zoo.scripts import run_script

ENV_ID = "Pendulum-v1"
MONITOR, VEC = "stable_baselines3.common.monitor.Monitor", "stable_baselines3.common.vec_env"


class OwnWrapper(gym.Wrapper):
    def __init__(self, env, size=1):
        super().__init__(env)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The folder of a trained agent."""
    run = tmp_path_factory.mktemp("agent") / "logs" / ALGO / f"{ENV_ID}_1"
    (run / ENV_ID).mkdir(parents=True)
    ScratchDDPG("MlpPolicy", ENV_ID, policy_kwargs={"net_arch": [4]}, buffer_size=10, device="cpu").save(run / ENV_ID)
    (run / ENV_ID / "args.yml").write_text(yaml.dump({"env": ENV_ID, "env_kwargs": None}))
    (run / ENV_ID / "config.yml").write_text(yaml.dump({"policy": "MlpPolicy"}))
    return run.parent.parent.parent


@pytest.fixture
def enjoy(agent, tmp_path, monkeypatch):
    """Plays the agent with other settings, in a folder of its own; the files in it stay those of the agent."""
    folder = tmp_path / "downloaded"
    shutil.copytree(agent, folder)
    monkeypatch.chdir(folder)

    def play(*options, **contents):
        for name, content in contents.items():
            file = folder / "logs" / ALGO / f"{ENV_ID}_1" / ENV_ID / f"{name}.yml"
            file.write_text(content if isinstance(content, str) else yaml.dump(content))
        before = sorted(tmp_path.rglob("*"))
        try:
            run_script("enjoy", ["--env", ENV_ID, "--no-render", "-n", "2", "--device", "cpu", "--verbose", "0", *options])
        finally:
            assert sorted(tmp_path.rglob("*")) == before

    return play


OWN = f"{OwnWrapper.__module__}.OwnWrapper"
REFUSED = [
    ("env_wrapper", [{MONITOR: {"filename": "FILE"}}], "would write a file, '.*FILE'"),
    ("env_wrapper", {MONITOR: {"filename": "FILE", "info_keywords": []}}, "would write a file"),
    ("env_wrapper", {"stable_baselines3.common.env_util.Monitor": {"filename": "FILE"}}, "neither on the list"),
    ("env_wrapper", {"gymnasium.wrappers.RecordVideo": {"video_folder": "FILE"}}, "neither on the list"),
    ("env_wrapper", {"gymnasium.wrappers.rendering.RecordVideo": {"video_folder": "FILE"}}, "neither on the list"),
    ("env_wrapper", "gymnasium.wrappers.HumanRendering", "neither on the list"),
    ("env_wrapper", {"stable_baselines3.common.logger.CSVOutputFormat": {"filename": "FILE"}}, "neither on the list"),
    ("env_wrapper", {"stable_baselines3.common.utils.get_latest_run_id": {}}, "neither on the list"),
    ("env_wrapper", "rl_zoo3.wrappers.os.TimeLimit", "neither on the list"),
    ("env_wrapper", {"gymnasium.wrappers.TimeLimit": None}, "neither a name nor a name with arguments"),
    ("env_wrapper", {"gymnasium.wrappers.TimeLimit": {}}, r"does not take these arguments \(missing a required"),
    ("env_wrapper", {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 3, "env": 1}}, "multiple values"),
    ("env_wrapper", {"a.b": {}, "c.d": {}}, "neither a name nor a name with arguments"),
    ("env_wrapper", [["gymnasium.wrappers.TimeLimit"]], "neither a name nor a name with arguments"),
    ("env_wrapper", f"{hostile.__name__}.Recorded", "neither on the list"),
    ("env_wrapper", {OWN: {"size": "/tmp"}}, "may be a path"),
    ("vec_env_wrapper", {f"{VEC}.VecMonitor": {"filename": "FILE"}}, "would write a file"),
    ("vec_env_wrapper", {f"{VEC}.vec_video_recorder.VecVideoRecorder": {"video_folder": "FILE"}}, "neither on the list"),
    ("vec_env_wrapper", f"{VEC}.SubprocVecEnv", "neither on the list"),
    ("vec_env_wrapper", OWN, "neither on the list"),
    ("env_kwargs", {"xml_file": "/etc/passwd"}, "may be a path"),
    ("env_kwargs", {"options": {"deep": ["~root"]}}, "may be a path"),
    ("env_kwargs", [1], "not a mapping of arguments"),
    ("frame_stack", "many", "not a number of frames"),
    ("frame_stack", -1, "not a number of frames"),
    ("normalize", [True], "neither true, false nor a mapping"),
    ("normalize", "dict(norm_obs=__import__('os'))", "normalize"),
    ("monitor_kwargs", {"filename": "FILE"}, "would write a file"),
    ("replay_buffer_class", 3, "not a name"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused(tmp_path, enjoy, key, value, message):
    value = yaml.safe_load(yaml.safe_dump(value).replace("FILE", str(tmp_path / "FILE")))
    with pytest.raises((UnsafeFileError, ArgumentError), match=message) as caught:
        enjoy(config={"policy": "MlpPolicy", key: value})
    assert key in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    if isinstance(caught.value, UnsafeFileError):
        assert "config.yml" in str(caught.value)
        assert "--trusted" in str(caught.value)


def test_trust_builds_whatever_is_named(tmp_path, enjoy):
    with pytest.raises(AssertionError):  # of the fixture, which sees the file
        enjoy("--trusted", config={"env_wrapper": [{MONITOR: {"filename": str(tmp_path / "FILE")}}]})
    assert (tmp_path / "FILE.monitor.csv").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"env_wrapper": "gymnasium.wrappers.FlattenObservation"},
        {"env_wrapper": [{"gymnasium.wrappers.common.TimeLimit": {"max_episode_steps": 5}}, "rl_zoo3.wrappers.FrameSkip"]},
        {"env_wrapper": {MONITOR: {"allow_early_resets": False}}, "vec_env_wrapper": [f"{VEC}.VecMonitor"]},
        {"env_wrapper": [{OWN: {"size": 2}}], "vec_env_wrapper": f"{VEC}.vec_check_nan.VecCheckNan"},
        {"env_kwargs": {"g": 9.0}, "normalize": False, "frame_stack": 1, "monitor_kwargs": None, "env_wrapper": None},
        {"callback": {"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 1, "save_path": "x"}}},
    ],
)
def test_what_is_played(enjoy, config):
    """Callbacks are of no concern here: nothing is trained."""
    enjoy(config=config | {"policy": "MlpPolicy"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"env_wrapper": {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": "x"}}}, "env_wrapper must be one that fits"),
        ({"env_kwargs": {"unknown": 1}}, "file's env_kwargs do not fit the environment: .*unknown"),
        ({"normalize": True}, "--folder must be one with an agent whose settings fit its model .*vecnormalize.pkl not found"),
        ({"frame_stack": 3, "normalize": False}, "--folder must be one with an agent .*observation shape"),
        ({"vec_env_wrapper": {f"{VEC}.VecExtractDictObs": {"key": "a"}}}, "vec_env_wrapper must be one that fits"),
    ],
)
def test_settings_that_do_not_fit_the_environment_are_named(enjoy, config, message):
    with pytest.raises(ArgumentError, match=message):
        enjoy(config=config)


@pytest.mark.parametrize(
    "content", ["", "- 1", "3", "[[[[", "a: !!python/name:os.system ''", "&a [*a]", "env_wrapper: &a [*a]"]
)
@pytest.mark.parametrize("name", ["args", "config"])
def test_what_is_no_mapping(enjoy, name, content):
    with pytest.raises(UnsafeFileError, match=rf"{name}\.yml"):
        enjoy(**{name: content})


def test_references_that_repeat_themselves(enjoy):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    begun = time.monotonic()
    for name in ("args", "config"):
        with pytest.raises(UnsafeFileError, match="repeat themselves"):
            enjoy(**{name: "\n".join([*lines, "env_kwargs: {a: *a11}"])})
        enjoy(**{name: yaml.dump({"env_kwargs": None, "env": ENV_ID})})
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("env", ["antigravity:Some-v0", "-h", "a/b/c", "../x", ""])
def test_environments_that_would_import_a_module(tmp_path, env):
    with pytest.raises(UnsafeFileError, match=r"args\.yml.*env.*is not a name"):
        check_saved({"env": env, "env_kwargs": None}, tmp_path / "args.yml")
    check_saved({"env": "ALE/Pong-v5"}, tmp_path / "args.yml")


def test_every_class_on_the_lists_is_there_and_takes_no_path():
    for modules, base in saved_settings._BUILT.values():
        for module, names in modules.items():
            for name in names.split():
                kind = getattr(importlib.import_module(module), name)
                assert issubclass(kind, base)
                named = " ".join(inspect.signature(kind).parameters).replace("filename", "")
                assert not [part for part in ("path", "file", "folder", "dir", "log", "save") if part in named], name


# ---------------------------------------------------------------------------------------------------------- Runs to resume

CHECKPOINTS = "stable_baselines3.common.callbacks.CheckpointCallback"


NOT_RESUMED = [
    {CHECKPOINTS: {"save_freq": 1, "save_path": "x"}},
    "subprocess.Popen",
    [{"os.system": {}}],
    "antigravity.webbrowser",
]


def test_callbacks_of_a_run_to_resume(tmp_path, monkeypatch):
    for value in NOT_RESUMED:
        with pytest.raises(UnsafeFileError, match=r"config\.yml, key 'callback': it names"):
            check_run({"callback": value}, tmp_path / "config.yml")
    check_run({"callback": {"stable_baselines3.common.callbacks.LogEveryNTimesteps": {"n_steps": 3}}}, tmp_path / "config.yml")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_callbacks.py").write_text("")
    check_run({"callback": [{"own_callbacks.Own": {"path": "/tmp"}}], "env_wrapper": "own_callbacks.Wrapper"}, "config.yml")
    assert "own_callbacks" not in sys.modules


def test_arguments_of_a_run_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_run_arguments({"env": ENV_ID, "tensorboard_log": "logs", "storage": None, "track": False}, "args.yml")
    for key, value in {"storage": "sqlite:////x.db", "track": True, "tensorboard_log": "../x", "env": "a:b"}.items():
        with pytest.raises(UnsafeFileError, match=rf"args\.yml, key '{key}'"):
            check_run_arguments({key: value}, "args.yml")


def test_a_run_cannot_ask_for_trust(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "logs" / ALGO / f"{ENV_ID}_1"
    small = ["policy_kwargs:dict(net_arch=[4])", "buffer_size:50", "learning_starts:40"]
    run_script("train", ["-n", "20", "--eval-freq", "-1", "--checkpoint-every", "10", "--verbose", "0", "-params", *small])
    file = run / ENV_ID / "config.yml"
    saved = yaml.load(file.read_text(), yaml.UnsafeLoader)
    file.write_text(yaml.dump(dict(saved) | {"callback": {CHECKPOINTS: {"save_freq": 1, "save_path": str(tmp_path / "x")}}}))
    arguments = run / ENV_ID / "args.yml"
    arguments.write_text(
        yaml.dump(dict(yaml.load(arguments.read_text(), yaml.UnsafeLoader)) | {"trusted": True, "n_timesteps": 30})
    )
    with pytest.raises(UnsafeFileError, match="CheckpointCallback"):
        run_script("train", ["--resume", str(run)])
    assert not (tmp_path / "x").exists()
    run_script("train", ["--resume", str(run), "--trusted"])
    assert (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------------------------- Forged


@pytest.mark.parametrize("seed", range(4))
def test_no_forged_yaml_runs_or_writes_anything(agent, enjoy, tmp_path, monkeypatch, seed):
    rng, played = random.Random(seed), 0
    with hostile.nothing_called(monkeypatch):
        for _ in range(60):
            contents = {rng.choice(["config", "args"]): hostile.forged_yaml(rng, tmp_path / "canary")}
            with suppress(ArgumentError, ModelFileError, gym.error.Error):
                enjoy(**contents)
                played += 1
            enjoy_reset(agent)
    assert 0 < played < 60


def enjoy_reset(agent):
    for file in (agent / "logs" / ALGO / f"{ENV_ID}_1" / ENV_ID).iterdir():
        shutil.copy(file, Path("logs") / ALGO / f"{ENV_ID}_1" / ENV_ID)
