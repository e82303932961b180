"""``make test-sb3``: which of SB3's tests meet our class, and that both of its parts run."""

import os
import subprocess
import sys

import pytest
from commands import ENVIRONMENT, ROOT

# In the manner of SB3's tests: what each has to do with DDPG or TD3 is said by its name.
SB3_TESTS = """
import pytest
from stable_baselines3 import A2C, DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer


def make():
    return TD3("MlpPolicy", "Pendulum-v1", buffer_size=10)


@pytest.mark.parametrize("model_class", [A2C, DDPG, SAC, TD3])
def test_of_one(model_class):
    assert model_class in (A2C, DDPG, SAC, TD3)


@pytest.mark.parametrize("case", [(A2C, "CartPole-v1"), (DDPG, "Pendulum-v1")])
def test_of_pairs(case):
    pass


def test_ours_by_name():
    assert DDPG.__name__ == "ScratchDDPG"


def test_ours_by_a_helper():
    assert type(make()).__name__ == "ScratchDDPG"


@pytest.mark.parametrize("size", [1, 2])
def test_of_a_buffer(size):
    raise AssertionError(ReplayBuffer)


def test_speed():
    raise AssertionError(A2C)
"""


def test_tests_that_our_class_has_no_part_in_are_left_out(tmp_path):
    (tmp_path / "test_in_sb3.py").write_text(SB3_TESTS)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "sb3_replaced", "-p", "no:cacheprovider", "test_in_sb3.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    run = [line.split("::")[1].split()[0] for line in done.stdout.splitlines() if " PASSED " in line]
    of_pairs = "test_of_pairs[case1]"
    assert run == [
        "test_of_one[ScratchDDPG0]",
        "test_of_one[ScratchDDPG1]",
        of_pairs,
        "test_ours_by_name",
        "test_ours_by_a_helper",
    ]
    assert (done.returncode, "6 deselected" in done.stdout) == (0, True), done.stdout


PYTHON = """#!/bin/sh
case "$*" in
    *version*) echo 1.0;;
    *download*) mkdir -p sdist/tests && tar -czf build/sb3/stable_baselines3-1.0.tar.gz sdist;;
    *pytest*) echo "$*" >> "$LOG"; case "$*" in *$FAILS*) exit 1;; esac;;
esac
"""


@pytest.mark.parametrize(("fails", "status"), [("sb3_replaced", 2), ("sb3_her_replaced", 2), ("neither", 0)])
def test_both_parts_run_whether_or_not_one_fails(tmp_path, fails, status):
    """With a Python that only notes what it is to run."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg", ".venv/.ready"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = os.environ | {"LOG": str(tmp_path / "log"), "FAILS": fails}
    done = subprocess.run(["make", "test-sb3"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert ("-p sb3_replaced tests" in first, "-p sb3_her_replaced tests/test_her.py" in second) == (True, True)
    assert done.returncode == status, done.stderr
