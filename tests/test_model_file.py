"""Reading models without running anybody's code: hostile files, damaged ones, and all the ordinary ones."""

import importlib
import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from collections import deque
from contextlib import suppress
from enum import Enum

import gym_era
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import POLICY_OF, PointEnv
from gymnasium import spaces
from hostile import (
    Reduces,
    calls,
    forged_model,
    nothing_called,
    payloads,
    pickled,
    rewrite,
    tensors_with,
    text,
    with_settings,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pickle_writer import global_of
from sb3_contrib import TQC
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, get_linear_fn
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.td3.policies import TD3Policy

from sb3_ddpg_scratch import ArgumentError, GaussianNoise, OUNoise, ScratchDDPG, SimbaPolicy
from sb3_ddpg_scratch.errors import ModelFileError, UnsafeFileError
from sb3_ddpg_scratch.model_file import load_vec_normalize, read_pickle
from sb3_ddpg_scratch.model_file.allowlist import BUILT, own_class
from sb3_ddpg_scratch.model_file.arrays import array_from_buffer
from sb3_ddpg_scratch.model_file.pickles import DataUnpickler
from sb3_ddpg_scratch.parity import compare_models
from tests.own_policies import OwnPolicy, PlainPolicy

SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 200, "learning_starts": 10, "batch_size": 8, "seed": 0}
SMALL |= {"device": "cpu"}
OURS = SMALL | {"updater": "autograd"}
NAMES = list(payloads(None))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model_zip(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.zip"
    ScratchDDPG("MlpPolicy", PointEnv(), **OURS).learn(20).save(path)
    return path


@pytest.fixture(scope="module")
def settings_of(model_zip):
    with zipfile.ZipFile(model_zip) as archive:
        return json.loads(archive.read("data"))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The hostile pickles, beside a file that they would make and functions that they would call; checked after the test."""
    called = []
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    pickles = payloads(path)
    for module, name in ((os, "system"), (subprocess, "Popen"), (subprocess, "call")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: called.append(args))
    before = set(sys.modules)
    yield pickles
    assert not called
    assert not path.exists()
    assert "antigravity" not in set(sys.modules) - before


# ----------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_in_the_settings_runs_anything(model_zip, tmp_path, canary, name):
    content = canary[name]
    for key in ("policy_class", "policy_kwargs", "action_noise", "an_attribute"):
        path = with_settings(model_zip, tmp_path / "hostile.zip", {key: content})
        with pytest.raises(ModelFileError) as error:
            ScratchDDPG.load(path)
        assert (error.value.member, error.value.key) == ("data", key)
        assert "custom_objects" in str(error.value)
        assert "trusted=True" in str(error.value)


def test_nor_under_any_other_key(model_zip, settings_of, tmp_path, canary):
    content = canary["os.system"]
    # These follow from others and are not even read.
    recomputed = {"lr_schedule", "qf_lr_schedule"} & set(settings_of)
    assert recomputed
    for key in settings_of:
        path = with_settings(model_zip, tmp_path / "hostile.zip", {key: content})
        if key in recomputed:
            ScratchDDPG.load(path)
            continue
        with pytest.raises(UnsafeFileError, match=r"posix\.system") as error:
            ScratchDDPG.load(path)
        assert error.value.key == key


@pytest.mark.parametrize("name", NAMES)
def test_no_replay_buffer_and_no_statistics_run_anything(tmp_path, canary, name):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(canary[name])
    with pytest.raises(ModelFileError, match=r"hostile\.pkl"):
        load_vec_normalize(path, None)
    with pytest.raises(ModelFileError, match="trusted=True"):
        read_pickle(path)


@pytest.mark.parametrize("member", ["policy.pth", "actor.optimizer.pth", "pytorch_variables.pth"])
def test_no_member_of_tensors_runs_anything(model_zip, tmp_path, canary, member):
    model = ScratchDDPG.load(model_zip)
    for name in ("os.system", "builtins.eval", "torch storage", "cloudpickle lambda"):
        content = canary[name]
        for hostile in (content, None):

            def change(members, content=content, hostile=hostile):
                members[member] = hostile or tensors_with(content, members[member])

            path = rewrite(model_zip, tmp_path / "hostile.zip", change)
            for read in (ScratchDDPG.load, model.set_parameters):
                with pytest.raises(ModelFileError) as error:
                    read(path)
                assert error.value.member == member


def test_python_itself_would_have_run_them(tmp_path):
    """The payloads are real: Python's own unpickler makes the file."""
    path = tmp_path / "made"
    for name in ("os.system", "builtins.exec", "pathlib", "cloudpickle by value", "pickle.loads"):
        pickle.loads(payloads(path)[name])
        assert path.exists(), name
        path.unlink()


def test_trusted_loads_as_sb3_does(model_zip, tmp_path):
    made = tmp_path / "made"
    path = with_settings(model_zip, tmp_path / "model.zip", {"extra": pickle.dumps(Reduces(os.system, f"touch {made}"))})
    with pytest.raises(UnsafeFileError, match=r"system.*trusted=True"):
        ScratchDDPG.load(path)
    ScratchDDPG.load(path, custom_objects={"extra": 1})
    assert not made.exists()
    ScratchDDPG.load(path, trusted=True)
    assert made.exists()


class Attribute:
    """An own class whose constructor and call a file must not reach."""

    calls = 0

    def __init__(self, *arguments):
        type(self).calls += 1

    def __call__(self, progress):
        type(self).calls += 1
        return 1e-3


def test_own_classes_give_data_and_are_not_called(model_zip, tmp_path):
    here = Attribute.__module__
    named = global_of(here, "Attribute")
    built = b"\x80\x04" + named + b")\x81}" + text("value") + b"K\x05sb."
    loaded = ScratchDDPG.load(with_settings(model_zip, tmp_path / "own.zip", {"extra": built}))
    assert (type(loaded.extra), loaded.extra.value, Attribute.calls) == (Attribute, 5, 0)
    for hostile in (b"\x80\x04" + named + b")R.", b"\x80\x04" + named + b"K\x01\x85\x81.", b"\x80\x04" + named + b"."):
        for key in ("learning_rate", "action_noise", "policy_class", "replay_buffer_class"):
            with pytest.raises(ModelFileError):
                ScratchDDPG.load(with_settings(model_zip, tmp_path / "own.zip", {key: hostile}))
    extractor = b"\x80\x04}" + text("features_extractor_class") + named + b"s."
    with pytest.raises(UnsafeFileError, match="which is not a BaseFeaturesExtractor"):
        ScratchDDPG.load(with_settings(model_zip, tmp_path / "own.zip", {"policy_kwargs": extractor}))
    assert Attribute.calls == 0


class Recorded(th.nn.Module):
    """A class of the program's that must not be called while a file is read."""

    calls = 0

    def __init__(self, *arguments, **named):
        type(self).calls += 1
        super().__init__()

    def __call__(self, *arguments, **named):
        type(self).calls += 1

    __hash__ = __eq__ = __iter__ = __getitem__ = __float__ = __lt__ = __ge__ = __bool__ = __call__


class OwnSchedule:
    def __init__(self, size):
        self.size = size

    def __call__(self, progress):
        return self.size * progress


def built(kind, **attributes):
    return gym_era.instance(kind.__module__, kind.__name__, **attributes)


def named(kind):
    return gym_era.Named(kind.__module__, kind.__name__)


@pytest.fixture
def uncalled(monkeypatch):
    """The class and an instance of it, as files name them."""
    monkeypatch.setattr(Recorded, "calls", 0)
    yield named(Recorded), built(Recorded)
    assert Recorded.calls == 0


SETTINGS_THAT_ARE_CLASSES = [
    "features_extractor_class",
    "activation_fn",
    "optimizer_class",
    "replay_buffer_class",
    "policy_class",
]


@pytest.mark.parametrize("setting", SETTINGS_THAT_ARE_CLASSES)
def test_settings_that_are_classes_are_of_their_kind(model_zip, tmp_path, uncalled, setting):
    own, instance = uncalled
    wrong = [
        instance,
        built(FloatSchedule, value_schedule=own),
        built(LinearSchedule, start=1.0, end=1.0, end_fraction=1.0),
        3,
    ]
    wrong += [named(NormalActionNoise), named(np.float32), gym_era.function("1.6", gym_era.SB3_UTILS, "constant_fn", val=1.0)]
    wrong += [] if setting == "activation_fn" else [own]
    for value in wrong:
        inside = {"net_arch": [8], setting: value}
        key, content = (
            ("policy_kwargs", inside) if setting not in ("replay_buffer_class", "policy_class") else (setting, value)
        )
        path = with_settings(model_zip, tmp_path / "x.zip", {key: gym_era.dumps(content)})
        with pytest.raises(ModelFileError) as caught:
            ScratchDDPG.load(path)
        assert (caught.value.key, setting in str(caught.value)) == (key, True)


@pytest.mark.parametrize("key", ["learning_rate", "qf_learning_rate"])
def test_schedules_hold_numbers(model_zip, tmp_path, uncalled, key):
    own, instance = uncalled
    zoo = gym_era.instance("rl_zoo3.utils", "SimpleLinearSchedule", initial_value=instance)
    wrong = [
        own,
        instance,
        named(FloatSchedule),
        named(np.float32),
        built(NormalActionNoise),
        built(ConstantSchedule, val=own),
        zoo,
    ]
    wrong += [built(FloatSchedule, value_schedule=value) for value in (own, instance, built(FloatSchedule))]
    wrong += [built(LinearSchedule, start=1.0, end=own, end_fraction=1.0), built(FloatSchedule), True, [1.0]]
    for value in wrong:
        with pytest.raises(ModelFileError) as caught:
            ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {key: gym_era.dumps(value)}))
        assert caught.value.key == key


