"""``train --checkpoint-every`` and ``--resume``: a run of the Zoo that was killed ends as if it had not been."""

import signal

import numpy as np
import pytest
import torch as th
from commands import Command

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.zoo.scripts import run_script
from sb3_ddpg_scratch.zoo.yaml_settings import read_saved

SETTINGS = ["--eval-freq", "100", "--eval-episodes", "1", "--seed", "1", "--num-threads", "1", "--verbose", "0"]
SETTINGS += ["-params", "policy_kwargs:dict(net_arch=[4])", "learning_starts:20", "batch_size:8", "updater:'analytic'"]
SETTINGS += ["qf_learning_rate:'lin_1e-3'", "normalize:True", "buffer_size:300"]


def run_in(folder):
    return folder / "logs/scratch_ddpg/Pendulum-v1_1"


def left_in(folder):
    run = run_in(folder)
    evaluations = np.load(run / "evaluations.npz")
    rows = [line.split(",")[:2] for line in (run / "0.monitor.csv").read_text().splitlines()[1:]]
    parameters = ScratchDDPG.load(run / "Pendulum-v1.zip").policy.state_dict()
    return {name: evaluations[name] for name in evaluations}, rows, parameters


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_script("train", ["-n", "600", *SETTINGS])
    return left_in(folder)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_like_an_uninterrupted_one(whole, tmp_path, monkeypatch, sent):
    killed = tmp_path
    process = Command(killed, "train", "-n", "600", *SETTINGS, "--checkpoint-every", "130", "--keep", "3")
    checkpoints = run_in(killed) / "checkpoints"
    process.wait_for((checkpoints / "step_000000000130").exists)
    process.send(sent)
    done = process.end()
    assert done.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 0), done.stderr
    if sent == signal.SIGTERM:
        assert "SIGTERM: training ends at step" in done.stdout + done.stderr
    made = max(int(path.name[5:]) for path in checkpoints.glob("step_*"))
    assert 130 <= made <= 600

    monkeypatch.chdir(killed)
    run_script("train", ["--resume", str(run_in(killed).relative_to(killed))])
    assert len(list(checkpoints.glob("step_*"))) == 3
    assert [path.name for path in run_in(killed).parent.iterdir()] == ["Pendulum-v1_1"]
    (evaluations, rows, parameters), (again, rows_again, parameters_again) = whole, left_in(killed)
    assert again["timesteps"].tolist() == [100, 200, 300, 400, 500, 600]
    assert all(np.array_equal(evaluations[name], again[name]) for name in evaluations)
    assert rows == rows_again
    assert all(th.equal(parameters[name], parameters_again[name]) for name in parameters)


def test_a_run_of_a_preset_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_script("train", ["--preset", "tch_rs", "-n", "60", "--checkpoint-every", "30", *SETTINGS])
    (run_in(tmp_path) / "Pendulum-v1.zip").unlink()
    capsys.readouterr()
    run_script("train", ["--resume", str(run_in(tmp_path))])
    assert "Continuing from" in capsys.readouterr().out
    assert (run_in(tmp_path) / "Pendulum-v1.zip").exists()


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, words in {
        ("--resume", "nowhere"): "checkpoints",
        ("--resume", "nowhere", "--seed", "3"): "--seed",
        ("--checkpoint-every", "0"): "at least 1",
        ("--checkpoint-every", "5", "--keep", "0"): "at least 1",
        ("--keep", "2"): "--checkpoint-every",
        ("--checkpoint-every", "5", "--algo", "sac"): "--algo sac",
        ("--checkpoint-every", "5", "-optimize"): "-optimize",
    }.items():
        with pytest.raises(ArgumentError, match=words):
            run_script("train", list(arguments))
    assert list(tmp_path.iterdir()) == []


def test_saved_settings_are_read_as_data(tmp_path):
    file = tmp_path / "config.yml"
    file.write_text("!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/tuple [1, x]\n  - - b\n    - 2\n")
    assert read_saved(file) == {"a": (1, "x"), "b": 2}
    file.write_text(f"!!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(ArgumentError, match="RL Zoo"):
        read_saved(file)
    assert not (tmp_path / "ran").exists()
