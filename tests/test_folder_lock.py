"""One writer for each folder: the second command is refused, a killed one holds nothing, and readers are let in."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch import ArgumentError, FolderInUseError, ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.compare.comparison import check_folder, claim_folder, run_comparison
from sb3_ddpg_scratch.compare.experiment import experiment_from
from sb3_ddpg_scratch.compare.plan import plan_comparison
from sb3_ddpg_scratch.compare.presets import plan_presets
from sb3_ddpg_scratch.folder_lock import hold_folder

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"COLUMNS": "1000"}  # so that no message is cut into lines
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

HOLDS = """
import sys
from pathlib import Path
from sb3_ddpg_scratch.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1]), "path"):
    print("held", flush=True)
    sys.stdin.read()
"""

TRAINS = """
import sys
import rl_zoo3  # which changes how environments are made
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from sb3_ddpg_scratch import ResumableCheckpoint, ScratchDDPG

class Waits(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 50:
            print("held", flush=True)
            sys.stdin.read()
        return True

settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 100, "policy_kwargs": {"net_arch": [4]}}
model = ScratchDDPG("MlpPolicy", make_vec_env("Pendulum-v1"), seed=0, updater="analytic", **settings)
model.learn(60, callback=[ResumableCheckpoint(sys.argv[1], every=40), Waits()])
"""

COMPARE = ["compare", "--env", "Pendulum-v1", "--seeds", "2", "--steps", "300", "--evaluations", "10", "--eval-episodes", "1"]
COMPARE += ["--arm", "a=ddpg:learning_starts=50,policy_kwargs={net_arch: [4]}"]

TRAIN = ["train", "-n", "300", "--eval-freq", "-1", "--seed", "1", "--num-threads", "1", "--verbose", "0"]
TRAIN += ["--checkpoint-every", "100", "-params", "policy_kwargs:dict(net_arch=[4])", "learning_starts:20", "batch_size:8"]
TRAIN += ["updater:'analytic'", "buffer_size:300"]


@pytest.fixture
def start():
    """Starts Python in a process of its own, which is killed in the end if it is still there."""
    started = []

    def start_it(*arguments, **options):
        started.append(subprocess.Popen([sys.executable, *arguments], env=ENVIRONMENT, **PIPES | options))
        return started[-1]

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def started_and_holding(start, code, folder):
    process = start("-c", code, str(folder))
    assert process.stdout.readline() == "held\n"
    return process


def in_one_line(done):
    """A command's exit status, and its output in one line."""
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def begin(monkeypatch):
    """Begins commands, each of which is killed in the end if it is still there."""
    monkeypatch.setenv("COLUMNS", "1000")  # so that no message is cut into lines
    begun = []

    def begin_it(*arguments, **options):
        begun.append(Command(*arguments, **options))
        return begun[-1]

    yield begin_it
    for process in begun:
        process.kill()


def stopped_once(process, made):
    """Stop a command, which then still holds what it holds, as soon as something was made."""
    process.wait_for(made)
    process.send(signal.SIGSTOP)


def model():
    settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 100, "policy_kwargs": {"net_arch": [4]}}
    return ScratchDDPG("MlpPolicy", make_vec_env("Pendulum-v1"), seed=0, updater="analytic", **settings)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------------- Folders


def test_error_names_who_writes(start, tmp_path):
    process = started_and_holding(start, HOLDS, tmp_path)
    with pytest.raises(FolderInUseError) as refused, hold_folder(tmp_path, "--out"):
        pass
    assert isinstance(refused.value, ArgumentError)
    text = str(refused.value)
    assert text.startswith(f"--out must be a folder that nobody else is writing to, got {str(tmp_path)!r}.")
    assert f"Process {process.pid} on {socket.gethostname()} ({sys.executable} -c ' import sys from pathlib" in text
    assert text.endswith("...) is writing to it: wait for it, stop it, or choose another folder.")
    process.communicate("")
    with hold_folder(tmp_path, "--out"):
        pass
    check_folder(plan_presets("Pendulum-v1", ["simple_rl"], 1, out=tmp_path).specs, tmp_path)  # as if it were empty