def test_a_schedule_of_the_users_own_loads(model_zip, tmp_path):
    for value in (built(OwnSchedule, size=1e-3), built(FloatSchedule, value_schedule=built(OwnSchedule, size=1e-3))):
        loaded = ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {"learning_rate": gym_era.dumps(value)}))
        assert (loaded.lr_schedule(0.5), loaded.actor.optimizer.param_groups[0]["lr"]) == (5e-4, 1e-3)


def test_instances_of_own_classes_are_not_hidden_where_their_members_are_called(model_zip, tmp_path, uncalled):
    own, instance = uncalled
    noise = built(NormalActionNoise, _mu=np.zeros(2), _sigma=np.ones(2))
    space = gym_era.box(spaces.Box(-1, 1, (2,)))
    vectorized = {"n_envs": 1, "_base_noise": noise}
    hidden = {
        "action_noise": [
            instance,
            built(NormalActionNoise, _mu=instance, _sigma=np.ones(2)),
            built(OUNoise, _generator=instance),
            built(VectorizedActionNoise, **vectorized, _noises=[instance]),
            built(VectorizedActionNoise, **vectorized, _noises=[built(VectorizedActionNoise, **vectorized, _noises=[noise])]),
            built(VectorizedActionNoise, n_envs=1, _base_noise=instance, _noises=[noise]),
        ],
        "action_space": [instance, gym_era.box(spaces.Box(-1, 1, (2,)), instance), built(spaces.Dict, spaces={"a": instance})],
        "observation_space": [built(spaces.Dict, spaces={"a": space, "b": instance}), built(spaces.Box, low=instance)],
        "ep_info_buffer": [deque([{"r": instance, "l": 1, "t": 1.0}], maxlen=3), instance],
        "train_freq": [instance, built(TrainFrequencyUnit), gym_era.Made(named(TrainFrequencyUnit), (instance,))],
        "num_timesteps": [instance, own],
        "gamma": [instance, own],
        "extra": [{instance: 1}, {(1, instance): 1}, {1: 2, (instance,): 3}, {instance, 1}, frozenset([instance])],
    }
    for key, values in hidden.items():
        for value in values:
            with pytest.raises(ModelFileError) as caught:
                ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {key: gym_era.dumps(value)}))
            assert caught.value.key == key
    for content in (
        b"\x80\x04(" + gym_era.dumps(instance)[2:-1] + b"K\x01d.",
        b"(" + gym_era.dumps(instance)[2:-1] + b"K\x01d.",
    ):
        with pytest.raises(UnsafeFileError, match="looks something up by"):
            ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {"extra": content}))


class OwnEnum(Enum):
    A = 1

    @classmethod
    def _missing_(cls, value):
        Recorded.calls += 1
        return cls.A


