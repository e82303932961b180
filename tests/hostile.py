"""Model files made to run code, to write somewhere, or to take all memory; and what notices if one of them does."""

import base64
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle


class Reduces:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


def global_of(module: str, name: str) -> bytes:
    """The instruction that names something in a module, by protocol 4."""
    return b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"


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
    import subprocess

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