def test_killed_process_holds_nothing(start, tmp_path):
    process = started_and_holding(start, HOLDS, tmp_path)
    process.kill()
    process.wait()
    assert str(process.pid) in "".join(path.read_text() for path in tmp_path.iterdir())  # what it left
    check_folder(plan_presets("Pendulum-v1", ["simple_rl"], 1, out=tmp_path).specs, tmp_path)
    with hold_folder(tmp_path, "path"):
        with pytest.raises(FolderInUseError, match=f"This process, {os.getpid()}, is writing to it already"):
            hold_folder(tmp_path, "path").__enter__()
        # Nor does being refused take it from its holder.
        assert started_and_refused(start, tmp_path)


def started_and_refused(start, folder):
    output, _ = start("-c", HOLDS, str(folder)).communicate()
    return "FolderInUseError" in output and f"Process {os.getpid()} on" in output


def test_copy_of_the_process_does_not_hold_on(start, tmp_path):
    code = HOLDS.replace("import sys", "import os, sys, time", 1).replace(
        "print", "child = os.fork() or time.sleep(600)\n    print(child)\n    print"
    )
    process = start("-c", code, str(tmp_path))
    child = int(process.stdout.readline())
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with hold_folder(tmp_path, "path"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "me"}'])
def test_record_that_says_nothing(start, tmp_path, text):
    started_and_holding(start, HOLDS, tmp_path)
    (record,) = tmp_path.glob("*.json")
    assert json.loads(record.read_text())["host"] == socket.gethostname()
    record.write_text(text)
    with pytest.raises(FolderInUseError, match="Another process is writing to it"):
        hold_folder(tmp_path, "path").__enter__()


def test_folders_are_held_one_by_one(start, tmp_path):
    with hold_folder(tmp_path, "path"):
        started_and_holding(start, HOLDS, tmp_path / "inside")
        with pytest.raises(FolderInUseError), hold_folder(tmp_path / "inside", "path"):
            pass


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"path must be .*can be written to \(File exists\), got '.*file'"):
        hold_folder(tmp_path / "file", "path").__enter__()


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .*No locks available"), hold_folder(tmp_path, "path"):
        pass


# ----------------------------------------------------------------------------------------------------------- Checkpoints


def test_checkpoints_of_a_training_in_progress(start, tmp_path):
    process = started_and_holding(start, TRAINS, tmp_path)
    before = files_in(tmp_path)
    # Reading is free.
    resumed = ScratchDDPG.resume(tmp_path, make_vec_env("Pendulum-v1"))
    assert resumed.num_timesteps == 40
    for second in (resumed, model()):
        with pytest.raises(FolderInUseError, match=rf"path must be a folder .*Process {process.pid} on"):
            second.learn(60, callback=ResumableCheckpoint(tmp_path, every=10))
    assert files_in(tmp_path) == before

    process.kill()
    process.wait()
    resumed = ScratchDDPG.resume(tmp_path, make_vec_env("Pendulum-v1"))
    resumed.learn(60, callback=ResumableCheckpoint(tmp_path, every=10))
    assert (tmp_path / "step_000000000060").is_dir()


def test_two_callbacks_of_one_training(tmp_path):
    with pytest.raises(FolderInUseError, match=f"This process, {os.getpid()}"):
        model().learn(60, callback=[ResumableCheckpoint(tmp_path), ResumableCheckpoint(tmp_path)])
    both = [ResumableCheckpoint(tmp_path / "a"), ResumableCheckpoint(tmp_path / "b")]
    trained = model().learn(60, callback=both)
    trained.learn(60, callback=both, reset_num_timesteps=False)
    assert [callback.last.name for callback in both] == ["step_000000000120"] * 2


def test_folder_is_free_however_learn_ends(start, tmp_path):
    class Fails(BaseCallback):
        def _on_step(self):
            # While it trains nobody else may, whatever it has written so far.
            assert self.num_timesteps < 30 or not started_and_refused(start, tmp_path), "refused as it should be"
            return True

    with pytest.raises(AssertionError, match="refused as it should be"):
        model().learn(60, callback=[ResumableCheckpoint(tmp_path), Fails()])
    model().learn(60, callback=ResumableCheckpoint(tmp_path))
    # A reader leaves nothing.
    (tmp_path / ".lock").unlink(missing_ok=True)
    before = files_in(tmp_path)
    ScratchDDPG.resume(tmp_path, make_vec_env("Pendulum-v1"))
    assert files_in(tmp_path) == before