def test_an_own_class_is_not_asked_to_restore_itself(model_zip, tmp_path, monkeypatch):
    stored = gym_era.dumps(gym_era.instance("hostile", "Recorded", x=1))
    with nothing_called(monkeypatch), pytest.raises(UnsafeFileError, match=r"hostile\.Recorded\.__setstate__ is code"):
        ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {"extra": stored}))


@pytest.mark.parametrize("value", [1, 2])
def test_members_of_an_enum_are_looked_up_and_not_made(model_zip, tmp_path, uncalled, value):
    path = with_settings(model_zip, tmp_path / "x.zip", {"extra": gym_era.dumps(gym_era.Made(named(OwnEnum), (value,)))})
    if value == 1:
        assert ScratchDDPG.load(path).extra is OwnEnum.A
    else:
        with pytest.raises(ModelFileError):
            ScratchDDPG.load(path)


def test_no_file_is_logged_to_where_a_model_says(model_zip, tmp_path, monkeypatch):
    here, outside = tmp_path / "here", tmp_path / "outside"
    here.mkdir()
    monkeypatch.chdir(here)
    for folder in (str(outside), "../outside"):
        path = with_settings(model_zip, tmp_path / "x.zip", {"tensorboard_log": folder})
        with pytest.warns(UserWarning, match=r"x\.zip was logged to a folder outside.*give tensorboard_log='.*outside'"):
            ScratchDDPG.load(path, env=PointEnv()).learn(3)
        assert not outside.exists()
    assert ScratchDDPG.load(path, tensorboard_log=str(outside)).tensorboard_log == str(outside)
    with pytest.warns(UserWarning, match="outside"):
        assert ScratchDDPG.load(path).tensorboard_log is None
    path = with_settings(model_zip, tmp_path / "x.zip", {"tensorboard_log": "inside"})
    ScratchDDPG.load(path, env=PointEnv()).learn(3)
    assert list(here.rglob("events.*"))


Renamed = Attribute
NotAClass = 5


def test_only_what_a_module_of_ones_own_defines_is_an_own_class(model_zip, tmp_path):
    """Not what it imported, what it calls by another name, or an object; and no module of Python's or an installed package."""
    here = Attribute.__module__
    assert own_class(here, "Attribute") is Attribute
    foreign = [(here, name) for name in ("PointEnv", "Reduces", "TQC", "Renamed", "NotAClass", "np", "missing")]
    foreign += [("json.decoder", "JSONDecoder"), ("rich.console", "Console"), ("never_imported", "Attribute")]
    foreign += [("sb3_ddpg_scratch.parity", "ParityResult"), ("builtins", "object")]
    for module, name in foreign:
        assert own_class(module, name) is None, (module, name)
        built = b"\x80\x04" + global_of(module, name) + b")\x81."
        with pytest.raises(UnsafeFileError):
            ScratchDDPG.load(with_settings(model_zip, tmp_path / "own.zip", {"extra": built}))


@pytest.mark.parametrize(
    "name", ["env", "_setup_model", "predict", "learn", "policy", "_logger", "__class__", "set_parameters", "not a name"]
)
def test_settings_replace_no_part_of_the_algorithm(model_zip, tmp_path, canary, name):
    path = with_settings(model_zip, tmp_path / "hostile.zip", {name: "antigravity:Some-v0"})
    with pytest.raises(UnsafeFileError, match="take the place") as error:
        ScratchDDPG.load(path)
    assert error.value.key == name


def test_every_listed_class_is_there():
    import importlib

    for module, names in BUILT.items():
        for name in names:
            assert getattr(importlib.import_module(module), name).__module__ == module


# ---------------------------------------------------------------------------------------------------------- made-up numbers


NUMPY = {
    "a large empty array": b"\x80\x04"
    + global_of("numpy._core.multiarray", "_reconstruct")
    + global_of("numpy", "ndarray")
    + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85C\x01b\x87R.",
    "a structured dtype": calls("numpy", "dtype", "f4,O"),
    "a dtype of pointers": b"\x80\x04"
    + global_of("numpy", "dtype")
    + text("f4")
    + b"\x85R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb.",
    "objects from bytes": b"\x80\x04"
    + global_of("numpy._core.numeric", "_frombuffer")
    + b"(C\x08AAAAAAAA"
    + global_of("numpy", "dtype")
    + text("O8")
    + b"\x85RK\x01\x85"
    + text("C")
    + b"tR.",
    "a shape that does not fit": b"\x80\x04"
    + global_of("numpy._core.numeric", "_frombuffer")
    + b"(C\x08AAAAAAAA"
    + global_of("numpy", "dtype")
    + text("f4")
    + b"\x85RK\x63\x85"
    + text("C")
    + b"tR.",
    "an object as a scalar": b"\x80\x04"
    + global_of("numpy._core.multiarray", "scalar")
    + global_of("numpy", "dtype")
    + text("O8")
    + b"\x85R"
    + text("x")
    + b"\x86R.",
    "a call of ndarray": b"\x80\x04" + global_of("numpy", "ndarray") + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    "bytes that are not there": b"\x80\x05\x96" + (10**14).to_bytes(8, "little") + b"abc.",
    "a text that is not there": b"\x80\x04\x8d" + (10**13).to_bytes(8, "little") + b"abc.",
    "a frame that is not there": b"\x80\x04\x95" + (10**13).to_bytes(8, "little") + b"abc.",
    "a generator of another kind": calls("numpy.random._pickle", "__bit_generator_ctor", "Philox"),
    "a deque of a file": calls("collections", "deque", "abc", "x"),
}


@pytest.mark.parametrize("name", list(NUMPY))
def test_numbers_that_numpy_never_wrote_are_refused(tmp_path, name):
    path = tmp_path / "numbers.pkl"
    path.write_bytes(NUMPY[name])
    with pytest.raises(ModelFileError):
        read_pickle(path)


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6.0).reshape(2, 3).T,
    np.arange(12).reshape(3, 4)[:, ::2],
    np.array([True, False]),
    np.array(3.5),
    np.zeros((0, 4), np.float32),
    np.array([{"a": 1}, None], object),
    np.array(["ab", "c"]),
    np.arange(4, dtype=">i2"),
    np.float32(1.5),
    np.int64(-3),
    np.bool_(True),
]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("value", ARRAYS, ids=str)
def test_arrays_come_back_as_from_pythons_own(tmp_path, value, protocol):
    path = tmp_path / "array.pkl"
    path.write_bytes(pickle.dumps({"value": [value]}, protocol))
    read = read_pickle(path)["value"][0]
    # Which is not always as they were: old pickles turn the byte order round.
    value = pickle.loads(path.read_bytes())["value"][0]
    assert (type(read), read.dtype, read.shape) == (type(value), value.dtype, value.shape)
    np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.SFC64])
