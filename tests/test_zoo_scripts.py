"""RL Zoo's scripts as a user runs them: as commands in an empty folder, from the checkout and from an installed wheel."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gym_era
import huggingface_hub
import huggingface_sb3
import numpy as np
import optuna
import own_env
import pytest
from commands import ENVIRONMENT, command, output_of
from commands import ROOT as REPOSITORY
from matplotlib import image
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.cli import app, main
from sb3_ddpg_scratch.cli.zoo import HELP
from sb3_ddpg_scratch.diagnostics.recording_reader import read_recording
from sb3_ddpg_scratch.errors import MissingPackageError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.model_file import load_vec_normalize
from sb3_ddpg_scratch.zoo.scripts import SCRIPTS, run_script

TINY = ["-params", "policy_kwargs:dict(net_arch=[8])", "learning_starts:20", "batch_size:8", "qf_learning_rate:'lin_1e-3'"]


def installed_command(folder, wheel, *arguments):
    """Run ``python -m sb3_ddpg_scratch`` of a wheel in a folder; what it printed."""
    called = [sys.executable, "-m", "sb3_ddpg_scratch", *arguments]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(called, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which an agent was trained for 400 steps, and then continued for another 200."""
    folder = tmp_path_factory.mktemp("user")
    evaluated = ["--eval-freq", "100", "--eval-episodes", "2", "--seed", "1", "--num-threads", "1"]
    output = output_of(folder, "train", "-n", "400", *evaluated, "--save-replay-buffer", "--diagnostics", *TINY)
    assert "What happened is in logs/scratch_ddpg/Pendulum-v1_1/report.html" in output
    agent = "logs/scratch_ddpg/Pendulum-v1_1/Pendulum-v1.zip"
    output = output_of(folder, "train", "-n", "400", *evaluated, "-i", agent, *TINY)
    assert "Loading pretrained agent" in output
    assert "Loading replay buffer" in output
    return folder


def run_folder(folder, number):
    return folder / "logs" / "scratch_ddpg" / f"Pendulum-v1_{number}"


def test_lines_of_progress_while_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sb3_ddpg_scratch.terminal.ProgressLines.seconds_between", 0.0)
    run_script("train", ["-n", "20", "--eval-freq", "-1", *TINY])
    printed = capsys.readouterr().out
    assert "Training for 20 steps with networks [8]; observations are not normalized." in printed
    assert "no settings for" not in printed  # the file has some for Pendulum-v1
    assert re.findall(r"(\d+) of 20 steps \((\d+)%\)", printed) == [(str(n), str(5 * n)) for n in range(1, 21)]


def test_train(folder):
    model = ScratchDDPG.load(run_folder(folder, 1) / "Pendulum-v1.zip")
    assert model.num_timesteps == 400
    assert model._n_updates == 380
    assert model.policy.net_arch == [8]
    assert model.gamma == 0.98  # of our YAML, where Pendulum-v1's entry says so
    assert model.qf_learning_rate(0.5) == 5e-4
    evaluations = np.load(run_folder(folder, 1) / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200, 300, 400]
    assert np.all(evaluations["results"] < 0)


def test_diagnostics_are_recorded_and_drawn_beside_the_agent(folder):
    recording = read_recording(run_folder(folder, 1))
    assert recording.tables["episode"]["step"].tolist() == [200, 400]
    assert "Episode return" in (run_folder(folder, 1) / "report.html").read_text()
    assert not (run_folder(folder, 2) / "report.html").exists()


def test_diagnostics_are_not_for_tuning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="--diagnostics"):
        run_script("train", ["--diagnostics", "-optimize", "--n-trials", "1"])


def test_continued_agent_went_on_from_the_first(folder):
    first = ScratchDDPG.load(run_folder(folder, 1) / "Pendulum-v1.zip")
    second = ScratchDDPG.load(run_folder(folder, 2) / "Pendulum-v1.zip")
    # Counted anew by the Zoo; updates and noise go on. Twenty steps are collected first again.
    assert second._n_updates == first._n_updates + 380
    assert second.action_noise.num_steps == 800