# -------------------------------------------------------------------------------------------------------------- Commands


def test_comparison_in_progress(begin, tmp_path):
    out = tmp_path / "out"
    # The records of runs are made by processes of their own: what counts is who began them.
    process = begin(tmp_path, *COMPARE, "--jobs", "1", "--out", "out", run_processes=True)
    stopped_once(process, lambda: list(out.glob("agents/*/*/seed_0")))
    status, output = in_one_line(begin(tmp_path, *COMPARE, "--out", "out").end())
    assert status == 2
    assert "--out must be a folder that nobody else is writing to" in output
    assert f"Process {process.pid} on" in output
    assert "sb3-ddpg-scratch compare --env Pendulum-v1" in output
    assert not (out / "report.html").exists()

    process.kill()
    status, output = in_one_line(begin(tmp_path, *COMPARE, "--out", "out").end())
    assert status == 0, output
    assert (out / "report.html").exists()
    assert not list(out.rglob(".lock_holder*"))


def test_comparison_that_another_one_has_overtaken(tmp_path, monkeypatch):
    """Its folder was new when it was looked at, and is another's when it is held."""
    from sb3_ddpg_scratch.compare import comparison

    def plan(tau):
        arms = [f"{name}=ddpg:tau={tau},policy_kwargs={{net_arch: [4]}}" for name in "ab"]
        return plan_comparison(experiment_from({"arms": arms, "envs": ["Pendulum-v1"], "seeds": 2, "out": tmp_path / "out"}))

    monkeypatch.setattr(comparison, "try_out", lambda specs: claim_folder(plan(0.5).specs, tmp_path / "out"))
    with pytest.raises(ArgumentError, match=r"tau was 0\.5, is 0\.1"):
        comparison.run_comparison(plan(0.1), Console(quiet=True), "command")


def test_run_of_the_zoo_in_progress(begin, tmp_path):
    run = tmp_path / "logs" / "scratch_ddpg" / "Pendulum-v1_1"
    process = begin(tmp_path, *TRAIN)
    stopped_once(process, (run / "checkpoints" / "step_000000000100").exists)
    before = files_in(run)
    status, output = in_one_line(begin(tmp_path, "train", "--resume", run).end())
    assert status == 2, output
    assert f"--resume must be a folder that nobody else is writing to, got '{run}'" in output
    assert f"Process {process.pid} on" in output
    assert files_in(run) == before
    # Another run is nobody's.
    assert begin(tmp_path, *TRAIN, "-n", "50").end().returncode == 0
    assert run.with_name("Pendulum-v1_2").is_dir()

    process.kill()
    status, output = in_one_line(begin(tmp_path, "train", "--resume", run).end())
    assert status == 0, output
    assert (run / "checkpoints" / "step_000000000300").is_dir()


def test_two_trainings_that_chose_the_same_new_folder(start, tmp_path):
    """The Zoo takes the next number that is free, and makes the folder later."""
    code = """
from unittest import mock
from rl_zoo3 import exp_manager
from sb3_ddpg_scratch.cli import main
with mock.patch.object(exp_manager, "get_latest_run_id", lambda *_: 0):
    main()
"""
    process = started_and_holding(start, HOLDS, tmp_path / "logs" / "scratch_ddpg" / "Pendulum-v1_1")
    second = start("-c", code, *TRAIN, cwd=tmp_path)
    output, _ = second.communicate()
    assert second.returncode == 2, output
    assert f"Process {process.pid} on" in " ".join(output.split())


def test_presets_in_progress(start, tmp_path):
    process = started_and_holding(start, HOLDS, tmp_path)
    plan = plan_presets("Pendulum-v1", ["simple_rl"], 1, out=tmp_path)
    with pytest.raises(FolderInUseError, match=f"--out must be a folder .*Process {process.pid} on"):
        run_comparison(plan, Console(quiet=True), "command")