def test_generators_go_on_where_they_were(tmp_path, kind):
    generator = np.random.Generator(kind(7))
    generator.random(5)
    path = tmp_path / "generator.pkl"
    path.write_bytes(pickle.dumps(generator))
    read = read_pickle(path)
    assert [*read.random(3), *read.spawn(2)[1].random(2)] == [*generator.random(3), *generator.spawn(2)[1].random(2)]


# ----------------------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "C:\\outside", "..\\outside", "a//b"])
def test_names_that_point_elsewhere(model_zip, tmp_path, name):
    path = rewrite(model_zip, tmp_path / "x.zip", lambda members: members.update({name: b"x"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeFileError, match=r"points out|not one of"):
        ScratchDDPG.load(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(model_zip, tmp_path):
    path = rewrite(model_zip, tmp_path / "x.zip", lambda members: None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data", b"{}")
    with pytest.raises(UnsafeFileError, match="twice"):
        ScratchDDPG.load(path)


@pytest.mark.parametrize("member", ["data", "policy.pth", "unknown"])
def test_a_bomb_does_not_go_off(model_zip, tmp_path, member):
    def change(members):
        members[member] = bytes(50_000_000)

    path = rewrite(model_zip, tmp_path / "bomb.zip", change, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(UnsafeFileError, match="would unpack to 50000000") as error:
        ScratchDDPG.load(path)
    assert error.value.member == member


def test_a_bomb_inside_of_the_tensors(model_zip, tmp_path):
    def change(members):
        made = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(members["policy.pth"])) as inner,
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for name in inner.namelist():
                out.writestr(name, bytes(50_000_000) if name.endswith("data/0") else inner.read(name))
        members["policy.pth"] = made.getvalue()

    with pytest.raises(UnsafeFileError, match="would unpack") as error:
        ScratchDDPG.load(rewrite(model_zip, tmp_path / "bomb.zip", change))
    assert error.value.member == "policy.pth"


def test_the_limit_can_be_raised_and_says_how(model_zip):
    with pytest.raises(UnsafeFileError, match=r"at most 5000 are read.*max_bytes="):
        ScratchDDPG.load(model_zip, max_bytes=5000)
    model = ScratchDDPG.load(model_zip, max_bytes=100_000)
    with pytest.raises(UnsafeFileError, match="max_bytes="):
        model.set_parameters(model_zip, max_bytes=5000)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_headers_that_lie(model_zip, tmp_path, factor):
    content = bytearray(rewrite(model_zip, tmp_path / "x.zip", lambda members: None, zipfile.ZIP_DEFLATED).read_bytes())
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        size = archive.getinfo("data").file_size
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = int(size * factor).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ModelFileError) as error:
        ScratchDDPG.load(tmp_path / "x.zip")
    assert error.value.member == "data"


def test_an_encrypted_member(model_zip, tmp_path):
    content = bytearray(model_zip.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UnsafeFileError, match="encrypted"):
        ScratchDDPG.load(tmp_path / "x.zip")


def state_dict_change(member, change):
    def rewrite_member(members):
        state = th.load(io.BytesIO(members[member]), weights_only=True)
        change(state)
        out = io.BytesIO()
        th.save(state, out)
        members[member] = out.getvalue()

    return rewrite_member


WRONG_TENSORS = {
    "shape": ("policy.pth", lambda state: state.update({"actor.mu.0.weight": th.zeros(8, 4)}), r"\(8, 4\).*\(8, 3\)"),
    "dtype": ("policy.pth", lambda state: state.update({"actor.mu.0.weight": th.zeros(8, 3, dtype=th.float64)}), "float64"),
    "missing": ("policy.pth", lambda state: state.pop("actor.mu.0.weight"), "lacks"),
    "more": ("policy.pth", lambda state: state.update({"actor.mu.9.weight": th.zeros(1)}), "the policy has no such parameter"),
    "no tensor": ("policy.pth", lambda state: state.update({"actor.mu.0.weight": [1.0]}), "list and not a tensor"),
    "stretched": (
        "actor.optimizer.pth",
        lambda state: state["state"][0].update(exp_avg=th.zeros(1).expand(10**9, 10**6)),
        r"shape is \(1000000000, 1000000\)",
    ),
    "fewer": ("actor.optimizer.pth", lambda state: state["param_groups"][0].update(params=[0]), r"\[1\] parameters"),
    "groups": ("actor.optimizer.pth", lambda state: state.update(param_groups=[]), "the optimizer has"),
    "nothing": ("critic.optimizer.pth", lambda state: state.clear(), "not an optimizer's state"),
}


@pytest.mark.parametrize("name", list(WRONG_TENSORS))
def test_weights_that_do_not_fit(model_zip, tmp_path, name):
    member, change, message = WRONG_TENSORS[name]
    path = rewrite(model_zip, tmp_path / "x.zip", state_dict_change(member, change))
    model = ScratchDDPG.load(model_zip)
    for read in (ScratchDDPG.load, model.set_parameters):
        with pytest.raises(ModelFileError, match=message) as error:
            read(path)
        assert error.value.member == member
    assert max(compare_models(model, ScratchDDPG.load(model_zip)).values()) == 0


@pytest.mark.parametrize("member", ["data", "policy.pth", "critic.optimizer.pth"])
def test_a_member_that_is_missing(model_zip, tmp_path, member):
    with pytest.raises(ModelFileError) as error:
        ScratchDDPG.load(rewrite(model_zip, tmp_path / "x.zip", lambda members: members.pop(member)))
    assert error.value.member == member


SETTINGS = {
    "gamma": 5.0,
    "policy_class": "MlpPolicy",
    "observation_space": 3,
    "policy_kwargs": [1],
    "train_freq": "often",
    "policy_kwargs ": None,
    "batch_size": pickled(pickle.dumps([1])),
    "action_noise": pickled(pickle.dumps({"type": "unknown"})),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_settings_of_the_wrong_kind(model_zip, tmp_path, name):
    with pytest.raises((ModelFileError, ArgumentError), match=name.strip()):
        ScratchDDPG.load(with_settings(model_zip, tmp_path / "x.zip", {name: SETTINGS[name]}))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"\x80\x04."])
def test_what_is_no_zip(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="zip"):
        ScratchDDPG.load(path)


def outcome(content):
    try:
        return ScratchDDPG.load(io.BytesIO(content), device="cpu")
    except (ModelFileError, ArgumentError):
        return None


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(model_zip, place, bit):
    content = bytearray(model_zip.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    loaded = outcome(bytes(content))
    assert loaded is None or max(compare_models(loaded, ScratchDDPG.load(model_zip)).values()) == 0


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True))
@example(place=0.999)
def test_a_truncated_file_is_noticed(model_zip, place):
    content = model_zip.read_bytes()
    assert outcome(content[: int(place * len(content))]) is None


@FUZZ
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 30))
def test_no_bytes_bring_the_unpickler_down(tmp_path_factory, junk, place, length):
    whole = pickle.dumps([NormalActionNoise(np.zeros(2), np.ones(2)), spaces.Box(-1, 1, (2,))])
    path = tmp_path_factory.getbasetemp() / "junk.pkl"
    path.write_bytes(whole[:place] + junk + whole[place + length :])
    with suppress(ModelFileError):
        read_pickle(path)


