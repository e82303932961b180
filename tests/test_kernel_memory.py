"""Where compiled code is kept, and what is said while it is compiled."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

LOAD = "from sb3_ddpg_scratch.updates.kernel_memory import load_kernels; print(load_kernels().advance.__name__)"


def load_kernels(**environment):
    """In a process of its own; returns what is printed to both streams."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip(), result.stderr


def test_an_empty_cache_is_announced(tmp_path):
    assert load_kernels(NUMBA_CACHE_DIR=str(tmp_path)) == (
        "advance",
        "Compiling the hand-written update takes some 12 seconds, once on this machine.\n",
    )


@pytest.mark.skipif(
    tuple(map(int, version("numba").split(".")[:2])) < (0, 62), reason="Numba cannot be told where not to look for a folder"
)
def test_where_no_folder_is_writable_each_process_compiles():
    # Only a folder that was named may be used, and none is.
    environment = {"NUMBA_CACHE_DIR": "", "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    name, message = load_kernels(**environment)
    assert name == "advance"
    assert message.endswith("in each process: no folder is writable. Set NUMBA_CACHE_DIR to one.\n")