def test_enjoy_is_the_trained_agent(folder):
    output = output_of(folder, "enjoy", "--no-render", "-n", "400", "--exp-id", "1")
    returns = [float(value) for value in re.findall(r"Episode Reward: (\S+)", output)]
    assert len(returns) == 2
    assert f"Mean reward: {np.mean(returns):.2f}" in output


def test_plots(folder, monkeypatch, capsys):
    output = output_of(folder, "all-plots", "-e", "Pendulum-v1", "-f", "logs", "-o", "gathered", "--picture", "all.png")
    assert re.search(r"\|Pendulum-v1 \|-\d+ \+/- \d+ *\|", output)
    output_of(folder, "plot-train", "-e", "Pendulum-v1", "-f", "logs", "-w", "1", "--picture", "train.png")
    monkeypatch.chdir(folder)
    run_script("plot-from-file", ["-i", "gathered.pkl", "--no-million", "--picture", "deep/file.png"])
    assert "keys: ['SCRATCH_DDPG-logs']" in capsys.readouterr().out
    for name in ("all.png", "deep/file-1.png", "train.png"):
        picture = image.imread(folder / name)[..., :3]
        # Curves of the first colors of Seaborn's palette (#4C72B0), on its gray.
        assert np.any(np.all(np.abs(picture - np.array([0x4C, 0x72, 0xB0]) / 255) < 0.01, axis=-1)), name
    assert not list(folder.rglob("*.tmp*"))