@pytest.mark.parametrize("seed", range(4))
def test_no_forged_model_runs_or_writes_anything(model_zip, tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    rng, loaded = random.Random(seed), 0
    with nothing_called(monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(300):
            path = forged_model(rng, model_zip, tmp_path / "forged.zip")
            env = rng.choice([None, PointEnv()])
            with suppress(ModelFileError, ArgumentError):
                model = ScratchDDPG.load(path, env=env, device="cpu")
                model.predict(np.zeros((1, 3), np.float32))
                loaded += 1
            assert [file.name for file in tmp_path.iterdir()] == ["forged.zip"], number
    assert 0 < loaded < 300


# ----------------------------------------------------------------------------------------------------------------- ordinary


class OwnNoise(ActionNoise):
    """An action noise of the user's own."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __call__(self):
        return np.full(2, self.size)


class OwnExtractor(FlattenExtractor):
    """A features extractor of the user's own."""


TWO = (np.zeros(2), np.full(2, 0.1))
ORDINARY = {
    "ours": (ScratchDDPG, "vector", {}),
    "ours, dict": (ScratchDDPG, "dict", {}),
    "ours, image": (ScratchDDPG, "image", {}),
    "ours, Gaussian noise": (ScratchDDPG, "vector", {"action_noise": GaussianNoise(*TWO, seed=3)}),
    "ours, two rates": (ScratchDDPG, "vector", {"qf_learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)}),
    "ours, three environments": (ScratchDDPG, "vector", {"n_envs": 3}),
    "ours, own noise": (ScratchDDPG, "vector", {"action_noise": OwnNoise(0.5)}),
    "ours, own extractor": (
        ScratchDDPG,
        "vector",
        {"policy_kwargs": {"features_extractor_class": OwnExtractor, "net_arch": [8]}},
    ),
    "ours, AdamW": (
        ScratchDDPG,
        "vector",
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "activation_fn": th.nn.Tanh, "net_arch": [8], "norm": "batch"}},
    ),
    "SB3's DDPG": (DDPG, "vector", {"action_noise": NormalActionNoise(*TWO)}),
    "ours, simba": (ScratchDDPG, "vector", {"policy": SimbaPolicy, "policy_kwargs": {"net_arch": [8]}}),
    "ours, own policy": (ScratchDDPG, "vector", {"policy": OwnPolicy}),
    "SB3's DDPG, own policy": (DDPG, "vector", {"policy": OwnPolicy}),
    "SB3's DDPG, plain policy": (DDPG, "vector", {"policy": PlainPolicy}),
    "SB3's TD3, own policy": (TD3, "vector", {"policy": OwnPolicy, "policy_kwargs": {"net_arch": [8], "dropout": 0.5}}),
    "SB3's DDPG, dict": (DDPG, "dict", {}),
    "SB3's TD3, schedule": (TD3, "vector", {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)}),
    "SB3's TD3, image": (TD3, "image", {}),
    "SB3's TD3, three": (TD3, "vector", {"n_envs": 3, "action_noise": OrnsteinUhlenbeckActionNoise(*TWO)}),
    "SB3's TD3, AdamW": (
        TD3,
        "vector",
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "activation_fn": th.nn.ELU, "net_arch": {"pi": [8], "qf": [4]}}},
    ),
    "SB3's TD3, train by episode": (TD3, "vector", {"train_freq": (1, "episode")}),
}


@pytest.mark.parametrize("name", list(ORDINARY))
def test_ordinary_models_load_without_trust(tmp_path, name):
    model_class, observation, extra = ORDINARY[name]
    extra = dict(extra)
    env = make_vec_env(PointEnv, extra.pop("n_envs", 1), env_kwargs={"observation": observation}, seed=0)
    base = OURS if model_class is ScratchDDPG else SMALL
    # A random warm-up and one update: what is learned is not the point.
    policy = extra.pop("policy", POLICY_OF[observation])
    model = model_class(policy, env, **base | {"learning_starts": 3, "batch_size": 2} | extra).learn(6)
    model.save(tmp_path / "model")
    safe = ScratchDDPG.load(tmp_path / "model", updater="autograd", device="cpu")
    trusted = ScratchDDPG.load(tmp_path / "model", updater="autograd", device="cpu", trusted=True)
    assert max(compare_models(safe, trusted).values()) == 0
    assert max(compare_models(safe, model).values()) == 0
    for key, value in vars(trusted).items():
        if key not in (
            "policy",
            "actor",
            "critic",
            "actor_target",
            "critic_target",
            "_updater",
            "_after_learn",
            "replay_buffer",
        ):
            assert described(getattr(safe, key)) == described(value), key
    safe.set_env(env)
    safe.learn(5, reset_num_timesteps=False)


