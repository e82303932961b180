"""Where compiled code is kept, and what is said while it is compiled."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.updates.kernel_memory import address_of

TRAIN = """
from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.updates.kernel_memory import address_of
model = ScratchDDPG("MlpPolicy", "Pendulum-v1", learning_starts=10, batch_size=4, policy_kwargs={"net_arch": [4]})
print(model.learn(20).updater_in_use)
import gc
assert gc.isenabled()
"""
# Ends where compiling would begin.
BEGIN = """
import os
from numba.core import event
from sb3_ddpg_scratch.updates.kernel_memory import load_kernels

class End(event.Listener):
    def on_start(self, _):
        os._exit(0)
    def on_end(self, _):
        pass

load_kernels()
event.register("numba:compile", End())
"""
MESSAGE = "Compiling the hand-written update takes some 8 seconds, "


def said(code, package, **environment):
    """By a process of its own, to standard error."""
    options = {"cwd": package, "env": os.environ | {"PYTHONPATH": ""} | environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options).stderr


def test_kernels_are_compiled_once_and_when_any_of_their_files_changed(tmp_path):
    package, cache = tmp_path / "package", {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    shutil.copytree(Path(__file__).parents[1] / "sb3_ddpg_scratch", package / "sb3_ddpg_scratch")
    once = f"{MESSAGE}once on this machine.\n"
    assert said(TRAIN, package, **cache) == once
    assert said(TRAIN, package, **cache) == ""
    operations = package / "sb3_ddpg_scratch" / "updates" / "operations.py"
    operations.write_text(operations.read_text() + "\n")
    assert said(BEGIN + TRAIN, package, **cache) == once


@pytest.mark.skipif(
    tuple(map(int, version("numba").split(".")[:2])) < (0, 62), reason="Numba cannot be told where not to look for a folder"
)
def test_where_no_folder_is_writable_each_process_compiles():
    # Only a folder that was named may be used, and none is.
    nowhere = {"NUMBA_CACHE_DIR": "", "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    expected = f"{MESSAGE}in each process: no folder is writable. Set NUMBA_CACHE_DIR to one.\n"
    assert said(BEGIN + TRAIN, Path(__file__).parents[1], **nowhere) == expected


def test_an_address_is_given_of_what_was_checked():
    array, tensor = np.zeros((3, 2), np.float32), th.nn.Parameter(th.zeros(3, 2))
    assert address_of(array, (3, 2)) == array.ctypes.data
    assert address_of(tensor, (3, 2)) == tensor.data_ptr()
    locked = array.copy()
    locked.flags.writeable = False
    unaligned = np.zeros(25, np.uint8)[1:].view(np.float32).reshape(3, 2)
    arrays = (array.T, array[:2], array.ravel(), array.astype(np.float16), np.asfortranarray(array), locked, unaligned)
    for wrong in (*arrays, tensor.double(), tensor.t(), array.tolist(), None):
        with pytest.raises(ValueError, match=r"needs a contiguous, writeable array of float32, shape \(3, 2\), got "):
            address_of(wrong, (3, 2))


CHANGES = {
    "narrow rows": {"rows": lambda b: np.zeros((len(b.rows), 1), np.float32)},
    "half precision": {"rows": lambda b: b.rows.astype(np.float16)},
    "columns behind each other": {"rows": lambda b: np.asfortranarray(b.rows)},
    "read-only": {"rows": lambda b: np.broadcast_to(b.rows[:1], b.rows.shape)},
    "few rows": {"rows": lambda b: b.rows[:9].copy()},
    "few ends": {"_ends": lambda b: b._ends[:5].copy()},
    "ends as numbers": {"_ends": lambda b: b._ends.astype(np.float32)},
    "position behind the end": {"pos": lambda b: 10**6},
    "negative position": {"pos": lambda b: -5},
    "no number": {"pos": lambda b: float("nan")},
    "many environments": {"n_envs": lambda b: 50},
    "a large buffer": {"buffer_size": lambda b: 10**9, "full": lambda b: True},
}


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_buffer_that_was_changed_by_hand_is_checked_again(change, gathered, n_steps):
    """Compiled code would read and write beyond arrays of another size."""
    settings = {"learning_starts": 10, "batch_size": 8, "policy_kwargs": {"net_arch": [4]}, "buffer_size": 100}
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = ScratchDDPG("MlpPolicy", env, updater="compiled", device="cpu", n_steps=n_steps, **settings).learn(60)
    model.set_logger(Logger(None, []))
    buffer = model.replay_buffer

    def change_buffer(*_):
        vars(buffer).update({name: make(buffer) for name, make in CHANGES[change].items()})

    more = {"reset_num_timesteps": False}

    def run():
        if gathered:
            model.learn(20, callback=lambda given, _: given["self"].num_timesteps < 70 or change_buffer() or True, **more)
        change_buffer()
        model.train(1, 8)

    # All but the first two are NumPy's, where Python stores or draws.
    errors = r"contiguous, writeable array|which do not match its|high <= 0|convert float NaN|wrong shape|read-only"
    with pytest.raises(ValueError, match=errors):
        run()
