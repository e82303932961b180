"""Model files made to run code, to write somewhere, or to take all memory; and what notices if one of them does."""

import base64
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import yaml
from pickle_writer import Made, Named, dumps, global_of, instance


class Reduces:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def calls(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls module.name with texts, without either being importable here."""
    return b"\x80\x04" + global_of(module, name) + b"(" + b"".join(map(text, arguments)) + b"tR."


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> Path:
    """Copy a model's file, with its members changed."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def with_settings(source: Path, target: Path, settings: Mapping[str, Any]) -> Path:
    """Copy a model's file, with settings that are pickles (bytes) or JSON (all else)."""

    def change(members: dict[str, bytes]) -> None:
        data = json.loads(members["data"])
        for key, value in settings.items():
            data[key] = pickled(value) if isinstance(value, bytes) else value
        members["data"] = json.dumps(data).encode()

    return rewrite(source, target, change)


def pickled(content: bytes) -> dict[str, str]:
    """A pickle as SB3 puts it into JSON."""
    return {":type:": "<class 'object'>", ":serialized:": base64.b64encode(content).decode()}


def tensors_with(content: bytes, torch_file: bytes) -> bytes:
    """What torch.save wrote, with its pickle exchanged."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_file)) as archive, zipfile.ZipFile(made, "w") as out:
        for name in archive.namelist():
            out.writestr(name, content if name.endswith("data.pkl") else archive.read(name))
    return made.getvalue()


def payloads(canary: Path) -> dict[str, bytes]:
    """Pickles each of which would make the canary's file, in as many ways, if they were read by Python's own unpickler."""
    import functools
    import operator

    write = f"open({str(canary)!r}, 'w').close()"
    touch = f"touch {canary}"
    by_value = type("ByValue", (), {"__reduce__": lambda self: (lambda: exec(write), ())})
    return {
        "os.system": pickle.dumps(Reduces(os.system, touch)),
        "os.system, protocol 0": pickle.dumps(Reduces(os.system, touch), 0),
        "posix.system by instruction i": b"(S'" + touch.encode() + b"'\niposix\nsystem\n.",
        "posix.system by instruction o": b"(cposix\nsystem\nS'" + touch.encode() + b"'\no.",
        "subprocess.Popen": pickle.dumps(Reduces(subprocess.Popen, ["touch", str(canary)])),
        "subprocess.Popen by NEWOBJ": b"\x80\x04" + global_of("subprocess", "Popen") + b")\x81.",
        "builtins.exec": pickle.dumps(Reduces(exec, write)),
        "builtins.eval": pickle.dumps(Reduces(eval, write)),
        "builtins.getattr": pickle.dumps(Reduces(getattr, Reduces(__import__, "os"), "system")),
        "builtins.getattr of a function": pickle.dumps(Reduces(getattr, os.system, "__call__")),
        "builtins.__import__": calls("builtins", "__import__", "antigravity"),
        "functools.partial": pickle.dumps(Reduces(functools.partial(os.system, touch))),
        "functools.reduce": pickle.dumps(Reduces(functools.reduce, os.system, [touch])),
        "operator.methodcaller": pickle.dumps(Reduces(operator.methodcaller("write_text", ""), canary)),
        "operator.attrgetter": pickle.dumps(operator.attrgetter("system")),
        "pathlib": pickle.dumps(Reduces(Path.touch, canary)),
        "io.open": pickle.dumps(Reduces(open, str(canary), "w")),
        "cloudpickle by value": cloudpickle.dumps(by_value()),
        "cloudpickle lambda": cloudpickle.dumps(lambda progress: exec(write)),
        "pickle.loads": pickle.dumps(Reduces(pickle.loads, pickle.dumps(Reduces(os.system, touch)))),
        "torch.load": calls("torch.serialization", "load", str(canary)),
        "torch.hub.load": calls("torch.hub", "load", "owner/repository", "model"),
        "torch storage": calls("torch.storage", "_load_from_bytes", touch),
        "torch.utils shell": calls("torch.utils.collect_env", "run", touch),
        "numpy runstring": calls("numpy.testing._private.utils", "runstring", write, ""),
        "numpy.load": calls("numpy", "load", str(canary)),
        "numpy.memmap": calls("numpy", "memmap", str(canary)),
        "numpy.os by a dotted name": calls("numpy", "os.system", touch),
        "a dotted name in a class": calls("stable_baselines3.common.utils", "FloatSchedule.__init__", touch),
        "SB3's load_from_pkl": calls("stable_baselines3.common.save_util", "load_from_pkl", str(canary)),
        "SB3's os": calls("stable_baselines3.common.save_util", "os.system", touch),
        "SB3's logger file": calls("stable_baselines3.common.logger", "CSVOutputFormat", str(canary)),
        "SB3's Monitor": calls("stable_baselines3.common.monitor", "Monitor", str(canary)),
        "SB3's environments": calls("stable_baselines3.common.vec_env.subproc_vec_env", "SubprocVecEnv", str(canary)),
        "SB3's get_latest": calls("stable_baselines3.common.utils", "get_latest_run_id", str(canary)),
        "gymnasium.make": calls("gymnasium", "make", "antigravity:Some-v0"),
        "gymnasium.make by its module": calls("gymnasium.envs.registration", "make", "antigravity:Some-v0"),
        "the Zoo's importer": calls("rl_zoo3.utils", "get_class_by_name", "antigravity.webbrowser"),
        "a module not imported": calls("antigravity", "webbrowser"),
        "a constructor of an allowed class": calls("stable_baselines3.common.utils", "FloatSchedule", touch),
        "a call of a class of settings": calls("stable_baselines3.common.torch_layers", "NatureCNN", touch),
        "an extension": b"\x80\x04\x82\x01.",
        "a persistent id": b"Pposix.system\n.",
        "an outside buffer": b"\x80\x05\x97.",
        "an attribute of a class": b"\x80\x04"
        + global_of("stable_baselines3.common.utils", "FloatSchedule")
        + b"N}"
        + text("__call__")
        + text("x")
        + b"s\x86b.",
        "a method replaced": b"\x80\x04"
        + global_of("stable_baselines3.common.noise", "NormalActionNoise")
        + b")\x81}"
        + text("reset")
        + global_of("stable_baselines3.common.noise", "NormalActionNoise")
        + b"sb.",
        "a class of an instance": b"\x80\x04"
        + global_of("stable_baselines3.common.noise", "NormalActionNoise")
        + b")\x81}"
        + text("__class__")
        + text("x")
        + b"sb.",
        "arguments of NEWOBJ_EX": b"\x80\x04" + global_of("numpy", "ndarray") + b")}" + text("shape") + b"K\x01s\x92.",
    }


class Recorded:
    """A class of the program's that no file may make the program call, in whatever way."""

    calls = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        type(self).calls += 1

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        type(self).calls += 1
        return 1.0

    def __eq__(self, other: object) -> bool:
        type(self).calls += 1
        return True

    __hash__ = __len__ = __iter__ = __getitem__ = __float__ = __int__ = __index__ = __call__
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __mul__ = __array__ = __setstate__ = reset = sample = __call__


def record(*arguments: Any, **named: Any) -> Any:
    """A function of the program's, likewise."""
    Recorded.calls += 1


@contextmanager
def nothing_called(monkeypatch: Any) -> Iterator[None]:
    """Fails if anything is called that a forged file names."""
    called: list[Any] = []
    for module, name in ((os, "system"), (subprocess, "Popen"), (subprocess, "call")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: called.append(args))
    before, Recorded.calls = set(sys.modules), 0
    yield
    assert (called, Recorded.calls) == ([], 0)
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


def _words(text: str) -> list[str]:
    return text.split()


_CLASSES = _words(f"""
    os.system subprocess.Popen antigravity.webbrowser builtins.open {__name__}.Recorded {__name__}.record x . a..b
    gymnasium.wrappers.RecordVideo gymnasium.wrappers.TimeLimit gymnasium.wrappers.FlattenObservation gymnasium.make
    gymnasium.wrappers.ClipAction stable_baselines3.common.monitor.Monitor
    stable_baselines3.common.monitor.ResultsWriter rl_zoo3.wrappers.FrameSkip
    stable_baselines3.common.vec_env.VecMonitor stable_baselines3.common.vec_env.VecVideoRecorder
    rl_zoo3.wrappers.np.save stable_baselines3.common.vec_env.VecCheckNan
    stable_baselines3.common.callbacks.CheckpointCallback sb3_ddpg_scratch.ResumableCheckpoint
    sb3_ddpg_scratch.diagnostics.DiagnosticsCallback stable_baselines3.common.logger.configure
    stable_baselines3.common.utils.os.system rl_zoo3.utils.get_class_by_name
""")
_NAMES = _words("""
    filename video_folder save_path path folder max_episode_steps skip env func self save_freq
""")


def forged_yaml(rng: random.Random, canary: Path) -> str:
    """An agent's YAML that names classes, functions, files and nonsense wherever the Zoo looks; some of it is harmless."""

    def plain() -> Any:
        few = [None, True, 0, 3, -1, 2.5, float("nan"), "", "text", str(canary), "../canary", "~/canary", [], {}]
        return rng.choice([*few, [3, "a"], {"a": str(canary)}, 10**30, "dict(a=1)", "__import__('os').system('true')"])

    def arguments() -> Any:
        return rng.choice([{rng.choice(_NAMES): plain() for _ in range(rng.randint(0, 2))}] * 3 + [plain()])

    def classes() -> Any:
        one = rng.choice([rng.choice(_CLASSES), {rng.choice(_CLASSES): arguments()}])
        return rng.choice([one, [one], [one, rng.choice(_CLASSES)], {rng.choice(_CLASSES): {}, "x.y": {}}, plain()])

    makers = dict.fromkeys(("env_wrapper", "vec_env_wrapper", "callback", "policy", "replay_buffer_class"), classes)
    makers |= dict.fromkeys(
        ("env_kwargs", "eval_env_kwargs", "monitor_kwargs", "policy_kwargs", "replay_buffer_kwargs"), arguments
    )
    makers |= dict.fromkeys(("normalize", "frame_stack", "action_noise", "gym_packages", "env", "n_envs", "seed"), plain)
    chosen = rng.sample(list(makers), rng.randint(0, 3))
    text = yaml.safe_dump({"policy": "MlpPolicy"} | {key: makers[key]() for key in chosen})
    tags = ("python/object/apply:os.system", f"python/object/new:{__name__}.Recorded", f"python/name:{__name__}.record", "set")
    if rng.random() < 0.15:
        text += f"more: !!{rng.choice(tags)} ['touch {canary}']\n"
    if rng.random() < 0.1:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(["*a", "&a ", "]", "{", "\t", "\x00", "é", "!!", "%"]) + text[place:]
    return text


_KEYS = _words("""
    observation_space action_space action_noise learning_rate qf_learning_rate policy_class policy_kwargs
    replay_buffer_class replay_buffer_kwargs replay_buffer train_freq ep_info_buffer ep_success_buffer _last_obs
    _last_original_obs gamma num_timesteps _n_updates batch_size buffer_size n_steps extra verbose seed policy_delay
    tensorboard_log _last_episode_starts updater n_envs
""")
_INNER = _words("""
    features_extractor_class activation_fn optimizer_class net_arch features_extractor_kwargs optimizer_kwargs
    n_critics norm value_schedule val start end end_fraction initial_value _mu _sigma _dtype _noises _base_noise
    n_envs spaces low high _shape dtype _np_random n_sampled_goal env sigma _generator noise_prev __class__ __call__ x
""")
_PICKLED = _words(f"""
    {__name__}.Recorded {__name__}.record os.system subprocess.Popen builtins.float builtins.set builtins.getattr
    numpy.float32 numpy.ndarray numpy.dtype numpy._core.multiarray._reconstruct
    numpy.random._pickle.__randomstate_ctor collections.deque collections.OrderedDict torch.device
    torch.nn.modules.activation.ReLU torch.nn.modules.linear.Linear torch.optim.adam.Adam gym.spaces.box.Box
    gymnasium.spaces.dict.Dict gymnasium.spaces.discrete.Discrete stable_baselines3.common.buffers.ReplayBuffer
    stable_baselines3.common.noise.NormalActionNoise stable_baselines3.common.noise.VectorizedActionNoise
    stable_baselines3.common.utils.FloatSchedule stable_baselines3.common.utils.ConstantSchedule
    stable_baselines3.td3.policies.TD3Policy stable_baselines3.common.torch_layers.NatureCNN
    stable_baselines3.her.her_replay_buffer.HerReplayBuffer stable_baselines3.common.type_aliases.TrainFreq
    stable_baselines3.common.type_aliases.TrainFrequencyUnit
    stable_baselines3.common.vec_env.vec_normalize.VecNormalize sb3_ddpg_scratch.noise.OUNoise
    sb3_ddpg_scratch.replay.PackedReplayBuffer rl_zoo3.utils.SimpleLinearSchedule
    cloudpickle.cloudpickle._builtin_type cloudpickle.cloudpickle._make_function
    cloudpickle.cloudpickle._function_setstate cloudpickle.cloudpickle._make_cell functools.partial
    antigravity.webbrowser
""")


def forged_value(rng: random.Random, depth: int = 3) -> Any:
    """Numbers, arrays, and instances, calls and names of classes and functions, nested in each other."""
    few = [None, True, 0, 1, -3, 2.5, float("nan"), "relu", "MlpPolicy", "os.system", "/tmp/canary", b"", [8], {}, (), 10**12]
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(few)
    inner = [forged_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    module, _, name = rng.choice(_PICKLED).rpartition(".")
    attributes = dict(zip(rng.sample(_INNER, len(inner)), inner, strict=True))
    array = np.zeros(rng.choice([(), 0, 1, 2, (2, 2)]), rng.choice(["f4", "f8", "i8", "?", "U3"]))
    kinds = [inner, tuple(inner), attributes, array, Named(module, name), Made(Named(module, name), tuple(inner))]
    return rng.choice([*kinds, instance(module, name, **attributes), Made(Named(module, name), (), attributes)])


def forged_model(rng: random.Random, source: Path, target: Path) -> Path:
    """A model's file whose settings hold forged values, and sometimes forged bytes."""
    settings: dict[str, Any] = {}
    for key in rng.sample(_KEYS, rng.randint(1, 2)):
        value = forged_value(rng)
        if key in ("policy_kwargs", "replay_buffer_kwargs") and rng.random() < 0.8:
            value = dict(zip(rng.sample(_INNER, 2), [value, forged_value(rng)], strict=True))
        content = dumps(value)
        if rng.random() < 0.1:
            place = rng.randrange(len(content))
            content = content[:place] + rng.randbytes(rng.randint(0, 3)) + content[place + rng.randint(0, 3) :]
        settings[key] = content
    if rng.random() < 0.2:
        settings[rng.choice(_KEYS)] = rng.choice(
            [None, True, -1, 10**9, 1e400, "x", [], [[]], {}, {":serialized:": 3}, ["a", 1]]
        )
    return with_settings(source, target, settings)