def described(value):
    """A setting as something that can be compared."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, (ActionNoise, spaces.Space, LinearSchedule)) or type(value).__name__.endswith("Schedule"):
        return {key: described(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist()
    if isinstance(value, list):
        return [described(item) for item in value]
    return value


def test_a_schedule_that_is_a_function_needs_a_word(tmp_path):
    DDPG("MlpPolicy", PointEnv(), learning_rate=lambda left: 1e-3 * left, **SMALL).save(tmp_path / "model")
    with pytest.raises(UnsafeFileError, match=r"learning_rate.*it is a function.*custom_objects"):
        ScratchDDPG.load(tmp_path / "model")
    replaced = ScratchDDPG.load(tmp_path / "model", custom_objects={"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)})
    assert replaced.learning_rate(0.75) == ScratchDDPG.load(tmp_path / "model", trusted=True).learning_rate(0.75)


def test_a_function_that_follows_from_a_number_does_not(model_zip, tmp_path):
    """SB3 before 2.7 saved the schedule that it had made of the learning rate, as a function."""
    import cloudpickle

    path = with_settings(model_zip, tmp_path / "old.zip", {"lr_schedule": cloudpickle.dumps(lambda progress: 1e-3)})
    assert ScratchDDPG.load(path).lr_schedule(1.0) == 1e-3


BUFFERS = {
    "packed": (ScratchDDPG, "vector", SMALL),
    "packed, n-step": (ScratchDDPG, "vector", SMALL | {"n_steps": 3}),
    "packed, memory saved": (ScratchDDPG, "vector", SMALL | {"optimize_memory_usage": True}),
    "SB3's": (ScratchDDPG, "vector", OURS),
    "SB3's, n-step": (ScratchDDPG, "vector", OURS | {"n_steps": 3}),
    "SB3's, dict": (ScratchDDPG, "dict", OURS),
    "of SB3's DDPG": (DDPG, "vector", SMALL),
}


@pytest.mark.parametrize("name", list(BUFFERS))
def test_replay_buffers_load_without_trust(tmp_path, name):
    model_class, observation, extra = BUFFERS[name]
    extra = extra | {"learning_starts": 1000}
    model = model_class(POLICY_OF[observation], PointEnv(observation), **extra).learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    ours = extra if model_class is ScratchDDPG else OURS
    loaded = ScratchDDPG(POLICY_OF[observation], PointEnv(observation), **ours)
    loaded.load_replay_buffer(tmp_path / "buffer")
    samples = []
    for buffer in (model.replay_buffer, loaded.replay_buffer):
        np.random.seed(1)
        samples.append(buffer.sample(20))
    for a, b in zip(*samples, strict=True):
        if isinstance(a, dict):
            assert all(th.equal(a[key], b[key]) for key in a)
        elif a is not None:
            assert th.equal(a, b)
    loaded.learn(20, reset_num_timesteps=False)
    with pytest.raises(ModelFileError, match="observation_space is not the model's"):
        ScratchDDPG("MlpPolicy", "Pendulum-v1", **SMALL).load_replay_buffer(tmp_path / "buffer")


def test_her_replay_buffers(tmp_path):
    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = ScratchDDPG("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **SMALL).learn(30)
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 30
    loaded.learn(20, reset_num_timesteps=False)


def test_a_buffer_whose_arrays_do_not_fit(tmp_path):
    model = ScratchDDPG("MlpPolicy", PointEnv(), **OURS).learn(5)
    model.replay_buffer.rewards = model.replay_buffer.rewards[:3]
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ModelFileError, match="rewards"):
        model.load_replay_buffer(tmp_path / "buffer")


def test_statistics(tmp_path):
    env = VecNormalize(make_vec_env(PointEnv, 2, seed=0))
    model = ScratchDDPG("MlpPolicy", env, **OURS).learn(40)
    env.save(tmp_path / "stats.pkl")
    loaded = load_vec_normalize(tmp_path / "stats.pkl", make_vec_env(PointEnv, 2, seed=0))
    np.testing.assert_array_equal(loaded.obs_rms.mean, env.obs_rms.mean)
    assert loaded.ret_rms.var == env.ret_rms.var
    assert loaded.num_envs == 2
    model.set_env(loaded)
    model.learn(10)


def test_loading_keeps_sb3s_checks(model_zip, tmp_path, capsys):
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        ScratchDDPG.load(model_zip, env=gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        ScratchDDPG.load(model_zip, policy_kwargs={"net_arch": [3]})
    with pytest.raises(FileNotFoundError):
        ScratchDDPG.load(tmp_path / "nothing")
    loaded = ScratchDDPG.load(model_zip.with_suffix(""), env=make_vec_env(PointEnv, 3), gamma=0.5, print_system_info=True)
    assert (loaded.n_envs, loaded.gamma, loaded._last_obs) == (3, 0.5, None)
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    assert ScratchDDPG.load(model_zip, env=PointEnv(), force_reset=False)._last_obs is not None
    with model_zip.open("rb") as file:
        assert ScratchDDPG.load(file).num_timesteps == 20


def test_a_gymnasium_space_of_every_kind(tmp_path):
    every = spaces.Dict(
        box=spaces.Box(0, 255, (4, 4, 1), np.uint8),
        one=spaces.Discrete(3, start=1),
        many=spaces.MultiDiscrete([2, 3]),
        bits=spaces.MultiBinary(4),
        pair=spaces.Tuple([spaces.Discrete(2)]),
    )
    every.seed(3)
    path = tmp_path / "space.pkl"
    path.write_bytes(pickle.dumps(every))
    read = read_pickle(path)
    assert read == every
    assert str(read.sample()) == str(every.sample())


def test_our_noise_goes_on_after_loading(tmp_path):
    noise = OUNoise(np.zeros(2), np.ones(2), seed=1)
    noise()
    path = tmp_path / "noise.pkl"
    path.write_bytes(pickle.dumps(noise))
    np.testing.assert_array_equal(read_pickle(path)(), noise())


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_arrays_with_any_order_of_axes_are_read(axes):
    """As VecTransposeImage gives observations: a view of the environment's, with other axes."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(axes)
    content = pickle.dumps(array, protocol=5)
    np.testing.assert_array_equal(DataUnpickler(io.BytesIO(content), len(content)).load(), array)


@pytest.mark.parametrize("axes", [(0, 0, 1), (0, 1), (0, 1, 3), "abc", None, (0, 1, True)])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(ValueError, match="malformed or unsupported"):
        array_from_buffer(bytes(96), np.dtype(np.float32), (2, 3, 4), "K", axes)


