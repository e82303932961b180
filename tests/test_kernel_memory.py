"""Where compiled code is kept, and what is said while it is compiled."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TRAIN = """
from sb3_ddpg_scratch import ScratchDDPG
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