def test_plots_of_a_single_run(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(run_folder(folder, 1), tmp_path / "logs" / "scratch_ddpg" / "Pendulum-v1_1")
    monkeypatch.chdir(tmp_path)
    run_script("all-plots", ["-e", "Pendulum-v1", "-f", "logs", "-o", "gathered", "--no-display"])
    run_script("plot-from-file", ["-i", "gathered.pkl", "--skip-timesteps", "--boxplot", "--picture", "box.pdf"])
    assert "Skipping" not in capsys.readouterr().out
    assert [path.read_bytes()[:4] for path in tmp_path.glob("box-*.pdf")] == [b"%PDF", b"%PDF"]


def test_runs_of_unequal_length_are_told(folder, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "logs" / "scratch_ddpg"
    for number in (1, 2):
        shutil.copytree(run_folder(folder, 1), runs / f"Pendulum-v1_{number}")
    monkeypatch.chdir(tmp_path)
    run_script("all-plots", ["-e", "Pendulum-v1", "-f", "logs", "--no-display"])
    assert "unequal" not in capsys.readouterr().out
    evaluations = dict(np.load(runs / "Pendulum-v1_2" / "evaluations.npz"))
    # As many evaluations, ten times as far apart: the Zoo averages them as if they were at the same steps.
    np.savez(runs / "Pendulum-v1_2" / "evaluations.npz", **evaluations | {"timesteps": 10 * evaluations["timesteps"]})
    run_script("all-plots", ["-e", "Pendulum-v1", "-f", "logs", "--no-display", "-print"])
    printed = capsys.readouterr().out
    assert "Runs of scratch_ddpg on Pendulum-v1 in logs have unequal lengths (400, 4,000 steps)" in printed
    assert "Pendulum-v1-SCRATCH_DDPG-logs: 2" in printed


def test_optimize_and_train_with_a_trial(tmp_path, monkeypatch, capsys):
    study = ["--storage", "study/journal.log", "--study-name", "pendulum"]
    few = [
        "-n",
        "60",
        "--n-trials",
        "2",
        "--n-evaluations",
        "1",
        "--eval-episodes",
        "1",
        "--no-optim-plots",
        "--sampler",
        "random",
    ]
    kept = ["learning_starts:50", "policy_kwargs:dict(net_arch=[6])"]
    output = output_of(tmp_path, "train", "-optimize", *study, *few, "-params", *kept, "--seed", "1")
    assert output.count("finished with value") == 2
    assert "qf_learning_rate" in output
    # The command of the best trial trains with its settings.
    best = shlex.split(output[output.index("sb3-ddpg-scratch train --env Pendulum-v1 -n 60 -params") :].splitlines()[0])
    monkeypatch.chdir(tmp_path)
    run_script("train", [*best[2:], "--eval-freq", "-1"])
    trained = ScratchDDPG.load(run_folder(tmp_path, 2) / "Pendulum-v1.zip")
    assert (trained.policy.net_arch, trained.learning_starts) == ([6], 50)
    (report,) = (tmp_path / "logs" / "scratch_ddpg").glob("report_*.csv")
    assert "params_noise_kind" in report.read_text()

    # The search itself took the folder of the first run, and the command above that of the second.
    found = optuna.load_study(study_name="pendulum", storage=JournalStorage(JournalFileBackend(study[1]))).trials
    for number in (0, 1):
        run_script("train", [*study, "--trial-id", str(number), "-n", "60", "--eval-freq", "-1", "-params", *kept])
        assert "Loading from Optuna study" in capsys.readouterr().out
        model = ScratchDDPG.load(run_folder(tmp_path, 3 + number) / "Pendulum-v1.zip")
        assert model.learning_rate(1.0) == found[number].params["learning_rate"]
        assert (model.policy.net_arch, model.policy.norm) == ([6], found[number].params["norm"])
        if found[number].value == max(trial.value for trial in found):
            assert trained.qf_learning_rate(1.0) == model.qf_learning_rate(1.0)
            assert repr(trained.action_noise) == repr(model.action_noise)
        assert model.gradient_steps == -1
    with pytest.raises(ArgumentError, match="--trial-id must be a trial of the study pendulum: 0, 1, got 77"):
        run_script("train", [*study, "--trial-id", "77"])
    with pytest.raises(ArgumentError, match=r"--study-name must be a study in study/journal.log .*, got 'other'"):
        run_script("train", [*study[:3], "other", "--trial-id", "1"])
    assert not run_folder(tmp_path, 5).exists()
    # Another part of the study, with the same seed, does not repeat the first.
    few[3] = "1"
    output = output_of(tmp_path, "train", "-optimize", *study, *few, "-params", *kept, "--seed", "1")
    rates = [float(rate) for rate in re.findall(r"'learning_rate': (\S+),", output)]
    assert rates
    assert not {trial.params["learning_rate"] for trial in found} & set(rates)


def test_benchmark_plays_an_agent(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["--log-dir", "logs", "--no-hub", "-n", "400", "--test-mode", "--benchmark-dir", "benchmark"]
    run_script("benchmark", arguments)
    assert re.search(r"scratch_ddpg *\|Pendulum-v1 *\| *-\d+", (folder / "benchmark" / "benchmark.md").read_text())


def test_record_video(folder, monkeypatch):
    pytest.importorskip("moviepy", reason="of RL Zoo's extras")
    monkeypatch.chdir(folder)
    run_script("record-video", ["-n", "20", "--exp-id", "1", "-o", "video"])
    (video,) = (folder / "video").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_hub_and_back(folder, monkeypatch):
    """Everything but the network: what is uploaded is what is downloaded."""
    monkeypatch.chdir(folder)
    hub = {}
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda *_, **__: "https://hub.test/someone")
    monkeypatch.setattr(api, "snapshot_download", lambda *_, **options: os.makedirs(options["local_dir"]))
    monkeypatch.setattr(api, "upload_folder", lambda *_, **options: hub.update(options))
    run_script("push-to-hub", ["-f", "logs", "--env", "Pendulum-v1", "-orga", "someone", "--exp-id", "1", "--no-render"])
    assert hub["repo_id"] == "someone/scratch_ddpg-Pendulum-v1"
    card = (Path(hub["folder_path"]) / "README.md").read_text()
    assert "**ScratchDDPG** Agent playing **Pendulum-v1**" in card
    assert "model-index" in card

    def download(_, filename):
        if filename == "vec_normalize.pkl":
            import requests

            raise requests.exceptions.HTTPError
        return str(Path(hub["folder_path"]) / filename)

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", download)
    run_script("load-from-hub", ["--env", "Pendulum-v1", "-f", "downloaded", "-orga", "someone"])
    there = ScratchDDPG.load(folder / "downloaded" / "scratch_ddpg" / "Pendulum-v1_1" / "Pendulum-v1.zip")
    assert there._n_updates == 380


def test_an_agent_of_the_gym_era_is_played(tmp_path, monkeypatch, capsys):
    """In the layout of RL Zoo's public collection: as SB3 plays it, given what it cannot read."""
    monkeypatch.chdir(tmp_path)
    model = DDPG("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=2, device="cpu", buffer_size=10)
    mean, variance = np.array([0.1, 0.2, 0.5]), np.array([0.5, 2.0, 9.0])
    gym_era.write_agent(tmp_path / "rl-trained-agents", model, mean, variance)
    run_script("enjoy", ["--algo", "ddpg", "--env", "Pendulum-v1", "--no-render", "-n", "400", "--device", "cpu"])
    played = [float(value) for value in re.findall(r"Episode Reward: (\S+)", capsys.readouterr().out)]
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    observations, rewards = env.reset(), []
    for _ in range(400):
        normalized = np.clip((observations - mean) / np.sqrt(variance + 1e-8), -10, 10).astype(np.float32)
        observations, reward, _, _ = env.step(model.predict(normalized, deterministic=True)[0])
        rewards.append(reward[0])
    assert played == pytest.approx([sum(rewards[:200]), sum(rewards[200:])], abs=0.01)


def test_agents_are_played_back_with_little_memory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sizes = []
    setup = ScratchDDPG._setup_model
    monkeypatch.setattr(ScratchDDPG, "_setup_model", lambda self: (sizes.append(self.buffer_size), setup(self))[1])
    run_script("enjoy", ["--no-render", "-n", "1"])
    assert sizes == [1]


def test_help_is_the_zoos_and_ours(capsys):
    for name in SCRIPTS:
        with pytest.raises(SystemExit) as caught:
            run_script(name, ["--help"])
        assert caught.value.code == 0
        output = capsys.readouterr().out
        assert "added by sb3-ddpg-scratch" in output
        assert ("--preset NAME" in output) == (name == "train")
        assert ("--picture FILE" in output) == ("plot" in name)
        if name == "train":
            assert "--optimize-hyperparameters" in output
            assert "scratch_ddpg,"[:-1] in output.split("--algo", 2)[1]
    assert set(HELP) == set(SCRIPTS)


def test_help_is_passed_on():
    result = CliRunner().invoke(app, ["train", "--help"])
    assert result.exit_code == 0
    assert "--optimize-hyperparameters" in result.output


def test_other_algorithms_keep_their_own_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["-n", "20", "--eval-freq", "-1", "--env", "Pendulum-v1", "-params", "learning_starts:10", "buffer_size:100"]
    run_script("train", ["--algo", "td3", *options])
    output = capsys.readouterr().out
    assert re.search(r"Loading hyperparameters from: .*rl_zoo3/hyperparams/td3.yml", output)
    assert (tmp_path / "logs" / "td3" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()


def test_other_algorithms_have_diagnostics_and_locks_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["-n", "20", "--eval-freq", "-1", "--env", "Pendulum-v1", "-params", "learning_starts:10", "buffer_size:100"]
    run_script("train", ["--algo", "ddpg", "--diagnostics", *options])
    run = tmp_path / "logs" / "ddpg" / "Pendulum-v1_1"
    assert read_recording(run).header
    assert (run / "report.html").is_file()
    assert (run / ".lock").exists()
    # Released with the command: the next one in this process may have the folder.
    with hold_folder(run, "run"):
        pass


def test_runs_are_tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun, late = [], []
    run = SimpleNamespace(config=SimpleNamespace(setdefaults=late.append))
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **given: begun.append(given | {"config": dict(given["config"])}) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_script("train", ["--track", "-tags", "a", "b", "-n", "30", "--eval-freq", "-1", "--seed", "3", *TINY])
    ((given,), (settings,)) = begun, late
    assert given["name"].startswith("Pendulum-v1__scratch_ddpg__3__")
    assert (given["tags"][:2], given["project"], given["config"]["n_timesteps"]) == (["a", "b"], "sb3", 30)
    assert settings["saved_hyperparams"]["batch_size"] == 8
    assert list((tmp_path / "runs" / given["name"]).rglob("events.*"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"--track needs wandb, which is not installed: pip install wandb$"):
        run_script("train", ["--track"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--preset", "tchrs"], "--preset must be .*got 'tchrs'.*Did you mean 'tch_rs'"),
        ("train", ["--preset", "tch_rs", "--algo", "td3"], "--preset cannot be combined with --algo td3"),
        ("train", ["--preset", "tch_rs", "-conf", "a.yml"], "--preset cannot be combined with --conf-file"),
        (
            "train",
            ["--preset", "tch_rs", "--env", "Hopper-v5"],
            "--env must be .*tch_rs.yml has settings for: Pendulum-v1, got 'Hopper-v5'",
        ),
        ("train", ["--env", "Pendulm-v1"], "--env must be .*, got 'Pendulm-v1'. Did you mean .*'Pendulum-v1'"),
        ("train", ["-i", "missing.zip"], "--trained-agent must be .*, got 'missing.zip'"),
        ("train", ["-conf", "missing.yml"], "No such file"),
        ("enjoy", ["--env", "Pendulm-v1"], "'Pendulum-v1'"),
        ("train", ["-params", "lr:0.1"], "got 'lr'. Did you mean 'learning_rate'"),
        ("train", ["-params", "lr"], "-params must be key:value, .*, got 'lr'. SyntaxError"),
        ("train", ["-params", "gamma:foo"], "-params must be key:value, .*, got 'gamma:foo'. NameError.*needs quotes"),
        ("train", ["-params", "n_envs:0"], "n_envs must be a whole number, at least 1, got 0"),
        ("train", ["-params", "n_timesteps:'x'"], "n_timesteps must be a whole number"),
        ("train", ["-params", "frame_stack:'x'"], "frame_stack must be a whole number"),
        ("train", ["-params", "policy:3"], "policy must be the name of a policy, got 3"),
        ("train", ["-params", "policy_kwargs:3"], "policy_kwargs must be a mapping, got 3"),
        ("train", ["-params", "normalize:3"], "normalize must be a mapping, got 3"),
        (
            "train",
            ["-params", "normalize:True", "frame_stack:2"],
            "normalize cannot be combined with frame_stack, .*vec_env_wrapper: .*VecFrameStack: {n_stack: 2}",
        ),
        ("train", ["-params", "env_wrapper:'missing.Wrapper'"], "cannot be imported .No module named 'missing'"),
        ("train", ["-params", "callback:'gymnasium.Missing'"], "cannot be imported .*'Missing'"),
        ("train", ["-conf", "missing"], "--conf-file must be a module that can be imported .*'missing'"),
        (
            "train",
            ["--checkpont-every", "5"],
            "unrecognized arguments: --checkpont-every 5. Did you mean '--checkpoint-every'",
        ),
        ("train", ["-n", "x"], "train: argument -n/--n-timesteps: invalid int value: 'x'"),
        ("train", ["-n", "0"], "--n-timesteps cannot be 0"),
        ("train", ["--log-interval", "0"], "--log-interval cannot be 0"),
        ("train", ["--eval-episodes", "0"], "--eval-episodes must be at least 1, got 0"),
        ("train", ["-optimize", "--n-trials", "-1"], "--n-trials must be at least 1, got -1"),
        ("train", ["--seed", "4294967296"], "--seed must be .* below 4294967296, got 4294967296"),
        ("train", ["--device", "gpu"], "--device must be auto, cpu, .*, got 'gpu'"),
        ("train", ["--truncate-last-trajectory", "no"], "true or false, not 'no'"),
        ("train", ["--keep", "2"], "--keep needs --checkpoint-every"),
        ("train", ["--diagnostics", "-optimize"], "--diagnostics cannot be combined with -optimize. Train"),
        ("train", ["--checkpoint-every", "5", "-optimize"], "--checkpoint-every cannot be combined with -optimize"),
        ("train", ["--checkpoint-every", "5", "--algo", "td3"], "--checkpoint-every cannot be combined with --algo td3"),
        ("train", ["--data", "missing.npz"], "--data must be a file of transitions, got 'missing.npz'"),
        ("train", ["--data", "log.npz", "-optimize"], "--data cannot be combined with -optimize"),
        ("train", ["--data", "log.npz", "--algo", "td3"], "--data cannot be combined with --algo td3"),
        ("train", ["--resume", "run", "--seed", "3"], "--resume cannot be combined with --seed. A resumed run"),
        ("train", ["--trial-id", "3"], "--trial-id needs --storage and --study-name"),
        ("train", ["--trial-id", "3", "--storage", "a.log", "--study-name", "s"], "--storage must be the storage of a study"),
        ("enjoy", ["--env-kwargs", "size"], "--env-kwargs must be key:value"),
        ("enjoy", ["--n-envs", "0"], "--n-envs must be at least 1, got 0"),
        ("enjoy", ["--seed", "-5"], "--seed must be at least 0"),
        ("enjoy", ["--device", "gpu"], "--device must be auto"),
        ("record-training", [], "a folder with trained agents in logs/scratch_ddpg"),
        ("enjoy", [], "a folder with trained agents in logs/scratch_ddpg"),
        ("record-video", [], "a folder with trained agents in logs/scratch_ddpg"),
        (
            "plot-train",
            ["-e", "Pendulum-v1", "-f", "logs"],
            "--exp-folder must be a folder with runs in logs/scratch_ddpg, got 'logs'",
        ),
        ("plot-from-file", ["-i", "gathered.pkl"], "--input must be a file.*, got 'gathered.pkl'"),
    ],
)
def test_bad_input_makes_nothing(tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        run_script(name, arguments)
    assert list(tmp_path.iterdir()) == []


def test_train_with_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = {"terminations": np.zeros(30), "truncations": np.arange(30) == 29}
    np.savez("log.npz", observations=np.ones((31, 3)), actions=np.full((30, 1), 0.5), rewards=np.ones(30), **flags)
    run_script("train", ["-n", "60", "--data", "log.npz", "--save-replay-buffer", "--verbose", "0", *TINY])
    assert "Stored 30 transitions, mean reward 1; episodes: 0 terminated, 1 cut off." in capsys.readouterr().out
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", buffer_size=1000, updater="analytic")
    model.load_replay_buffer(run_folder(tmp_path, 1) / "replay_buffer.pkl")
    assert model.replay_buffer.size() == 90
    assert model.replay_buffer.actions[:30].ravel().tolist() == [0.25] * 30


@pytest.mark.parametrize("command", ["enjoy", "record-video"])
def test_what_was_chosen_and_is_not_there_is_named(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    saved, there = run_folder(folder, 1) / "rl_model_100_steps.zip", r"which does not exist. The checkpoints there: 100\."
    with pytest.raises(ArgumentError, match=r"--load-last-checkpoint chooses .*rl_model_\*_steps.zip, .*--save-freq"):
        run_script(command, ["--load-last-checkpoint", "--exp-id", "1"])
    saved.touch()
    try:
        with pytest.raises(ArgumentError, match=f"--load-checkpoint chooses .*_1/rl_model_999_steps.zip, {there}"):
            run_script(command, ["--load-checkpoint", "999", "--exp-id", "1"])
    finally:
        saved.unlink()
    with pytest.raises(ArgumentError, match=r"--exp-id must be one of the runs in logs/scratch_ddpg: 1, 2, got 7"):
        run_script(command, ["--exp-id", "7"])
    (folder / "logs" / "scratch_ddpg" / "Pendulum-v1_3").mkdir()  # as a search leaves one
    try:
        with pytest.raises(ArgumentError, match=r"--exp-id chooses .*Pendulum-v1_3/Pendulum-v1.zip, which does not exist"):
            run_script(command, [])
    finally:
        (folder / "logs" / "scratch_ddpg" / "Pendulum-v1_3").rmdir()


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        (
            "train",
            ["-f", "other", "--env-kwargs", "size:3"],
            "--env-kwargs or .* env_kwargs do not fit the environment: .*'size'",
        ),
        (
            "enjoy",
            ["--no-render", "--env-kwargs", "size:3"],
            "--env-kwargs or .* env_kwargs do not fit the environment: .*'size'",
        ),
        (
            "all-plots",
            ["-e", "Pendulum-v1", "-f", "logs", "--no-display", "-k", "missing"],
            "all-plots cannot draw this .*missing",
        ),
        (
            "all-plots",
            ["-e", "Pendulum-v1", "-f", "logs", "--no-display", "-max", "-5"],
            "all-plots cannot draw this .IndexError",
        ),
    ],
)
def test_what_only_an_environment_or_a_plot_can_judge(folder, monkeypatch, command, arguments, problem):
    monkeypatch.chdir(folder)
    with pytest.raises(ArgumentError, match=problem):
        run_script(command, arguments)


def test_stacked_frames_are_normalized_as_the_error_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stack = "vec_env_wrapper:[{'stable_baselines3.common.vec_env.VecFrameStack': {'n_stack': 2}}]"
    run_script("train", ["-n", "60", "--eval-freq", "-1", *TINY, "normalize:True", stack])
    model = ScratchDDPG.load(run_folder(tmp_path, 1) / "Pendulum-v1.zip")
    assert (model.observation_space.shape, model.observations_normalized) == ((6,), True)
    run_script("enjoy", ["--no-render", "-n", "200"])
    assert "Mean reward" in capsys.readouterr().out


def test_nothing_to_plot_makes_no_picture(folder, monkeypatch):
    """No run is as long as the window, and none is of that environment."""
    monkeypatch.chdir(folder)
    for arguments in (["-e", "Pendulum-v1", "-w", "50"], ["-e", "Ant-v5", "-w", "1"]):
        with pytest.raises(ArgumentError, match=r"--exp-folder logs has nothing to plot\. .*--episode-window"):
            run_script("plot-train", [*arguments, "-f", "logs", "--picture", "none.png"])
    with pytest.raises(ArgumentError, match=r"--exp-folders \['logs'\] has nothing to plot"):
        run_script("all-plots", ["-e", "Ant-v5", "-f", "logs", "--picture", "none.png"])
    assert not Path("none.png").exists()


def test_settings_are_read_before_anything_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yml").write_text("default: {n_timesteps: 100, policy: MlpPolicy, critic_lr: 1e-3}")
    with pytest.raises(ArgumentError, match=r"own.yml: default: key must be .*, got 'critic_lr'"):
        run_script("train", ["-conf", "own.yml"])
    with pytest.raises(ArgumentError, match=r"-params over .*key must be .*, got 'critic_lr'"):
        run_script("train", ["-params", "critic_lr:1e-3"])
    assert capsys.readouterr().out == ""


def test_bad_picture_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ArgumentError, match=r"--picture must be .*\.png.*, got 'a.docx'"):
        run_script("plot-train", ["-e", "Pendulum-v1", "-f", "logs", "-w", "1", "--picture", "a.docx"])


def test_error_of_a_command_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3-ddpg-scratch", "train", "--preset", "tchrs"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("Error: --preset must be ")


def test_zoo_is_imported_only_where_it_is_needed():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sb3_ddpg_scratch.cli import app\n"
        "result = CliRunner().invoke(app, ['parity', '--steps', '120', '--net-arch', '8'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not [name for name in sys.modules if name.startswith(('rl_zoo3', 'optuna', 'sb3_contrib'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder that holds the package as its wheel installs it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy, since building leaves files behind.
    names = ["sb3_ddpg_scratch", "hyperparams"]
    for name in names:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(built)], check=True)
    return folder / "site"


def test_installed_wheel(wheel, tmp_path):
    assert not (wheel / "hyperparams").exists()
    # Without a compiler: in another folder the kernels would be compiled once more.
    without = ["--eval-freq", "-1", "-params", "updater:'autograd'"]
    output = installed_command(tmp_path, wheel, "train", "--preset", "simple_rl", "-n", "400", *without)
    assert f"Loading hyperparameters from: {wheel}/sb3_ddpg_scratch/hyperparams/simple_rl.yml" in output
    model = ScratchDDPG.load(run_folder(tmp_path, 1) / "Pendulum-v1.zip")
    assert (model.gamma, model._n_updates) == (0.98, 400)
    assert "Mean reward" in installed_command(tmp_path, wheel, "enjoy", "--no-render", "-n", "200")


def test_best_model_and_checkpoints_have_their_own_statistics(tmp_path):
    own_env.write_module(tmp_path)
    settings = ["normalize:True", "policy_kwargs:dict(net_arch=[8])", "learning_starts:20", "batch_size:8"]
    options = ["-n", "300", "--eval-freq", "100", "--eval-episodes", "1", "--save-freq", "100", "--seed", "1"]
    printed = output_of(tmp_path, "train", "--env", "trolley:Trolley-v0", *options, "-params", *settings)
    assert "Training for 300 steps with networks [8]; observations are normalized." in printed
    assert "scratch_ddpg.yml has no settings for Trolley-v0: these are the defaults. To change them: -n STEPS" in printed
    run = tmp_path / "logs" / "scratch_ddpg" / "Trolley-v0_1"
    models = {"best_model.zip": ["--load-best"], "rl_model_100_steps.zip": ["--load-checkpoint", "100"], "Trolley-v0.zip": []}
    for name, chosen in models.items():
        model = ScratchDDPG.load(run / name)
        played = output_of(tmp_path, "enjoy", "--env", "trolley:Trolley-v0", "--no-render", "-n", "30", *chosen)
        file = tmp_path / re.search(r"With the statistics of VecNormalize in (\S+)", played)[1]
        # VecNormalize counts the first reset and each step, on top of 1e-4.
        assert load_vec_normalize(file, None).obs_rms.count == pytest.approx(model.num_timesteps + 1, abs=1e-3), name
        assert f"in {file}" in output_of(tmp_path, "export", run / name, "--out", "a.pt2")
    for file in (run / "vecnormalize.pkl", run / "Trolley-v0/vecnormalize.pkl"):
        shutil.copyfile(run / "rl_model_vecnormalize_100_steps.pkl", file)
    failed = command(tmp_path, "enjoy", "--env", "trolley:Trolley-v0", "--no-render")
    assert failed.returncode == 2
    assert "it was saved with other statistics of VecNormalize than those in" in failed.stderr