def test_settings_that_have_defaults_may_be_missing(tmp_path):
    model = ScratchDDPG("MlpPolicy", PointEnv(), **OURS).learn(5)
    model.save(tmp_path / "model", exclude=["verbose", "policy_kwargs", "gamma"])
    loaded = ScratchDDPG.load(tmp_path / "model", env=PointEnv(), policy_kwargs=model.policy_kwargs)
    assert (loaded.gamma, loaded.verbose) == (0.99, 0)


def test_save_keeps_links_and_permissions(tmp_path):
    model = ScratchDDPG("MlpPolicy", PointEnv(), **OURS)
    model.save(tmp_path / "real.zip")
    (tmp_path / "real.zip").chmod(0o600)
    (tmp_path / "link.zip").symlink_to("real.zip")
    model.gamma = 0.5
    model.save(tmp_path / "link")
    assert (tmp_path / "link.zip").is_symlink()
    assert (tmp_path / "real.zip").stat().st_mode & 0o777 == 0o600
    assert ScratchDDPG.load(tmp_path / "real").gamma == 0.5


# ------------------------------------------------------------------------------------------------ Classes of one's own

PROGRAM = """
import sys, warnings
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from sb3_ddpg_scratch import ScratchDDPG

class Own(FlattenExtractor):
    pass

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    kwargs = {"net_arch": [4], "features_extractor_class": Own}
    ScratchDDPG("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=kwargs).save("model")
print([str(warning.message) for warning in said])
"""


def saved_by(program, folder):
    done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_schedule_that_is_a_function_is_named_at_the_line_that_saves_it(tmp_path):
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", buffer_size=10, learning_rate=lambda left: 1e-3 * left, device="cpu")
    with pytest.warns(UserWarning, match=r"custom_objects=\{'learning_rate': ...\}: learning_rate is a function") as said:
        model.save(tmp_path / "model")
    assert said[0].filename == __file__


def test_a_class_of_main_is_warned_of_when_saved_and_named_when_loaded(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    said = saved_by("program.py", tmp_path)
    assert "model.zip cannot be loaded without trusted=True" in said
    message = "class Own is defined in __main__, so that the file holds its code: move it to a module and import that"
    assert message in said
    with pytest.raises(UnsafeFileError, match=message):
        ScratchDDPG.load(tmp_path / "model")
    assert ScratchDDPG.load(tmp_path / "model", trusted=True).policy_kwargs["features_extractor_class"].__name__ == "Own"


def test_a_class_of_a_module_only_needs_its_import(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(PROGRAM)
    (tmp_path / "program.py").write_text("import own_module")
    assert saved_by("program.py", tmp_path) == "[]\n"
    with pytest.raises(UnsafeFileError, match="own_module is not imported: if it is your own, import it first"):
        ScratchDDPG.load(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own_module = importlib.import_module("own_module")
    assert ScratchDDPG.load(tmp_path / "model").policy_kwargs["features_extractor_class"] is own_module.Own


def test_a_function_is_warned_of(tmp_path):
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", learning_rate=lambda progress: 1e-3 * progress, buffer_size=10)
    with pytest.warns(UserWarning, match="learning_rate is a function, so that the file holds its code"):
        model.save(tmp_path / "model")
    assert ScratchDDPG.load(tmp_path / "model", custom_objects={"learning_rate": 1e-3}).learning_rate == 1e-3


@pytest.mark.parametrize("algorithm", [SAC, PPO, A2C, TQC])
def test_a_model_of_another_algorithm_is_named(tmp_path, algorithm):
    algorithm("MlpPolicy", "Pendulum-v1").save(tmp_path / "model")
    with pytest.raises(ModelFileError, match=f"this is a {algorithm.__name__} model") as caught:
        ScratchDDPG.load(tmp_path / "model")
    assert "trust" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ Files of the gym era


@pytest.fixture(scope="module")
def gym_era_zip(tmp_path_factory):
    """A model as SB3 1.0 saved it: gym's spaces, NumPy's old generator, a learning rate that is a function."""
    path = tmp_path_factory.mktemp("old") / "model.zip"
    model = DDPG("MlpPolicy", "Pendulum-v1", **SMALL)
    gym_era.write_model(path, model)
    return path


def as_sb3_loads_it(path, **settings):
    env = gym.make("Pendulum-v1")
    given = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "lr_schedule": ConstantSchedule(1e-3),
    }
    given |= {"learning_rate": ConstantSchedule(1e-3), "action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.1))}
    return DDPG.load(path, env=env, custom_objects=given, device="cpu", **settings)


def test_a_model_of_the_gym_era_plays_and_trains_as_in_sb3(gym_era_zip):
    """SB3 itself needs the spaces, the learning rate and the noise as custom_objects."""
    ours = ScratchDDPG.load(gym_era_zip, env=gym.make("Pendulum-v1"), device="cpu", updater="autograd")
    theirs = as_sb3_loads_it(gym_era_zip)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(ours.predict(observations)[0], theirs.predict(observations)[0])
    for model in (ours, theirs):
        model.learning_starts = 20
        model.set_random_seed(3)
        model.learn(450)
    assert ours._n_updates == theirs._n_updates == 600
    np.testing.assert_array_equal(ours.predict(observations)[0], theirs.predict(observations)[0])
    assert max(compare_models(ours, theirs).values()) == 0


def test_a_model_of_the_gym_era_is_saved_as_one_of_today(gym_era_zip, tmp_path):
    ScratchDDPG.load(gym_era_zip, device="cpu").save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", device="cpu")
    assert (loaded.learning_rate(0.3), loaded.action_noise().dtype) == (1e-3, np.float32)
    assert (
        type(DDPG.load(tmp_path / "model", device="cpu", custom_objects={"policy_class": TD3Policy}).action_space)
        is spaces.Box
    )


OLD_FUNCTIONS = {
    "constant_fn": (gym_era.SB3_UTILS, {"val": 3e-4}, [3e-4, 3e-4, 3e-4]),
    "get_linear_fn": (gym_era.SB3_UTILS, {"start": 1e-3, "end": 1e-4, "end_fraction": 0.5}, [1e-3, 5.5e-4, 1e-4]),
    "linear_schedule": ("utils.utils", {"initial_value": 8e-4}, [8e-4, 6e-4, 4e-4]),
}


@pytest.mark.parametrize("form", ["1.3", "1.6", "2.2"])
@pytest.mark.parametrize("maker", list(OLD_FUNCTIONS))
def test_learning_rates_that_sb3_and_the_zoo_stored_as_code(model_zip, tmp_path, maker, form):
    module, variables, expected = OLD_FUNCTIONS[maker]
    stored = gym_era.dumps(gym_era.function(form, module, maker, **variables))
    loaded = ScratchDDPG.load(with_settings(model_zip, tmp_path / "old.zip", {"learning_rate": stored}))
    assert [loaded.learning_rate(left) for left in (1.0, 0.75, 0.5)] == pytest.approx(expected, rel=1e-15)


def test_learning_rates_that_cloudpickle_of_today_stores_as_code(tmp_path):
    rate = get_linear_fn(1e-3, 1e-4, 0.5)
    DDPG("MlpPolicy", PointEnv(), learning_rate=rate, **SMALL).save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model").learning_rate
    assert [loaded(left / 10) for left in range(11)] == [rate(left / 10) for left in range(11)]


@pytest.mark.parametrize(
    ("module", "maker", "variables"),
    [
        ("job", "constant_fn", {"val": 1e-3}),
        (gym_era.SB3_UTILS, "get_schedule_fn", {"val": 1e-3}),
        (gym_era.SB3_UTILS, "constant_fn", {"value": 1e-3}),
        (gym_era.SB3_UTILS, "constant_fn", {"val": "1e-3"}),
        (gym_era.SB3_UTILS, "constant_fn", {"val": 1e-3, "x": 1.0}),
    ],
)
@pytest.mark.parametrize("form", ["1.3", "1.6", "2.2"])
def test_other_functions_stay_code(model_zip, tmp_path, module, maker, variables, form):
    stored = gym_era.dumps(gym_era.function(form, module, maker, **variables))
    for key in ("learning_rate", "extra"):
        with pytest.raises(UnsafeFileError, match=r"it is a function, so that the file holds its code.*custom_objects"):
            ScratchDDPG.load(with_settings(model_zip, tmp_path / "old.zip", {key: stored}))


def test_old_generators_go_on_where_they_were(tmp_path):
    expected = np.random.RandomState(7).random_sample(3).tolist()
    path = tmp_path / "old.pkl"
    contents = [gym_era.dumps(gym_era.random_state(7, form)) for form in ("1.16", "1.17")]
    for content in (*contents, pickle.dumps(np.random.RandomState(7)), pickle.dumps(np.random.RandomState(7), 3)):
        path.write_bytes(content)
        assert read_pickle(path).random_sample(3).tolist() == expected


@pytest.mark.parametrize("generator", ["random state", "gym's own", None])
@pytest.mark.parametrize("shape", ["shape", "_shape"])
def test_spaces_of_gym_are_gymnasiums(tmp_path, generator, shape):
    state = np.random.PCG64(3).state
    made = gym_era.Made(gym_era.Named("gym.utils.seeding", "RandomNumberGenerator._generator_ctor"), ("PCG64",), state)
    given = {"random state": gym_era.random_state(1), "gym's own": made}.get(generator)
    expected = spaces.Box(-1, 2, (3,))
    part, path = gym_era.box(expected, given, shape), tmp_path / "space.pkl"
    every = gym_era.instance("gym.spaces.dict", "Dict", spaces={"a": part}, shape=None, dtype=None, _np_random=None)
    pair = gym_era.instance("gym.spaces.tuple", "Tuple", spaces=(part,), **{shape: None}, dtype=None, _np_random=None)
    two = gym_era.instance("gym.spaces.discrete", "Discrete", n=2, **{shape: ()}, dtype=np.dtype(np.int64), _np_random=given)
    for stored, space in {
        part: expected,
        every: spaces.Dict(a=expected),
        pair: spaces.Tuple([expected]),
        two: spaces.Discrete(2),
    }.items():
        path.write_bytes(gym_era.dumps(stored))
        read = read_pickle(path)
        assert (type(read), read) == (type(space), space)
        read.seed(4)
        space.seed(4)
        assert str(read.sample()) == str(space.sample())
    path.write_bytes(gym_era.dumps(part))
    drawn = read_pickle(path).sample()
    if generator == "gym's own":
        np.testing.assert_array_equal(drawn, np.random.Generator(np.random.PCG64(3)).uniform(-1, 2, 3).astype(np.float32))


@pytest.mark.parametrize("position", [-1, 625, 2**40, True, "x"])
def test_positions_beyond_an_old_generators_numbers(tmp_path, position):
    state = np.random.RandomState(7).get_state(legacy=False)
    state["state"]["pos"] = position
    hostile = (
        gym_era.random_state(7),
        gym_era.random_state(7, "1.16"),
        gym_era.Made(gym_era.Named("numpy.random._pickle", "__bit_generator_ctor"), ("MT19937",), state),
    )
    hostile[0].state, hostile[1].state = state, (*np.random.RandomState(7).get_state()[:2], position, 0, 0.0)
    for content in hostile:
        (tmp_path / "old.pkl").write_bytes(gym_era.dumps(content))
        with pytest.raises(ModelFileError, match="a generator's position"):
            read_pickle(tmp_path / "old.pkl")


def test_statistics_of_the_gym_era(tmp_path):
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    mean, variance = np.array([0.1, 0.2, 3.0]), np.array([1.0, 4.0, 9.0])
    (tmp_path / "stats.pkl").write_bytes(gym_era.dumps(gym_era.statistics(env, mean, variance)))
    wrapped = load_vec_normalize(tmp_path / "stats.pkl", env)
    raw = wrapped.venv.reset()
    np.testing.assert_allclose(wrapped.normalize_obs(raw), (raw - mean) / np.sqrt(variance + 1e-8), rtol=1e-6)
    wrapped.step(np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("mean", "variance"),
    [(["a"] * 3, [1.0] * 3), ([0.0] * 2, [1.0] * 2), ([0.0] * 3, [1.0, -1.0, 1.0]), ([np.nan] * 3, [1.0] * 3)],
)
def test_statistics_that_are_none(tmp_path, mean, variance):
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    (tmp_path / "stats.pkl").write_bytes(gym_era.dumps(gym_era.statistics(env, mean, variance)))
    with pytest.raises(ModelFileError, match=r"stats\.pkl: its statistics are not those of its spaces"):
        load_vec_normalize(tmp_path / "stats.pkl", env)
